// The end of a forward pass: final norm, logits, sampling.
#include "forward.hpp"

#include <algorithm>
#include <cstring>

namespace vglm {
namespace {

constexpr int kLogitRows = 64;  // rows of logits at a time

}  // namespace

// Final norm, logits and sampling of the rows that want them, kLogitRows at a time: logits of a whole prompt would not fit.
void Pass::outputs() {
  const Linear& w = w_.lm_head;
  const int most = std::min(batch_.outputs, kLogitRows);
  work_.last.reserve((int64_t)most * stride_);
  work_.shared.hidden_buffer.reserve(w.type, most, w.k);
  work_.samplers.resize((size_t)threads_);
  for (auto& sampler : work_.samplers) sampler.reserve(spec_.vocab);  // threads must not run out of memory
  for (int first = 0; first < batch_.outputs; first += kLogitRows) {
    const int n = std::min(kLogitRows, batch_.outputs - first);
    bool logits = false;
    for (int i = first; i < first + n; i++) logits |= !is_hidden(i);
    if (logits) work_.logits.reserve((int64_t)most * w.n);
    pool_.run([&](int t) {
      const Share mine = share(n, 1, t, threads_);
      gather(first, mine.begin, mine.end);
      if (logits) {
        Activations a = work_.shared.hidden_buffer.reserve(w.type, most, w.k);
        k_.normalize(work_.last.get(), stride_, spec_.hidden, w_.final_norm, spec_.eps, w.type, a, mine.begin, mine.end);
        pool_.barrier();
        Epilogue e;
        e.out = work_.logits.get();
        e.stride = w.n;
        e.scale = spec_.logit_scale;
        const Share c = share(groups(w), 2, t, threads_);
        k_.matmul(w, a, 0, n, c.begin, c.end, e);
        pool_.barrier();
      }
      for (int i = mine.begin; i < mine.end; i++) answer(first + i, i, t);
    });
  }
}

bool Pass::is_hidden(int output) const { return batch_.kinds && batch_.kinds[output] == kHidden; }

void Pass::gather(int first, int begin, int end) {
  for (int i = begin; i < end; i++)
    memcpy(work_.last.get() + (int64_t)i * stride_, x(batch_.output_rows[first + i]), (size_t)stride_ * 4);
}

void Pass::answer(int output, int row, int thread) {
  if (is_hidden(output)) {
    float* last = work_.last.get() + (int64_t)row * stride_;
    k_.rmsnorm(last, spec_.hidden, w_.hidden_norm, spec_.eps);
    memcpy(batch_.hidden + (int64_t)output * spec_.hidden, last, (size_t)spec_.hidden * 4);
    return;
  }
  float* logits = work_.logits.get() + (int64_t)row * w_.lm_head.n;
  if (batch_.logits) memcpy(batch_.logits + (int64_t)output * spec_.vocab, logits, (size_t)spec_.vocab * 4);
  if (batch_.results)
    sample_row(logits, spec_.vocab, batch_.sampling[output], work_.samplers[(size_t)thread], batch_.results[output]);
}

}  // namespace vglm
