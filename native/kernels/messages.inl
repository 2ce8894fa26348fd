// The dense steps of relational message passing (propagation.hpp), a few rows at a time so that weights stay in registers.

namespace vglm::VGLM_ISA_NAMESPACE {

constexpr int kMessageRows = 4;

// y [4][columns] = x [4][depth] @ weight [depth][columns] + bias
static VGLM_INLINE void few_rows(const float* x, int depth, const float* weight, const float* bias, int columns, float* y) {
  for (int c = 0; c < columns; c += 16) {
    f32x16 sum[kMessageRows];
    for (f32x16& s : sum) s = load(bias + c);
    for (int k = 0; k < depth; k++) {
      const f32x16 w = load(weight + (int64_t)k * columns + c);
      for (int r = 0; r < kMessageRows; r++) sum[r] = fma(set1(x[r * depth + k]), w, sum[r]);
    }
    for (int r = 0; r < kMessageRows; r++) store(y + r * columns + c, sum[r]);
  }
}

static void mix_messages(const MessageLayer& layer, const float* received, const float* mean, int64_t rows, float* states) {
  const int width = layer.width;
  alignas(64) float x[kMessageRows * 3 * kMaxMessageWidth] = {}, y[kMessageRows * kMaxMessageWidth];
  for (int64_t first = 0; first < rows; first += kMessageRows) {
    const int count = (int)(rows - first < kMessageRows ? rows - first : kMessageRows);
    for (int r = 0; r < count; r++) {
      const float *state = states + (first + r) * width, *message = received + (first + r) * width;
      const f32x16 by_mean = set1(mean[first + r]), by_root = set1(__builtin_sqrtf(mean[first + r]));
      float* to = x + r * 3 * width;
      for (int i = 0; i < width; i += 16) {
        store(to + i, load(state + i));
        store(to + width + i, load(message + i) * by_mean);
        store(to + 2 * width + i, load(message + i) * by_root);
      }
    }
    few_rows(x, 3 * width, layer.mix, layer.bias, width, y);
    for (int r = 0; r < count; r++) {
      float *state = states + (first + r) * width, *mixed = y + r * width;
      const f32x16 scale = set1(inverse_rms(mixed, width, layer.epsilon));
      for (int i = 0; i < width; i += 16) {
        const f32x16 normalized = fma(load(mixed + i) * scale, load(layer.gain + i), load(layer.shift + i));
        store(state + i, load(state + i) + max(normalized, zero_f32()));
      }
    }
  }
}

static void score_states(const ScoreLayer& layer, const float* states, int64_t rows, float* scores) {
  const int width = layer.width, hidden = layer.hidden;
  alignas(64) float x[kMessageRows * kMaxMessageWidth] = {}, y[kMessageRows * 2 * kMaxMessageWidth];
  for (int64_t first = 0; first < rows; first += kMessageRows) {
    const int count = (int)(rows - first < kMessageRows ? rows - first : kMessageRows);
    memcpy(x, states + first * width, (size_t)(count * width) * sizeof(float));
    few_rows(x, width, layer.weight, layer.bias, hidden, y);
    for (int r = 0; r < count; r++) {
      f32x16 sum = zero_f32();
      for (int i = 0; i < hidden; i += 16) sum = fma(max(load(y + r * hidden + i), zero_f32()), load(layer.out + i), sum);
      scores[first + r] = reduce_add(sum) + layer.out_bias;
    }
  }
}

}  // namespace
