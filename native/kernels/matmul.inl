// Matrix multiplication by packed weights. The naive twin is tests/native/reference.py.
//
// Every output element is one accumulator that runs over K in order (int32 sums are exact in any order), so a row's result
// does not depend on how many rows are computed with it: batches, chunks and threads do not change a bit.

namespace vglm::VGLM_ISA_NAMESPACE {

template <bool Add>
static VGLM_INLINE void put_row(const Epilogue& e, int row, int group, f32x16 y) {
  float* out = e.out + row * e.stride + group * kGroup;
  store(out, Add ? load(out) + y : y);
}

static VGLM_INLINE void finish(const Linear& w, const Epilogue& e, int row, int group, int groups, f32x16* y) {
  for (int g = 0; g < groups; g++) {
    if (w.bias) y[g] = y[g] + load(w.bias + (group + g) * kGroup);
    if (e.store != Store::swiglu && e.scale != 1.f) y[g] = y[g] * set1(e.scale);
  }
  if (e.store == Store::swiglu) {
    for (int g = 0; g + 1 < groups; g += 2) {
      f32x16 silu = y[g] * reciprocal(set1(1.f) + exp(zero_f32() - y[g]));
      store_bf16(e.out_bf16 + row * e.stride + (group + g) / 2 * kGroup, silu * y[g + 1]);
    }
  } else if (e.store == Store::add_f32) {
    for (int g = 0; g < groups; g++) put_row<true>(e, row, group + g, y[g]);
  } else {
    for (int g = 0; g < groups; g++) put_row<false>(e, row, group + g, y[g]);
  }
}

static VGLM_INLINE f32x16 scaled(const Linear& w, const Activations& a, int row, int group, i32x16 acc) {
  if (kWeightOffset) acc = acc - set1_i32(kWeightOffset * a.sum[row]);
  return to_f32(acc) * set1(a.scale[row]) * load(w.scale + group * kGroup);
}

// The first block of rows to read a panel of weights brings the next panel into the cache.
template <int Rows, int Groups>
static void int8_tile(const Linear& w, const Activations& a, int row, int group, bool first, const Epilogue& e) {
  i32x16 acc[Rows][Groups];
  for (int r = 0; r < Rows; r++)
    for (int g = 0; g < Groups; g++) acc[r][g] = zero_i32();
  const int64_t stride = (int64_t)w.k * kGroup;
  const uint8_t* p = w.data + group * stride;
  const int8_t* x = a.int8 + (int64_t)row * a.stride;
  for (int k = 0; k < w.k; k += 4) {
    bytes64 b[Groups];
#pragma GCC unroll 4
    for (int g = 0; g < Groups; g++) {
      if (first) __builtin_prefetch(p + (g + Groups) * stride + k * kGroup, 0, 2);
      b[g] = load_bytes(p + g * stride + k * kGroup);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; r++)
#pragma GCC unroll 4
      for (int g = 0; g < Groups; g++) acc[r][g] = dot4(acc[r][g], b[g], x + (int64_t)r * a.stride + k);
  }
  for (int r = 0; r < Rows; r++) {
    f32x16 y[Groups];
    for (int g = 0; g < Groups; g++) y[g] = scaled(w, a, row + r, group + g, acc[r][g]);
    finish(w, e, row + r, group, Groups, y);
  }
}

// Few rows: memory bandwidth is the limit. One group after the other is one sequential stream, which prefetchers like;
// four accumulators along K hide the latency of the dot product.
template <int Rows>
static void int8_stream(const Linear& w, const Activations& a, int row, int group, const Epilogue& e) {
  const int64_t stride = (int64_t)w.k * kGroup;
  const int8_t* x = a.int8 + (int64_t)row * a.stride;
  f32x16 y[Rows][2];
  for (int g = 0; g < 2; g++) {
    const uint8_t* p = w.data + (group + g) * stride;
    i32x16 acc[Rows][4];
    for (int r = 0; r < Rows; r++)
      for (int j = 0; j < 4; j++) acc[r][j] = zero_i32();
    for (int k = 0; k < w.k; k += 16, p += 256) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        __builtin_prefetch(p + 64 * j + VGLM_PREFETCH);
        bytes64 b = load_bytes(p + 64 * j);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) acc[r][j] = dot4(acc[r][j], b, x + (int64_t)r * a.stride + k + 4 * j);
      }
    }
    for (int r = 0; r < Rows; r++)
      y[r][g] = scaled(w, a, row + r, group + g, (acc[r][0] + acc[r][1]) + (acc[r][2] + acc[r][3]));
  }
  for (int r = 0; r < Rows; r++) finish(w, e, row + r, group, 2, y[r]);
}

template <int Rows, int Groups>
static void bf16_tile(const Linear& w, const Activations& a, int row, int group, bool first, const Epilogue& e) {
  f32x16 acc[Rows][Groups];
  for (int r = 0; r < Rows; r++)
    for (int g = 0; g < Groups; g++) acc[r][g] = zero_f32();
  const int64_t stride = (int64_t)w.k * kGroup * 2;
  const uint8_t* p = w.data + group * stride;
  const uint16_t* x = a.bf16 + (int64_t)row * a.stride;
  for (int k = 0; k < w.k; k += 2) {
    bytes64 b[Groups];
#pragma GCC unroll 4
    for (int g = 0; g < Groups; g++) {
      const uint8_t* q = p + g * stride + k * kGroup * 2;
      if (first) __builtin_prefetch(q + Groups * stride, 0, 2);
      b[g] = load_bytes(q);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; r++)
#pragma GCC unroll 4
      for (int g = 0; g < Groups; g++) acc[r][g] = dot2(acc[r][g], b[g], x + (int64_t)r * a.stride + k);
  }
  for (int r = 0; r < Rows; r++) finish(w, e, row + r, group, Groups, acc[r]);
}

// A block of 32 k: an exact integer dot product, then y += scale_w * (scale_a * dot) + minimum * (scale_a * sum_a).
template <int Rows>
static void int4_tile(const Linear& w, const Activations& a, int row, int group, const Epilogue& e) {
  const int blocks = w.k / 32;
  const int8_t* x = a.int8 + (int64_t)row * a.stride;
  f32x16 y[Rows][2];
  for (int g = 0; g < 2; g++) {
    const uint8_t* p = w.data + (int64_t)(group + g) * blocks * kBlock4;
    f32x16 acc[Rows];
    for (int r = 0; r < Rows; r++) acc[r] = zero_f32();
    for (int b = 0; b < blocks; b++, p += kBlock4) {
      i32x16 dot[Rows];
      for (int r = 0; r < Rows; r++) dot[r] = zero_i32();
      bytes64 q[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        if (Rows <= 4) __builtin_prefetch(p + 64 * j + VGLM_PREFETCH);
        q[j] = load_bytes(p + 64 * j);
      }
      if (Rows <= 4) __builtin_prefetch(p + 256 + VGLM_PREFETCH);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        bytes64 low = low_nibbles(q[j]), high = high_nibbles(q[j]);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; r++) {
          const int8_t* xr = x + (int64_t)r * a.stride + b * 32 + 4 * j;
          dot[r] = dot4_nibbles(dot4_nibbles(dot[r], low, xr), high, xr + 16);
        }
      }
      f32x16 scale = f16_to_f32((const uint16_t*)(p + 256)), minimum = f16_to_f32((const uint16_t*)(p + 288));
#pragma GCC unroll 8
      for (int r = 0; r < Rows; r++) {
        int64_t at = (int64_t)(row + r) * (a.stride / 32) + b;
        acc[r] = fma(to_f32(dot[r]) * set1(a.scale[at]), scale, acc[r]);
        acc[r] = fma(minimum, set1(a.group_sum[at]), acc[r]);
      }
    }
    for (int r = 0; r < Rows; r++) y[r][g] = acc[r];
  }
  for (int r = 0; r < Rows; r++) finish(w, e, row + r, group, 2, y[r]);
}

// Runs Tile<Rows> for the remainder of a row range that is not a multiple of the full tile.
#define VGLM_REMAINDER(CALL)                                                                        \
  switch (rest) {                                                                                   \
    case 1: CALL(1); break;   case 2: CALL(2); break;   case 3: CALL(3); break;                     \
    case 4: CALL(4); break;   case 5: CALL(5); break;   case 6: CALL(6); break;                     \
    case 7: CALL(7); break;   case 8: CALL(8); break;   case 9: CALL(9); break;                     \
    case 10: CALL(10); break; case 11: CALL(11); break;                                             \
    default: break;                                                                                 \
  }

#if defined(__AVX512F__)
constexpr int kRows = 12;   // 24 accumulators, 2 weights, a broadcast: of 32 registers
constexpr int kRows4 = 8;
#else
constexpr int kRows = 3;   // 3 rows x 2 groups x 2 halves: 12 of 16 registers
constexpr int kRows4 = 4;
#endif

static void matmul_int8(const Linear& w, const Activations& a, int row0, int row1, int group0, int group1, const Epilogue& e) {
  if (row1 - row0 <= 4) {
    for (int g = group0; g < group1; g += 2) {
#define VGLM_CALL(R) int8_stream<R>(w, a, row0, g, e)
      switch (row1 - row0) {
        case 1: VGLM_CALL(1); break;
        case 2: VGLM_CALL(2); break;
        case 3: VGLM_CALL(3); break;
        default: VGLM_CALL(4); break;
      }
#undef VGLM_CALL
    }
    return;
  }
  for (int g = group0; g < group1; g += 2) {
    int row = row0;
    for (; row + kRows <= row1; row += kRows) int8_tile<kRows, 2>(w, a, row, g, row == row0, e);
    int rest = row1 - row;
#define VGLM_CALL(R) if constexpr (R < kRows) int8_tile<R, 2>(w, a, row, g, row == row0, e)
    VGLM_REMAINDER(VGLM_CALL)
#undef VGLM_CALL
  }
}

#ifndef VGLM_AMX  // there, tiles do it
static void matmul_bf16(const Linear& w, const Activations& a, int row0, int row1, int group0, int group1, const Epilogue& e) {
  if (row1 - row0 <= 4) {
    int g = group0;
    for (; g + 4 <= group1; g += 4) {
#define VGLM_CALL(R) bf16_tile<R, 4>(w, a, row0, g, true, e)
      switch (row1 - row0) {
        case 1: VGLM_CALL(1); break;
        case 2: VGLM_CALL(2); break;
        case 3: VGLM_CALL(3); break;
        default: VGLM_CALL(4); break;
      }
#undef VGLM_CALL
    }
    group0 = g;
  }
  for (int g = group0; g < group1; g += 2) {
    int row = row0;
    for (; row + kRows <= row1; row += kRows) bf16_tile<kRows, 2>(w, a, row, g, row == row0, e);
    int rest = row1 - row;
#define VGLM_CALL(R) if constexpr (R < kRows) bf16_tile<R, 2>(w, a, row, g, row == row0, e)
    VGLM_REMAINDER(VGLM_CALL)
#undef VGLM_CALL
  }
}
#endif

static void matmul_int4(const Linear& w, const Activations& a, int row0, int row1, int group0, int group1, const Epilogue& e) {
  for (int g = group0; g < group1; g += 2) {
    int row = row0;
    for (; row + kRows4 <= row1; row += kRows4) int4_tile<kRows4>(w, a, row, g, e);
    int rest = row1 - row;
#define VGLM_CALL(R) if constexpr (R < kRows4) int4_tile<R>(w, a, row, g, e)
    VGLM_REMAINDER(VGLM_CALL)
#undef VGLM_CALL
  }
}

#ifndef VGLM_AMX
static void matmul(const Linear& w, const Activations& a, int row0, int row1, int group0, int group1, const Epilogue& e) {
  switch (w.type) {
    case WeightType::int8: return matmul_int8(w, a, row0, row1, group0, group1, e);
    case WeightType::bf16: return matmul_bf16(w, a, row0, row1, group0, group1, e);
    case WeightType::int4: return matmul_int4(w, a, row0, row1, group0, group1, e);
  }
}
#endif

}  // namespace
