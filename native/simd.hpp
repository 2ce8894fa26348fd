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

namespace vglm::VGLM_ISA_NAMESPACE {

#if defined(__AVX512F__)

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

#elif defined(__AVX2__)

struct f32x16 { __m256 a, b; };
struct i32x16 { __m256i a, b; };
struct bytes64 { __m256i a, b; };

static VGLM_INLINE f32x16 set1(float x) { __m256 v = _mm256_set1_ps(x); return {v, v}; }
static VGLM_INLINE f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static VGLM_INLINE void store(float* p, f32x16 x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
static VGLM_INLINE f32x16 operator+(f32x16 x, f32x16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static VGLM_INLINE f32x16 operator-(f32x16 x, f32x16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static VGLM_INLINE f32x16 operator*(f32x16 x, f32x16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static VGLM_INLINE f32x16 operator/(f32x16 x, f32x16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static VGLM_INLINE f32x16 reciprocal(f32x16 x) {
  const __m256 one = _mm256_set1_ps(1.f);
  return {_mm256_div_ps(one, x.a), _mm256_div_ps(one, x.b)};
}
static VGLM_INLINE f32x16 fma(f32x16 x, f32x16 y, f32x16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static VGLM_INLINE f32x16 max(f32x16 x, f32x16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static VGLM_INLINE f32x16 min(f32x16 x, f32x16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static VGLM_INLINE f32x16 abs(f32x16 x) {
  __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m)};
}
static VGLM_INLINE f32x16 round(f32x16 x) { return {_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)}; }
static VGLM_INLINE float reduce_max(f32x16 x) {
  __m256 m = _mm256_max_ps(x.a, x.b);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}
static VGLM_INLINE float reduce_add(f32x16 x) {
  __m256 m = _mm256_add_ps(x.a, x.b);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
static VGLM_INLINE __m256 pow2_half(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static VGLM_INLINE f32x16 scale_by_pow2(f32x16 x, f32x16 n) {
  return {_mm256_mul_ps(x.a, pow2_half(n.a)), _mm256_mul_ps(x.b, pow2_half(n.b))};
}
static VGLM_INLINE f32x16 first_lanes(f32x16 x, int n, float other) {
  __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256 o = _mm256_set1_ps(other);
  __m256 ma = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
  __m256 mb = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane));
  return {_mm256_blendv_ps(o, x.a, ma), _mm256_blendv_ps(o, x.b, mb)};
}

static VGLM_INLINE __m256 hadamard8(__m256 v) {
  v = _mm256_fmadd_ps(v, _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), _mm256_permute_ps(v, 0xb1));
  v = _mm256_fmadd_ps(v, _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1), _mm256_permute_ps(v, 0x4e));
  return _mm256_fmadd_ps(v, _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1), _mm256_permute2f128_ps(v, v, 1));
}
static VGLM_INLINE f32x16 hadamard16(f32x16 x) {
  __m256 a = hadamard8(x.a), b = hadamard8(x.b);
  return {_mm256_add_ps(a, b), _mm256_sub_ps(a, b)};
}

static VGLM_INLINE i32x16 zero_i32() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static VGLM_INLINE i32x16 load_i32(const int32_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
static VGLM_INLINE i32x16 operator+(i32x16 x, i32x16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static VGLM_INLINE i32x16 operator-(i32x16 x, i32x16 y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
static VGLM_INLINE i32x16 set1_i32(int32_t x) { __m256i v = _mm256_set1_epi32(x); return {v, v}; }
static VGLM_INLINE int32_t reduce_add(i32x16 x) {
  __m256i m = _mm256_add_epi32(x.a, x.b);
  __m128i q = _mm_add_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
  q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}
static VGLM_INLINE f32x16 to_f32(i32x16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

static VGLM_INLINE bytes64 load_bytes(const void* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
static VGLM_INLINE void store_bytes(void* p, bytes64 x) {
  _mm256_storeu_si256((__m256i*)p, x.a);
  _mm256_storeu_si256((__m256i*)p + 1, x.b);
}
static VGLM_INLINE bytes64 low_nibbles(bytes64 w) {
  __m256i m = _mm256_set1_epi8(15);
  return {_mm256_and_si256(w.a, m), _mm256_and_si256(w.b, m)};
}
static VGLM_INLINE bytes64 high_nibbles(bytes64 w) {
  __m256i m = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(w.a, 4), m), _mm256_and_si256(_mm256_srli_epi16(w.b, 4), m)};
}
#if defined(__AVXVNNI__)
static VGLM_INLINE i32x16 dot4(i32x16 acc, bytes64 w, const int8_t* a) {
  int32_t four;
  memcpy(&four, a, 4);
  __m256i b = _mm256_set1_epi32(four);
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc.a) : "x"(w.a), "x"(b));
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc.b) : "x"(w.b), "x"(b));
  return acc;
}
static VGLM_INLINE i32x16 dot4_nibbles(i32x16 acc, bytes64 w, const int8_t* a) { return dot4(acc, w, a); }
#else
// vpmaddubsw saturates at 16 bits, so an unsigned weight of 8 bits cannot go into it: 2 * 255 * 127 > 32767. The weight is
// q + 128 with |q| <= 127; (|q|, sign(a, q)) fits, and the 128 * sum(a) that the caller subtracts is added back here.
static VGLM_INLINE __m256i dot4_half(__m256i acc, __m256i w, __m256i b) {
  __m256i q = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
  __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(b, q));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
static VGLM_INLINE i32x16 dot4(i32x16 acc, bytes64 w, const int8_t* a) {
  int32_t four;
  memcpy(&four, a, 4);
  __m256i b = _mm256_set1_epi32(four);
  return {dot4_half(acc.a, w.a, b), dot4_half(acc.b, w.b, b)};
}
static VGLM_INLINE __m256i dot4_nibbles_half(__m256i acc, __m256i w, __m256i b) {  // 2 * 15 * 127 fits
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, b), _mm256_set1_epi16(1)));
}
static VGLM_INLINE i32x16 dot4_nibbles(i32x16 acc, bytes64 w, const int8_t* a) {
  int32_t four;
  memcpy(&four, a, 4);
  __m256i b = _mm256_set1_epi32(four);
  return {dot4_nibbles_half(acc.a, w.a, b), dot4_nibbles_half(acc.b, w.b, b)};
}
#define VGLM_DOT4_IS_CENTRED 1
#endif

static VGLM_INLINE __m256 bf16_half(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
static VGLM_INLINE f32x16 bf16_to_f32(const uint16_t* p) { return {bf16_half(p), bf16_half(p + 8)}; }
static VGLM_INLINE f32x16 f16_to_f32(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static VGLM_INLINE void store_i8(int8_t* p, f32x16 x) {
  __m256i w = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
  w = _mm256_permute4x64_epi64(w, 0xd8);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
}
static VGLM_INLINE __m256 i8_half(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
static VGLM_INLINE f32x16 i8_to_f32(const int8_t* p) { return {i8_half(p), i8_half(p + 8)}; }
static VGLM_INLINE __m256i round_to_bf16(__m256 v) {  // in the low halves of 8 int32
  __m256i x = _mm256_castps_si256(v);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
  return _mm256_srli_epi32(_mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
}
static VGLM_INLINE __m256i store_bf16_pack(__m256 a, __m256 b) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(round_to_bf16(a), round_to_bf16(b)), 0xd8);
}
static VGLM_INLINE void store_bf16(uint16_t* p, f32x16 x) { _mm256_storeu_si256((__m256i*)p, store_bf16_pack(x.a, x.b)); }
static VGLM_INLINE __m256 dot2_half(__m256 acc, __m256i w, __m256 a0, __m256 a1) {
  __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
  __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32((int)0xffff0000u)));
  return _mm256_fmadd_ps(odd, a1, _mm256_fmadd_ps(even, a0, acc));
}
static VGLM_INLINE f32x16 dot2(f32x16 acc, bytes64 w, const uint16_t* a) {
  uint32_t two;
  memcpy(&two, a, 4);
  __m256 a0 = _mm256_castsi256_ps(_mm256_set1_epi32((int)(two << 16)));
  __m256 a1 = _mm256_castsi256_ps(_mm256_set1_epi32((int)(two & 0xffff0000u)));
  return {dot2_half(acc.a, w.a, a0, a1), dot2_half(acc.b, w.b, a0, a1)};
}
static VGLM_INLINE bytes64 load_i8_as_bf16(const int8_t* p) {
  return {store_bf16_pack(i8_half(p), i8_half(p + 8)), store_bf16_pack(i8_half(p + 16), i8_half(p + 24))};
}

#else  // any other processor

typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
struct f32x16 { f32x4 v[4]; };
struct i32x16 { i32x4 v[4]; };
struct bytes64 { uint8_t v[64]; };

#define VGLM_EACH4 _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)
static VGLM_INLINE f32x16 set1(float x) { f32x16 r; VGLM_EACH4 r.v[i] = f32x4{x, x, x, x}; return r; }
static VGLM_INLINE f32x16 load(const float* p) { f32x16 r; memcpy(&r, p, 64); return r; }
static VGLM_INLINE void store(float* p, f32x16 x) { memcpy(p, &x, 64); }
static VGLM_INLINE f32x16 operator+(f32x16 a, f32x16 b) { VGLM_EACH4 a.v[i] += b.v[i]; return a; }
static VGLM_INLINE f32x16 operator-(f32x16 a, f32x16 b) { VGLM_EACH4 a.v[i] -= b.v[i]; return a; }
static VGLM_INLINE f32x16 operator*(f32x16 a, f32x16 b) { VGLM_EACH4 a.v[i] *= b.v[i]; return a; }
static VGLM_INLINE f32x16 operator/(f32x16 a, f32x16 b) { VGLM_EACH4 a.v[i] /= b.v[i]; return a; }
static VGLM_INLINE f32x16 reciprocal(f32x16 a) { VGLM_EACH4 a.v[i] = 1.f / a.v[i]; return a; }
static VGLM_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { VGLM_EACH4 c.v[i] += a.v[i] * b.v[i]; return c; }
static VGLM_INLINE f32x16 max(f32x16 a, f32x16 b) { VGLM_EACH4 a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
static VGLM_INLINE f32x16 min(f32x16 a, f32x16 b) { VGLM_EACH4 a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
static VGLM_INLINE f32x16 abs(f32x16 a) { VGLM_EACH4 a.v[i] = a.v[i] < 0 ? -a.v[i] : a.v[i]; return a; }
static VGLM_INLINE f32x16 round(f32x16 a) {  // to nearest even, for |a| < 2^22
  f32x4 magic = {12582912.f, 12582912.f, 12582912.f, 12582912.f};
  VGLM_EACH4 a.v[i] = (a.v[i] + magic) - magic;
  return a;
}
static VGLM_INLINE float reduce_max(f32x16 a) {
  float m = a.v[0][0];
  for (int i = 0; i < 16; i++) m = a.v[i / 4][i % 4] > m ? a.v[i / 4][i % 4] : m;
  return m;
}
static VGLM_INLINE float reduce_add(f32x16 a) {
  f32x4 s = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
  return (s[0] + s[2]) + (s[1] + s[3]);
}
static VGLM_INLINE f32x16 scale_by_pow2(f32x16 x, f32x16 n) {
  f32x16 r;
  VGLM_EACH4 { i32x4 e = (__builtin_convertvector(n.v[i], i32x4) + 127) << 23; memcpy(&r.v[i], &e, 16); }
  return x * r;
}
static VGLM_INLINE f32x16 first_lanes(f32x16 a, int n, float other) {
  for (int i = n < 0 ? 0 : n; i < 16; i++) a.v[i / 4][i % 4] = other;
  return a;
}
static VGLM_INLINE f32x16 hadamard16(f32x16 x) {
  float f[16];
  memcpy(f, &x, 64);
  for (int step = 1; step < 16; step *= 2)
    for (int i = 0; i < 16; i++)
      if (!(i & step)) {
        float a = f[i], b = f[i + step];
        f[i] = a + b;
        f[i + step] = a - b;
      }
  return load(f);
}
static VGLM_INLINE i32x16 zero_i32() { i32x16 r; memset(&r, 0, 64); return r; }
static VGLM_INLINE i32x16 load_i32(const int32_t* p) { i32x16 r; memcpy(&r, p, 64); return r; }
static VGLM_INLINE i32x16 operator+(i32x16 a, i32x16 b) { VGLM_EACH4 a.v[i] += b.v[i]; return a; }
static VGLM_INLINE i32x16 operator-(i32x16 a, i32x16 b) { VGLM_EACH4 a.v[i] -= b.v[i]; return a; }
static VGLM_INLINE i32x16 set1_i32(int32_t x) { i32x16 r; VGLM_EACH4 r.v[i] = i32x4{x, x, x, x}; return r; }
static VGLM_INLINE int32_t reduce_add(i32x16 a) {
  i32x4 s = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
  return (s[0] + s[2]) + (s[1] + s[3]);
}
static VGLM_INLINE f32x16 to_f32(i32x16 a) { f32x16 r; VGLM_EACH4 r.v[i] = __builtin_convertvector(a.v[i], f32x4); return r; }
static VGLM_INLINE bytes64 load_bytes(const void* p) { bytes64 r; memcpy(&r, p, 64); return r; }
static VGLM_INLINE void store_bytes(void* p, const bytes64& x) { memcpy(p, &x, 64); }
static VGLM_INLINE bytes64 low_nibbles(bytes64 w) { for (int i = 0; i < 64; i++) w.v[i] &= 15; return w; }
static VGLM_INLINE bytes64 high_nibbles(bytes64 w) { for (int i = 0; i < 64; i++) w.v[i] >>= 4; return w; }
static VGLM_INLINE i32x16 dot4(i32x16 acc, const bytes64& w, const int8_t* a) {
  int32_t s[16];
  memcpy(s, &acc, 64);
  for (int c = 0; c < 16; c++)
    s[c] += w.v[4 * c] * a[0] + w.v[4 * c + 1] * a[1] + w.v[4 * c + 2] * a[2] + w.v[4 * c + 3] * a[3];
  memcpy(&acc, s, 64);
  return acc;
}
static VGLM_INLINE i32x16 dot4_nibbles(i32x16 acc, const bytes64& w, const int8_t* a) { return dot4(acc, w, a); }
static VGLM_INLINE float widen(uint16_t h) {
  uint32_t x = (uint32_t)h << 16;
  float f;
  memcpy(&f, &x, 4);
  return f;
}
static VGLM_INLINE f32x16 bf16_to_f32(const uint16_t* p) {
  float f[16];
  for (int i = 0; i < 16; i++) f[i] = widen(p[i]);
  return load(f);
}
static VGLM_INLINE f32x16 f16_to_f32(const uint16_t* p) {
  float f[16];
  for (int i = 0; i < 16; i++) {
    uint32_t sign = (uint32_t)(p[i] & 0x8000) << 16, e = (p[i] >> 10) & 31, m = p[i] & 1023, x;
    if (e == 0) {
      f[i] = (sign ? -1.f : 1.f) * (float)m * 5.9604644775390625e-8f;
      continue;
    }
    x = sign | ((e == 31 ? 255 : e + 112) << 23) | (m << 13);
    memcpy(&f[i], &x, 4);
  }
  return load(f);
}
static VGLM_INLINE void store_i8(int8_t* p, f32x16 a) {
  a = round(a);
  for (int i = 0; i < 16; i++) p[i] = (int8_t)a.v[i / 4][i % 4];
}
static VGLM_INLINE f32x16 i8_to_f32(const int8_t* p) {
  float f[16];
  for (int i = 0; i < 16; i++) f[i] = p[i];
  return load(f);
}
static VGLM_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  for (int i = 0; i < 16; i++) {
    uint32_t x;
    float f = a.v[i / 4][i % 4];
    memcpy(&x, &f, 4);
    p[i] = (uint16_t)((x + 0x7fff + ((x >> 16) & 1)) >> 16);
  }
}
static VGLM_INLINE f32x16 dot2(f32x16 acc, const bytes64& w, const uint16_t* a) {
  float s[16], a0 = widen(a[0]), a1 = widen(a[1]);
  memcpy(s, &acc, 64);
  for (int c = 0; c < 16; c++) {
    uint16_t two[2];
    memcpy(two, &w.v[4 * c], 4);
    s[c] += widen(two[0]) * a0;
    s[c] += widen(two[1]) * a1;
  }
  return load(s);
}
static VGLM_INLINE bytes64 load_i8_as_bf16(const int8_t* p) {
  bytes64 r;
  for (int i = 0; i < 32; i++) {
    float f = p[i];
    uint32_t x;
    memcpy(&x, &f, 4);
    uint16_t h = (uint16_t)(x >> 16);
    memcpy(&r.v[2 * i], &h, 2);
  }
  return r;
}
#endif

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

// e^x to 2 ulp for x <= 88; Cephes' polynomial after range reduction by ln 2; 0 below -87.
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
