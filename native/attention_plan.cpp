#include "attention_plan.hpp"

#include <algorithm>
#include <unordered_map>

namespace vglm {
namespace {

constexpr int kTiles = kChunk / kTokenTile;
constexpr int kMaxStackedRows = 96;

uint64_t chunk_hash(const PageTile* t, int n) {
  uint64_t h = 1469598103934665603ull;
  for (int i = 0; i < n; i++) {
    h = (h ^ (uint64_t)(uint32_t)t[i].block) * 1099511628211ull;
    h = (h ^ (uint64_t)(t[i].tile * 64 + t[i].valid)) * 1099511628211ull;
  }
  return h;
}

bool same_pages(const PageTile* a, const PageTile* b, int n) {
  for (int i = 0; i < n; i++)
    if (a[i].block != b[i].block || a[i].tile != b[i].tile || a[i].valid != b[i].valid) return false;
  return true;
}

}  // namespace

void AttentionPlan::divide(int threads, int group, int kv_heads) {
  items.clear();
  partial_base.assign(sequences.size(), -1);
  num_partials = 0;

  // Stacks: a full chunk that every row of its sequence sees whole, keyed by its pages.
  std::unordered_map<uint64_t, std::vector<std::pair<int32_t, int32_t>>> same;
  std::vector<std::vector<char>> stacked(sequences.size());
  int64_t total = 0;
  for (size_t s = 0; s < sequences.size(); s++) {
    const SequenceView& q = sequences[s];
    const int n = chunks(q), own = q.length - (q.row1 - q.row0);
    stacked[s].assign((size_t)n, 0);
    total += (int64_t)(q.row1 - q.row0) * group * (q.tile1 - q.tile0);
    for (int c = 0; c + 1 < n && sequences.size() > 1; c++) {
      const PageTile* t = &tiles[(size_t)(q.tile0 + c * kTiles)];
      if (t[kTiles - 1].begin + t[kTiles - 1].valid > own) break;
      same[chunk_hash(t, kTiles)].emplace_back((int32_t)s, c);
    }
  }
  const int64_t share = std::max<int64_t>(total * kv_heads / (threads * 6), 1) / kv_heads + 1;
  auto pages = [&](std::pair<int32_t, int32_t> sc) { return &tiles[(size_t)(sequences[(size_t)sc.first].tile0 + sc.second * kTiles)]; };
  for (auto& [hash, all] : same) {
    std::vector<std::pair<int32_t, int32_t>> left = std::move(all);
    while (left.size() > 1) {
      AttentionItem item{{}, {}, 1, false};
      std::vector<std::pair<int32_t, int32_t>> other;
      int rows = 0;
      for (auto& sc : left) {
        const SequenceView& q = sequences[(size_t)sc.first];
        const int more = (q.row1 - q.row0) * group;
        if (same_pages(pages(left[0]), pages(sc), kTiles) && (item.sequences.empty() || rows + more <= kMaxStackedRows)) {
          item.sequences.push_back(sc.first);
          item.chunks.push_back(sc.second);
          rows += more;
        } else {
          other.push_back(sc);
        }
      }
      if (item.sequences.size() > 1) {
        for (size_t i = 0; i < item.sequences.size(); i++) stacked[(size_t)item.sequences[i]][(size_t)item.chunks[i]] = 1;
        items.push_back(std::move(item));
      }
      left = std::move(other);
    }
  }

  for (size_t s = 0; s < sequences.size(); s++) {
    const SequenceView& q = sequences[s];
    const int n = chunks(q), rows = (q.row1 - q.row0) * group;
    const int64_t cost = std::max<int64_t>((int64_t)rows * kTiles, 1);
    const int run = (int)std::clamp<int64_t>(share / cost, 1, n);
    const size_t first = items.size();
    for (int c = 0; c < n;) {
      if (stacked[s][(size_t)c]) {
        c++;
        continue;
      }
      int end = c + 1;
      while (end < n && end - c < run && !stacked[s][(size_t)end]) end++;
      items.push_back({{(int32_t)s}, {c}, end - c, false});
      c = end;
    }
    if (items.size() == first + 1 && items.back().num_chunks == n) {
      items.back().direct = true;
    } else {
      partial_base[s] = num_partials;
      num_partials += (int64_t)rows * n;
    }
  }
}

}  // namespace vglm
