// Work on single rows: normalisation, quantisation, rotary embedding, KV stores.

namespace vglm::VGLM_ISA_NAMESPACE {

static VGLM_INLINE float row_absmax(const float* x, int k) {
  f32x16 m = zero_f32();
  for (int i = 0; i < k; i += 16) m = max(m, abs(load(x + i)));
  return reduce_max(m);
}

static VGLM_INLINE int32_t sum_i8(const int8_t* p, int k) {
  int32_t s = 0;
  for (int i = 0; i < k; i++) s += p[i];
  return s;
}

constexpr int kMaxWidth = 32768;  // rows wider than this are refused when the model is made

// A few channels of a transformer's activations are a hundred times as large as the rest, and would take the whole range of
// int8. A Hadamard transform of every 64 spreads them evenly; the weights carry its inverse (QuaRot, arXiv:2404.00456).
static void put_rotated_int8(const float* x, Activations& a, int row) {
  const int k = a.k;
  int8_t* out = a.int8 + (int64_t)row * a.stride;
  alignas(64) float y[kMaxWidth];
  f32x16 largest = zero_f32();
  for (int i = 0; i < k; i += 64) {
    f32x16 h[4];
    hadamard64(x + i, h);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      store(y + i + 16 * j, h[j]);
      largest = max(largest, abs(h[j]));
    }
  }
  const float m = reduce_max(largest);
  const f32x16 inverse = set1(m > 0.f ? 127.f / m : 0.f);
  for (int i = 0; i < k; i += 16) store_i8(out + i, load(y + i) * inverse);
  a.scale[row] = m / (127.f * 8.f);
  a.sum[row] = sum_i8(out, k);
}

// One row of k floats (k a multiple of 64) into the form that weights of `type` read.
static void put_activations(const float* x, WeightType type, Activations& a, int row) {
  const int k = a.k;
  if (type == WeightType::bf16) {
    uint16_t* out = a.bf16 + (int64_t)row * a.stride;
    for (int i = 0; i < k; i += 16) store_bf16(out + i, load(x + i));
    return;
  }
  int8_t* out = a.int8 + (int64_t)row * a.stride;
  if (type == WeightType::int8) return put_rotated_int8(x, a, row);
  for (int b = 0; b < k / 32; b++) {
    f32x16 u = load(x + 32 * b), v = load(x + 32 * b + 16);
    float m = reduce_max(max(abs(u), abs(v)));
    f32x16 inverse = set1(m > 0.f ? 127.f / m : 0.f);
    store_i8(out + 32 * b, u * inverse);
    store_i8(out + 32 * b + 16, v * inverse);
    int64_t at = (int64_t)row * (a.stride / 32) + b;
    a.scale[at] = m / 127.f;
    a.group_sum[at] = a.scale[at] * (float)sum_i8(out + 32 * b, 32);
  }
}

static VGLM_INLINE float inverse_rms(const float* x, int width, float eps) {
  f32x16 s0 = zero_f32(), s1 = zero_f32();
  int i = 0;
  for (; i + 32 <= width; i += 32) {
    f32x16 u = load(x + i), v = load(x + i + 16);
    s0 = fma(u, u, s0);
    s1 = fma(v, v, s1);
  }
  float s = reduce_add(s0 + s1);
  for (; i < width; i++) s += x[i] * x[i];
  return 1.f / __builtin_sqrtf(s / (float)width + eps);
}

static void normalize(const float* x, int64_t stride, int width, const float* weight, float eps, WeightType type,
                      Activations& a, int row0, int row1) {
  alignas(64) float y[kMaxWidth];
  for (int row = row0; row < row1; row++) {
    const float* p = x + row * stride;
    f32x16 factor = set1(inverse_rms(p, width, eps));
    if (weight)
      for (int i = 0; i < a.k; i += 16) store(y + i, load(p + i) * factor * load(weight + i));
    else
      for (int i = 0; i < a.k; i += 16) store(y + i, load(p + i) * factor);
    put_activations(y, type, a, row);
  }
}

static void convert_f32(const float* x, int64_t stride, WeightType type, Activations& a, int row0, int row1) {
  for (int row = row0; row < row1; row++) put_activations(x + row * stride, type, a, row);
}

static void convert_bf16(const uint16_t* x, int64_t stride, WeightType type, Activations& a, int row0, int row1) {
  alignas(64) float y[kMaxWidth];
  for (int row = row0; row < row1; row++) {
    const uint16_t* p = x + row * stride;
    if (type == WeightType::bf16) {
      memcpy(a.bf16 + (int64_t)row * a.stride, p, (size_t)a.k * 2);
      continue;
    }
    for (int i = 0; i < a.k; i += 16) store(y + i, bf16_to_f32(p + i));
    put_activations(y, type, a, row);
  }
}

static void rmsnorm(float* x, int width, const float* weight, float eps) {
  float factor = inverse_rms(x, width, eps);
  for (int i = 0; i < width; i++) x[i] = x[i] * factor * weight[i];
}

static void add_normalized(float* x, const float* y, int64_t stride, int width, const float* weight, float eps, int row0,
                           int row1) {
  for (int row = row0; row < row1; row++) {
    float factor = inverse_rms(y + row * stride, width, eps);
    for (int i = 0; i < width; i++) x[row * stride + i] += y[row * stride + i] * factor * weight[i];
  }
}

static void rope(float* head, const float* cos, const float* sin, int rotary_dim) {
  const int half = rotary_dim / 2;
  int i = 0;
  for (; i + 16 <= half; i += 16) {
    f32x16 c = load(cos + i), s = load(sin + i), u = load(head + i), v = load(head + half + i);
    store(head + i, u * c - v * s);
    store(head + half + i, v * c + u * s);
  }
  for (; i < half; i++) {
    float u = head[i], v = head[half + i];
    head[i] = u * cos[i] - v * sin[i];
    head[half + i] = v * cos[i] + u * sin[i];
  }
}

static void rotate(float* head, int head_dim) {
  if (head_dim % 64) {
    for (int i = 0; i < head_dim; i += 16) store(head + i, hadamard16(load(head + i)) * set1(0.25f));
    return;
  }
  for (int i = 0; i < head_dim; i += 64) {
    f32x16 h[4];
    hadamard64(head + i, h);
    for (int j = 0; j < 4; j++) store(head + i + 16 * j, h[j] * set1(0.125f));
  }
}

static void f32_to_bf16(const float* x, uint16_t* y, int n) {
  for (int i = 0; i < n; i += 16) store_bf16(y + i, load(x + i));
}

static void bf16_to_f32_row(const uint16_t* x, float* y, int n) {
  for (int i = 0; i < n; i += 16) store(y + i, bf16_to_f32(x + i));
}

static void store_kv(uint8_t* tile, int slot, const float* k, const float* v, int head_dim, bool int8) {
  const int64_t plane = (int64_t)kTokenTile * head_dim * (int8 ? 1 : 2);
  if (int8) {
    alignas(64) int8_t kq[512], vq[512];
    float km = row_absmax(k, head_dim), vm = row_absmax(v, head_dim);
    f32x16 ki = set1(km > 0.f ? 127.f / km : 0.f), vi = set1(vm > 0.f ? 127.f / vm : 0.f);
    for (int i = 0; i < head_dim; i += 16) {
      store_i8(kq + i, load(k + i) * ki);
      store_i8(vq + i, load(v + i) * vi);
    }
    float* scales = (float*)(tile + 2 * plane);
    scales[slot] = km / 127.f;
    scales[kTokenTile + slot] = vm / 127.f;
    int8_t *kt = (int8_t*)tile, *vt = (int8_t*)tile + plane;
    for (int i = 0; i < head_dim / 2; i++) memcpy(kt + i * 32 + slot * 2, kq + 2 * i, 2);
    for (int i = 0; i < head_dim; i++) vt[((slot / 2) * head_dim + i) * 2 + slot % 2] = vq[i];
    return;
  }
  alignas(64) uint16_t kb[512], vb[512];
  f32_to_bf16(k, kb, head_dim);
  f32_to_bf16(v, vb, head_dim);
  uint16_t *kt = (uint16_t*)tile, *vt = (uint16_t*)(tile + plane);
  for (int i = 0; i < head_dim / 2; i++) memcpy(kt + i * 32 + slot * 2, kb + 2 * i, 4);
  for (int i = 0; i < head_dim; i++) vt[((slot / 2) * head_dim + i) * 2 + slot % 2] = vb[i];
}

}  // namespace
