// A vector of 16 floats, and of 16 int32, on whatever the translation unit is compiled for: one zmm (AVX-512), two ymm (AVX2)
// or four 128-bit vectors (any other processor, by the compiler's own vector type).
//
// NOTE: this header is compiled once per instruction set. Everything in it is in the namespace VGLM_ISA_NAMESPACE and
// static or forced inline: an inline function shared between translation units could be emitted with instructions that the
// processor at hand does not have.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define VGLM_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
#include "simd_avx512.hpp"
#elif defined(__AVX2__)
#include "simd_avx2.hpp"
#else
#include "simd_portable.hpp"
#endif

namespace vglm::VGLM_ISA_NAMESPACE {

#ifdef VGLM_DOT4_IS_CENTRED
constexpr int kWeightOffset = 0;  // dot4 has taken the 128 of each weight away already
#else
constexpr int kWeightOffset = 128;
#endif

static VGLM_INLINE f32x16 zero_f32() { return set1(0.f); }

// Hadamard transform of 64 floats, not normalised (H * H = 64).
static VGLM_INLINE void hadamard64(const float* x, f32x16 y[4]) {
  f32x16 a = hadamard16(load(x)), b = hadamard16(load(x + 16)), c = hadamard16(load(x + 32)), d = hadamard16(load(x + 48));
  f32x16 ab = a + b, cd = c + d, a_b = a - b, c_d = c - d;
  y[0] = ab + cd;
  y[1] = a_b + c_d;
  y[2] = ab - cd;
  y[3] = a_b - c_d;
}

// e^x to 2 ulp, x held within [-87.3, 88]; Cephes' polynomial after range reduction by ln 2.
static VGLM_INLINE f32x16 exp(f32x16 x) {
  x = max(min(x, set1(88.f)), set1(-87.3f));
  f32x16 n = round(x * set1(1.44269504f));
  f32x16 r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  f32x16 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r + set1(1.f));
  return scale_by_pow2(p, n);
}

}  // namespace
