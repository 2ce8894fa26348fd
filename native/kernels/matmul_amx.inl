// Matrix multiplication on the AMX tile unit: blocks of 32 rows x 32 columns, four accumulators of 16 x 16.
//
// Tiles 0-3 accumulate, 4-5 hold activations (plain rows), 6-7 hold weights (one packed KiB each). While the unit works on
// one block, the vector units finish the block before it: the epilogue is spread over the steps along K.
// Rows are read in sixteens, so activation buffers have kRowSlack readable rows past the last; what they hold is ignored.

#if defined(VGLM_AMX_SIMULATED)
#include "../amx_simulated.hpp"
#endif

namespace vglm::VGLM_ISA_NAMESPACE {

#if defined(VGLM_AMX_SIMULATED)
using namespace vglm::amx_simulated;
#endif

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// A block whose sums are in memory and whose epilogue is not done yet.
template <bool Int8>
struct Pending {
  alignas(64) int32_t sums[32 * 32];
  int row = 0, group = 0, rows = 0, done = 0;

  VGLM_INLINE void advance(const Linear& w, const Activations& a, const Epilogue& e, int count) {
    for (int stop = done + count < rows ? done + count : rows; done < stop; done++) {
      f32x16 y[2];
      for (int g = 0; g < 2; g++) {
        const int32_t* p = sums + done * 32 + g * 16;
        if constexpr (Int8)
          y[g] = to_f32(load_i32(p) - set1_i32(128 * a.sum[row + done])) * set1(a.scale[row + done]) *
                 load(w.scale + (group + g) * kGroup);
        else
          y[g] = load((const float*)p);
      }
      finish(w, e, row + done, group, 2, y);
    }
  }
};

template <bool Int8, bool Tall>
static VGLM_INLINE void amx_step(const uint8_t* x, int64_t x_stride, const uint8_t* b0, const uint8_t* b1) {
  _tile_loadd(4, x, x_stride);
  _tile_loadd(6, b0, 64);
  _tile_loadd(7, b1, 64);
  if constexpr (Tall) _tile_loadd(5, x + 16 * x_stride, x_stride);
  if constexpr (Int8) {
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    if constexpr (Tall) {
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  } else {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (Tall) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

template <bool Int8, bool Tall>
static VGLM_INLINE void amx_block(const Linear& w, const Activations& a, const Epilogue& e, int row, int group, bool cold,
                                  Pending<Int8>& before, Pending<Int8>& now) {
  const int64_t stride = group_bytes(w.type, w.k);
  const uint8_t* b = w.data + group * stride;
  const int64_t x_stride = (int64_t)a.stride * (Int8 ? 1 : 2);
  const uint8_t* x = (Int8 ? (const uint8_t*)a.int8 : (const uint8_t*)a.bf16) + row * x_stride;
  const int steps = (int)(stride / 1024), share = 32 / steps + 1;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (Tall) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int i = 0; i < steps; i++) {
    const uint8_t* p = b + (int64_t)i * 1024;
    if (cold)
      for (int line = 0; line < 1024; line += 64) {
        __builtin_prefetch(p + line + 4096);
        __builtin_prefetch(p + line + 4096 + stride);
      }
    amx_step<Int8, Tall>(x + i * 64, x_stride, p, p + stride);
    before.advance(w, a, e, share);
  }
  before.advance(w, a, e, 32);
  _tile_stored(0, now.sums, 128);
  _tile_stored(1, now.sums + 16, 128);
  if constexpr (Tall) {
    _tile_stored(2, now.sums + 16 * 32, 128);
    _tile_stored(3, now.sums + 16 * 32 + 16, 128);
  }
}

template <bool Int8>
static void matmul_amx(const Linear& w, const Activations& a, int row0, int row1, int group0, int group1, const Epilogue& e) {
  TileConfig config;
  __asm__ volatile("" : : "r"(&config) : "memory");  // GCC 12's intrinsic names only the first 8 bytes as its input
  _tile_loadconfig(&config);
  Pending<Int8> buffers[2];
  int turn = 0;
  for (int g = group0; g < group1; g += 2) {
    for (int row = row0; row < row1; row += 32) {
      const int rows = row1 - row < 32 ? row1 - row : 32;
      Pending<Int8>&before = buffers[turn], &now = buffers[turn ^ 1];
      const bool cold = row == row0;
      if (rows > 16)
        amx_block<Int8, true>(w, a, e, row, g, cold, before, now);
      else
        amx_block<Int8, false>(w, a, e, row, g, cold, before, now);
      now.row = row;
      now.group = g;
      now.rows = rows;
      now.done = 0;
      turn ^= 1;
    }
  }
  buffers[turn].advance(w, a, e, 32);
  _tile_release();
}

static void matmul(const Linear& w, const Activations& a, int row0, int row1, int group0, int group1, const Epilogue& e) {
  // bf16 stays on tiles however few the rows: the vector unit adds in another order, and a batch must not change a row.
  switch (w.type) {
    case WeightType::int8:
      if (row1 - row0 <= 4) return matmul_int8(w, a, row0, row1, group0, group1, e);
      return matmul_amx<true>(w, a, row0, row1, group0, group1, e);
    case WeightType::bf16: return matmul_amx<false>(w, a, row0, row1, group0, group1, e);
    case WeightType::int4: return matmul_int4(w, a, row0, row1, group0, group1, e);
  }
}

}  // namespace
