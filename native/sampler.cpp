#include "sampler.hpp"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>

namespace vglm {
namespace {

// The row is worked on in blocks. The largest logit of each is known after one pass, and later passes skip every
// block that cannot matter to them.
constexpr int32_t kBlock = 64;
constexpr int32_t kLanes = 16;  // independent accumulators, so that the compiler can use vectors of any width
constexpr float kLog2E = 1.44269504f;
constexpr float kMinExponent = -125;  // 2^x for a smaller x is taken as 0
constexpr float kInf = std::numeric_limits<float>::infinity();

int32_t num_blocks(int32_t n) { return (n + kBlock - 1) / kBlock; }

// 2^x for x <= 0, within 2e-7; exactly 1 at 0 and 0 below kMinExponent. No library call, so the same bits everywhere.
inline float exp2_negative(float x) {
  float clamped = x > kMinExponent ? x : kMinExponent;
  float shifted = clamped + 12582912.0f;  // 1.5 * 2^23: its low bits now hold x rounded
  float r = clamped - (shifted - 12582912.0f);
  float p = 1.3264726e-3f;
  p = p * r + 9.6715127e-3f;
  p = p * r + 5.5507337e-2f;
  p = p * r + 2.4022242e-1f;
  p = p * r + 6.9314698e-1f;
  p = p * r + 1.0f;
  uint32_t bits = std::bit_cast<uint32_t>(p) + (std::bit_cast<uint32_t>(shifted) << 23);
  return x < kMinExponent ? 0.0f : std::bit_cast<float>(bits);
}

// Philox 4x32-10 (Salmon et al. 2011) of (seed, step): a number in [0, 1) of 53 bits.
double uniform(uint64_t seed, uint64_t step) {
  uint32_t c[4] = {(uint32_t)step, (uint32_t)(step >> 32), 0, 0};
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    uint64_t a = (uint64_t)0xD2511F53u * c[0], b = (uint64_t)0xCD9E8D57u * c[2];
    uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k0, (uint32_t)b, (uint32_t)(a >> 32) ^ c[3] ^ k1, (uint32_t)a};
    std::copy_n(next, 4, c);
  }
  return (double)((((uint64_t)c[0] << 32) | c[1]) >> 11) * 0x1p-53;
}

// Fills the maximum of each block. False when a logit is NaN or +inf.
bool find_block_maxima(const float* x, int32_t n, float* block_max) {
  int32_t bad[kLanes] = {};
  int32_t full = n / kBlock;
  for (int32_t b = 0; b < full; ++b) {
    const float* block = x + (int64_t)b * kBlock;
    float top[kLanes];
    for (int j = 0; j < kLanes; ++j) top[j] = -kInf;
    for (int i = 0; i < kBlock; i += kLanes)
      for (int j = 0; j < kLanes; ++j) {
        float v = block[i + j];
        top[j] = v > top[j] ? v : top[j];
        bad[j] |= v <= FLT_MAX ? 0 : 1;
      }
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) top[j] = top[j] > top[j + half] ? top[j] : top[j + half];
    block_max[b] = top[0];
  }
  int32_t any = 0;
  for (int j = 0; j < kLanes; ++j) any |= bad[j];
  if (full * kBlock < n) {
    float top = -kInf;
    for (int32_t i = full * kBlock; i < n; ++i) {
      top = std::max(top, x[i]);
      any |= x[i] <= FLT_MAX ? 0 : 1;
    }
    block_max[full] = top;
  }
  return any == 0;
}

float maximum(const float* x, int32_t n) {
  float top = -kInf;
  for (int32_t i = 0; i < n; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

int32_t first_equal(const float* x, const float* block_max, int32_t n, float value) {
  int32_t b = 0;
  while (block_max[b] != value) ++b;
  int32_t i = b * kBlock;
  while (i < n && x[i] != value) ++i;
  return i;
}

// Sum over a block of 2^((x - top) * scale); with Keep the terms are written to w, too.
template <bool Keep>
float weigh_block(const float* x, int32_t n, float top, float scale, float* w) {
  float sum[kLanes] = {};
  int32_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      float v = exp2_negative((x[i + j] - top) * scale);
      if constexpr (Keep) w[i + j] = v;
      sum[j] += v;
    }
  for (int j = 0; i < n; ++i, ++j) {
    float v = exp2_negative((x[i] - top) * scale);
    if constexpr (Keep) w[i] = v;
    sum[j] += v;
  }
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) sum[j] += sum[j + half];
  return sum[0];
}

// The weights' sum in all and by block.
template <bool Keep>
double weigh(const float* x, int32_t n, float top, float scale, SamplerScratch& s) {
  double total = 0;
  for (int32_t b = 0; b < num_blocks(n); ++b) {
    int32_t start = b * kBlock, size = std::min(kBlock, n - start);
    s.block_sum[b] = 0;
    if ((s.block_max[b] - top) * scale >= kMinExponent)
      s.block_sum[b] = weigh_block<Keep>(x + start, size, top, scale, s.weights.get() + start);
    total += s.block_sum[b];
  }
  return total;
}

// Ids and values of the x >= threshold, in the order of ids, from the blocks that reach `block_threshold`.
int32_t gather(const float* x, int32_t n, float threshold, float block_threshold, SamplerScratch& s) {
  int32_t count = 0;
  for (int32_t b = 0; b < num_blocks(n); ++b) {
    if (!(s.block_max[b] >= block_threshold)) continue;
    int32_t end = std::min((b + 1) * kBlock, n);
    for (int32_t i = b * kBlock; i < end; ++i) {  // written always, kept if it counts: no branch to mispredict
      s.ids[count] = i;
      s.values[count] = x[i];
      count += x[i] >= threshold;
    }
  }
  return count;
}

float nth_largest(float* x, int32_t n, int32_t k) {
  std::nth_element(x, x + (k - 1), x + n, [](float a, float b) { return a > b; });
  return x[k - 1];
}

// The k-th largest logit. The k-th largest block maximum is a lower bound of it that leaves few candidates.
float kth_largest(const float* x, int32_t n, int32_t k, SamplerScratch& s) {
  float bound = -kInf;
  if (k <= num_blocks(n)) {
    std::copy_n(s.block_max.get(), num_blocks(n), s.values.get());
    bound = nth_largest(s.values.get(), num_blocks(n), k);
  }
  int32_t count = gather(x, n, bound, bound, s);
  return nth_largest(s.values.get(), count, k);
}

// The smallest weight that top_p keeps: a weight stays when the heavier ones together are below `mass`. Finds it digit by
// digit: a weight's bits, read as a number, are in the order of the weights. Uses up s.values [count].
float nucleus_threshold(int32_t count, double mass, SamplerScratch& s) {
  constexpr uint32_t kBins = 1024;
  float* w = s.values.get();
  double heavier = 0;
  for (int shift = 20; shift >= 0; shift -= 10) {
    std::fill_n(s.histogram.get(), kBins, 0.0);
    for (int32_t i = 0; i < count; ++i) s.histogram[(std::bit_cast<uint32_t>(w[i]) >> shift) % kBins] += (double)w[i];
    int32_t bin = -1;
    for (int32_t b = kBins - 1; b >= 0; --b) {
      if (s.histogram[b] == 0) continue;
      if (bin >= 0) heavier += s.histogram[bin];
      bin = b;
      if (heavier + s.histogram[b] >= mass) break;
    }
    int32_t kept = 0;
    for (int32_t i = 0; i < count; ++i) {
      w[kept] = w[i];
      kept += (int32_t)((std::bit_cast<uint32_t>(w[i]) >> shift) % kBins) == bin;
    }
    count = kept;
  }
  return w[0];
}

// --- what changes the logits ---

bool modifies(const SamplingArgs& a) {
  return a.num_bias > 0 || a.allowed_mask != nullptr || a.repetition_penalty != 1 || a.presence_penalty != 0 ||
         a.frequency_penalty != 0;
}

// A bias or a penalty can make a logit overflow; +inf must keep meaning that the model did.
float settle(float changed) { return std::min(changed, FLT_MAX); }

void apply_bias(float* x, int32_t n, const SamplingArgs& a) {
  for (int32_t i = 0; i < a.num_bias; ++i) {
    int32_t t = a.bias_tokens[i];
    if (t >= 0 && t < n) x[t] = settle(x[t] + a.bias_values[i]);
  }
}

void apply_mask(float* x, int32_t n, const uint32_t* mask) {
  for (int32_t start = 0; start < n; start += 32) {
    uint32_t word = mask[start / 32];
    int32_t size = std::min(32, n - start);
    if (word == 0) std::fill_n(x + start, size, -kInf);
    if (word == 0 || word == ~0u) continue;
    for (int32_t j = 0; j < size; ++j) x[start + j] = (word >> j) & 1 ? x[start + j] : -kInf;
  }
}

void apply_penalties(float* x, int32_t n, const SamplingArgs& a, SamplerScratch& s) {
  float repetition = std::clamp(a.repetition_penalty, FLT_MIN, FLT_MAX);
  int32_t distinct = 0;
  auto discourage = [&](int32_t t) { x[t] = settle(x[t] > 0 ? x[t] / repetition : x[t] * repetition); };
  for (int32_t i = 0; i < a.num_output; ++i) {
    int32_t t = a.output_tokens[i];
    if (t >= 0 && t < n && s.counts[t]++ == 0) s.ids[distinct++] = t;
  }
  for (int32_t i = 0; i < distinct; ++i) {
    int32_t t = s.ids[i];
    discourage(t);
    x[t] = settle(x[t] - a.frequency_penalty * (float)s.counts[t] - a.presence_penalty);
  }
  for (int32_t i = 0; i < a.num_prompt && repetition != 1; ++i) {
    int32_t t = a.prompt_tokens[i];
    if (t < 0 || t >= n || s.counts[t]++ != 0) continue;
    s.ids[distinct++] = t;
    discourage(t);
  }
  for (int32_t i = 0; i < distinct; ++i) s.counts[s.ids[i]] = 0;
}

// --- drawing ---

// The first of count weights at which their running sum passes `point`; the last positive one if rounding prevents that.
template <class Weight>
int32_t draw(int32_t count, double point, Weight weight) {
  int32_t last = 0;
  double sum = 0;
  for (int32_t i = 0; i < count; ++i) {
    double w = weight(i);
    if (w <= 0) continue;
    last = i;
    sum += w;
    if (sum > point) break;
  }
  return last;
}

int32_t draw_from_all(const float* x, int32_t n, float top, float scale, double u, SamplerScratch& s) {
  double point = u * weigh<false>(x, n, top, scale, s);
  int32_t b = draw(num_blocks(n), point, [&](int32_t i) { return s.block_sum[i]; });
  for (int32_t i = 0; i < b; ++i) point -= s.block_sum[i];
  const float* block = x + (int64_t)b * kBlock;
  return b * kBlock + draw(std::min(kBlock, n - b * kBlock), point,
                           [&](int32_t i) { return (double)exp2_negative((block[i] - top) * scale); });
}

// Candidates are the tokens that min_p and top_k leave, or all that top_p could; `mass` is what min_p and top_k leave.
int32_t draw_from_candidates(int32_t count, double mass, float top_p, double u, SamplerScratch& s) {
  float cut = 0;
  if (top_p < 1) {
    std::copy_n(s.values.get(), count, s.weights.get());
    cut = nucleus_threshold(count, (double)top_p * mass, s);
    mass = 0;
    for (int32_t i = 0; i < count; ++i) mass += s.weights[i] >= cut ? (double)s.weights[i] : 0.0;
  } else {
    std::swap(s.values, s.weights);
  }
  return s.ids[draw(count, u * mass, [&](int32_t i) { return s.weights[i] >= cut ? (double)s.weights[i] : 0.0; })];
}

int32_t sample(const float* x, int32_t n, float top, const SamplingArgs& a, SamplerScratch& s) {
  double u = uniform(a.seed, a.step);
  float temperature = std::min(a.temperature, FLT_MAX);
  float scale = std::max(kLog2E / temperature, FLT_MIN);  // never 0, which would turn a banned -inf into NaN
  float threshold = a.min_p > 0 ? top + temperature * std::log(std::min(a.min_p, 1.0f)) : -kInf;
  if (a.top_k > 0 && a.top_k < n) threshold = std::max(threshold, kth_largest(x, n, a.top_k, s));
  if (threshold > -kInf) {
    int32_t count = gather(x, n, threshold, threshold, s);
    double mass = 0;
    for (int32_t start = 0; start < count; start += kBlock)
      mass += weigh_block<true>(&s.values[start], std::min(kBlock, count - start), top, scale, &s.values[start]);
    return draw_from_candidates(count, mass, a.top_p, u, s);
  }
  if (a.top_p >= 1) return draw_from_all(x, n, top, scale, u, s);
  double mass = weigh<true>(x, n, top, scale, s);
  // All weights below this together are lighter than what top_p cuts off, so none of them is kept.
  double lightest = (1 - (double)a.top_p) * mass / n;
  float block_threshold = top + (float)std::log2(lightest) / scale;
  int32_t count = gather(s.weights.get(), n, (float)lightest, block_threshold - 1e-3f / scale, s);
  return draw_from_candidates(count, mass, a.top_p, u, s);
}

// --- log-probabilities ---

void report_top(const float* x, int32_t n, int32_t wanted, double log_total, SamplerScratch& s, SamplingResult& result) {
  int32_t k = std::min(wanted, n);
  float threshold = kth_largest(x, n, k, s);
  int32_t count = gather(x, n, threshold, threshold, s);
  std::partial_sort(&s.ids[0], &s.ids[0] + k, &s.ids[0] + count,
                    [x](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
  for (int32_t i = 0; i < k; ++i) {
    result.top_ids[i] = s.ids[i];
    result.top_logprobs[i] = (float)((double)x[s.ids[i]] - log_total);
  }
}

int32_t rank_of(const float* x, int32_t n, float value, const float* block_max) {
  int32_t above = 0;
  for (int32_t b = 0; b < num_blocks(n); ++b) {
    if (!(block_max[b] > value)) continue;
    int32_t end = std::min((b + 1) * kBlock, n);
    for (int32_t i = b * kBlock; i < end; ++i) above += x[i] > value;
  }
  return above + 1;
}

void fail(const SamplingArgs& a, int32_t token, SamplingResult& result) {
  result.token = token;
  result.logprob = -kInf;
  result.rank = 0;
  std::fill_n(result.top_ids, a.num_logprobs, -1);
  std::fill_n(result.top_logprobs, a.num_logprobs, -kInf);
}

}  // namespace

void SamplerScratch::reserve(int32_t vocab) {
  if (vocab <= vocab_) return;
  int64_t n = vocab, blocks = num_blocks(vocab);
  vocab_ = 0;
  raw = std::make_unique<float[]>(n);
  weights = std::make_unique<float[]>(n);
  values = std::make_unique<float[]>(n);
  ids = std::make_unique<int32_t[]>(n);
  counts = std::make_unique<int32_t[]>(n);
  block_max = std::make_unique<float[]>(blocks);
  block_sum = std::make_unique<double[]>(blocks);
  histogram = std::make_unique<double[]>(1024);
  vocab_ = vocab;
}

void sample_row(float* logits, int32_t vocab, const SamplingArgs& args, SamplerScratch& scratch, SamplingResult& result) {
  scratch.reserve(vocab);
  float* block_max = scratch.block_max.get();
  bool report = args.need_logprob || args.num_logprobs > 0 || args.target >= 0;
  bool change = args.target < 0 && modifies(args);

  if (!find_block_maxima(logits, vocab, block_max)) return fail(args, kTokenNotFinite, result);
  float top = maximum(block_max, num_blocks(vocab));
  if (top == -kInf) return fail(args, kTokenAllBanned, result);

  const float* raw = logits;
  double log_total = 0;
  if (report) {
    log_total = (double)top + std::log(weigh<false>(logits, vocab, top, kLog2E, scratch));
    if (args.num_logprobs > 0) report_top(logits, vocab, args.num_logprobs, log_total, scratch, result);
  }
  if (change) {
    if (report) raw = std::copy_n(logits, vocab, scratch.raw.get()) - vocab;
    if (args.num_bias > 0) apply_bias(logits, vocab, args);
    if (args.allowed_mask) apply_mask(logits, vocab, args.allowed_mask);
    apply_penalties(logits, vocab, args, scratch);
    if (!find_block_maxima(logits, vocab, block_max)) return fail(args, kTokenNotFinite, result);
    top = maximum(block_max, num_blocks(vocab));
    if (top == -kInf) return fail(args, kTokenAllBanned, result);
  }

  if (args.target >= 0)
    result.token = args.target;
  else if (args.temperature < kGreedyBelow)
    result.token = first_equal(logits, block_max, vocab, top);
  else
    result.token = sample(logits, vocab, top, args, scratch);

  result.logprob = 0;
  result.rank = 0;
  if (!report) return;
  if (change) find_block_maxima(raw, vocab, block_max);
  result.logprob = (float)((double)raw[result.token] - log_total);
  result.rank = rank_of(raw, vocab, raw[result.token], block_max);
}

}  // namespace vglm
