#include "propagation.hpp"

namespace vglm {

void propagate(const EdgeArrays& edges, const float* states, const float* weights, int64_t width, float* out) {
  for (int64_t v = 0; v < edges.num_nodes(); v++) {
    float* __restrict to = out + v * width;
    for (int64_t e = edges.start[(size_t)v]; e < edges.start[(size_t)v + 1]; e++) {
      const float* state = states + edges.source[(size_t)e] * width;
      const float* weight = weights + edges.relation[(size_t)e] * width;
      for (int64_t i = 0; i < width; i++) to[i] += state[i] * weight[i];
    }
  }
}

void propagate_weights(const EdgeArrays& edges, const float* states, const float* gradient, int64_t width, float* out) {
  for (int64_t v = 0; v < edges.num_nodes(); v++) {
    const float* at_target = gradient + v * width;
    for (int64_t e = edges.start[(size_t)v]; e < edges.start[(size_t)v + 1]; e++) {
      const float* state = states + edges.source[(size_t)e] * width;
      float* __restrict to = out + edges.relation[(size_t)e] * width;
      for (int64_t i = 0; i < width; i++) to[i] += state[i] * at_target[i];
    }
  }
}

}  // namespace vglm
