// simd.hpp for AVX2 with FMA and F16C, and with AVX-VNNI where the translation unit has it: a vector is two ymm registers.
// Included by simd.hpp, which says what the names mean.
#pragma once

namespace vglm::VGLM_ISA_NAMESPACE {

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
static VGLM_INLINE __m256i i8_as_bf16_half(const int8_t* p) {  // whole numbers up to 127 are exact: truncation suffices
  const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(i8_half(p)), 16);
  const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(i8_half(p + 8)), 16);
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
}
static VGLM_INLINE bytes64 load_i8_as_bf16(const int8_t* p) { return {i8_as_bf16_half(p), i8_as_bf16_half(p + 16)}; }


}  // namespace
