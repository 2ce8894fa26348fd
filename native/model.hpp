// A model's weights and one forward pass over a step's batch.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "attention_plan.hpp"
#include "kernels.hpp"
#include "kv_cache.hpp"
#include "sampler.hpp"
#include "thread_pool.hpp"

namespace vglm {

struct ModelSpec {
  int32_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0;  // head_dim as padded; see norm_dim
  int32_t norm_dim = 0;             // true head_dim: what QK norm averages over
  int32_t vocab = 0, max_position = 0, rotary_dim = 0;
  float eps = 1e-5f, attention_scale = 0.f, residual_scale = 1.f, embedding_scale = 1.f, logit_scale = 1.f;
};

struct Layer {
  Linear qkv, o, gate_up, down;
  const float *attn_norm = nullptr, *mlp_norm = nullptr;             // null: folded into the weights that follow
  const float *q_norm = nullptr, *k_norm = nullptr;
  const float *attn_post_norm = nullptr, *mlp_post_norm = nullptr;   // GLM-4
};

struct Weights {
  std::vector<Layer> layers;
  std::deque<Linear> low_rank;           // what `Linear::low_rank` points to
  const uint16_t* embedding = nullptr;   // bf16 [vocab][hidden padded]
  Linear lm_head;
  const float* final_norm = nullptr;     // before lm_head
  const float* hidden_norm = nullptr;    // the same norm where hidden states are the answer
  const float *cos = nullptr, *sin = nullptr;   // [max_position][rotary_dim / 2]
};

enum OutputKind : uint8_t { kSample = 0, kTarget = 1, kHidden = 2, kScores = 3 };

// One step. Array sizes were checked by the bindings; contents are checked here before anything is written.
struct Batch {
  int32_t rows = 0, sequences = 0, outputs = 0, embeds = 0;
  const int32_t *tokens = nullptr, *positions = nullptr, *query_start = nullptr, *table_start = nullptr;
  const int32_t *table_block = nullptr, *table_valid = nullptr, *output_rows = nullptr;
  const int32_t* embed_rows = nullptr;   // rows that are given as vectors
  const float* embed_values = nullptr;   // [embeds][hidden]
  int64_t entries = 0;
  float* logits = nullptr;               // [outputs][vocab] when wanted
  const uint8_t* kinds = nullptr;        // [outputs], an OutputKind each; null: all are sampled
  float* hidden = nullptr;               // [outputs][hidden] after the final norm; filled for rows of kind `hidden`
  const SamplingArgs* sampling = nullptr;
  SamplingResult* results = nullptr;
  std::function<void()> before_outputs;  // called once between the layers and the outputs, if there are any; may throw
};

class Model {
 public:
  Model(const ModelSpec& spec, Weights weights, int threads, const Kernels& kernels);
  ~Model();

  void forward(KVCache& kv, const Batch& batch);
  const Kernels& kernels() const { return kernels_; }
  const ModelSpec& spec() const { return spec_; }
  int64_t workspace_bytes() const;

 private:
  friend class Pass;
  ModelSpec spec_;
  Weights weights_;
  const Kernels& kernels_;
  ThreadPool pool_;
  std::unique_ptr<struct Workspace> work_;
  std::mutex busy_;   // one pass at a time: it has the workspace and the threads
};

}  // namespace vglm
