#include "model.hpp"

#include <stdexcept>
#include <string>

#include "forward.hpp"

namespace vglm {
namespace {

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument("model: " + what);
}

void check_low_rank(const Linear& w) {
  if (!w.low_rank) return;
  require(w.type == WeightType::int4 && w.low_rank->type == WeightType::int4, "a low-rank part is for int4 weights");
  require(w.low_rank->k == w.inputs() && w.low_rank->n < w.k && !w.low_rank->low_rank, "a low-rank part does not fit its matrix");
}

void check(const ModelSpec& s, const Weights& w) {
  require(s.layers >= 1 && (size_t)s.layers == w.layers.size(), "the number of layers does not match the weights");
  require(s.heads <= 65536, "more than 65536 heads");
  require(s.kv_heads >= 1 && s.heads >= s.kv_heads && s.heads % s.kv_heads == 0, "heads must be a multiple of kv_heads");
  require(s.heads / s.kv_heads <= 64, "more than 64 query heads per KV head");
  require(s.head_dim >= 16 && s.head_dim <= 512 && s.head_dim % 16 == 0, "head_dim must be a multiple of 16 up to 512");
  require(s.norm_dim >= 1 && s.norm_dim <= s.head_dim, "norm_dim must be within head_dim");
  require(s.rotary_dim >= 0 && s.rotary_dim % 2 == 0 && s.rotary_dim <= s.head_dim, "rotary_dim must be even and within head_dim");
  require(s.hidden >= 1 && s.vocab >= 1 && s.max_position >= 1, "sizes must be positive");
  const int stride = w.layers[0].qkv.inputs(), q = s.heads * s.head_dim;
  require(stride >= s.hidden && stride <= 32768, "hidden size over 32768");
  for (const Layer& l : w.layers) {
    for (const Linear* m : {&l.qkv, &l.o, &l.gate_up, &l.down}) check_low_rank(*m);
    require(l.qkv.inputs() == stride && l.gate_up.inputs() == stride && l.o.n == stride && l.down.n == stride, "layers of unequal hidden size");
    require(l.qkv.n >= q + 2 * s.kv_heads * s.head_dim && l.o.inputs() >= q && l.o.inputs() <= 32768 && l.o.inputs() == w.layers[0].o.inputs(), "attention projections are too small");
    require(l.gate_up.n == 2 * l.down.inputs() && l.down.inputs() <= 32768, "gate_up and down do not fit together, or are wider than 32768");
    require(!l.q_norm == !l.k_norm, "one of q_norm and k_norm is missing");
  }
  require(!w.lm_head.low_rank && w.lm_head.k == stride && w.lm_head.n >= s.vocab, "lm_head does not fit the hidden size or the vocabulary");
  require(w.embedding && w.final_norm && w.hidden_norm && (s.rotary_dim == 0 || (w.cos && w.sin)), "embedding, final norms or RoPE tables are missing");
}

}  // namespace

Model::Model(const ModelSpec& spec, Weights weights, int threads, const Kernels& kernels)
    : spec_(spec), weights_(std::move(weights)), kernels_(kernels), pool_(threads), work_(std::make_unique<Workspace>()) {
  check(spec_, weights_);
}

Model::~Model() = default;

void Model::forward(KVCache& kv, const Batch& batch) {
  std::lock_guard lock(busy_);
  Pass(*this, kv, batch).run();
}

int64_t Model::workspace_bytes() const { return work_->bytes(); }

}  // namespace vglm
