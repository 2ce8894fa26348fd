// Who computes which part of a step's attention. Planned once a step, executed once a layer and KV head.
//
// A sequence's page table is cut into chunks of kChunk slots. Chunks that are the same pages for several sequences (a shared
// prefix, shared spans) become one stacked item, so that the pages are read once for all of them; the other chunks of a
// sequence are cut into items of about equal cost. A sequence whose chunks all lie in one item is finished there ("direct");
// otherwise each chunk leaves a partial result, and the partials are merged in the order of the page table.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace vglm {

struct SequenceView {
  int32_t row0, row1;        // query rows in the batch
  int32_t tile0, tile1;      // its KV tiles in PagePlan::tiles
  int32_t length;            // valid slots, this step's tokens included
};

struct PageTile {
  int32_t block, tile;       // block of the pool, and 16-token tile within it
  int32_t begin, valid;
};

struct AttentionItem {
  std::vector<int32_t> sequences;   // more than one: stacked
  std::vector<int32_t> chunks;      // first chunk index, per sequence
  int32_t num_chunks;
  bool direct;
};

struct AttentionPlan {
  std::vector<PageTile> tiles;
  std::vector<SequenceView> sequences;
  std::vector<AttentionItem> items;
  std::vector<int64_t> partial_base;   // per sequence: first slot of its partials, or -1 when it is direct
  int64_t num_partials = 0;            // slots of one KV head; a slot is one query head's (max, sum, out)

  static int chunks(const SequenceView& s) { return (s.tile1 - s.tile0 + kChunk / kTokenTile - 1) / (kChunk / kTokenTile); }
  // Fills items and partials for `threads` threads and `group` query heads per KV head.
  void divide(int threads, int group, int kv_heads);
};

}  // namespace vglm
