// The limits that `vglm bench kernels` compares with: dot products of registers only, and a plain read of memory.

namespace vglm::VGLM_ISA_NAMESPACE {

// The compiler must take x for new: it would otherwise compute equal chains once, or a product outside the loop.
template <class T>
static VGLM_INLINE void renew(T& x) {
#if defined(__AVX512F__)
  __asm__ volatile("" : "+v"(x.v));
#elif defined(__AVX2__)
  __asm__ volatile("" : "+x"(x.a), "+x"(x.b));
#else
  __asm__ volatile("" : : "r"(&x) : "memory");
#endif
}

#if defined(VGLM_AMX)
template <bool Int8>
static int64_t spin_tiles(int64_t rounds) {
  TileConfig config;
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t r = 0; r < rounds; r++) {
    if constexpr (Int8) {
      _tile_dpbsud(0, 4, 6);
      _tile_dpbsud(1, 4, 7);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_release();
  return rounds * 4 * 16 * 16 * (Int8 ? 64 : 32);
}
#else
#if defined(__AVX512F__)
constexpr int kChains = 16;  // independent accumulators: latency of the dot product times its throughput, or more
#else
constexpr int kChains = 4;   // in eight of sixteen registers
#endif

static int64_t spin_int8(int64_t rounds) {
  i32x16 acc[kChains];
  for (int i = 0; i < kChains; i++) renew(acc[i] = zero_i32());
  bytes64 w{};
  int8_t a[4] = {1, 2, 3, 4};
  for (int64_t r = 0; r < rounds; r++) {
    renew(w);
#pragma GCC unroll 16
    for (int i = 0; i < kChains; i++) acc[i] = dot4_nibbles(acc[i], w, a);
  }
  for (int i = 0; i < kChains; i++) renew(acc[i]);  // counts as a use: without one there would be no loop
  return rounds * kChains * 64;
}

// Instruction sets without a bf16 dot product multiply bf16 as float: their limit is that of the float unit.
static int64_t spin_bf16(int64_t rounds) {
  f32x16 acc[kChains];
  for (int i = 0; i < kChains; i++) renew(acc[i] = zero_f32());
#if defined(__AVX512BF16__)
  bytes64 w{};
  uint16_t a[2] = {0x3f80, 0x3f80};
  constexpr int kProducts = 32;
#else
  f32x16 w = zero_f32(), a = set1(1.f);
  constexpr int kProducts = 16;
#endif
  for (int64_t r = 0; r < rounds; r++) {
    renew(w);
#pragma GCC unroll 16
    for (int i = 0; i < kChains; i++) {
#if defined(__AVX512BF16__)
      acc[i] = dot2(acc[i], w, a);
#else
      acc[i] = fma(w, a, acc[i]);
#endif
    }
  }
  for (int i = 0; i < kChains; i++) renew(acc[i]);
  return rounds * kChains * kProducts;
}
#endif

// Multiplies and adds without touching memory; returns how many multiply-adds it has done. int4 weights multiply as int8.
static int64_t spin(WeightType type, int64_t rounds) {
#if defined(VGLM_AMX)
  return type == WeightType::bf16 ? spin_tiles<false>(rounds) : spin_tiles<true>(rounds);
#else
  return type == WeightType::bf16 ? spin_bf16(rounds) : spin_int8(rounds);
#endif
}

// Reads `bytes` (a multiple of 512) and returns something that depends on all of them.
static int32_t read(const uint8_t* data, int64_t bytes) {
  i32x16 acc[8];
  for (int i = 0; i < 8; i++) acc[i] = zero_i32();
  for (int64_t at = 0; at < bytes; at += 512) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      __builtin_prefetch(data + at + 64 * i + VGLM_PREFETCH);
      acc[i] = acc[i] + load_i32((const int32_t*)(data + at + 64 * i));
    }
  }
  for (int i = 1; i < 8; i++) acc[0] = acc[0] + acc[i];
  return reduce_add(acc[0]);
}

}  // namespace
