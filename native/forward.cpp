#include "forward.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace vglm {
namespace {

constexpr int kUnitRows = 96;            // rows of a block: a multiple of every kernel's tile, and its activations fit in L2
constexpr int kRowsPerThread = 64;       // from here on dividing by rows beats dividing by columns
constexpr int kLogitRows = 64;           // rows of logits at a time
constexpr int kStateRows = 192;          // query heads whose running softmax a thread keeps at a time
constexpr int kTiles = kChunk / kTokenTile;
constexpr int kMaxHeadDim = 512;         // checked when the model is made

struct Share { int begin, end; };

// The part of n items, in whole units, that thread t of `threads` does.
Share share(int n, int unit, int t, int threads) {
  const int64_t units = (n + unit - 1) / unit;
  return {(int)std::min<int64_t>(units * t / threads * unit, n), (int)std::min<int64_t>(units * (t + 1) / threads * unit, n)};
}

int groups(const Linear& w) { return w.n / kGroup; }

// Zeroes the values of the slots of a tile that are not written yet. Attention gives them the weight 0, but 0 times the
// NaN or infinity that another request has left there would be NaN.
void clear_values(uint8_t* tile, const KVLayout& l, int valid) {
  const int64_t size = l.int8 ? 1 : 2, pair = 2 * l.head_dim * size;
  uint8_t* values = tile + l.plane_bytes();
  if (valid % 2)
    for (int64_t i = 0; i < l.head_dim; i++) memset(values + valid / 2 * pair + (2 * i + 1) * size, 0, (size_t)size);
  const int whole = (valid + 1) / 2;
  memset(values + whole * pair, 0, (size_t)((kTokenTile / 2 - whole) * pair));
  if (l.int8) memset(tile + 2 * l.plane_bytes() + (kTokenTile + valid) * 4, 0, (size_t)(kTokenTile - valid) * 4);
}

}  // namespace

int64_t Workspace::bytes() const {
  int64_t n = x.bytes() + q.bytes() + attention.bytes() + partials.bytes() + last.bytes() + logits.bytes() + shared.bytes();
  for (auto& b : own) n += b.bytes();
  for (auto& s : states) n += s.bytes();
  for (auto& c : chunks) n += c.bytes();
  return n;
}

Pass::Pass(Model& model, KVCache& kv, const Batch& batch)
    : model_(model), spec_(model.spec_), w_(model.weights_), k_(model.kernels_), kv_(kv), batch_(batch), work_(*model.work_),
      pool_(model.pool_), threads_(model.pool_.size()), group_(spec_.heads / spec_.kv_heads),
      stride_(w_.layers[0].qkv.k) {}

void Pass::check() const {
  auto refuse = [](const std::string& what) { throw std::invalid_argument("batch: " + what); };
  const KVLayout& l = kv_.layout();
  if (l.layers != spec_.layers || l.kv_heads != spec_.kv_heads || l.head_dim != spec_.head_dim) refuse("the KV cache is of another model");
  if (batch_.rows < 1 || batch_.sequences < 1) refuse("empty");
  if (batch_.query_start[0] != 0 || batch_.query_start[batch_.sequences] != batch_.rows) refuse("query_start does not cover the rows");
  if (batch_.table_start[0] != 0 || batch_.table_start[batch_.sequences] != batch_.entries) refuse("table_start does not cover the table");
  for (int s = 0; s < batch_.sequences; s++) {
    if (batch_.query_start[s + 1] < 0 || batch_.query_start[s + 1] > batch_.rows) refuse("query_start does not cover the rows");
    const int n = batch_.query_start[s + 1] - batch_.query_start[s];
    if (n < 1) refuse("sequence " + std::to_string(s) + " has no rows");
    if (batch_.table_start[s + 1] < batch_.table_start[s] || batch_.table_start[s + 1] > batch_.entries) refuse("table_start is not sorted");
    int64_t slots = 0;
    for (int e = batch_.table_start[s]; e < batch_.table_start[s + 1]; e++) {
      if (batch_.table_block[e] < 0 || batch_.table_block[e] >= kv_.num_blocks()) refuse("block id out of range");
      if (batch_.table_valid[e] < 1 || batch_.table_valid[e] > l.block_size) refuse("valid count out of range");
      slots += batch_.table_valid[e];
    }
    if (slots < n || slots > INT32_MAX / 2) refuse("page table of sequence " + std::to_string(s) + " is too short for its rows");
  }
  for (int r = 0; r < batch_.rows; r++) {
    if (batch_.tokens[r] < 0 || batch_.tokens[r] >= spec_.vocab) refuse("token id out of range");
    if (batch_.positions[r] < 0 || batch_.positions[r] >= spec_.max_position) refuse("position out of range");
  }
  for (int i = 0; i < batch_.outputs; i++)
    if (batch_.output_rows[i] < 0 || batch_.output_rows[i] >= batch_.rows) refuse("output row out of range");
  for (int i = 0; i < batch_.outputs && batch_.kinds; i++)
    if (batch_.kinds[i] > kHidden || (batch_.kinds[i] == kHidden && !batch_.hidden)) refuse("output kind");
  for (int i = 0; i < batch_.embeds; i++)
    if (batch_.embed_rows[i] < 0 || batch_.embed_rows[i] >= batch_.rows) refuse("embedding row out of range");
}

void Pass::build_tiles() {
  AttentionPlan& plan = work_.plan;
  plan.tiles.clear();
  plan.sequences.clear();
  work_.row_sequence.resize((size_t)batch_.rows);
  work_.row_limit.resize((size_t)batch_.rows);
  for (int s = 0; s < batch_.sequences; s++) {
    SequenceView v{batch_.query_start[s], batch_.query_start[s + 1], (int32_t)plan.tiles.size(), 0, 0};
    for (int e = batch_.table_start[s]; e < batch_.table_start[s + 1]; e++)
      for (int valid = batch_.table_valid[e], tile = 0; valid > 0; valid -= kTokenTile, tile++) {
        const int here = std::min(valid, kTokenTile);
        plan.tiles.push_back({batch_.table_block[e], tile, v.length, here});
        v.length += here;
      }
    v.tile1 = (int32_t)plan.tiles.size();
    for (int r = v.row0; r < v.row1; r++) {
      work_.row_sequence[(size_t)r] = s;
      work_.row_limit[(size_t)r] = v.length - (v.row1 - r) + 1;
    }
    plan.sequences.push_back(v);
  }
}

void Pass::reserve(RowBuffers& b, int rows) {
  for (const Layer& l : w_.layers) {
    b.hidden_buffer.reserve(l.qkv.type, rows, l.qkv.k);
    b.hidden_buffer.reserve(l.gate_up.type, rows, l.gate_up.k);
    b.attention_buffer.reserve(l.o.type, rows, l.o.k);
    b.mlp_buffer.reserve(l.down.type, rows, l.down.k);
    b.qkv.reserve((int64_t)rows * l.qkv.n);
    b.mlp.reserve((int64_t)rows * l.down.k);
  }
  b.residual.reserve((int64_t)rows * stride_);
}

void Pass::reserve() {
  const Layer& l = w_.layers[0];
  work_.x.reserve((int64_t)batch_.rows * stride_);
  work_.q.reserve((int64_t)batch_.rows * spec_.heads * spec_.head_dim);
  work_.attention.reserve((int64_t)batch_.rows * l.o.k);
  work_.states.resize((size_t)threads_);
  work_.chunks.resize((size_t)threads_);
  work_.lists.resize((size_t)threads_);
  for (auto& l : work_.lists) l.reserve((size_t)batch_.rows * (size_t)group_);   // threads must not run out of memory
  for (auto& c : work_.chunks) c.reserve(attend_scratch_bytes(spec_.head_dim));
  for (auto& s : work_.states) s.reserve((int64_t)kStateRows * 2 * (spec_.head_dim + 32));
  const bool rows = batch_.rows >= kRowsPerThread * threads_;
  if (rows) {
    const int rounds = (batch_.rows + threads_ * kUnitRows - 1) / (threads_ * kUnitRows);
    unit_ = (batch_.rows + threads_ * rounds - 1) / (threads_ * rounds);
    unit_ = (unit_ + 3) / 4 * 4;
    work_.own.resize((size_t)threads_);
    for (auto& b : work_.own) reserve(b, unit_);
  } else {
    unit_ = 0;
    reserve(work_.shared, batch_.rows);
    work_.plan.divide(threads_, group_, spec_.kv_heads);
    work_.partials.reserve(work_.plan.num_partials * spec_.kv_heads * (spec_.head_dim + 16));
  }
}

void Pass::run() {
  check();
  build_tiles();
  reserve();
  if (unit_)
    by_rows();
  else
    by_columns();
  if (batch_.outputs) outputs();
}

// A task takes one block of rows from the attention of one layer to the keys and values of the next. Tasks are claimed layer
// by layer; one waits only for the blocks that hold earlier rows of its own sequences, so there is no barrier on the way.
void Pass::by_rows() {
  const int units = (batch_.rows + unit_ - 1) / unit_, layers = spec_.layers;
  std::atomic<int> next{0};
  std::vector<std::atomic<int>> done((size_t)units);   // layers whose keys and values the block has written
  for (auto& d : done) d.store(0);
  pool_.run([&](int t) {
    for (int task; (task = next.fetch_add(1)) < units * (layers + 1);) {
      const int l = task / units, u = task % units;
      const int base = u * unit_, rows = std::min(unit_, batch_.rows - base);
      Block b{work_.own[(size_t)t], base, rows};
      if (l == 0) {
        embed(base, base + rows);
      } else {
        const int sequence = work_.row_sequence[(size_t)base];
        const int after = base + rows;  // a tile that this block ends in goes on in the next, and is read whole
        const bool goes_on = after < batch_.rows && work_.row_sequence[(size_t)after] == work_.row_sequence[(size_t)after - 1];
        for (int v = work_.plan.sequences[(size_t)sequence].row0 / unit_; v <= u + goes_on; v++)
          pool_.wait(done[(size_t)v], l);
        if (l < layers)
          after_attention_input(l - 1, b, t, 0, rows);
        else
          after_attention_input(l - 1, b, t, first_output(base, base + rows) - base, last_output(base, base + rows) - base);
      }
      if (l < layers) {
        attention_input(l, b, 0, rows);
        project_qkv(l, b, 0, rows, 0, groups(w_.layers[(size_t)l].qkv));
        rope_and_store(l, b, 0, rows);
      }
      done[(size_t)u].store(l + 1, std::memory_order_release);
    }
  });
}

// The rest of a layer once all its keys and values are written. Of the last layer, only rows whose output is wanted need it.
void Pass::after_attention_input(int layer, const Block& b, int thread, int row0, int row1) {
  if (row0 >= row1) return;
  const Layer& w = w_.layers[(size_t)layer];
  attend_rows(layer, thread, b.base + row0, b.base + row1);
  attention_output(layer, b, row0, row1);
  project_o(layer, b, row0, row1, 0, groups(w.o));
  add_post_norm(w.attn_post_norm, b, row0, row1);
  mlp_input(layer, b, row0, row1);
  gate_up(layer, b, row0, row1, 0, groups(w.gate_up));
  mlp_output(layer, b, row0, row1);
  down(layer, b, row0, row1, 0, groups(w.down));
  add_post_norm(w.mlp_post_norm, b, row0, row1);
}

int Pass::first_output(int row0, int row1) const {
  int first = row1;
  for (int i = 0; i < batch_.outputs; i++)
    if (batch_.output_rows[i] >= row0) first = std::min(first, batch_.output_rows[i]);
  return first;
}

int Pass::last_output(int row0, int row1) const {
  int last = row0;
  for (int i = 0; i < batch_.outputs; i++)
    if (batch_.output_rows[i] < row1) last = std::max(last, batch_.output_rows[i] + 1);
  return last;
}

void Pass::by_columns() {
  const int rows = batch_.rows, layers = spec_.layers;
  // All heads of an item in one go read memory in a line; where items are few, heads are shared out as well.
  const int num_items = (int)work_.plan.items.size();
  const int heads = num_items >= 8 * threads_ ? spec_.kv_heads : 1, per_item = spec_.kv_heads / heads;
  std::vector<std::atomic<int>> next((size_t)layers);
  for (auto& n : next) n.store(0);
  Block b{work_.shared, 0, rows};
  pool_.run([&](int t) {
    const Share mine = share(rows, 1, t, threads_);
    auto columns = [&](const Linear& w) {
      Share s = share(groups(w), 2, t, threads_);
      return s;
    };
    embed(mine.begin, mine.end);
    for (int l = 0; l < layers; l++) {
      const Layer& w = w_.layers[(size_t)l];
      attention_input(l, b, mine.begin, mine.end);
      pool_.barrier();
      Share c = columns(w.qkv);
      project_qkv(l, b, 0, rows, c.begin, c.end);
      pool_.barrier();
      rope_and_store(l, b, mine.begin, mine.end);
      pool_.barrier();
      for (int i; (i = next[(size_t)l].fetch_add(1)) < num_items * per_item;) {
        const int head = i % per_item * heads;
        attend_item(l, head, head + heads, work_.plan.items[(size_t)(i / per_item)], t);
      }
      pool_.barrier();
      merge_partials(mine.begin, mine.end);
      attention_output(l, b, mine.begin, mine.end);
      pool_.barrier();
      c = columns(w.o);
      project_o(l, b, 0, rows, c.begin, c.end);
      pool_.barrier();
      add_post_norm(w.attn_post_norm, b, mine.begin, mine.end);
      mlp_input(l, b, mine.begin, mine.end);
      pool_.barrier();
      c = columns(w.gate_up);
      gate_up(l, b, 0, rows, c.begin, c.end);
      pool_.barrier();
      mlp_output(l, b, mine.begin, mine.end);
      pool_.barrier();
      c = columns(w.down);
      down(l, b, 0, rows, c.begin, c.end);
      pool_.barrier();
      add_post_norm(w.mlp_post_norm, b, mine.begin, mine.end);
    }
  });
}

void Pass::embed(int row0, int row1) {
  for (int r = row0; r < row1; r++) {
    k_.bf16_to_f32(w_.embedding + (int64_t)batch_.tokens[r] * stride_, x(r), stride_);
    if (spec_.embedding_scale != 1.f)
      for (int i = 0; i < stride_; i++) x(r)[i] *= spec_.embedding_scale;
  }
  for (int i = 0; i < batch_.embeds; i++) {
    const int r = batch_.embed_rows[i];
    if (r < row0 || r >= row1) continue;
    memset(x(r), 0, (size_t)stride_ * 4);
    memcpy(x(r), batch_.embed_values + (int64_t)i * spec_.hidden, (size_t)spec_.hidden * 4);
  }
}

void Pass::attention_input(int layer, const Block& b, int row0, int row1) {
  const Layer& l = w_.layers[(size_t)layer];
  Activations a = b.buffers.hidden_buffer.reserve(l.qkv.type, b.rows, l.qkv.k);
  k_.normalize(x(b.base), stride_, spec_.hidden, l.attn_norm, spec_.eps, l.qkv.type, a, row0, row1);
}

void Pass::project_qkv(int layer, const Block& b, int row0, int row1, int g0, int g1) {
  const Linear& w = w_.layers[(size_t)layer].qkv;
  Activations a = b.buffers.hidden_buffer.reserve(w.type, b.rows, w.k);
  Epilogue e;
  e.out = b.buffers.qkv.get();
  e.stride = w.n;
  k_.matmul(w, a, row0, row1, g0, g1, e);
}

void Pass::rope_and_store(int layer, const Block& b, int row0, int row1) {
  const Layer& l = w_.layers[(size_t)layer];
  const KVLayout& layout = kv_.layout();
  const int d = spec_.head_dim, half = spec_.rotary_dim / 2;
  for (int i = row0; i < row1; i++) {
    const int row = b.base + i;
    float* head = b.buffers.qkv.get() + (int64_t)i * l.qkv.n;
    const float* cos = w_.cos + (int64_t)batch_.positions[row] * half;
    const float* sin = w_.sin + (int64_t)batch_.positions[row] * half;
    for (int h = 0; h < spec_.heads; h++, head += d) {
      if (l.q_norm) k_.rmsnorm(head, spec_.norm_dim, l.q_norm, spec_.eps);
      k_.rope(head, cos, sin, spec_.rotary_dim);
      if (layout.int8) k_.rotate(head, d);  // q.k is the same, and no channel of k takes int8's range for itself
    }
    k_.f32_to_bf16(head - (int64_t)spec_.heads * d, q(row, 0), spec_.heads * d);

    const SequenceView& s = work_.plan.sequences[(size_t)work_.row_sequence[(size_t)row]];
    const int slot = work_.row_limit[(size_t)row] - 1;
    int t = s.tile1 - 1;
    while (work_.plan.tiles[(size_t)t].begin > slot) t--;
    const PageTile& tile = work_.plan.tiles[(size_t)t];
    const bool begins = tile.begin >= s.length - (s.row1 - s.row0);  // its first slot is written in this step
    for (int h = 0; h < spec_.kv_heads; h++, head += d) {
      if (l.k_norm) k_.rmsnorm(head, spec_.norm_dim, l.k_norm, spec_.eps);
      k_.rope(head, cos, sin, spec_.rotary_dim);
      if (layout.int8) k_.rotate(head, d);
      uint8_t* data = kv_.head(tile.block, layer, h) + tile.tile * layout.tile_bytes();
      k_.store_kv(data, slot - tile.begin, head, head + (int64_t)spec_.kv_heads * d, d, layout.int8);
      if (begins && slot + 1 == tile.begin + tile.valid) clear_values(data, layout, tile.valid);
    }
  }
}

// The chunk's tiles, and their number; places beyond it repeat the last, so that all kTiles may be looked at.
int Pass::chunk_tiles(int layer, int kv_head, const SequenceView& s, int chunk, KVTile* out) const {
  const int first = s.tile0 + chunk * kTiles, n = std::min(kTiles, s.tile1 - first);
  const int64_t tile_bytes = kv_.layout().tile_bytes();
  for (int i = 0; i < n; i++) {
    const PageTile& t = work_.plan.tiles[(size_t)(first + i)];
    out[i] = {kv_.head(t.block, layer, kv_head) + t.tile * tile_bytes, t.begin, t.valid};
  }
  for (int i = n; i < kTiles; i++) out[i] = out[n - 1];
  return n;
}

Partial Pass::partial_slot(int kv_head, int64_t slot) const {
  float* p = work_.partials.get() + (kv_head * work_.plan.num_partials + slot) * (spec_.head_dim + 16);
  return {p + spec_.head_dim, p + spec_.head_dim + 1, p};
}

void Pass::attend_rows(int layer, int thread, int row0, int row1) {
  for (int r = row0; r < row1;) {
    const int s = work_.row_sequence[(size_t)r];
    const int end = std::min(row1, work_.plan.sequences[(size_t)s].row1);
    attend_segment(layer, 0, spec_.kv_heads, s, r, end, thread);
    r = end;
  }
}

// Rows of one sequence over its whole context, chunk by chunk, merged as they come.
void Pass::attend_segment(int layer, int head0, int head1, int sequence, int row0, int row1, int thread) {
  const int most = std::max(1, kStateRows / group_);
  for (int r = row0; r < row1; r += most)
    for (int h = head0; h < head1; h++) {
      KVTile next[kTiles];
      const bool more = h + 1 < head1;
      if (more) chunk_tiles(layer, h + 1, work_.plan.sequences[(size_t)sequence], 0, next);
      attend_few(layer, h, sequence, r, std::min(row1, r + most), thread, more ? next : nullptr);
    }
}

void Pass::attend_few(int layer, int kv_head, int sequence, int row0, int row1, int thread, const KVTile* after) {
  const SequenceView& s = work_.plan.sequences[(size_t)sequence];
  const int d = spec_.head_dim, slots = d + 16, n = (row1 - row0) * group_;
  float* state = work_.states[(size_t)thread].get();
  float* fresh = state + (int64_t)std::max(kStateRows, group_) * slots;
  auto at = [&](float* base, int i) { return Partial{base + (int64_t)i * slots + d, base + (int64_t)i * slots + d + 1, base + (int64_t)i * slots}; };
  RowLists& lists = work_.lists[(size_t)thread];
  lists.clear();
  for (int i = 0; i < n; i++) {
    lists.add(q(row0 + i / group_, kv_head * group_ + i % group_), work_.row_limit[(size_t)(row0 + i / group_)], at(fresh, i));
    Partial p = at(state, i);
    *p.max = -INFINITY;
    *p.sum = 0.f;
    memset(p.out, 0, (size_t)d * 4);
  }
  KVTile tiles[2][kTiles];
  const int chunks = AttentionPlan::chunks(s);
  int num_tiles = chunk_tiles(layer, kv_head, s, 0, tiles[0]);
  for (int c = 0; c < chunks; c++) {
    int first = 0;
    while (first < n && lists.limits[(size_t)first] <= tiles[c & 1][0].begin) first += group_;
    if (first >= n) break;
    const int next_tiles = c + 1 < chunks ? chunk_tiles(layer, kv_head, s, c + 1, tiles[(c + 1) & 1]) : 0;
    const KVTile* next = next_tiles ? tiles[(c + 1) & 1] : after;
    k_.attend(&lists.queries[(size_t)first], &lists.limits[(size_t)first], n - first, tiles[c & 1], num_tiles, d,
              kv_.layout().int8, spec_.attention_scale, &lists.out[(size_t)first], work_.chunks[(size_t)thread].get(), next);
    for (int i = first; i < n; i++) k_.merge(at(state, i), lists.out[(size_t)i], d);
    num_tiles = next_tiles;
  }
  for (int i = 0; i < n; i++) {
    Partial p = at(state, i);
    k_.divide(p.out, *p.sum, d);
    memcpy(work_.attention.get() + (int64_t)(row0 + i / group_) * w_.layers[0].o.k + (kv_head * group_ + i % group_) * d, p.out,
           (size_t)d * 4);
  }
}

void Pass::attend_item(int layer, int head0, int head1, const AttentionItem& item, int thread) {
  const AttentionPlan& plan = work_.plan;
  if (item.direct) {
    const SequenceView& s = plan.sequences[(size_t)item.sequences[0]];
    return attend_segment(layer, head0, head1, item.sequences[0], s.row0, s.row1, thread);
  }
  KVTile tiles[2][kTiles];
  const SequenceView& lead = plan.sequences[(size_t)item.sequences[0]];
  const int steps = (head1 - head0) * item.num_chunks;
  int num_tiles = chunk_tiles(layer, head0, lead, item.chunks[0], tiles[0]);
  for (int i = 0; i < steps; i++) {
    const int h = head0 + i / item.num_chunks, c = i % item.num_chunks, j = i + 1;
    const int next_tiles = j < steps ? chunk_tiles(layer, head0 + j / item.num_chunks, lead,
                                                   item.chunks[0] + j % item.num_chunks, tiles[j & 1])
                                     : 0;
    RowLists& lists = list_rows(h, item, c, thread);
    k_.attend(lists.queries.data(), lists.limits.data(), (int)lists.queries.size(), tiles[i & 1], num_tiles, spec_.head_dim,
              kv_.layout().int8, spec_.attention_scale, lists.out.data(), work_.chunks[(size_t)thread].get(),
              next_tiles ? tiles[j & 1] : nullptr);
    num_tiles = next_tiles;
  }
}

// The query rows of every sequence of an item, with the partials that its chunk `c` gives.
RowLists& Pass::list_rows(int kv_head, const AttentionItem& item, int c, int thread) {
  const AttentionPlan& plan = work_.plan;
  const SequenceView& lead = plan.sequences[(size_t)item.sequences[0]];
  RowLists& lists = work_.lists[(size_t)thread];
  lists.clear();
  for (size_t j = 0; j < item.sequences.size(); j++) {
    const SequenceView& s = plan.sequences[(size_t)item.sequences[j]];
    const int chunk = item.chunks[j] + c, chunks = AttentionPlan::chunks(s);
    // a stacked chunk is seen whole by all its rows, wherever it lies in their tables: limits are relative to the lead's
    const int shift = plan.tiles[(size_t)(lead.tile0 + (item.chunks[0] + c) * kTiles)].begin -
                      plan.tiles[(size_t)(s.tile0 + chunk * kTiles)].begin;
    for (int r = s.row0; r < s.row1; r++)
      for (int g = 0; g < group_; g++) {
        const int64_t row_slot = plan.partial_base[(size_t)item.sequences[j]] + (int64_t)((r - s.row0) * group_ + g) * chunks;
        lists.add(q(r, kv_head * group_ + g), work_.row_limit[(size_t)r] + shift, partial_slot(kv_head, row_slot + chunk));
      }
  }
  return lists;
}

void Pass::merge_partials(int row0, int row1) {
  const int d = spec_.head_dim;
  alignas(64) float aligned[kMaxHeadDim];
  for (int r = row0; r < row1; r++) {
    const int s = work_.row_sequence[(size_t)r];
    const int64_t base = work_.plan.partial_base[(size_t)s];
    if (base < 0) continue;
    const SequenceView& v = work_.plan.sequences[(size_t)s];
    const int chunks = AttentionPlan::chunks(v);
    for (int h = 0; h < spec_.heads; h++) {
      float m = -INFINITY, sum = 0.f;
      memset(aligned, 0, (size_t)d * 4);
      for (int c = 0; c < chunks; c++) {
        if (work_.row_limit[(size_t)r] <= work_.plan.tiles[(size_t)(v.tile0 + c * kTiles)].begin) break;
        k_.merge({&m, &sum, aligned}, partial_slot(h / group_, base + (int64_t)((r - v.row0) * group_ + h % group_) * chunks + c), d);
      }
      k_.divide(aligned, sum, d);
      memcpy(work_.attention.get() + (int64_t)r * w_.layers[0].o.k + h * d, aligned, (size_t)d * 4);
    }
  }
}

void Pass::attention_output(int layer, const Block& b, int row0, int row1) {
  const Linear& w = w_.layers[(size_t)layer].o;
  Activations a = b.buffers.attention_buffer.reserve(w.type, b.rows, w.k);
  k_.convert_f32(work_.attention.get() + (int64_t)b.base * w.k, w.k, w.type, a, row0, row1);
}

void Pass::into_residual(const Linear& w, const Activations& a, const float* post_norm, const Block& b, int row0, int row1,
                         int g0, int g1) {
  Epilogue e;
  e.store = post_norm ? Store::f32 : Store::add_f32;
  e.out = post_norm ? b.buffers.residual.get() : x(b.base);
  e.stride = stride_;
  e.scale = spec_.residual_scale;
  k_.matmul(w, a, row0, row1, g0, g1, e);
}

void Pass::add_post_norm(const float* post_norm, const Block& b, int row0, int row1) {
  if (post_norm)
    k_.add_normalized(x(b.base), b.buffers.residual.get(), stride_, spec_.hidden, post_norm, spec_.eps, row0, row1);
}

void Pass::project_o(int layer, const Block& b, int row0, int row1, int g0, int g1) {
  const Layer& l = w_.layers[(size_t)layer];
  into_residual(l.o, b.buffers.attention_buffer.reserve(l.o.type, b.rows, l.o.k), l.attn_post_norm, b, row0, row1, g0, g1);
}

void Pass::mlp_input(int layer, const Block& b, int row0, int row1) {
  const Layer& l = w_.layers[(size_t)layer];
  Activations a = b.buffers.hidden_buffer.reserve(l.gate_up.type, b.rows, l.gate_up.k);
  k_.normalize(x(b.base), stride_, spec_.hidden, l.mlp_norm, spec_.eps, l.gate_up.type, a, row0, row1);
}

void Pass::gate_up(int layer, const Block& b, int row0, int row1, int g0, int g1) {
  const Layer& l = w_.layers[(size_t)layer];
  Activations a = b.buffers.hidden_buffer.reserve(l.gate_up.type, b.rows, l.gate_up.k);
  Epilogue e;
  e.store = Store::swiglu;
  e.out_bf16 = b.buffers.mlp.get();
  e.stride = l.down.k;
  k_.matmul(l.gate_up, a, row0, row1, g0, g1, e);
}

void Pass::mlp_output(int layer, const Block& b, int row0, int row1) {
  const Linear& w = w_.layers[(size_t)layer].down;
  Activations a = b.buffers.mlp_buffer.reserve(w.type, b.rows, w.k);
  k_.convert_bf16(b.buffers.mlp.get(), w.k, w.type, a, row0, row1);
}

void Pass::down(int layer, const Block& b, int row0, int row1, int g0, int g1) {
  const Layer& l = w_.layers[(size_t)layer];
  into_residual(l.down, b.buffers.mlp_buffer.reserve(l.down.type, b.rows, l.down.k), l.mlp_post_norm, b, row0, row1, g0, g1);
}

// Final norm, logits and sampling of the rows that want them, kLogitRows at a time: logits of a whole prompt would not fit.
void Pass::outputs() {
  const Linear& w = w_.lm_head;
  const int most = std::min(batch_.outputs, kLogitRows);
  work_.last.reserve((int64_t)most * stride_);
  work_.shared.hidden_buffer.reserve(w.type, most, w.k);
  work_.samplers.resize((size_t)threads_);
  for (int first = 0; first < batch_.outputs; first += kLogitRows) {
    const int n = std::min(kLogitRows, batch_.outputs - first);
    bool logits = false;
    for (int i = first; i < first + n; i++) logits |= !is_hidden(i);
    if (logits) work_.logits.reserve((int64_t)most * w.n);
    pool_.run([&](int t) {
      const Share mine = share(n, 1, t, threads_);
      gather(first, mine.begin, mine.end);
      if (logits) {
        Activations a = work_.shared.hidden_buffer.reserve(w.type, most, w.k);
        k_.normalize(work_.last.get(), stride_, spec_.hidden, w_.final_norm, spec_.eps, w.type, a, mine.begin, mine.end);
        pool_.barrier();
        Epilogue e;
        e.out = work_.logits.get();
        e.stride = w.n;
        e.scale = spec_.logit_scale;
        const Share c = share(groups(w), 2, t, threads_);
        k_.matmul(w, a, 0, n, c.begin, c.end, e);
        pool_.barrier();
      }
      for (int i = mine.begin; i < mine.end; i++) answer(first + i, i, t);
    });
  }
}

bool Pass::is_hidden(int output) const { return batch_.kinds && batch_.kinds[output] == kHidden; }

void Pass::gather(int first, int begin, int end) {
  for (int i = begin; i < end; i++)
    memcpy(work_.last.get() + (int64_t)i * stride_, x(batch_.output_rows[first + i]), (size_t)stride_ * 4);
}

void Pass::answer(int output, int row, int thread) {
  if (is_hidden(output)) {
    float* last = work_.last.get() + (int64_t)row * stride_;
    k_.rmsnorm(last, spec_.hidden, w_.hidden_norm, spec_.eps);
    memcpy(batch_.hidden + (int64_t)output * spec_.hidden, last, (size_t)spec_.hidden * 4);
    return;
  }
  float* logits = work_.logits.get() + (int64_t)row * w_.lm_head.n;
  if (batch_.logits) memcpy(batch_.logits + (int64_t)output * spec_.vocab, logits, (size_t)spec_.vocab * 4);
  if (batch_.results)
    sample_row(logits, spec_.vocab, batch_.sampling[output], work_.samplers[(size_t)thread], batch_.results[output]);
}

}  // namespace vglm
