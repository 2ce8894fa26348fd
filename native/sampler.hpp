// From a row of logits to a token: penalties, filters, a seeded draw, and log-probabilities.
//
// A row's result depends on its logits and its arguments alone: not on the batch, the thread or the instruction set
// (sampler.cpp is compiled for the baseline processor only; compile it with -ffp-contract=off where the baseline has FMA).
#pragma once
#include <cstdint>
#include <memory>

namespace vglm {

constexpr float kGreedyBelow = 1e-5f;     // temperatures under this take the largest logit
constexpr int32_t kTokenNotFinite = -1;   // results instead of a token: the logits have a NaN or +inf,
constexpr int32_t kTokenAllBanned = -2;   // or every token is banned

struct SamplingArgs {
  float temperature = 1, top_p = 1, min_p = 0;
  float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  int32_t top_k = 0;                       // <= 0: all
  uint64_t seed = 0, step = 0;             // step: index of the token in its sequence
  const int32_t* prompt_tokens = nullptr;  // read for penalties only; ids outside the vocabulary are passed over
  int32_t num_prompt = 0;
  const int32_t* output_tokens = nullptr;
  int32_t num_output = 0;
  const int32_t* bias_tokens = nullptr;    // logit_bias, and -inf for tokens banned by min_tokens
  const float* bias_values = nullptr;
  int32_t num_bias = 0;
  const uint32_t* allowed_mask = nullptr;  // bit t % 32 of word t / 32: token t is allowed; null: all are
  int32_t num_logprobs = 0;                // best tokens to report
  int32_t target = -1;                     // >= 0: sample nothing, report this token's log-probability and rank
  bool need_logprob = false;               // report the sampled token's
  const int32_t* scored_tokens = nullptr;  // with some, nothing is sampled: their log-probabilities go to `scores`
  float* scores = nullptr;                 // [num_scored]
  int32_t num_scored = 0;
};

// Log-probabilities are those of the raw logits. Ranks count from 1; tokens of equal logits share one.
// top_ids and top_logprobs (num_logprobs entries, given by the caller) are sorted by log-probability, then by id;
// entries beyond the vocabulary, or of a row without a result, are -1 and -inf.
struct SamplingResult {
  int32_t token = 0;
  float logprob = 0;
  int32_t rank = 0;
  int32_t* top_ids = nullptr;
  float* top_logprobs = nullptr;
};

// Working memory of one thread; grown to the largest vocabulary met (20 bytes a token), then reused.
class SamplerScratch {
 public:
  static constexpr uint32_t kBins = 2048;
  void reserve(int32_t vocab);

  std::unique_ptr<float[]> raw, weights, values, block_max;
  std::unique_ptr<int32_t[]> ids, counts;  // counts is all zero between rows
  std::unique_ptr<double[]> block_sum, histogram;

 private:
  int32_t vocab_ = 0;
};

// Order of work, as in vLLM: bias, mask, penalties, temperature, min_p, top_k, top_p, draw. Tokens with equal logits share
// one fate in top_k and top_p, so that the kept set does not depend on the order of the vocabulary.
// `logits` [vocab] may be changed.
void sample_row(float* logits, int32_t vocab, const SamplingArgs& args, SamplerScratch& scratch, SamplingResult& result);

}  // namespace vglm
