// Softmax attention of a few query rows over one chunk of KV tiles (at most kChunk slots).
//
// A chunk is the unit of flash-decoding: its partial result is a function of the row and of the chunk's pages only, and
// partials are merged in the order of the page table. So a row's result is the same bits whether its chunks were computed by
// one thread or by many, alone or stacked with the rows of other sequences that share the pages.

namespace vglm::VGLM_ISA_NAMESPACE {

constexpr int kMaxHeadDim = 512;

template <bool Int8>
static VGLM_INLINE bytes64 load_kv(const uint8_t* plane, int index) {  // 32 elements as bf16
  if constexpr (Int8) return load_i8_as_bf16((const int8_t*)plane + index * 32);
  return load_bytes(plane + (int64_t)index * 64);
}

template <bool Int8, int Rows>
static VGLM_INLINE void scores_of_tile(const uint16_t* const* q, const uint8_t* k0, const uint8_t* k1, int head_dim,
                                       f32x16 acc[Rows][2]) {
  for (int r = 0; r < Rows; r++) acc[r][0] = acc[r][1] = zero_f32();
  for (int i = 0; i < head_dim / 2; i++) {
    bytes64 a = load_kv<Int8>(k0, i), b = load_kv<Int8>(k1, i);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; r++) {
      acc[r][0] = dot2(acc[r][0], a, q[r] + 2 * i);
      acc[r][1] = dot2(acc[r][1], b, q[r] + 2 * i);
    }
  }
}

template <bool Int8, int Rows, int Groups>
static VGLM_INLINE void weighted_values(const uint16_t (*p)[kChunk], const KVTile* tiles, int num_tiles, int64_t plane,
                                        int head_dim, int dim0, const Partial* out) {
  f32x16 acc[Rows][Groups];
  for (int r = 0; r < Rows; r++)
    for (int g = 0; g < Groups; g++) acc[r][g] = zero_f32();
  for (int t = 0; t < num_tiles; t++) {
    const uint8_t* v = tiles[t].data + plane;
    for (int pair = 0; pair < kTokenTile / 2; pair++) {
      bytes64 b[Groups];
#pragma GCC unroll 4
      for (int g = 0; g < Groups; g++) b[g] = load_kv<Int8>(v, (pair * head_dim + dim0) / 16 + g);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; r++)
#pragma GCC unroll 4
        for (int g = 0; g < Groups; g++) acc[r][g] = dot2(acc[r][g], b[g], p[r] + t * kTokenTile + 2 * pair);
    }
  }
  for (int r = 0; r < Rows; r++)
    for (int g = 0; g < Groups; g++) store(out[r].out + dim0 + g * kGroup, acc[r][g]);
}

template <bool Int8, int Rows>
static void attend_rows(const uint16_t* const* q, const int32_t* limit, const KVTile* tiles, int num_tiles, int head_dim,
                        float scale, const Partial* out) {
  alignas(64) float s[Rows][kChunk];
  alignas(64) uint16_t p[Rows][kChunk];
  const int64_t plane = (int64_t)kTokenTile * head_dim * (Int8 ? 1 : 2);
  int32_t furthest = 0;
  for (int r = 0; r < Rows; r++) furthest = limit[r] > furthest ? limit[r] : furthest;
  while (num_tiles > 0 && tiles[num_tiles - 1].begin >= furthest) num_tiles--;  // nothing there that a row may see

  f32x16 best[Rows];
  for (int r = 0; r < Rows; r++) best[r] = set1(-__builtin_inff());
  for (int t = 0; t < num_tiles; t += 2) {
    const int two = t + 1 < num_tiles ? 1 : 0;
    f32x16 acc[Rows][2];
    scores_of_tile<Int8, Rows>(q, tiles[t].data, tiles[t + two].data, head_dim, acc);
    for (int half = 0; half <= two; half++) {
      const KVTile& tile = tiles[t + half];
      f32x16 factor = set1(scale);
      if constexpr (Int8) factor = factor * load((const float*)(tile.data + 2 * plane));
      for (int r = 0; r < Rows; r++) {
        int seen = limit[r] - tile.begin < tile.valid ? limit[r] - tile.begin : tile.valid;
        f32x16 x = acc[r][half] * factor;
        if (seen < kTokenTile) x = first_lanes(x, seen, -__builtin_inff());
        best[r] = max(best[r], x);
        store(&s[r][(t + half) * kTokenTile], x);
      }
    }
  }
  for (int r = 0; r < Rows; r++) {
    float m = reduce_max(best[r]);
    f32x16 sum = zero_f32(), shift = set1(m > -__builtin_inff() ? m : 0.f);
    for (int t = 0; t < num_tiles; t++) {
      const KVTile& tile = tiles[t];
      int seen = limit[r] - tile.begin < tile.valid ? limit[r] - tile.begin : tile.valid;
      f32x16 x = exp(load(&s[r][t * kTokenTile]) - shift);
      if (seen < kTokenTile) x = first_lanes(x, seen, 0.f);
      sum = sum + x;
      if constexpr (Int8) x = x * load((const float*)(tile.data + 2 * plane) + kTokenTile);
      store_bf16(&p[r][t * kTokenTile], x);
    }
    *out[r].max = m;
    *out[r].sum = reduce_add(sum);
  }
  int dim = 0;
  for (; dim + 64 <= head_dim; dim += 64) weighted_values<Int8, Rows, 4>(p, tiles, num_tiles, plane, head_dim, dim, out);
  for (; dim < head_dim; dim += 16) weighted_values<Int8, Rows, 1>(p, tiles, num_tiles, plane, head_dim, dim, out);
}

template <bool Int8>
static void attend_all(const uint16_t* const* q, const int32_t* limit, int rows, const KVTile* tiles, int num_tiles,
                       int head_dim, float scale, const Partial* out) {
#if defined(__AVX512F__)
  constexpr int kFull = 6;
#else
  constexpr int kFull = 2;
#endif
  int r = 0;
  for (; r + kFull <= rows; r += kFull) attend_rows<Int8, kFull>(q + r, limit + r, tiles, num_tiles, head_dim, scale, out + r);
#define VGLM_CALL(R) if constexpr (R < kFull) attend_rows<Int8, R>(q + r, limit + r, tiles, num_tiles, head_dim, scale, out + r)
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

static void attend(const uint16_t* const* q, const int32_t* limit, int rows, const KVTile* tiles, int num_tiles, int head_dim,
                   bool int8, float scale, const Partial* out) {
  if (int8)
    attend_all<true>(q, limit, rows, tiles, num_tiles, head_dim, scale, out);
  else
    attend_all<false>(q, limit, rows, tiles, num_tiles, head_dim, scale, out);
}

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
