// Softmax attention of a few query rows over one chunk of KV tiles (at most kChunk slots).
//
// A chunk is the unit of flash-decoding: its partial result is a function of the row and of the chunk's pages only, and
// partials are merged in the order of the page table. So a row's result is the same bits whether its chunks were computed by
// one thread or by many, alone or stacked with the rows of other sequences that share the pages.

namespace vglm::VGLM_ISA_NAMESPACE {

constexpr int kTilesInChunk = kChunk / kTokenTile;

// A tile as the inner loops read it: planes of bf16, or of int8 that stand for bf16; scales are null for a bf16 cache.
struct TileView {
  const uint8_t *k, *v;
  const float *k_scale, *v_scale;
  int32_t begin, valid;
};

static VGLM_INLINE int seen_of(const TileView& tile, int32_t limit) {
  const int seen = limit - tile.begin;
  return seen < tile.valid ? seen : tile.valid;
}

static void view_tiles(const KVTile* tiles, int n, int head_dim, bool int8, TileView* out) {
  const int64_t plane = (int64_t)kTokenTile * head_dim * (int8 ? 1 : 2);
  for (int t = 0; t < n; t++) {
    const float* scales = int8 ? (const float*)(tiles[t].data + 2 * plane) : nullptr;
    out[t] = {tiles[t].data, tiles[t].data + plane, scales, scales ? scales + kTokenTile : nullptr, tiles[t].begin, tiles[t].valid};
  }
}

// From raw dot products in s [tiles * 16] to weights in p (bf16), and the chunk's maximum and sum.
template <bool Scaled>
static void softmax_row(const float* s, uint16_t* p, const TileView* tiles, int n, int32_t limit, float scale, const Partial& out) {
  f32x16 best = set1(-__builtin_inff()), sum = zero_f32(), factor = set1(scale);
  for (int t = 0; t < n; t++) {
    if constexpr (Scaled) factor = set1(scale) * load(tiles[t].k_scale);
    f32x16 x = load(s + t * kTokenTile) * factor;
    const int seen = seen_of(tiles[t], limit);
    if (__builtin_expect(seen < kTokenTile, 0)) x = first_lanes(x, seen, -__builtin_inff());
    best = max(best, x);
  }
  const float m = reduce_max(best);
  const f32x16 shift = set1(m > -__builtin_inff() ? -m : 0.f);
#pragma GCC unroll 2
  for (int t = 0; t < n; t++) {
    if constexpr (Scaled) factor = set1(scale) * load(tiles[t].k_scale);
    f32x16 x = exp(fma(load(s + t * kTokenTile), factor, shift));
    const int seen = seen_of(tiles[t], limit);
    if (__builtin_expect(seen < kTokenTile, 0)) x = first_lanes(x, seen, 0.f);
    sum = sum + x;
    if constexpr (Scaled) x = x * load(tiles[t].v_scale);
    store_bf16(p + t * kTokenTile, x);
  }
  *out.max = m;
  *out.sum = reduce_add(sum);
}

static void softmax_row(const float* s, uint16_t* p, const TileView* tiles, int n, int32_t limit, float scale, const Partial& out) {
  if (n > 0 && tiles[0].k_scale)
    softmax_row<true>(s, p, tiles, n, limit, scale, out);
  else
    softmax_row<false>(s, p, tiles, n, limit, scale, out);
}

static VGLM_INLINE int visible_tiles(const TileView* tiles, int n, const int32_t* limit, int rows) {
  int32_t furthest = 0;
  for (int r = 0; r < rows; r++) furthest = limit[r] > furthest ? limit[r] : furthest;
  while (n > 0 && tiles[n - 1].begin >= furthest) n--;
  return n;
}

#ifndef VGLM_AMX

#if defined(__AVX512F__)
constexpr int kQueryRows = 6, kValueGroups = 4;   // accumulators that stay in registers
#else
constexpr int kQueryRows = 3, kValueGroups = 2;
#endif

template <bool Int8>
static VGLM_INLINE bytes64 load_kv(const uint8_t* plane, int index) {  // 32 elements as bf16
  if constexpr (Int8) return load_i8_as_bf16((const int8_t*)plane + index * 32);
  return load_bytes(plane + (int64_t)index * 64);
}

template <bool Int8, int Rows>
static VGLM_INLINE void scores_of_tiles(const uint16_t* const* q, const TileView* tiles, int n, int head_dim, float (*s)[kChunk]) {
  for (int t = 0; t < n; t += 2) {
    const int other = t + 1 < n ? t + 1 : t;  // the last of an odd number is computed twice
    f32x16 acc[Rows][2];
    for (int r = 0; r < Rows; r++) acc[r][0] = acc[r][1] = zero_f32();
    const int soon = t + 2 < n ? t + 2 : t, later = t + 3 < n ? t + 3 : t;
    for (int i = 0; i < head_dim / 2; i++) {
      if constexpr (Rows <= 6) {  // decode: pages come from memory, and are too short for the hardware to foresee
        const int64_t at = (int64_t)i * (Int8 ? 32 : 64);
        __builtin_prefetch(tiles[soon].k + at);
        __builtin_prefetch(tiles[later].k + at);
        __builtin_prefetch(tiles[t].v + at);
        __builtin_prefetch(tiles[other].v + at);
      }
      bytes64 a = load_kv<Int8>(tiles[t].k, i), b = load_kv<Int8>(tiles[other].k, i);
#pragma GCC unroll 12
      for (int r = 0; r < Rows; r++) {
        acc[r][0] = dot2(acc[r][0], a, q[r] + 2 * i);
        acc[r][1] = dot2(acc[r][1], b, q[r] + 2 * i);
      }
    }
    for (int r = 0; r < Rows; r++) {
      store(s[r] + other * kTokenTile, acc[r][1]);
      store(s[r] + t * kTokenTile, acc[r][0]);
    }
  }
}

template <bool Int8, int Rows, int Groups>
static VGLM_INLINE void weighted_values(const uint16_t (*p)[kChunk], const TileView* tiles, int n, int head_dim, int dim0,
                                        const KVTile* next, const Partial* out) {
  f32x16 acc[Rows][Groups];
  for (int r = 0; r < Rows; r++)
    for (int g = 0; g < Groups; g++) acc[r][g] = zero_f32();
  for (int t = 0; t < n; t++)
    for (int pair = 0; pair < kTokenTile / 2; pair++) {
      if (Rows <= 6 && next) {
        const int share = head_dim * (Int8 ? 2 : 4);  // an eighth of the next chunk's keys of this tile
        for (int line = 0; line < share; line += 64) __builtin_prefetch(next[t].data + pair * share + line);
      }
      bytes64 b[Groups];
#pragma GCC unroll 4
      for (int g = 0; g < Groups; g++) b[g] = load_kv<Int8>(tiles[t].v, (pair * head_dim + dim0) / 16 + g);
#pragma GCC unroll 12
      for (int r = 0; r < Rows; r++)
#pragma GCC unroll 4
        for (int g = 0; g < Groups; g++) acc[r][g] = dot2(acc[r][g], b[g], p[r] + t * kTokenTile + 2 * pair);
    }
  for (int r = 0; r < Rows; r++)
    for (int g = 0; g < Groups; g++) store(out[r].out + dim0 + g * kGroup, acc[r][g]);
}

template <bool Int8, int Rows>
static void attend_rows(const uint16_t* const* q, const int32_t* limit, const TileView* tiles, int n, int head_dim, float scale,
                        const KVTile* next, const Partial* out) {
  alignas(64) float s[Rows][kChunk];
  alignas(64) uint16_t p[Rows][kChunk];
  n = visible_tiles(tiles, n, limit, Rows);
  scores_of_tiles<Int8, Rows>(q, tiles, n, head_dim, s);
  for (int r = 0; r < Rows; r++) softmax_row(s[r], p[r], tiles, n, limit[r], scale, out[r]);
  constexpr int kGroups = Rows > 6 ? 2 : kValueGroups;
  int dim = 0;
  for (; dim + 16 * kGroups <= head_dim; dim += 16 * kGroups)
    weighted_values<Int8, Rows, kGroups>(p, tiles, n, head_dim, dim, dim ? nullptr : next, out);
  for (; dim < head_dim; dim += 16) weighted_values<Int8, Rows, 1>(p, tiles, n, head_dim, dim, nullptr, out);
}

template <bool Int8>
static void attend_all(const uint16_t* const* q, const int32_t* limit, int rows, const TileView* tiles, int n, int head_dim,
                       float scale, const KVTile* next, const Partial* out) {
  int r = 0;
  if constexpr (kQueryRows == 6 && !Int8)
    for (; r + 12 <= rows; r += 12) attend_rows<Int8, 12>(q + r, limit + r, tiles, n, head_dim, scale, next, out + r);
  for (; r + kQueryRows <= rows; r += kQueryRows)
    attend_rows<Int8, kQueryRows>(q + r, limit + r, tiles, n, head_dim, scale, next, out + r);
#define VGLM_CALL(R) if constexpr (R < kQueryRows) attend_rows<Int8, R>(q + r, limit + r, tiles, n, head_dim, scale, next, out + r)
  switch (rows - r) {
    case 1: VGLM_CALL(1); break;
    case 2: VGLM_CALL(2); break;
    case 3: VGLM_CALL(3); break;
    case 4: VGLM_CALL(4); break;
    case 5: VGLM_CALL(5); break;
    default: break;
  }
#undef VGLM_CALL
}

// int8 planes as bf16, for many rows that read them again and again.
static void widen_tiles(TileView* tiles, int n, int head_dim, uint8_t* scratch) {
  const int64_t plane = (int64_t)kTokenTile * head_dim * 2;
  for (int t = 0; t < n; t++) {
    uint8_t *k = scratch + 2 * t * plane, *v = k + plane;
    for (int i = 0; i < head_dim / 2; i++) {
      store_bytes(k + i * 64, load_kv<true>(tiles[t].k, i));
      store_bytes(v + i * 64, load_kv<true>(tiles[t].v, i));
    }
    tiles[t].k = k;
    tiles[t].v = v;
  }
}

static void attend(const uint16_t* const* q, const int32_t* limit, int rows, const KVTile* tiles, int num_tiles, int head_dim,
                   bool int8, float scale, const Partial* out, uint8_t* scratch, const KVTile* next, int) {
  TileView views[kTilesInChunk];
  view_tiles(tiles, num_tiles, head_dim, int8, views);
  num_tiles = visible_tiles(views, num_tiles, limit, rows);
  if (int8 && rows >= 2 * kQueryRows) {
    widen_tiles(views, num_tiles, head_dim, scratch);
    int8 = false;
  }
  if (int8)
    attend_all<true>(q, limit, rows, views, num_tiles, head_dim, scale, next, out);
  else
    attend_all<false>(q, limit, rows, views, num_tiles, head_dim, scale, next, out);
}

#endif

static void merge(const Partial& into, const Partial& from, int head_dim) {
  const float m = *into.max > *from.max ? *into.max : *from.max;
  alignas(64) float factor[16];
  store(factor, exp(first_lanes(set1(*into.max - m), 1, *from.max - m)));
  const float keep = *into.sum > 0.f ? factor[0] : 0.f, add = factor[1];
  const f32x16 k = set1(keep), a = set1(add);
  for (int i = 0; i < head_dim; i += 16) store(into.out + i, fma(load(into.out + i), k, load(from.out + i) * a));
  *into.sum = *into.sum * keep + *from.sum * add;
  *into.max = m;
}

static void divide(float* out, float sum, int head_dim) {
  const f32x16 inverse = set1(sum > 0.f ? 1.f / sum : 0.f);
  for (int i = 0; i < head_dim; i += 16) store(out + i, load(out + i) * inverse);
}

}  // namespace
