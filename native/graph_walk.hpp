// Walks over a directed multigraph in CSR form, each within bounded work: personalised PageRank, neighbourhoods, shortest
// paths, and the edges among a set of nodes. Edges are walked both ways. Results depend on the arrays alone.
//
// A node of more than `degree_cap` edges is walked along the first ones of each (direction, relation) only, in equal shares, so
// that one node of a million edges costs no more than any other.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace vglm {

struct GraphArrays {
  std::span<const int64_t> out_start, in_start;         // [N + 1]
  std::span<const int32_t> source, target, relation;    // [E], by (source, relation, target)
  std::span<const int32_t> in_edge;                     // [E] edges by (target, relation, source)
  std::span<const int32_t> node_type;                   // [N]

  int32_t num_nodes() const { return (int32_t)node_type.size(); }
  int64_t out_degree(int32_t node) const { return out_start[(size_t)node + 1] - out_start[(size_t)node]; }
  int64_t degree(int32_t node) const { return out_degree(node) + in_start[(size_t)node + 1] - in_start[(size_t)node]; }
};

// What a walk may use. Empty masks allow everything; nodes where a walk starts or ends are always allowed.
struct WalkLimits {
  std::span<const uint8_t> relations, types;
  int64_t degree_cap = 1024;
  int64_t max_work = 1'000'000;  // edges looked at

  bool allows_relation(int32_t relation) const { return relations.empty() || relations[(size_t)relation]; }
  bool allows_type(int32_t type) const { return types.empty() || types[(size_t)type]; }
};

struct Neighbor {
  int32_t node, relation;
};

// Lists where a walk may go from a node: without self-loops, a neighbour once per edge.
class NeighborLister {
 public:
  NeighborLister(const GraphArrays& graph, const WalkLimits& limits) : graph_(graph), limits_(limits) {}

  // Valid until the next call. `always` is a node that is allowed whatever its type.
  const std::vector<Neighbor>& list(int32_t node, int32_t always = -1);
  // Edges looked at so far, and edges of capped nodes that were passed over.
  int64_t work() const { return work_; }
  int64_t passed_over() const { return passed_over_; }
  bool exhausted() const { return work_ >= limits_.max_work; }

 private:
  struct Group {
    int64_t begin, end;
    bool outgoing;
  };
  void add_groups(int64_t begin, int64_t end, bool outgoing);
  void add(int32_t from, int64_t place, bool outgoing, int32_t always);

  const GraphArrays& graph_;
  const WalkLimits& limits_;
  std::vector<Neighbor> found_;
  std::vector<Group> groups_;
  std::vector<size_t> by_size_;
  std::vector<int64_t> share_;
  int64_t work_ = 0, passed_over_ = 0;
};

struct WalkedNode {
  int32_t node;
  int32_t hops;   // from the nearest seed, along what was walked
  double score;   // PageRank, or 0
};

struct Walked {
  std::vector<WalkedNode> nodes;  // by node
  int64_t work = 0, passed_over = 0;
  bool complete = true;           // false: max_work or max_nodes ended it
};

// Personalised PageRank by forward push (Andersen, Chung, Lang 2006). `weights` of the seeds sum to 1, `restart` is the
// probability of going back. Without caps, hop limit, masks and self-loops a score is below the exact one by at most epsilon
// times the node's degree. A node without neighbours, or `max_hops` away from the seeds (-1: no limit), keeps what reaches it.
Walked push_pagerank(const GraphArrays& graph, std::span<const int32_t> seeds, std::span<const double> weights, double restart,
                     double epsilon, int32_t max_hops, const WalkLimits& limits);

// The nodes at most `hops` away from the seeds, breadth first, until there are `max_nodes`.
Walked neighborhood(const GraphArrays& graph, std::span<const int32_t> seeds, int32_t hops, int64_t max_nodes,
                    const WalkLimits& limits);

struct Path {
  double cost;
  std::vector<int32_t> nodes;
};

struct Paths {
  std::vector<Path> paths;  // by (cost, nodes), all of the same, shortest length, each over another middle node
  int64_t work = 0;
  bool complete = true;     // false: max_work ended the search
};

// The best shortest paths of at most `max_length` edges between two nodes, by bidirectional search: the cost is the sum of
// ln(1 + degree) over the nodes between and of `relation_cost` over the edges.
Paths shortest_paths(const GraphArrays& graph, int32_t from, int32_t to, int32_t max_length, int32_t count,
                     std::span<const double> relation_cost, const WalkLimits& limits);

struct EdgesAmong {
  std::vector<int32_t> edges;  // ascending, the first max_edges
  int64_t total = 0;
};

// The edges whose both ends are in `nodes` (ascending).
EdgesAmong edges_among(const GraphArrays& graph, std::span<const int32_t> nodes, int64_t max_edges, const WalkLimits& limits);

}  // namespace vglm
