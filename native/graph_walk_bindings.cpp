// vglm._native.GraphWalk: walks over a graph given as arrays.
#include <nanobind/stl/optional.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "graph_walk.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace vglm {
namespace {

using Mask = std::optional<Bytes>;

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument("GraphWalk: " + what);
}

void require_in_range(std::span<const int32_t> values, int64_t end, const std::string& what) {
  for (int32_t value : values)
    if (value < 0 || value >= end) throw std::invalid_argument("GraphWalk: " + what + " is out of range");
}

template <class T>
nb::object to_numpy(size_t rows, size_t columns, auto value) {
  T* data = new T[rows * columns + 1];
  nb::capsule owner(data, [](void* p) noexcept { delete[] (T*)p; });
  for (size_t i = 0; i < rows * columns; i++) data[i] = value(i);
  const size_t shape[2] = {rows, columns};
  return nb::cast(nb::ndarray<nb::numpy, T>(data, columns == 1 ? 1 : 2, shape, owner));
}

// Holds the arrays that the walks read.
class GraphWalk {
 public:
  GraphWalk(Longs out_start, Longs in_start, Ints source, Ints target, Ints relation, Ints in_edge, Ints node_type,
            int32_t relations, int32_t types)
      : arrays_{out_start, in_start, source, target, relation, in_edge, node_type}, relations_(relations), types_(types) {
    graph_ = {view(out_start), view(in_start), view(source), view(target), view(relation), view(in_edge), view(node_type)};
    const int64_t nodes = (int64_t)node_type.shape(0), edges = (int64_t)source.shape(0);
    require(nodes < INT32_MAX && edges < INT32_MAX, "too many nodes or edges");
    for (std::span<const int64_t> start : {graph_.out_start, graph_.in_start}) {
      require((int64_t)start.size() == nodes + 1 && start[0] == 0 && start.back() == edges, "starts do not fit the edges");
      for (size_t i = 0; i + 1 < start.size(); i++) require(start[i] <= start[i + 1], "starts must not fall");
    }
    for (size_t size : {target.shape(0), relation.shape(0), in_edge.shape(0)})
      require((int64_t)size == edges, "edge arrays differ in length");
    require_in_range(graph_.source, nodes, "a source");
    require_in_range(graph_.target, nodes, "a target");
    require_in_range(graph_.relation, relations, "a relation");
    require_in_range(graph_.in_edge, edges, "an incoming edge");
    require_in_range(graph_.node_type, types, "a node type");
  }

  nb::object pagerank(Ints seeds, Doubles weights, double restart, double epsilon, int32_t max_hops, int64_t degree_cap,
                      int64_t max_work, Mask relations, Mask types) const {
    require(seeds.shape(0) == weights.shape(0), "a weight for each seed");
    require(restart > 0 && restart <= 1 && epsilon > 0, "restart must lie in (0, 1] and epsilon above 0");
    for (double weight : view(weights)) require(std::isfinite(weight) && weight >= 0, "weights must be numbers from 0");
    const WalkLimits limits = read_limits(relations, types, degree_cap, max_work);
    require_in_range(view(seeds), graph_.num_nodes(), "a seed");
    Walked walked;
    {
      nb::gil_scoped_release release;
      walked = push_pagerank(graph_, view(seeds), view(weights), restart, epsilon, max_hops, limits);
    }
    return result(walked);
  }

  nb::object neighborhood(Ints seeds, int32_t hops, int64_t max_nodes, int64_t degree_cap, int64_t max_work, Mask relations,
                          Mask types) const {
    const WalkLimits limits = read_limits(relations, types, degree_cap, max_work);
    require_in_range(view(seeds), graph_.num_nodes(), "a seed");
    Walked walked;
    {
      nb::gil_scoped_release release;
      walked = vglm::neighborhood(graph_, view(seeds), hops, max_nodes, limits);
    }
    return result(walked);
  }

  nb::object shortest_paths(int32_t from, int32_t to, int32_t max_length, int32_t count, Doubles relation_cost, int64_t degree_cap,
                            int64_t max_work, Mask relations, Mask types) const {
    const WalkLimits limits = read_limits(relations, types, degree_cap, max_work);
    require(from >= 0 && from < graph_.num_nodes() && to >= 0 && to < graph_.num_nodes(), "an end is out of range");
    require((int64_t)relation_cost.shape(0) == relations_ && count >= 0, "a cost for each relation, and a count from 0");
    Paths found;
    {
      nb::gil_scoped_release release;
      found = vglm::shortest_paths(graph_, from, to, max_length, count, view(relation_cost), limits);
    }
    const size_t width = found.paths.empty() ? 0 : found.paths[0].nodes.size();
    nb::list paths;
    for (const Path& path : found.paths)
      paths.append(nb::make_tuple(to_numpy<int32_t>(width, 1, [&](size_t i) { return path.nodes[i]; }), path.cost));
    return nb::make_tuple(paths, found.complete);
  }

  nb::object edges_among(Ints nodes, int64_t max_edges, Mask relations) const {
    const WalkLimits limits = read_limits(relations, {}, 1, 0);
    const std::span<const int32_t> chosen = view(nodes);
    require_in_range(chosen, graph_.num_nodes(), "a node");
    for (size_t i = 0; i + 1 < chosen.size(); i++) require(chosen[i] < chosen[i + 1], "nodes must ascend");
    EdgesAmong found;
    {
      nb::gil_scoped_release release;
      found = vglm::edges_among(graph_, chosen, max_edges, limits);
    }
    return nb::make_tuple(to_numpy<int32_t>(found.edges.size(), 1, [&](size_t i) { return found.edges[i]; }), found.total);
  }

 private:
  WalkLimits read_limits(const Mask& relations, const Mask& types, int64_t degree_cap, int64_t max_work) const {
    require(degree_cap >= 1 && max_work >= 0, "degree_cap must be at least 1 and max_work at least 0");
    WalkLimits limits;
    if (relations) limits.relations = view(*relations);
    if (types) limits.types = view(*types);
    require(!relations || (int64_t)relations->shape(0) == relations_, "the mask of relations has another length");
    require(!types || (int64_t)types->shape(0) == types_, "the mask of types has another length");
    limits.degree_cap = degree_cap;
    limits.max_work = max_work;
    return limits;
  }

  static nb::object result(const Walked& walked) {
    const std::vector<WalkedNode>& nodes = walked.nodes;
    return nb::make_tuple(to_numpy<int32_t>(nodes.size(), 1, [&](size_t i) { return nodes[i].node; }),
                          to_numpy<int32_t>(nodes.size(), 1, [&](size_t i) { return nodes[i].hops; }),
                          to_numpy<double>(nodes.size(), 1, [&](size_t i) { return nodes[i].score; }), walked.work,
                          walked.passed_over, walked.complete);
  }

  struct Arrays {
    Longs out_start, in_start;
    Ints source, target, relation, in_edge, node_type;
  } arrays_;
  GraphArrays graph_;
  int64_t relations_, types_;
};

}  // namespace

void bind_graph_walk(nb::module_& m) {
  nb::class_<GraphWalk>(m, "GraphWalk")
      .def(nb::init<Longs, Longs, Ints, Ints, Ints, Ints, Ints, int32_t, int32_t>(), "out_start"_a, "in_start"_a, "source"_a,
           "target"_a, "relation"_a, "in_edge"_a, "node_type"_a, "num_relations"_a, "num_types"_a)
      .def("pagerank", &GraphWalk::pagerank, "seeds"_a, "weights"_a, "restart"_a, "epsilon"_a, "max_hops"_a, "degree_cap"_a,
           "max_work"_a, "relations"_a.none() = nb::none(), "types"_a.none() = nb::none())
      .def("neighborhood", &GraphWalk::neighborhood, "seeds"_a, "hops"_a, "max_nodes"_a, "degree_cap"_a, "max_work"_a,
           "relations"_a.none() = nb::none(), "types"_a.none() = nb::none())
      .def("shortest_paths", &GraphWalk::shortest_paths, "source"_a, "target"_a, "max_length"_a, "count"_a, "relation_cost"_a,
           "degree_cap"_a, "max_work"_a, "relations"_a.none() = nb::none(), "types"_a.none() = nb::none())
      .def("edges_among", &GraphWalk::edges_among, "nodes"_a, "max_edges"_a, "relations"_a.none() = nb::none());
}

}  // namespace vglm
