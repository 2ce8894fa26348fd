// The attention of a forward pass: which rows attend to which pages, chunk by chunk.
#include "forward.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace vglm {

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
  const int most = kStateRows / group_;
  for (int r = row0; r < row1;) {
    int s = work_.row_sequence[(size_t)r], shared = INT32_MAX;
    int end = std::min(row1, work_.plan.sequences[(size_t)s].row1);
    const int first = s;
    while (end < row1 && work_.shared_tiles[(size_t)s + 1] > 0) {
      const int more = std::min(row1, work_.plan.sequences[(size_t)s + 1].row1);
      if (more - r > most) break;
      shared = std::min(shared, work_.shared_tiles[(size_t)++s] / kTiles);
      end = more;
    }
    if (s == first)
      attend_segment(layer, 0, spec_.kv_heads, s, r, end, thread);
    else
      attend_bundle(layer, thread, r, end, shared);
    r = end;
  }
}

// A few rows each of neighbouring sequences whose tables begin with the same tiles. Of the first `shared` chunks, which are
// the same for all, each is read once; of the chunks after them, tiles that are those of the sequence before stay in place.
void Pass::attend_bundle(int layer, int thread, int row0, int row1, int shared) {
  const int d = spec_.head_dim, slots = d + 16, n = (row1 - row0) * group_;
  float* state = work_.states[(size_t)thread].get();
  float* fresh = state + (int64_t)std::max(kStateRows, group_) * slots;
  auto at = [&](float* base, int i) { return Partial{base + (int64_t)i * slots + d, base + (int64_t)i * slots + d + 1, base + (int64_t)i * slots}; };
  RowLists& lists = work_.lists[(size_t)thread];
  uint8_t* scratch = work_.chunks[(size_t)thread].get();
  for (int h = 0; h < spec_.kv_heads; h++) {
    lists.clear();
    for (int i = 0; i < n; i++) {
      lists.add(q(row0 + i / group_, h * group_ + i % group_), work_.row_limit[(size_t)(row0 + i / group_)], at(fresh, i));
      Partial p = at(state, i);
      *p.max = -INFINITY;
      *p.sum = 0.f;
      memset(p.out, 0, (size_t)d * 4);
    }
    KVTile tiles[kTiles];
    auto attend = [&](int s, int chunk, int first, int end, int kept) {
      const int num_tiles = chunk_tiles(layer, h, work_.plan.sequences[(size_t)s], chunk, tiles);
      while (first < end && lists.limits[(size_t)first] <= tiles[0].begin) first += group_;
      if (first >= end) return false;
      k_.attend(&lists.queries[(size_t)first], &lists.limits[(size_t)first], end - first, tiles, num_tiles, d, kv_.layout().int8,
                spec_.attention_scale, &lists.out[(size_t)first], scratch, nullptr, kept);
      for (int i = first; i < end; i++) k_.merge(at(state, i), lists.out[(size_t)i], d);
      return true;
    };
    for (int c = 0; c < shared; c++) attend(work_.row_sequence[(size_t)row0], c, 0, n, 0);
    int in_scratch = -1;  // the chunk, of the sequence before
    for (int r = row0; r < row1;) {
      const int s = work_.row_sequence[(size_t)r], end = std::min(row1, work_.plan.sequences[(size_t)s].row1);
      for (int c = shared; c < AttentionPlan::chunks(work_.plan.sequences[(size_t)s]); c++) {
        const int kept = c == in_scratch ? std::clamp(work_.shared_tiles[(size_t)s] - c * kTiles, 0, kTiles) : 0;
        in_scratch = attend(s, c, (r - row0) * group_, (end - row0) * group_, kept) ? c : -1;
      }
      r = end;
    }
    for (int i = 0; i < n; i++) {
      Partial p = at(state, i);
      k_.divide(p.out, *p.sum, d);
      memcpy(work_.attention.get() + (int64_t)(row0 + i / group_) * w_.layers[0].o.inputs() + (h * group_ + i % group_) * d, p.out,
             (size_t)d * 4);
    }
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
              kv_.layout().int8, spec_.attention_scale, &lists.out[(size_t)first], work_.chunks[(size_t)thread].get(), next, 0);
    for (int i = first; i < n; i++) k_.merge(at(state, i), lists.out[(size_t)i], d);
    num_tiles = next_tiles;
  }
  for (int i = 0; i < n; i++) {
    Partial p = at(state, i);
    k_.divide(p.out, *p.sum, d);
    memcpy(work_.attention.get() + (int64_t)(row0 + i / group_) * w_.layers[0].o.inputs() + (kv_head * group_ + i % group_) * d, p.out,
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
              next_tiles ? tiles[j & 1] : nullptr, 0);
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
      memcpy(work_.attention.get() + (int64_t)r * w_.layers[0].o.inputs() + h * d, aligned, (size_t)d * 4);
    }
  }
}

}  // namespace vglm
