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

// Leading tiles that two sequences have in common and that neither writes to in this step.
int common_tiles(const PageTile* tiles, const SequenceView& a, const SequenceView& b) {
  const int before_rows = std::min(a.length - (a.row1 - a.row0), b.length - (b.row1 - b.row0));
  const int most = std::min(a.tile1 - a.tile0, b.tile1 - b.tile0);
  int n = 0;
  while (n < most) {
    const PageTile &x = tiles[a.tile0 + n], &y = tiles[b.tile0 + n];
    if (x.block != y.block || x.tile != y.tile || x.valid != y.valid || x.begin + x.valid > before_rows) break;
    n++;
  }
  return n;
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
      stride_(w_.lm_head.k) {}

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
    if (batch_.kinds[i] > kScores || (batch_.kinds[i] == kHidden && !batch_.hidden)) refuse("output kind");
  for (int i = 0; i < batch_.embeds; i++)
    if (batch_.embed_rows[i] < 0 || batch_.embed_rows[i] >= batch_.rows) refuse("embedding row out of range");
}

void Pass::build_tiles() {
  AttentionPlan& plan = work_.plan;
  plan.tiles.clear();
  plan.sequences.clear();
  work_.row_sequence.resize((size_t)batch_.rows);
  work_.row_limit.resize((size_t)batch_.rows);
  work_.shared_tiles.resize((size_t)batch_.sequences);
  for (int s = 0; s < batch_.sequences; s++) {
    SequenceView v{batch_.query_start[s], batch_.query_start[s + 1], (int32_t)plan.tiles.size(), 0, 0};
    for (int e = batch_.table_start[s]; e < batch_.table_start[s + 1]; e++)
      for (int valid = batch_.table_valid[e], tile = 0; valid > 0; valid -= kTokenTile, tile++) {
        const int here = std::min(valid, kTokenTile);
        plan.tiles.push_back({batch_.table_block[e], tile, v.length, here});
        v.length += here;
      }
    v.tile1 = (int32_t)plan.tiles.size();
    work_.shared_tiles[(size_t)s] = s ? common_tiles(plan.tiles.data(), plan.sequences.back(), v) : 0;
    for (int r = v.row0; r < v.row1; r++) {
      work_.row_sequence[(size_t)r] = s;
      work_.row_limit[(size_t)r] = v.length - (v.row1 - r) + 1;
    }
    plan.sequences.push_back(v);
  }
}

void Pass::reserve(RowBuffers& b, int rows) {
  for (const Layer& l : w_.layers) {
    b.hidden_buffer.reserve(l.qkv, rows);
    b.hidden_buffer.reserve(l.gate_up, rows);
    b.attention_buffer.reserve(l.o, rows);
    b.mlp_buffer.reserve(l.down, rows);
    b.qkv.reserve((int64_t)rows * l.qkv.n);
    b.mlp.reserve((int64_t)rows * l.down.inputs());
    for (const Linear* w : {&l.qkv, &l.o, &l.gate_up, &l.down})
      if (w->low_rank) b.low_rank.reserve((int64_t)rows * w->low_rank->n);
  }
  b.residual.reserve((int64_t)rows * stride_);
}

void Pass::reserve() {
  const Layer& l = w_.layers[0];
  work_.x.reserve((int64_t)batch_.rows * stride_);
  work_.q.reserve((int64_t)batch_.rows * spec_.heads * spec_.head_dim);
  work_.attention.reserve((int64_t)batch_.rows * l.o.inputs());
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
  if (!batch_.outputs) return;
  if (batch_.before_outputs) batch_.before_outputs();
  outputs();
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

// The inputs of a matrix that ends in the columns B of an adapter: x is there, and A x is put behind it.
void Pass::append_low_rank(const Linear& w, const Activations& x, const Block& b, int row0, int row1) {
  if (!w.low_rank) return;
  const Linear& low_rank = *w.low_rank;
  float* product = b.buffers.low_rank.get();
  Epilogue e;
  e.out = product;
  e.stride = low_rank.n;
  k_.matmul(low_rank, x, row0, row1, 0, groups(low_rank), e);
  Activations rest = x;
  rest.k = low_rank.n;
  rest.int8 += x.k;
  rest.scale += x.k / 32;
  rest.group_sum += x.k / 32;
  k_.convert_f32(product, low_rank.n, w.type, rest, row0, row1);
}

void Pass::attention_input(int layer, const Block& b, int row0, int row1) {
  const Layer& l = w_.layers[(size_t)layer];
  Activations a = b.buffers.hidden_buffer.reserve(l.qkv, b.rows);
  k_.normalize(x(b.base), stride_, spec_.hidden, l.attn_norm, spec_.eps, l.qkv.type, a, row0, row1);
  append_low_rank(l.qkv, a, b, row0, row1);
}

void Pass::project_qkv(int layer, const Block& b, int row0, int row1, int g0, int g1) {
  const Linear& w = w_.layers[(size_t)layer].qkv;
  Activations a = b.buffers.hidden_buffer.reserve(w, b.rows);
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

void Pass::attention_output(int layer, const Block& b, int row0, int row1) {
  const Linear& w = w_.layers[(size_t)layer].o;
  Activations a = b.buffers.attention_buffer.reserve(w, b.rows);
  k_.convert_f32(work_.attention.get() + (int64_t)b.base * w.inputs(), w.inputs(), w.type, a, row0, row1);
  append_low_rank(w, a, b, row0, row1);
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
  into_residual(l.o, b.buffers.attention_buffer.reserve(l.o, b.rows), l.attn_post_norm, b, row0, row1, g0, g1);
}

void Pass::mlp_input(int layer, const Block& b, int row0, int row1) {
  const Layer& l = w_.layers[(size_t)layer];
  Activations a = b.buffers.hidden_buffer.reserve(l.gate_up, b.rows);
  k_.normalize(x(b.base), stride_, spec_.hidden, l.mlp_norm, spec_.eps, l.gate_up.type, a, row0, row1);
  append_low_rank(l.gate_up, a, b, row0, row1);
}

void Pass::gate_up(int layer, const Block& b, int row0, int row1, int g0, int g1) {
  const Layer& l = w_.layers[(size_t)layer];
  Activations a = b.buffers.hidden_buffer.reserve(l.gate_up, b.rows);
  Epilogue e;
  e.store = Store::swiglu;
  e.out_bf16 = b.buffers.mlp.get();
  e.stride = l.down.inputs();
  k_.matmul(l.gate_up, a, row0, row1, g0, g1, e);
}

void Pass::mlp_output(int layer, const Block& b, int row0, int row1) {
  const Linear& w = w_.layers[(size_t)layer].down;
  Activations a = b.buffers.mlp_buffer.reserve(w, b.rows);
  k_.convert_bf16(b.buffers.mlp.get(), w.inputs(), w.type, a, row0, row1);
  append_low_rank(w, a, b, row0, row1);
}

void Pass::down(int layer, const Block& b, int row0, int row1, int g0, int g1) {
  const Layer& l = w_.layers[(size_t)layer];
  into_residual(l.down, b.buffers.mlp_buffer.reserve(l.down, b.rows), l.mlp_post_norm, b, row0, row1, g0, g1);
}

}  // namespace vglm
