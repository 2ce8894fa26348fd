#include "graph_walk.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace vglm {
namespace {

// Nodes that a walk has met, numbered in the order in which it met them: open addressing, twice as large as it is full.
class NodeNumbers {
 public:
  NodeNumbers() : slots_(1024, -1) {}

  // The number of a node, a new one if it has none.
  int32_t number(int32_t node) {
    if (nodes_.size() * 2 >= slots_.size()) grow();
    int32_t& slot = slots_[find(node)];
    if (slot < 0) {
      slot = (int32_t)nodes_.size();
      nodes_.push_back(node);
    }
    return slot;
  }
  // The number of a node, or -1.
  int32_t known(int32_t node) const { return slots_[find(node)]; }
  const std::vector<int32_t>& nodes() const { return nodes_; }

 private:
  size_t find(int32_t node) const {
    const size_t mask = slots_.size() - 1;
    size_t slot = (size_t)(((uint64_t)(uint32_t)node * 0x9E3779B97F4A7C15ull) >> 32) & mask;
    while (slots_[slot] >= 0 && nodes_[(size_t)slots_[slot]] != node) slot = (slot + 1) & mask;
    return slot;
  }
  void grow() {
    slots_.assign(slots_.size() * 2, -1);
    for (size_t i = 0; i < nodes_.size(); i++) slots_[find(nodes_[i])] = (int32_t)i;
  }

  std::vector<int32_t> slots_, nodes_;
};

std::vector<WalkedNode> by_node(std::vector<WalkedNode> nodes) {
  std::sort(nodes.begin(), nodes.end(), [](const WalkedNode& a, const WalkedNode& b) { return a.node < b.node; });
  return nodes;
}

// One side of a bidirectional search: a breadth-first tree of the cheapest ways to each node of a level.
struct Side {
  NodeNumbers numbers;
  std::vector<int32_t> level, parent;  // by number; the parent is a number too
  std::vector<double> cost;            // of the edges on the way here and of the nodes between, this one included
  std::vector<int32_t> frontier;       // numbers
  int32_t depth = 0;

  explicit Side(int32_t start) : level{0}, parent{-1}, cost{0.0}, frontier{numbers.number(start)} {}

  int64_t width(const GraphArrays& graph, int64_t cap) const {
    int64_t sum = 0;
    for (int32_t n : frontier) sum += std::min(graph.degree(numbers.nodes()[(size_t)n]), cap);
    return sum;
  }
  // From the given node back to where this side started.
  std::vector<int32_t> way(int32_t number) const {
    std::vector<int32_t> nodes;
    for (; number >= 0; number = parent[(size_t)number]) nodes.push_back(numbers.nodes()[(size_t)number]);
    return nodes;
  }
};

// Takes a side one level further. Nodes of a level are visited in order, and a cheaper way replaces a dearer one.
void advance(Side& side, const GraphArrays& graph, NeighborLister& lister, int32_t goal, std::span<const double> relation_cost) {
  std::vector<int32_t> next;
  side.depth++;
  for (int32_t number : side.frontier) {
    if (lister.exhausted()) break;
    const double so_far = side.cost[(size_t)number];
    for (const Neighbor& to : lister.list(side.numbers.nodes()[(size_t)number], goal)) {
      const int32_t other = side.numbers.number(to.node);
      const double between = to.node == goal ? 0.0 : std::log1p((double)graph.degree(to.node));
      const double cost = so_far + relation_cost[(size_t)to.relation] + between;
      if ((size_t)other == side.level.size()) {
        side.level.push_back(side.depth);
        side.parent.push_back(number);
        side.cost.push_back(cost);
        next.push_back(other);
      } else if (side.level[(size_t)other] == side.depth && cost < side.cost[(size_t)other]) {
        side.parent[(size_t)other] = number;
        side.cost[(size_t)other] = cost;
      }
    }
  }
  std::sort(next.begin(), next.end(),
            [&](int32_t a, int32_t b) { return side.numbers.nodes()[(size_t)a] < side.numbers.nodes()[(size_t)b]; });
  side.frontier = std::move(next);
}

// Paths over the nodes where the newest level of one side meets the other side.
std::vector<Path> meetings(const Side& forward, const Side& backward, bool forward_moved, const GraphArrays& graph, int32_t from,
                           int32_t to) {
  const Side& moved = forward_moved ? forward : backward;
  const Side& other = forward_moved ? backward : forward;
  std::vector<Path> paths;
  int32_t shortest = std::numeric_limits<int32_t>::max();
  for (int32_t number : moved.frontier) {
    const int32_t node = moved.numbers.nodes()[(size_t)number], there = other.numbers.known(node);
    if (there < 0) continue;
    const int32_t length = moved.depth + other.level[(size_t)there];
    if (length > shortest) continue;
    if (length < shortest) paths.clear();
    shortest = length;
    const double twice = node == from || node == to ? 0.0 : std::log1p((double)graph.degree(node));
    Path path{moved.cost[(size_t)number] + other.cost[(size_t)there] - twice, forward.way(forward.numbers.known(node))};
    std::reverse(path.nodes.begin(), path.nodes.end());
    const std::vector<int32_t> rest = backward.way(backward.numbers.known(node));
    path.nodes.insert(path.nodes.end(), rest.begin() + 1, rest.end());
    paths.push_back(std::move(path));
  }
  return paths;
}

}  // namespace

const std::vector<Neighbor>& NeighborLister::list(int32_t node, int32_t always) {
  const size_t n = (size_t)node;
  found_.clear();
  if (graph_.degree(node) <= limits_.degree_cap) {
    for (int64_t e = graph_.out_start[n]; e < graph_.out_start[n + 1]; e++) add(node, e, true, always);
    for (int64_t e = graph_.in_start[n]; e < graph_.in_start[n + 1]; e++) add(node, e, false, always);
    return found_;
  }
  groups_.clear();
  add_groups(graph_.out_start[n], graph_.out_start[n + 1], true);
  add_groups(graph_.in_start[n], graph_.in_start[n + 1], false);
  by_size_.resize(groups_.size());
  std::iota(by_size_.begin(), by_size_.end(), (size_t)0);
  std::stable_sort(by_size_.begin(), by_size_.end(), [&](size_t a, size_t b) {
    return groups_[a].end - groups_[a].begin < groups_[b].end - groups_[b].begin;
  });
  share_.resize(groups_.size());
  int64_t left = limits_.degree_cap;  // small groups first: what they do not use goes to the large ones
  for (size_t i = 0; i < by_size_.size(); i++) {
    const Group& group = groups_[by_size_[i]];
    share_[by_size_[i]] = std::min(group.end - group.begin, left / (int64_t)(by_size_.size() - i));
    left -= share_[by_size_[i]];
    passed_over_ += group.end - group.begin - share_[by_size_[i]];
  }
  for (size_t i = 0; i < groups_.size(); i++)
    for (int64_t e = groups_[i].begin; e < groups_[i].begin + share_[i]; e++) add(node, e, groups_[i].outgoing, always);
  return found_;
}

// The runs of one relation in a node's edges, those that are allowed; no more than can have a share.
void NeighborLister::add_groups(int64_t begin, int64_t end, bool outgoing) {
  auto relation_at = [&](int64_t place) {
    return graph_.relation[outgoing ? (size_t)place : (size_t)graph_.in_edge[(size_t)place]];
  };
  while (begin < end && (int64_t)groups_.size() < limits_.degree_cap) {
    const int32_t relation = relation_at(begin);
    int64_t low = begin + 1, high = end;  // the first place of another relation
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (relation_at(middle) <= relation)
        low = middle + 1;
      else
        high = middle;
    }
    if (limits_.allows_relation(relation)) groups_.push_back({begin, low, outgoing});
    begin = low;
    work_++;
  }
}

void NeighborLister::add(int32_t from, int64_t place, bool outgoing, int32_t always) {
  const size_t edge = outgoing ? (size_t)place : (size_t)graph_.in_edge[(size_t)place];
  const int32_t to = outgoing ? graph_.target[edge] : graph_.source[edge];
  work_++;
  if (to == from || !limits_.allows_relation(graph_.relation[edge])) return;
  if (to == always || limits_.allows_type(graph_.node_type[(size_t)to])) found_.push_back({to, graph_.relation[edge]});
}

Walked push_pagerank(const GraphArrays& graph, std::span<const int32_t> seeds, std::span<const double> weights, double restart,
                     double epsilon, int32_t max_hops, const WalkLimits& limits) {
  struct State {
    double score, rest;  // settled, and still to be passed on
    int32_t hops;
    bool queued, listed;
  };
  NodeNumbers numbers;
  std::vector<State> states;
  int64_t passed_over = 0;  // at each node once, however often it is passed through
  std::vector<int32_t> queue;  // numbers; first in, first out
  auto receive = [&](int32_t node, double amount, int32_t hops) {
    const int32_t number = numbers.number(node);
    if ((size_t)number == states.size()) states.push_back({0.0, 0.0, hops, false, false});
    State& state = states[(size_t)number];
    state.rest += amount;
    state.hops = std::min(state.hops, hops);
    const int64_t degree = std::clamp<int64_t>(graph.degree(node), 1, limits.degree_cap);
    if (!state.queued && state.rest > epsilon * (double)degree) {
      state.queued = true;
      queue.push_back(number);
    }
  };
  for (size_t i = 0; i < seeds.size(); i++) receive(seeds[i], weights[i], 0);
  NeighborLister lister(graph, limits);
  size_t next = 0;
  for (; next < queue.size() && !lister.exhausted(); next++) {
    const int32_t number = queue[next], node = numbers.nodes()[(size_t)number];
    const State state = states[(size_t)number];
    const bool last = max_hops >= 0 && state.hops >= max_hops;
    static const std::vector<Neighbor> none;
    const int64_t before = lister.passed_over();
    const std::vector<Neighbor>& around = last ? none : lister.list(node);
    if (!state.listed) passed_over += lister.passed_over() - before;
    const double kept = around.empty() ? state.rest : restart * state.rest;
    states[(size_t)number] = {state.score + kept, 0.0, state.hops, false, state.listed || !last};
    const double each = around.empty() ? 0.0 : (1.0 - restart) * state.rest / (double)around.size();
    for (const Neighbor& to : around) receive(to.node, each, state.hops + 1);
  }
  Walked walked{{}, lister.work(), passed_over, next == queue.size()};
  walked.nodes.reserve(states.size());
  for (size_t i = 0; i < states.size(); i++)
    walked.nodes.push_back({numbers.nodes()[i], states[i].hops, states[i].score + restart * states[i].rest});
  walked.nodes = by_node(std::move(walked.nodes));
  return walked;
}

Walked neighborhood(const GraphArrays& graph, std::span<const int32_t> seeds, int32_t hops, int64_t max_nodes,
                    const WalkLimits& limits) {
  NodeNumbers numbers;
  std::vector<WalkedNode> nodes;
  auto meet = [&](int32_t node, int32_t distance) {
    if ((size_t)numbers.number(node) == nodes.size()) nodes.push_back({node, distance, 0.0});
  };
  for (int32_t seed : seeds) meet(seed, 0);
  NeighborLister lister(graph, limits);
  bool complete = true;
  for (size_t next = 0; next < nodes.size(); next++) {
    const WalkedNode from = nodes[next];
    if (from.hops >= hops) break;  // the rest is as far away
    if (lister.exhausted() || (int64_t)nodes.size() >= max_nodes) {
      complete = false;
      break;
    }
    for (const Neighbor& to : lister.list(from.node)) meet(to.node, from.hops + 1);
  }
  if ((int64_t)nodes.size() > max_nodes) nodes.resize((size_t)max_nodes);
  return {by_node(std::move(nodes)), lister.work(), lister.passed_over(), complete};
}

Paths shortest_paths(const GraphArrays& graph, int32_t from, int32_t to, int32_t max_length, int32_t count,
                     std::span<const double> relation_cost, const WalkLimits& limits) {
  if (from == to) return {{{0.0, {from}}}, 0, true};
  Side forward(from), backward(to);
  NeighborLister lister(graph, limits);
  Paths result;
  while (forward.depth + backward.depth < max_length && !forward.frontier.empty() && !backward.frontier.empty()) {
    const bool step_forward = forward.width(graph, limits.degree_cap) <= backward.width(graph, limits.degree_cap);
    advance(step_forward ? forward : backward, graph, lister, step_forward ? to : from, relation_cost);
    result.paths = meetings(forward, backward, step_forward, graph, from, to);
    result.complete = !lister.exhausted();
    if (!result.paths.empty() || !result.complete) break;
  }
  result.work = lister.work();
  std::sort(result.paths.begin(), result.paths.end(), [](const Path& a, const Path& b) {
    return a.cost != b.cost ? a.cost < b.cost : a.nodes < b.nodes;
  });
  if (result.paths.size() > (size_t)count) result.paths.resize((size_t)count);
  return result;
}

EdgesAmong edges_among(const GraphArrays& graph, std::span<const int32_t> nodes, int64_t max_edges, const WalkLimits& limits) {
  std::vector<bool> chosen((size_t)graph.num_nodes());
  for (int32_t node : nodes) chosen[(size_t)node] = true;
  EdgesAmong result;
  auto keep = [&](int64_t edge) {
    result.total++;
    if ((int64_t)result.edges.size() < max_edges) result.edges.push_back((int32_t)edge);
  };
  for (int32_t node : nodes) {
    const int64_t begin = graph.out_start[(size_t)node], end = graph.out_start[(size_t)node + 1];
    if (end - begin <= (int64_t)nodes.size() * 16) {
      for (int64_t e = begin; e < end; e++)
        if (chosen[(size_t)graph.target[(size_t)e]] && limits.allows_relation(graph.relation[(size_t)e])) keep(e);
      continue;
    }
    // A node of very many edges: looking for each of the few targets is less work than looking at each edge.
    const int32_t *relation = graph.relation.data(), *target = graph.target.data();
    for (int64_t first = begin, last; first < end; first = last) {
      int64_t step = 1;  // doubled, so that a short run of one relation costs little
      while (first + step < end && relation[first + step] == relation[first]) step *= 2;
      last = std::upper_bound(relation + first + step / 2, relation + std::min(first + step, end), relation[first]) - relation;
      if (!limits.allows_relation(relation[first])) continue;
      for (int32_t other : nodes) {
        const auto [low, high] = std::equal_range(target + first, target + last, other);
        for (const int32_t* at = low; at < high; at++) keep(at - target);
      }
    }
  }
  return result;
}

}  // namespace vglm
