#include "sampler.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "sampler_math.hpp"

namespace vglm {
namespace {

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

// Sum over the row of 2^((x - top) * scale), also by block.
double weigh(const float* x, int32_t n, float top, float scale, SamplerScratch& s) {
  float padded[kBlock];
  double total = 0;
  for (int32_t b = 0; b < num_blocks(n); ++b) {
    s.block_sum[b] = 0;
    if ((s.block_max[b] - top) * scale >= kMinExponent)
      s.block_sum[b] = weigh_block(full_block(x, n, b * kBlock, padded), top, scale, nullptr);
    total += s.block_sum[b];
  }
  return total;
}

// Ids and values of the x >= threshold, in the order of ids; returns how many.
int32_t gather(const float* x, int32_t n, float threshold, SamplerScratch& s) {
  int32_t* ids = s.ids.get();
  float* values = s.values.get();
  int32_t count = 0;
  for (int32_t b = 0; b < num_blocks(n); ++b) {
    if (s.block_max[b] < threshold) continue;
    int32_t end = std::min((b + 1) * kBlock, n);
    for (int32_t i = b * kBlock; i < end; ++i) {  // written always, kept if it counts: no branch to mispredict
      float value = x[i];
      ids[count] = i;
      values[count] = value;
      count += value >= threshold;
    }
  }
  return count;
}

// A number with the order of the floats; NaN does not occur.
uint32_t ordered_bits(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The smallest of s.values [count] that is kept when a value is kept as long as the larger ones together have less than
// `limit` of mass. Found digit by digit, without sorting; s.values is used up.
template <class Mass>
float keep_until(int32_t count, double limit, SamplerScratch& s, Mass mass_of) {
  float* x = s.values.get();
  double* histogram = s.histogram.get();
  double larger = 0;
  for (int shift : {21, 10, 0}) {
    auto digit = [shift](float v) { return (ordered_bits(v) >> shift) % SamplerScratch::kBins; };
    std::fill_n(histogram, SamplerScratch::kBins, 0.0);
    for (int32_t i = 0; i < count; ++i) histogram[digit(x[i])] += mass_of(x[i]);
    uint32_t chosen = SamplerScratch::kBins;
    for (uint32_t d = SamplerScratch::kBins; d-- > 0;) {
      if (histogram[d] == 0) continue;
      if (chosen < SamplerScratch::kBins) larger += histogram[chosen];
      chosen = d;
      if (larger + histogram[d] >= limit) break;
    }
    int32_t left = 0;
    for (int32_t i = 0; i < count; ++i) {
      x[left] = x[i];
      left += digit(x[i]) == chosen;
    }
    count = left;
  }
  return x[0];
}

// The k-th largest logit. The k-th largest block maximum is a lower bound of it that leaves few candidates.
float kth_largest(const float* x, int32_t n, int32_t k, SamplerScratch& s) {
  float* values = s.values.get();
  if (k > num_blocks(n)) {
    std::copy_n(x, n, values);
    return keep_until(n, k, s, [](float) { return 1.0; });
  }
  auto descending = [](float a, float b) { return a > b; };
  std::copy_n(s.block_max.get(), num_blocks(n), values);
  std::nth_element(values, values + (k - 1), values + num_blocks(n), descending);
  float bound = values[k - 1];
  int32_t count = gather(x, n, bound, s);
  std::nth_element(values, values + (k - 1), values + count, descending);
  return values[k - 1];
}

// --- what changes the logits ---

bool penalises(const SamplingArgs& a) {
  return a.repetition_penalty != 1 || a.presence_penalty != 0 || a.frequency_penalty != 0;
}

bool modifies(const SamplingArgs& a) { return a.num_bias > 0 || a.allowed_mask != nullptr || penalises(a); }

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
int32_t find_point(const Weight* weights, int32_t count, double point) {
  int32_t last = 0;
  double sum = 0;
  for (int32_t i = 0; i < count && sum <= point; ++i) {
    if (weights[i] > 0) last = i;
    sum += (double)weights[i];
  }
  return last;
}

// A block at random by s.block_sum; `point` becomes the point within the block.
int32_t draw_block(int32_t blocks, double& point, SamplerScratch& s) {
  int32_t b = find_point(s.block_sum.get(), blocks, point);
  for (int32_t i = 0; i < b; ++i) point -= s.block_sum[i];
  return b;
}

int32_t draw_from_all(const float* x, int32_t n, float top, float scale, double u, SamplerScratch& s) {
  double point = u * weigh(x, n, top, scale, s);
  int32_t b = draw_block(num_blocks(n), point, s);
  float padded[kBlock], w[kBlock];
  weigh_block(full_block(x, n, b * kBlock, padded), top, scale, w);
  return b * kBlock + find_point(w, kBlock, point);
}

// Weighs the candidates, cuts them to the nucleus of top_p (of `mass`, or of their own if that is 0) and draws.
int32_t draw_from_candidates(int32_t count, float top, float scale, float top_p, double mass, double u, SamplerScratch& s) {
  float* w = s.weights.get();
  int32_t blocks = num_blocks(count);
  float padded[kBlock];
  double kept = 0;
  for (int32_t b = 0; b < blocks; ++b) {
    const float* block = full_block(s.values.get(), count, b * kBlock, padded);
    kept += s.block_sum[b] = weigh_block(block, top, scale, w + b * kBlock);
  }
  if (top_p < 1) {
    std::copy_n(w, count, s.values.get());
    float cut = keep_until(count, (double)top_p * (mass > 0 ? mass : kept), s, [](float v) { return (double)v; });
    kept = 0;
    for (int32_t b = 0; b < blocks; ++b) kept += s.block_sum[b] = cut_block(w + b * kBlock, cut);
  }
  double point = u * kept;
  int32_t b = draw_block(blocks, point, s);
  return s.ids[b * kBlock + find_point(w + b * kBlock, kBlock, point)];
}

int32_t sample(const float* x, int32_t n, float top, const SamplingArgs& a, SamplerScratch& s) {
  double u = uniform(a.seed, a.step);
  float temperature = std::min(a.temperature, FLT_MAX);
  float scale = std::max(kLog2E / temperature, FLT_MIN);  // never 0, which would turn a banned -inf into NaN
  float threshold = a.min_p > 0 ? top + temperature * std::log(std::min(a.min_p, 1.0f)) : -kInf;
  if (a.top_k > 0 && a.top_k < n) threshold = std::max(threshold, kth_largest(x, n, a.top_k, s));
  double mass = 0;
  if (threshold == -kInf) {
    if (a.top_p >= 1) return draw_from_all(x, n, top, scale, u, s);
    mass = weigh(x, n, top, scale, s);
    // The tokens lighter than this weigh less than what top_p cuts off, even all together: none of them is kept. (One
    // hundredth of a power of two of slack for rounding.)
    double lightest = (1 - (double)a.top_p) * mass / n;
    threshold = top + ((float)std::log2(lightest) - 0.01f) / scale;
  }
  return draw_from_candidates(gather(x, n, threshold, s), top, scale, a.top_p, mass, u, s);
}

// --- log-probabilities ---

void report_top(const float* x, int32_t n, int32_t wanted, double log_total, SamplerScratch& s, SamplingResult& result) {
  int32_t k = std::min(wanted, n);
  float threshold = kth_largest(x, n, k, s);
  int32_t count = gather(x, n, threshold, s);
  std::partial_sort(&s.ids[0], &s.ids[0] + k, &s.ids[0] + count,
                    [x](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
  for (int32_t i = 0; i < k; ++i) {
    result.top_ids[i] = s.ids[i];
    result.top_logprobs[i] = (float)((double)x[s.ids[i]] - log_total);
  }
  std::fill(result.top_ids + k, result.top_ids + wanted, -1);
  std::fill(result.top_logprobs + k, result.top_logprobs + wanted, -kInf);
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
  std::fill_n(a.scores, a.num_scored, -kInf);
}

}  // namespace

void SamplerScratch::reserve(int32_t vocab) {
  if (vocab <= vocab_) return;
  int64_t blocks = num_blocks(vocab), n = blocks * kBlock;  // whole blocks, as they are written whole
  vocab_ = 0;
  raw = std::make_unique<float[]>(n);
  weights = std::make_unique<float[]>(n);
  values = std::make_unique<float[]>(n);
  ids = std::make_unique<int32_t[]>(n);
  counts = std::make_unique<int32_t[]>(n);
  block_max = std::make_unique<float[]>(blocks);
  block_sum = std::make_unique<double[]>(blocks);
  histogram = std::make_unique<double[]>(kBins);
  vocab_ = vocab;
}

void sample_row(float* logits, int32_t vocab, const SamplingArgs& args, SamplerScratch& scratch, SamplingResult& result) {
  scratch.reserve(vocab);
  float* block_max = scratch.block_max.get();
  bool report = args.need_logprob || args.num_logprobs > 0 || args.target >= 0 || args.num_scored > 0;
  bool change = args.target < 0 && modifies(args);

  if (!find_block_maxima(logits, vocab, block_max)) return fail(args, kTokenNotFinite, result);
  float top = maximum(block_max, num_blocks(vocab));
  if (top == -kInf) return fail(args, kTokenAllBanned, result);

  const float* raw = logits;
  double log_total = 0;
  if (report) {
    log_total = (double)top + std::log(weigh(logits, vocab, top, kLog2E, scratch));
    if (args.num_logprobs > 0) report_top(logits, vocab, args.num_logprobs, log_total, scratch, result);
  }
  if (args.num_scored > 0) {
    for (int32_t i = 0; i < args.num_scored; ++i)
      args.scores[i] = (float)((double)logits[args.scored_tokens[i]] - log_total);
    result.token = 0;
    result.logprob = 0;
    result.rank = 0;
    return;
  }
  if (change) {
    if (report) raw = std::copy_n(logits, vocab, scratch.raw.get()) - vocab;
    if (args.num_bias > 0) apply_bias(logits, vocab, args);
    if (args.allowed_mask) apply_mask(logits, vocab, args.allowed_mask);
    if (penalises(args)) apply_penalties(logits, vocab, args, scratch);
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
