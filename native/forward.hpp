// One forward pass. Two ways to divide the work, with the same arithmetic for every element:
//   rows     many rows (prefill): each thread takes blocks of rows through a whole layer; its activations stay in its cache,
//            and it waits only for the keys and values that its rows attend to
//   columns  few rows (decode): memory bandwidth is the limit, so each thread reads its share of every weight matrix
#pragma once
#include <algorithm>
#include <atomic>
#include <vector>

#include "model.hpp"
#include "workspace.hpp"

namespace vglm {

constexpr int kTiles = kChunk / kTokenTile;
constexpr int kStateRows = 192;    // query heads whose running softmax a thread keeps at a time
constexpr int kMaxHeadDim = 512;   // checked when the model is made

struct Share { int begin, end; };

// The part of n items, in whole units, that thread t of `threads` does.
inline Share share(int n, int unit, int t, int threads) {
  const int64_t units = (n + unit - 1) / unit;
  return {(int)std::min<int64_t>(units * t / threads * unit, n), (int)std::min<int64_t>(units * (t + 1) / threads * unit, n)};
}

inline int groups(const Linear& w) { return w.n / kGroup; }

// The query rows of one call of the attention kernel.
struct RowLists {
  std::vector<const uint16_t*> queries;
  std::vector<int32_t> limits;
  std::vector<Partial> out;

  void reserve(size_t n) {
    queries.reserve(n);
    limits.reserve(n);
    out.reserve(n);
  }
  void clear() {
    queries.clear();
    limits.clear();
    out.clear();
  }
  void add(const uint16_t* query, int32_t limit, const Partial& partial) {
    queries.push_back(query);
    limits.push_back(limit);
    out.push_back(partial);
  }
};

struct Workspace {
  Buffer<float> x;             // residual stream [rows][hidden]
  Buffer<uint16_t> q;          // queries after RoPE [rows][heads * head_dim]
  Buffer<float> attention;     // [rows][o.k]
  Buffer<float> partials;      // [kv head][slot](max, sum, out[head_dim])
  Buffer<float> last;          // rows whose logits are wanted
  Buffer<float> logits;
  RowBuffers shared;
  std::vector<RowBuffers> own;
  std::vector<SamplerScratch> samplers;
  std::vector<Buffer<float>> states;      // running softmax of a thread's rows
  std::vector<RowLists> lists;            // by thread, as the two below
  std::vector<Buffer<uint8_t>> chunks;    // a thread's copy of a chunk of K and V
  std::vector<int32_t> row_sequence, row_limit;
  std::vector<int32_t> shared_tiles;      // of each sequence: leading tiles that it has in common with the one before it
  AttentionPlan plan;
  int64_t bytes() const;
};

class Pass {
 public:
  Pass(Model& model, KVCache& kv, const Batch& batch);
  void run();

 private:
  struct Block { RowBuffers& buffers; int base, rows; };   // rows of the batch, and where they are worked on

  void check() const;
  void build_tiles();
  void reserve();
  void reserve(RowBuffers& b, int rows);
  void by_rows();
  void by_columns();
  void after_attention_input(int layer, const Block& b, int thread, int row0, int row1);
  int first_output(int row0, int row1) const;   // range of the output rows within [row0, row1); row1 when there is none
  int last_output(int row0, int row1) const;

  void embed(int row0, int row1);
  void append_low_rank(const Linear& w, const Activations& x, const Block& b, int row0, int row1);
  void attention_input(int layer, const Block& b, int row0, int row1);
  void project_qkv(int layer, const Block& b, int row0, int row1, int g0, int g1);
  void rope_and_store(int layer, const Block& b, int row0, int row1);
  void attend_rows(int layer, int thread, int row0, int row1);
  void attend_item(int layer, int head0, int head1, const AttentionItem& item, int thread);
  void attend_segment(int layer, int head0, int head1, int sequence, int row0, int row1, int thread);
  void attend_bundle(int layer, int thread, int row0, int row1, int shared);
  void attend_few(int layer, int kv_head, int sequence, int row0, int row1, int thread, const KVTile* after);
  RowLists& list_rows(int kv_head, const AttentionItem& item, int chunk, int thread);
  void merge_partials(int row0, int row1);
  void attention_output(int layer, const Block& b, int row0, int row1);
  void project_o(int layer, const Block& b, int row0, int row1, int g0, int g1);
  void mlp_input(int layer, const Block& b, int row0, int row1);
  void gate_up(int layer, const Block& b, int row0, int row1, int g0, int g1);
  void mlp_output(int layer, const Block& b, int row0, int row1);
  void down(int layer, const Block& b, int row0, int row1, int g0, int g1);
  void into_residual(const Linear& w, const Activations& a, const float* post_norm, const Block& b, int row0, int row1, int g0,
                     int g1);
  void add_post_norm(const float* post_norm, const Block& b, int row0, int row1);
  void outputs();
  bool is_hidden(int output) const;
  void gather(int first, int begin, int end);
  void answer(int output, int row, int thread);

  int chunk_tiles(int layer, int kv_head, const SequenceView& s, int chunk, KVTile* out) const;
  Partial partial_slot(int kv_head, int64_t slot) const;
  float* x(int row) const { return work_.x.get() + (int64_t)row * stride_; }
  uint16_t* q(int row, int head) const { return work_.q.get() + ((int64_t)row * spec_.heads + head) * spec_.head_dim; }

  Model& model_;
  const ModelSpec& spec_;
  const Weights& w_;
  const Kernels& k_;
  KVCache& kv_;
  const Batch& batch_;
  Workspace& work_;
  ThreadPool& pool_;
  const int threads_, group_, stride_;
  int unit_ = 0;
};

}  // namespace vglm
