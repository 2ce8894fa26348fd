// What sampler.cpp computes block by block: maxima, sums of exponentials; and its random numbers.
//
// NOTE: the vectors are the compiler's own type of 16 bytes, which every processor that is compiled for has (SSE2, NEON),
// and there are no library calls, so that every processor gives the same bits.
#pragma once
#include <algorithm>
#include <cfloat>
#include <cstdint>
#include <cstring>
#include <limits>

namespace vglm {
namespace {

// A row is worked on in blocks. The largest logit of each is known after one pass, and later passes skip every block
// that cannot matter to them.
constexpr int32_t kBlock = 64;
constexpr float kLog2E = 1.44269504f;
constexpr float kMinExponent = -125;  // 2^x for a smaller x is taken as 0
constexpr float kInf = std::numeric_limits<float>::infinity();

typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));

inline f32x4 load4(const float* p) {
  f32x4 v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline void store4(float* p, f32x4 v) { memcpy(p, &v, sizeof v); }
inline f32x4 set4(float x) { return f32x4{x, x, x, x}; }
inline f32x4 max4(f32x4 a, f32x4 b) { return a > b ? a : b; }
inline float max_of(f32x4 a) { return std::max(std::max(a[0], a[1]), std::max(a[2], a[3])); }
inline float sum_of(f32x4 a) { return (a[0] + a[1]) + (a[2] + a[3]); }

inline int32_t num_blocks(int32_t n) { return (n + kBlock - 1) / kBlock; }

// The block of x at `start`: in place, or where it is cut short, copied to `padded` [kBlock] and filled up with -inf.
inline const float* full_block(const float* x, int32_t n, int32_t start, float* padded) {
  if (n - start >= kBlock) return x + start;
  std::fill(std::copy_n(x + start, n - start, padded), padded + kBlock, -kInf);
  return padded;
}

// Fills the maximum of each block. False when a logit is NaN or +inf.
inline bool find_block_maxima(const float* x, int32_t n, float* block_max) {
  float padded[kBlock];
  i32x4 good = ~i32x4{};
  for (int32_t b = 0; b < num_blocks(n); ++b) {
    const float* block = full_block(x, n, b * kBlock, padded);
    f32x4 top[4];
    for (int j = 0; j < 4; ++j) top[j] = set4(-kInf);
    for (int i = 0; i < kBlock; i += 16)
      for (int j = 0; j < 4; ++j) {
        f32x4 v = load4(block + i + 4 * j);
        top[j] = max4(v, top[j]);
        good &= v <= FLT_MAX;
      }
    block_max[b] = max_of(max4(max4(top[0], top[1]), max4(top[2], top[3])));
  }
  return (good[0] & good[1] & good[2] & good[3]) != 0;
}

// 2^x for x <= 0, within 2e-7; exactly 1 at 0, and 0 below kMinExponent.
inline f32x4 exp2_negative(f32x4 x) {
  f32x4 clamped = max4(x, set4(kMinExponent));
  f32x4 shifted = clamped + 12582912.0f;  // 1.5 * 2^23: its low bits now hold x rounded
  f32x4 r = clamped - (shifted - 12582912.0f);
  f32x4 p = 1.3264726e-3f * r + 9.6715127e-3f;  // minimax on [-1/2, 1/2] with the constant term fixed
  p = p * r + 5.5507337e-2f;
  p = p * r + 2.4022242e-1f;
  p = p * r + 6.9314698e-1f;
  p = p * r + 1.0f;
  i32x4 bits = (i32x4)p + ((i32x4)shifted << 23);
  return (f32x4)(bits & (x >= kMinExponent));
}

// Fills w [kBlock] with 2^((x - top) * scale) where it is not null; returns the sum.
inline float weigh_block(const float* block, float top, float scale, float* w) {
  f32x4 sum[4] = {};
  for (int i = 0; i < kBlock; i += 16)
    for (int j = 0; j < 4; ++j) {
      f32x4 v = exp2_negative((load4(block + i + 4 * j) - top) * scale);
      if (w) store4(w + i + 4 * j, v);
      sum[j] += v;
    }
  return sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Sets the w [kBlock] below `cut` to 0; returns the sum of the others.
inline float cut_block(float* w, float cut) {
  f32x4 sum = {};
  for (int i = 0; i < kBlock; i += 4) {
    f32x4 v = load4(w + i);
    v = (f32x4)((i32x4)v & (v >= cut));
    store4(w + i, v);
    sum += v;
  }
  return sum_of(sum);
}

// Philox 4x32-10 (Salmon et al. 2011) of (seed, step): a number in [0, 1) of 53 bits.
inline double uniform(uint64_t seed, uint64_t step) {
  uint32_t c[4] = {(uint32_t)step, (uint32_t)(step >> 32), 0, 0};
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    uint64_t a = (uint64_t)0xD2511F53u * c[0], b = (uint64_t)0xCD9E8D57u * c[2];
    uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k0, (uint32_t)b, (uint32_t)(a >> 32) ^ c[3] ^ k1, (uint32_t)a};
    std::copy_n(next, 4, c);
  }
  return (double)((((uint64_t)c[0] << 32) | c[1]) >> 11) * 0x1p-53;
}

}  // namespace
}  // namespace vglm
