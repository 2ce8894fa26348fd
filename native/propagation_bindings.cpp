// vglm._native.Propagation: relational message passing over a graph given as arrays.
#include <climits>
#include <stdexcept>
#include <string>

#include "arrays.hpp"
#include "propagation.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace vglm {
namespace {

using Batch = Array<float, 3>;
using WritableBatch = WritableArray<float, 3>;

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument("Propagation: " + what);
}

auto* item(const auto& batch, size_t index) { return batch.data() + index * batch.shape(1) * batch.shape(2); }

// Holds the arrays of the edges, whose bounds are checked once.
class Propagation {
 public:
  Propagation(Longs start, Ints source, Ints relation, int32_t relations)
      : start_(start), source_(source), relation_(relation), edges_{view(start), view(source), view(relation)}, relations_(relations) {
    const std::span<const int64_t> starts = edges_.start;
    require(!starts.empty() && starts.size() < INT32_MAX && relations >= 0, "too few or too many nodes or relations");
    require(starts[0] == 0 && starts.back() == (int64_t)source.shape(0), "starts do not fit the edges");
    for (size_t i = 0; i + 1 < starts.size(); i++) require(starts[i] <= starts[i + 1], "starts must not fall");
    require(source.shape(0) == relation.shape(0), "edge arrays differ in length");
    for (int32_t node : edges_.source) require(node >= 0 && node < edges_.num_nodes(), "a source is out of range");
    for (int32_t code : edges_.relation) require(code >= 0 && code < relations, "a relation is out of range");
  }

  void aggregate(Batch states, Batch weights, WritableBatch out) const {
    check(states, edges_.num_nodes(), states, "states");
    check(weights, relations_, states, "weights");
    check(out, edges_.num_nodes(), states, "out");
    nb::gil_scoped_release release;
    for (size_t b = 0; b < states.shape(0); b++)
      propagate(edges_, item(states, b), item(weights, b), (int64_t)states.shape(2), item(out, b));
  }

  void weight_gradient(Batch states, Batch gradient, WritableBatch out) const {
    check(states, edges_.num_nodes(), states, "states");
    check(gradient, edges_.num_nodes(), states, "gradient");
    check(out, relations_, states, "out");
    nb::gil_scoped_release release;
    for (size_t b = 0; b < states.shape(0); b++)
      propagate_weights(edges_, item(states, b), item(gradient, b), (int64_t)states.shape(2), item(out, b));
  }

 private:
  static void check(const auto& batch, int64_t rows, const Batch& like, const std::string& name) {
    require((int64_t)batch.shape(1) == rows && batch.shape(0) == like.shape(0) && batch.shape(2) == like.shape(2),
            name + " has another shape than the edges or the states");
  }

  Longs start_;
  Ints source_, relation_;
  EdgeArrays edges_;
  int64_t relations_;
};

}  // namespace

void bind_propagation(nb::module_& m) {
  nb::class_<Propagation>(m, "Propagation")
      .def(nb::init<Longs, Ints, Ints, int32_t>(), "start"_a, "source"_a, "relation"_a, "num_relations"_a)
      .def("aggregate", &Propagation::aggregate, "states"_a, "weights"_a, "out"_a.noconvert())
      .def("weight_gradient", &Propagation::weight_gradient, "states"_a, "gradient"_a, "out"_a.noconvert());
}

}  // namespace vglm
