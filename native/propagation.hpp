// Relational message passing with DistMult messages over edges in CSR form by target:
//     out[v] = sum over edges (u, r, v) of states[u] * weights[r]
// and its gradient with respect to the weights. Sums are taken in the order of the edges, so results depend on the arrays alone.
#pragma once
#include <cstdint>
#include <span>

namespace vglm {

struct EdgeArrays {
  std::span<const int64_t> start;             // [N + 1]
  std::span<const int32_t> source, relation;  // [E], by target

  int64_t num_nodes() const { return (int64_t)start.size() - 1; }
};

// out [N, width] += messages of states [N, width] and weights [R, width].
void propagate(const EdgeArrays& edges, const float* states, const float* weights, int64_t width, float* out);

// out [R, width] += states [N, width] at the source times gradient [N, width] at the target, of each edge.
void propagate_weights(const EdgeArrays& edges, const float* states, const float* gradient, int64_t width, float* out);

}  // namespace vglm
