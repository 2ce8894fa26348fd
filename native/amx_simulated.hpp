// The tile unit in plain C++, after the pseudo-code of Intel's Instruction Set Extensions reference: lets the AMX kernels be
// tested, byte for byte, on a processor without AMX. Slow; never chosen unless asked for by name.
#pragma once
#include <cstdint>
#include <cstring>

namespace vglm::amx_simulated {

struct Tile { alignas(64) uint8_t byte[16][64]; };
static thread_local Tile tiles[8];

static inline void _tile_loadconfig(const void*) { memset(tiles, 0, sizeof tiles); }
static inline void _tile_release() {}
static inline void _tile_zero(int t) { memset(&tiles[t], 0, sizeof(Tile)); }
static inline void _tile_loadd(int t, const void* p, int64_t stride) {
  for (int r = 0; r < 16; r++) memcpy(tiles[t].byte[r], (const uint8_t*)p + r * stride, 64);
}
static inline void _tile_stored(int t, void* p, int64_t stride) {
  for (int r = 0; r < 16; r++) memcpy((uint8_t*)p + r * stride, tiles[t].byte[r], 64);
}
static inline void _tile_dpbsud(int c, int a, int b) {  // signed a, unsigned b
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < 16; n++) {
      int32_t sum;
      memcpy(&sum, &tiles[c].byte[m][4 * n], 4);
      for (int k = 0; k < 64; k++) sum += (int8_t)tiles[a].byte[m][k] * (int)tiles[b].byte[k / 4][4 * n + k % 4];
      memcpy(&tiles[c].byte[m][4 * n], &sum, 4);
    }
}
static inline float _bf16_at(const Tile& t, int row, int i) {
  uint16_t h;
  memcpy(&h, &t.byte[row][2 * i], 2);
  uint32_t x = (uint32_t)h << 16;
  float f;
  memcpy(&f, &x, 4);
  return f;
}
static inline void _tile_dpbf16ps(int c, int a, int b) {  // even and odd k are summed apart, then added
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < 16; n++) {
      float sum, even = 0, odd = 0;
      memcpy(&sum, &tiles[c].byte[m][4 * n], 4);
      for (int k = 0; k < 16; k++) {
        even += _bf16_at(tiles[a], m, 2 * k) * _bf16_at(tiles[b], k, 2 * n);
        odd += _bf16_at(tiles[a], m, 2 * k + 1) * _bf16_at(tiles[b], k, 2 * n + 1);
      }
      sum += even + odd;
      memcpy(&tiles[c].byte[m][4 * n], &sum, 4);
    }
}

}  // namespace
