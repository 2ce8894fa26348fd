// vglm._native.sample: the sampler for a batch of rows given as arrays.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "sampler.hpp"

namespace nb = nanobind;

namespace vglm {
namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Maybe = std::optional<Vector<T>>;
template <class T>
using Numpy = nb::ndarray<nb::numpy, T>;

[[noreturn]] void refuse(const std::string& what) { throw nb::value_error(("sample: " + what).c_str()); }

template <class T>
Numpy<T> new_array(T*& data, size_t rows, std::optional<size_t> columns, T fill) {
  size_t size = rows * columns.value_or(1);
  data = new T[size];
  std::fill_n(data, size, fill);
  nb::capsule owner(data, [](void* p) noexcept { delete[] (T*)p; });
  size_t shape[2] = {rows, columns.value_or(1)};
  return Numpy<T>(data, columns ? 2 : 1, shape, owner);
}

// A value per row.
template <class T>
void set_each(std::vector<SamplingArgs>& args, const char* name, const Maybe<T>& values, auto SamplingArgs::*member) {
  if (!values) return;
  if (values->shape(0) != args.size())
    refuse(std::string(name) + " has " + std::to_string(values->shape(0)) + " entries for " + std::to_string(args.size()) +
           " rows");
  for (size_t r = 0; r < args.size(); ++r) args[r].*member = values->data()[r];
}

// A list per row: entries start[r] to start[r + 1] of `values` belong to row r.
template <class T>
void set_lists(std::vector<SamplingArgs>& args, const char* name, const Maybe<T>& values, const Maybe<int32_t>& start,
               const T* SamplingArgs::*list, int32_t SamplingArgs::*count) {
  if (!values && !start) return;
  if (!values || !start || start->shape(0) != args.size() + 1)
    refuse(std::string(name) + " needs its values and one start for each row and one for the end");
  const int32_t* s = start->data();
  for (size_t r = 0; r < args.size(); ++r) {
    if (s[r] < 0 || s[r] > s[r + 1] || (size_t)s[r + 1] > values->shape(0))
      refuse(std::string(name) + ": the starts of row " + std::to_string(r) + " are not a range of the values");
    args[r].*list = values->data() + s[r];
    args[r].*count = s[r + 1] - s[r];
  }
}

void check(const std::vector<SamplingArgs>& args, size_t vocab) {
  for (size_t r = 0; r < args.size(); ++r) {
    if (args[r].num_logprobs < 0) refuse("num_logprobs of row " + std::to_string(r) + " is negative");
    if (args[r].target >= (int64_t)vocab) refuse("target of row " + std::to_string(r) + " is not in the vocabulary");
  }
}

using Result = std::tuple<Numpy<int32_t>, Numpy<float>, Numpy<int32_t>, Numpy<int32_t>, Numpy<float>>;

Result run(const Matrix<float>& logits, std::vector<SamplingArgs>& args) {
  size_t rows = logits.shape(0), vocab = logits.shape(1), top = 0;
  for (const SamplingArgs& a : args) top = std::max(top, (size_t)a.num_logprobs);
  int32_t *tokens, *ranks, *top_ids;
  float *logprobs, *top_logprobs;
  Result result{new_array<int32_t>(tokens, rows, {}, 0), new_array<float>(logprobs, rows, {}, 0.0f),
                new_array<int32_t>(ranks, rows, {}, 0), new_array<int32_t>(top_ids, rows, top, -1),
                new_array<float>(top_logprobs, rows, top, -INFINITY)};
  nb::gil_scoped_release release;
  SamplerScratch scratch;
  std::vector<float> row(vocab);
  for (size_t r = 0; r < rows; ++r) {
    std::copy_n(logits.data() + r * vocab, vocab, row.data());
    SamplingResult one{.top_ids = top_ids + r * top, .top_logprobs = top_logprobs + r * top};
    sample_row(row.data(), (int32_t)vocab, args[r], scratch, one);
    tokens[r] = one.token;
    logprobs[r] = one.logprob;
    ranks[r] = one.rank;
  }
  return result;
}

constexpr const char* kSampleDoc = R"(Samples one token from each row of logits (float32 [rows, vocab], left as they are).

Every other argument is optional: an array with a value per row; or, for prompt, output and bias, flat values with
row starts (int32 [rows + 1]). allowed_mask is uint32 [rows, ceil(vocab / 32)], one bit per token. Where target is
not negative, nothing is sampled and that token is reported on.

Returns (tokens int32 [rows], logprobs float32 [rows], ranks int32 [rows], top_ids int32 [rows, n], top_logprobs
float32 [rows, n]), n being the largest num_logprobs. Log-probabilities (nats) are those of the raw logits. A token
of -1 means that the row has NaN or +inf, -2 that all its tokens are banned. Raises ValueError for shapes that do
not fit.)";

}  // namespace

void bind_sampler(nb::module_& m) {
  m.def(
      "sample",
      [](Matrix<float> logits, Maybe<float> temperature, Maybe<float> top_p, Maybe<float> min_p, Maybe<int32_t> top_k,
         Maybe<float> repetition_penalty, Maybe<float> presence_penalty, Maybe<float> frequency_penalty,
         Maybe<uint64_t> seed, Maybe<uint64_t> step, Maybe<int32_t> prompt_tokens, Maybe<int32_t> prompt_start,
         Maybe<int32_t> output_tokens, Maybe<int32_t> output_start, Maybe<int32_t> bias_tokens, Maybe<float> bias_values,
         Maybe<int32_t> bias_start, std::optional<Matrix<uint32_t>> allowed_mask, Maybe<int32_t> num_logprobs,
         Maybe<int32_t> target, Maybe<bool> need_logprob) {
        size_t rows = logits.shape(0), vocab = logits.shape(1);
        if (vocab == 0 || vocab > INT32_MAX) refuse("the vocabulary has " + std::to_string(vocab) + " tokens");
        std::vector<SamplingArgs> args(rows);
        set_each(args, "temperature", temperature, &SamplingArgs::temperature);
        set_each(args, "top_p", top_p, &SamplingArgs::top_p);
        set_each(args, "min_p", min_p, &SamplingArgs::min_p);
        set_each(args, "top_k", top_k, &SamplingArgs::top_k);
        set_each(args, "repetition_penalty", repetition_penalty, &SamplingArgs::repetition_penalty);
        set_each(args, "presence_penalty", presence_penalty, &SamplingArgs::presence_penalty);
        set_each(args, "frequency_penalty", frequency_penalty, &SamplingArgs::frequency_penalty);
        set_each(args, "seed", seed, &SamplingArgs::seed);
        set_each(args, "step", step, &SamplingArgs::step);
        set_each(args, "num_logprobs", num_logprobs, &SamplingArgs::num_logprobs);
        set_each(args, "target", target, &SamplingArgs::target);
        set_each(args, "need_logprob", need_logprob, &SamplingArgs::need_logprob);
        set_lists(args, "prompt", prompt_tokens, prompt_start, &SamplingArgs::prompt_tokens, &SamplingArgs::num_prompt);
        set_lists(args, "output", output_tokens, output_start, &SamplingArgs::output_tokens, &SamplingArgs::num_output);
        set_lists(args, "bias", bias_tokens, bias_start, &SamplingArgs::bias_tokens, &SamplingArgs::num_bias);
        set_lists(args, "bias", bias_values, bias_start, &SamplingArgs::bias_values, &SamplingArgs::num_bias);
        if (allowed_mask) {
          size_t words = (vocab + 31) / 32;
          if (allowed_mask->shape(0) != rows || allowed_mask->shape(1) != words)
            refuse("allowed_mask must be [" + std::to_string(rows) + ", " + std::to_string(words) + "]");
          for (size_t r = 0; r < rows; ++r) args[r].allowed_mask = allowed_mask->data() + r * words;
        }
        check(args, vocab);
        return run(logits, args);
      },
      nb::arg("logits"), nb::kw_only(), nb::arg("temperature") = nb::none(), nb::arg("top_p") = nb::none(),
      nb::arg("min_p") = nb::none(), nb::arg("top_k") = nb::none(), nb::arg("repetition_penalty") = nb::none(),
      nb::arg("presence_penalty") = nb::none(), nb::arg("frequency_penalty") = nb::none(), nb::arg("seed") = nb::none(),
      nb::arg("step") = nb::none(), nb::arg("prompt_tokens") = nb::none(), nb::arg("prompt_start") = nb::none(),
      nb::arg("output_tokens") = nb::none(), nb::arg("output_start") = nb::none(), nb::arg("bias_tokens") = nb::none(),
      nb::arg("bias_values") = nb::none(), nb::arg("bias_start") = nb::none(), nb::arg("allowed_mask") = nb::none(),
      nb::arg("num_logprobs") = nb::none(), nb::arg("target") = nb::none(), nb::arg("need_logprob") = nb::none(),
      kSampleDoc);
}

}  // namespace vglm
