// simd.hpp for AVX-512 with VNNI, and with BF16 where the translation unit has it: a vector is one zmm register.
// Included by simd.hpp, which says what the names mean.
#pragma once

namespace vglm::VGLM_ISA_NAMESPACE {

struct f32x16 { __m512 v; };
struct i32x16 { __m512i v; };
struct bytes64 { __m512i v; };  // 64 weight bytes: 16 columns of 4 int8, or of 2 bf16

static VGLM_INLINE f32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
static VGLM_INLINE f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
static VGLM_INLINE void store(float* p, f32x16 x) { _mm512_storeu_ps(p, x.v); }
static VGLM_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
static VGLM_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static VGLM_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static VGLM_INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
static VGLM_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static VGLM_INLINE f32x16 reciprocal(f32x16 a) {  // one Newton step from 14 bits; a division takes several times as long
  const __m512 r = _mm512_rcp14_ps(a.v);
  return {_mm512_mul_ps(r, _mm512_fnmadd_ps(a.v, r, _mm512_set1_ps(2.f)))};
}
static VGLM_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
static VGLM_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
static VGLM_INLINE f32x16 abs(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
static VGLM_INLINE f32x16 round(f32x16 a) { return {_mm512_roundscale_ps(a.v, 8)}; }
static VGLM_INLINE float reduce_max(f32x16 a) { return _mm512_reduce_max_ps(a.v); }
static VGLM_INLINE float reduce_add(f32x16 a) { return _mm512_reduce_add_ps(a.v); }
static VGLM_INLINE f32x16 scale_by_pow2(f32x16 x, f32x16 n) { return {_mm512_scalef_ps(x.v, n.v)}; }  // x * 2^n, n whole
static VGLM_INLINE f32x16 first_lanes(f32x16 a, int n, float other) {  // lanes >= n become `other`
  return {_mm512_mask_mov_ps(_mm512_set1_ps(other), (__mmask16)(n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1), a.v)};
}

// Hadamard transform of the 16 lanes, not normalised.
static VGLM_INLINE f32x16 hadamard16(f32x16 x) {
  const __m512 minus = _mm512_set1_ps(-1.f), plus = _mm512_set1_ps(1.f);
  __m512 v = x.v;
  v = _mm512_fmadd_ps(v, _mm512_mask_mov_ps(plus, 0xaaaa, minus), _mm512_permute_ps(v, 0xb1));
  v = _mm512_fmadd_ps(v, _mm512_mask_mov_ps(plus, 0xcccc, minus), _mm512_permute_ps(v, 0x4e));
  v = _mm512_fmadd_ps(v, _mm512_mask_mov_ps(plus, 0xf0f0, minus), _mm512_shuffle_f32x4(v, v, 0xb1));
  v = _mm512_fmadd_ps(v, _mm512_mask_mov_ps(plus, 0xff00, minus), _mm512_shuffle_f32x4(v, v, 0x4e));
  return {v};
}

static VGLM_INLINE i32x16 zero_i32() { return {_mm512_setzero_si512()}; }
static VGLM_INLINE i32x16 load_i32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
static VGLM_INLINE i32x16 operator+(i32x16 a, i32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
static VGLM_INLINE i32x16 operator-(i32x16 a, i32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
static VGLM_INLINE i32x16 set1_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
static VGLM_INLINE int32_t reduce_add(i32x16 a) { return _mm512_reduce_add_epi32(a.v); }
static VGLM_INLINE f32x16 to_f32(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }

static VGLM_INLINE bytes64 load_bytes(const void* p) { return {_mm512_loadu_si512(p)}; }
static VGLM_INLINE void store_bytes(void* p, bytes64 x) { _mm512_storeu_si512(p, x.v); }
static VGLM_INLINE bytes64 low_nibbles(bytes64 w) { return {_mm512_and_si512(w.v, _mm512_set1_epi8(15))}; }
static VGLM_INLINE bytes64 high_nibbles(bytes64 w) {
  return {_mm512_and_si512(_mm512_srli_epi16(w.v, 4), _mm512_set1_epi8(15))};
}

// acc[c] += sum over 4 of unsigned w[c][i] * signed a[i]
static VGLM_INLINE i32x16 dot4(i32x16 acc, bytes64 w, const int8_t* a) {
  int32_t four;
  memcpy(&four, a, 4);
  __m512i b = _mm512_set1_epi32(four);
  // written as assembly because GCC 12 copies every accumulator of the intrinsic, which halves its rate
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(w.v), "v"(b));
  return acc;
}
static VGLM_INLINE i32x16 dot4_nibbles(i32x16 acc, bytes64 w, const int8_t* a) { return dot4(acc, w, a); }

static VGLM_INLINE f32x16 bf16_to_f32(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
static VGLM_INLINE f32x16 f16_to_f32(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
static VGLM_INLINE void store_i8(int8_t* p, f32x16 a) {
  _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
static VGLM_INLINE f32x16 i8_to_f32(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}

#if defined(__AVX512BF16__)
static VGLM_INLINE void store_bf16(uint16_t* p, f32x16 a) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(a.v)); }
static VGLM_INLINE f32x16 dot2(f32x16 acc, bytes64 w, const uint16_t* a) {
  int32_t two;
  memcpy(&two, a, 4);
  __m512i b = _mm512_set1_epi32(two);
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc.v) : "v"(w.v), "v"(b));
  return acc;
}
static VGLM_INLINE bytes64 load_i8_as_bf16(const int8_t* p) {  // 32 int8 -> 32 bf16
  __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
  __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(p + 16))));
  return {(__m512i)_mm512_cvtne2ps_pbh(high, low)};
}
#else
static VGLM_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  __m512i x = _mm512_castps_si512(a.v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  x = _mm512_srli_epi32(_mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(x));
}
static VGLM_INLINE f32x16 dot2(f32x16 acc, bytes64 w, const uint16_t* a) {
  uint32_t two;
  memcpy(&two, a, 4);
  __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(w.v, 16));
  __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(w.v, _mm512_set1_epi32((int)0xffff0000u)));
  __m512 a0 = _mm512_castsi512_ps(_mm512_set1_epi32((int)(two << 16)));
  __m512 a1 = _mm512_castsi512_ps(_mm512_set1_epi32((int)(two & 0xffff0000u)));
  return {_mm512_fmadd_ps(odd, a1, _mm512_fmadd_ps(even, a0, acc.v))};
}
static VGLM_INLINE bytes64 load_i8_as_bf16(const int8_t* p) {  // whole numbers up to 127 are exact in bf16: truncation suffices
  __m512i low = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))));
  __m512i high = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(p + 16)))));
  __m256i l = _mm512_cvtepi32_epi16(_mm512_srli_epi32(low, 16)), h = _mm512_cvtepi32_epi16(_mm512_srli_epi32(high, 16));
  return {_mm512_inserti64x4(_mm512_castsi256_si512(l), h, 1)};
}
#endif

}  // namespace
