// simd.hpp for any other processor: the compiler's own vectors of four.
// Included by simd.hpp, which says what the names mean.
#pragma once

namespace vglm::VGLM_ISA_NAMESPACE {

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

}  // namespace
