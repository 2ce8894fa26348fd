// Attention on the AMX tile unit, 32 query rows at a time. The chunk's pages are first laid side by side as bf16, so that a
// tile of 32 keys' or values' worth of K dimension is 16 rows in a regular stride. Few rows (decode) take the same way, for
// the same bits.

namespace vglm::VGLM_ISA_NAMESPACE {

struct ChunkScratch {
  uint16_t *k, *v, *q, *p;
  float *s, *o;
  int depth;   // head_dim up to a multiple of 32

  ChunkScratch(uint8_t* memory, int head_dim) : depth((head_dim + 31) / 32 * 32) {
    k = (uint16_t*)memory;                                  // [tile][depth/2][16][2]
    v = k + (int64_t)kChunk * depth;                        // [token pair][depth][2]
    q = v + (int64_t)kChunk * depth;                        // [32][depth]
    p = q + 32 * depth;                                     // [32][kChunk]
    s = (float*)(p + 32 * kChunk);                          // [32][kChunk]
    o = s + 32 * kChunk;                                    // [32][depth]
  }
};

template <bool Int8>
static void gather_chunk(const TileView* tiles, int kept, int n, int head_dim, const ChunkScratch& c) {
  for (int t = kept; t < n; t++) {
    uint8_t* k = (uint8_t*)(c.k + (int64_t)t * kTokenTile * c.depth);
    for (int i = 0; i < head_dim / 2; i++) {
      if constexpr (Int8)
        store_bytes(k + i * 64, load_i8_as_bf16((const int8_t*)tiles[t].k + i * 32));
      else
        store_bytes(k + i * 64, load_bytes(tiles[t].k + i * 64));
    }
    if (c.depth > head_dim) memset(k + head_dim / 2 * 64, 0, (size_t)(c.depth - head_dim) / 2 * 64);
    for (int pair = 0; pair < kTokenTile / 2; pair++) {
      uint8_t* v = (uint8_t*)(c.v + ((int64_t)t * kTokenTile / 2 + pair) * c.depth * 2);
      for (int i = 0; i < head_dim / 16; i++) {
        const int from = pair * head_dim / 16 + i;
        if constexpr (Int8)
          store_bytes(v + i * 64, load_i8_as_bf16((const int8_t*)tiles[t].v + from * 32));
        else
          store_bytes(v + i * 64, load_bytes(tiles[t].v + from * 64));
      }
      if (c.depth > head_dim) memset(v + head_dim / 16 * 64, 0, (size_t)(c.depth - head_dim) * 4);
    }
  }
  if (n % 2) {  // values are taken 32 tokens at a time
    memset(c.k + (int64_t)n * kTokenTile * c.depth, 0, (size_t)kTokenTile * c.depth * 2);
    memset(c.v + (int64_t)n * kTokenTile * c.depth, 0, (size_t)kTokenTile * c.depth * 2);
  }
}

// C[16 or 32][32] = A x B over `steps` of 32: two column tiles, one or two row tiles.
template <bool Tall>
static VGLM_INLINE void tile_product(const uint16_t* a, int64_t a_stride, const uint8_t* b0, const uint8_t* b1, int64_t b_stride,
                                     int64_t b_step, int steps, float* c0, float* c1, int64_t c_stride) {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (Tall) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int i = 0; i < steps; i++) {
    _tile_loadd(4, a + i * 32, a_stride);
    _tile_loadd(6, b0 + i * b_step, b_stride);
    _tile_loadd(7, b1 + i * b_step, b_stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (Tall) {
      _tile_loadd(5, (const uint8_t*)(a + i * 32) + 16 * a_stride, a_stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c0, c_stride);
  _tile_stored(1, c1, c_stride);
  if constexpr (Tall) {
    _tile_stored(2, (uint8_t*)c0 + 16 * c_stride, c_stride);
    _tile_stored(3, (uint8_t*)c1 + 16 * c_stride, c_stride);
  }
}

template <bool Tall>
static void attend_block(const uint16_t* const* q, const int32_t* limit, int rows, const TileView* tiles, int n, int head_dim,
                         float scale, const Partial* out, const ChunkScratch& c) {
  constexpr int kBlock = Tall ? 32 : 16;
  n = visible_tiles(tiles, n, limit, rows);
  const int even = (n + 1) / 2 * 2;
  for (int r = 0; r < kBlock; r++) {
    uint16_t* row = c.q + r * c.depth;
    if (r < rows) memcpy(row, q[r], (size_t)head_dim * 2);
    const int from = r < rows ? head_dim : 0;
    memset(row + from, 0, (size_t)(c.depth - from) * 2);
  }
  const int64_t k_tile = (int64_t)kTokenTile * c.depth * 2;
  __asm__ volatile("" : : : "memory");  // the tile loads' intrinsics do not say that they read
  for (int t = 0; t < even; t += 2)
    tile_product<Tall>(c.q, c.depth * 2, (const uint8_t*)c.k + t * k_tile, (const uint8_t*)c.k + (t + 1) * k_tile, 64, 1024,
                       c.depth / 32, c.s + t * kTokenTile, c.s + (t + 1) * kTokenTile, kChunk * 4);
  for (int r = 0; r < kBlock; r++) {
    uint16_t* p = c.p + r * kChunk;
    if (r < rows)
      softmax_row(c.s + r * kChunk, p, tiles, n, limit[r], scale, out[r]);
    const int from = r < rows ? n * kTokenTile : 0;
    memset(p + from, 0, (size_t)(even * kTokenTile - from) * 2);
  }
  __asm__ volatile("" : : : "memory");
  for (int dim = 0; dim < c.depth; dim += 32) {
    const uint8_t* v = (const uint8_t*)c.v + dim * 4;
    tile_product<Tall>(c.p, kChunk * 2, v, v + 64, c.depth * 4, (int64_t)16 * c.depth * 4, even / 2, c.o + dim, c.o + dim + 16,
                       c.depth * 4);
  }
  for (int r = 0; r < rows; r++) memcpy(out[r].out, c.o + r * c.depth, (size_t)head_dim * 4);
}

static void attend(const uint16_t* const* q, const int32_t* limit, int rows, const KVTile* tiles, int num_tiles, int head_dim,
                   bool int8, float scale, const Partial* out, uint8_t* memory, const KVTile* next, int kept) {
  TileView views[kTilesInChunk];
  view_tiles(tiles, num_tiles, head_dim, int8, views);
  num_tiles = visible_tiles(views, num_tiles, limit, rows);
  const ChunkScratch c(memory, head_dim);
  if (int8)
    gather_chunk<true>(views, kept, num_tiles, head_dim, c);
  else
    gather_chunk<false>(views, kept, num_tiles, head_dim, c);
  if (next && rows <= 32) {  // decode: the next chunk comes from memory while this one is computed
    const int64_t bytes = (int64_t)2 * kTokenTile * head_dim * (int8 ? 1 : 2);
    for (int t = 0; t < num_tiles; t++)
      for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(next[t].data + line, 0, 2);
  }
  TileConfig config;
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
  for (int r = 0; r < rows; r += 32) {
    const int here = rows - r < 32 ? rows - r : 32;
    if (here > 16)
      attend_block<true>(q + r, limit + r, here, views, num_tiles, head_dim, scale, out + r, c);
    else
      attend_block<false>(q + r, limit + r, here, views, num_tiles, head_dim, scale, out + r, c);
  }
  _tile_release();
}

}  // namespace
