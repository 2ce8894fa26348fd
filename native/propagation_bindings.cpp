// vglm._native.Propagation: relational message passing over a graph given as arrays.
#include <nanobind/stl/string.h>

#include <climits>
#include <stdexcept>
#include <string>

#include "arrays.hpp"
#include "kernels.hpp"
#include "propagation.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace vglm {
namespace {

using Floats = Array<float>;
using Matrix = Array<float, 2>;
using WritableMatrix = WritableArray<float, 2>;
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

const Kernels& kernels(const std::string& isa) {
  const Kernels* found = find_kernels(isa.c_str());
  require(found, "instruction set '" + isa + "' is not available on this machine");
  return *found;
}

int32_t message_width(size_t width, int most) {
  require(width >= 16 && width % 16 == 0 && (int64_t)width <= most, "widths must be multiples of 16, at most " + std::to_string(most));
  return (int32_t)width;
}

void mix_messages(const std::string& isa, WritableMatrix states, Matrix received, Floats mean, Matrix mix, Floats bias, Floats gain,
                  Floats shift, float epsilon) {
  const Kernels& kernel = kernels(isa);
  const size_t rows = states.shape(0), width = states.shape(1);
  message_width(width, kMaxMessageWidth);
  require(received.shape(0) == rows && received.shape(1) == width && mean.shape(0) == rows, "a message and a mean for each state");
  require(mix.shape(0) == 3 * width && mix.shape(1) == width, "mix must be [3 * width, width]");
  for (const Floats* vector : {&bias, &gain, &shift}) require(vector->shape(0) == width, "bias, gain and shift must be [width]");
  const MessageLayer layer{(int32_t)width, epsilon, mix.data(), bias.data(), gain.data(), shift.data()};
  nb::gil_scoped_release release;
  kernel.mix_messages(layer, received.data(), mean.data(), (int64_t)rows, states.data());
}

void score_states(const std::string& isa, Matrix states, Matrix weight, Floats bias, Floats out, float out_bias,
                  WritableArray<float, 1> scores) {
  const Kernels& kernel = kernels(isa);
  const ScoreLayer layer{message_width(states.shape(1), kMaxMessageWidth), message_width(weight.shape(1), 2 * kMaxMessageWidth),
                         weight.data(), bias.data(), out.data(), out_bias};
  require(weight.shape(0) == states.shape(1), "weight must be [width, hidden]");
  require(bias.shape(0) == weight.shape(1) && out.shape(0) == weight.shape(1), "bias and out must be [hidden]");
  require(scores.shape(0) == states.shape(0), "a score for each state");
  nb::gil_scoped_release release;
  kernel.score_states(layer, states.data(), (int64_t)states.shape(0), scores.data());
}

}  // namespace

void bind_propagation(nb::module_& m) {
  m.def("mix_messages", &mix_messages, "isa"_a, "states"_a.noconvert(), "received"_a, "mean"_a, "mix"_a, "bias"_a, "gain"_a,
        "shift"_a, "epsilon"_a);
  m.def("score_states", &score_states, "isa"_a, "states"_a, "weight"_a, "bias"_a, "out"_a, "out_bias"_a, "scores"_a.noconvert());
  nb::class_<Propagation>(m, "Propagation")
      .def(nb::init<Longs, Ints, Ints, int32_t>(), "start"_a, "source"_a, "relation"_a, "num_relations"_a)
      .def("aggregate", &Propagation::aggregate, "states"_a, "weights"_a, "out"_a.noconvert())
      .def("weight_gradient", &Propagation::weight_gradient, "states"_a, "gradient"_a, "out"_a.noconvert());
}

}  // namespace vglm
