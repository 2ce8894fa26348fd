// Single kernels on numpy arrays, for tests against their naive twins and for `vglm bench kernels`.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "attention_plan.hpp"
#include "kernels.hpp"
#include "thread_pool.hpp"
#include "workspace.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace vglm {
namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

const Kernels& kernels(const std::string& isa) {
  const Kernels* k = find_kernels(isa.c_str());
  if (!k) throw std::invalid_argument("instruction set '" + isa + "' is not available on this machine");
  return *k;
}

Linear weight(const std::string& type, int n, int k, const Bytes& data, const std::optional<Vector>& scale,
              const std::optional<Vector>& bias) {
  Linear w;
  w.type = type == "int8" ? WeightType::int8 : type == "int4" ? WeightType::int4 : WeightType::bf16;
  w.n = n;
  w.k = k;
  if (n < 1 || k < 1 || n % kColumns || k % kDepth || (int64_t)data.shape(0) != n / kGroup * group_bytes(w.type, k))
    throw std::invalid_argument("weight: n and k must be multiples of 64 and the data of their size");
  if ((scale && (int64_t)scale->shape(0) < n) || (bias && (int64_t)bias->shape(0) < n) || (w.type == WeightType::int8 && !scale))
    throw std::invalid_argument("weight: scale or bias too short");
  w.data = data.data();
  w.scale = scale ? scale->data() : nullptr;
  w.bias = bias ? bias->data() : nullptr;
  return w;
}

// out = x @ w.T (+ bias); added to out; or silu(gate) * up, of half the width. Returns the seconds of the best of `repeats`.
double matmul(const std::string& isa, const std::string& type, int n, int k, Bytes data, std::optional<Vector> scale,
              std::optional<Vector> bias, Matrix x, Out out, const std::string& store, int threads, int repeats) {
  const Kernels& kernel = kernels(isa);
  const Linear w = weight(type, n, k, data, scale, bias);
  const int rows = (int)x.shape(0);
  const bool swiglu = store == "swiglu";
  if ((int64_t)x.shape(1) != k || (int64_t)out.shape(0) != rows || (int64_t)out.shape(1) != (swiglu ? n / 2 : n) || rows < 1)
    throw std::invalid_argument("matmul: shapes do not fit");
  ActivationBuffer buffer;
  Activations a = buffer.reserve(w.type, rows, k);
  kernel.convert_f32(x.data(), k, w.type, a, 0, rows);
  std::vector<uint16_t> half(swiglu ? (size_t)rows * (size_t)n / 2 : 0);
  Epilogue e;
  e.store = swiglu ? Store::swiglu : store == "add" ? Store::add_f32 : Store::f32;
  e.out = out.data();
  e.out_bf16 = half.data();
  e.stride = swiglu ? n / 2 : n;
  ThreadPool pool(threads);
  double best = INFINITY;
  {
    nb::gil_scoped_release release;
    for (int i = 0; i < repeats; i++) {
      const auto begin = std::chrono::steady_clock::now();
      pool.run([&](int t) {
        const int g = n / kGroup / 2;
        if (rows >= 32 * threads)
          kernel.matmul(w, a, rows * t / threads, rows * (t + 1) / threads, 0, n / kGroup, e);
        else
          kernel.matmul(w, a, 0, rows, g * t / threads * 2, g * (t + 1) / threads * 2, e);
      });
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
  }
  for (size_t i = 0; i < half.size(); i++) {
    const uint32_t bits = (uint32_t)half[i] << 16;
    memcpy(out.data() + i, &bits, 4);
  }
  return best;
}

// x [rows, k] as the row of activations that weights of `type` read, back in float32.
void activations(const std::string& isa, const std::string& type, Matrix x, std::optional<Vector> norm, float eps, Out out) {
  const Kernels& kernel = kernels(isa);
  const WeightType t = type == "int8" ? WeightType::int8 : type == "int4" ? WeightType::int4 : WeightType::bf16;
  const int rows = (int)x.shape(0), k = (int)x.shape(1);
  if (k % kDepth || k > 32768 || (int64_t)out.shape(0) != rows || (int64_t)out.shape(1) != k || (norm && (int64_t)norm->shape(0) < k))
    throw std::invalid_argument("activations: shapes do not fit");
  ActivationBuffer buffer;
  Activations a = buffer.reserve(t, rows, k);
  if (eps >= 0)
    kernel.normalize(x.data(), k, k, norm ? norm->data() : nullptr, eps, t, a, 0, rows);
  else
    kernel.convert_f32(x.data(), k, t, a, 0, rows);
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < k; i++) {
      const size_t at = (size_t)r * (size_t)k + (size_t)i;
      if (t == WeightType::bf16) {
        const uint32_t bits = (uint32_t)a.bf16[at] << 16;
        memcpy(out.data() + at, &bits, 4);
      } else {
        out.data()[at] = (float)a.int8[at] * a.scale[t == WeightType::int8 ? (size_t)r : at / 32];
      }
    }
}

// Attention of queries q [rows, d] over keys and values [slots, d]: query r sees the first limit[r] slots. `chunk_tiles` tiles
// of 16 slots go into one partial.
double attention(const std::string& isa, Matrix q, Matrix k, Matrix v, Ints limit, float scale, bool int8, Out out, int repeats) {
  const Kernels& kernel = kernels(isa);
  const int rows = (int)q.shape(0), d = (int)q.shape(1), slots = (int)k.shape(0);
  if (d % 16 || d > 512 || (int)k.shape(1) != d || v.shape(0) != k.shape(0) || (int)v.shape(1) != d || (int)limit.shape(0) != rows ||
      (int)out.shape(0) != rows || (int)out.shape(1) != d)
    throw std::invalid_argument("attention: shapes do not fit");
  const KVLayout layout{1, 1, d, kTokenTile, int8};
  const int num_tiles = (slots + kTokenTile - 1) / kTokenTile, per_chunk = kChunk / kTokenTile;
  Buffer<uint8_t> pages;
  pages.reserve(num_tiles * layout.tile_bytes());
  std::vector<KVTile> tiles;
  for (int t = 0; t < num_tiles; t++)
    tiles.push_back({pages.get() + t * layout.tile_bytes(), t * kTokenTile, std::min(kTokenTile, slots - t * kTokenTile)});
  for (int s = 0; s < slots; s++)
    kernel.store_kv(pages.get() + s / kTokenTile * layout.tile_bytes(), s % kTokenTile, k.data() + (size_t)s * (size_t)d,
                    v.data() + (size_t)s * (size_t)d, d, int8);
  Buffer<uint16_t> queries;
  queries.reserve((int64_t)rows * d);
  kernel.f32_to_bf16(q.data(), queries.get(), rows * d);
  Buffer<uint8_t> scratch;
  scratch.reserve(attend_scratch_bytes(d));
  Buffer<float> memory;
  memory.reserve((int64_t)rows * 2 * (d + 16));
  std::vector<Partial> state, fresh;
  std::vector<const uint16_t*> pointers;
  for (int r = 0; r < rows; r++) {
    float *s = memory.get() + (int64_t)2 * r * (d + 16), *f = s + d + 16;
    state.push_back({s + d, s + d + 1, s});
    fresh.push_back({f + d, f + d + 1, f});
    pointers.push_back(queries.get() + (int64_t)r * d);
  }
  double best = INFINITY;
  for (int i = 0; i < repeats; i++) {
    const auto begin = std::chrono::steady_clock::now();
    for (int r = 0; r < rows; r++) {
      *state[(size_t)r].max = -INFINITY;
      *state[(size_t)r].sum = 0;
      memset(state[(size_t)r].out, 0, (size_t)d * 4);
    }
    for (int c = 0; c < num_tiles; c += per_chunk) {
      kernel.attend(pointers.data(), limit.data(), rows, &tiles[(size_t)c], std::min(per_chunk, num_tiles - c), d, int8, scale, fresh.data(),
                    scratch.get(), nullptr, 0);
      for (int r = 0; r < rows; r++)
        if (limit.data()[r] > c * kTokenTile) kernel.merge(state[(size_t)r], fresh[(size_t)r], d);
    }
    for (int r = 0; r < rows; r++) {
      kernel.divide(state[(size_t)r].out, *state[(size_t)r].sum, d);
      memcpy(out.data() + (size_t)r * (size_t)d, state[(size_t)r].out, (size_t)d * 4);
    }
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

}  // namespace

void bind_kernels(nb::module_& m) {
  m.def("matmul", &matmul, "isa"_a, "type"_a, "n"_a, "k"_a, "data"_a, "scale"_a.none(), "bias"_a.none(), "x"_a, "out"_a,
        "store"_a = "f32", "threads"_a = 1, "repeats"_a = 1);
  m.def("activations", &activations, "isa"_a, "type"_a, "x"_a, "norm"_a.none(), "eps"_a, "out"_a);
  m.def("attention", &attention, "isa"_a, "q"_a, "k"_a, "v"_a, "limit"_a, "scale"_a, "int8"_a, "out"_a, "repeats"_a = 1);
}

}  // namespace vglm
