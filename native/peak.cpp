// What this machine can do at most, measured: the scale of `vglm bench kernels`.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "kernels.hpp"
#include "thread_pool.hpp"
#include "workspace.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace vglm {
namespace {

using Clock = std::chrono::steady_clock;

const Kernels& kernels(const std::string& isa) {
  const Kernels* k = find_kernels(isa.c_str());
  if (!k) throw std::invalid_argument("instruction set '" + isa + "' is not available on this machine");
  return *k;
}

void check_threads(int threads) {
  if (threads < 1 || threads > 512) throw std::invalid_argument("threads must be 1 to 512");
}

// Operations per second (a multiply and an add are two) of dot products that touch no memory, over all threads.
double peak_ops(const std::string& isa, const std::string& type, int threads, double seconds) {
  const Kernels& kernel = kernels(isa);
  const WeightType t = type == "int8" ? WeightType::int8 : type == "int4" ? WeightType::int4 : WeightType::bf16;
  check_threads(threads);
  nb::gil_scoped_release release;
  ThreadPool pool(threads);
  const auto stop = Clock::now() + std::chrono::duration<double>(seconds);
  double best = 0;
  int64_t rounds = 1000;
  while (best == 0 || Clock::now() < stop) {
    int64_t done = 0;
    const auto begin = Clock::now();
    pool.run([&](int thread) {
      const int64_t n = kernel.spin(t, rounds);
      if (thread == 0) done = n;
    });
    const double took = std::chrono::duration<double>(Clock::now() - begin).count();
    if (took < 0.005)
      rounds *= 2;  // too short to trust
    else
      best = std::max(best, 2.0 * (double)done * threads / took);
  }
  return best;
}

// Bytes per second of reading a buffer of `megabytes` once, each thread its part; the best of `repeats`.
double read_bandwidth(const std::string& isa, int threads, int megabytes, int repeats) {
  const Kernels& kernel = kernels(isa);
  check_threads(threads);
  if (megabytes < 1 || megabytes > 1 << 16 || repeats < 1) throw std::invalid_argument("megabytes must be 1 to 65536, repeats 1 or more");
  nb::gil_scoped_release release;
  const int64_t part = ((int64_t)megabytes << 20) / threads / 4096 * 4096;
  Buffer<uint8_t> memory;
  memory.reserve(part * threads + 65536);  // prefetches reach past the end
  ThreadPool pool(threads);
  pool.run([&](int t) { std::fill_n(memory.get() + part * t, part, (uint8_t)1); });
  double best = 0;
  int32_t seen = 0;
  for (int i = 0; i < repeats; i++) {
    const auto begin = Clock::now();
    pool.run([&](int t) {
      const int32_t sum = kernel.read(memory.get() + part * t, part);
      if (t == 0) seen += sum;
    });
    best = std::max(best, (double)(part * threads) / std::chrono::duration<double>(Clock::now() - begin).count());
  }
  volatile int32_t keep = seen;
  (void)keep;
  return best;
}

}  // namespace

void bind_peak(nb::module_& m) {
  m.def("peak_ops", &peak_ops, "isa"_a, "type"_a, "threads"_a = 1, "seconds"_a = 0.2);
  m.def("read_bandwidth", &read_bandwidth, "isa"_a, "threads"_a = 1, "megabytes"_a = 256, "repeats"_a = 5);
}

}  // namespace vglm
