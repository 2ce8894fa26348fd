// Which kernels this build has and this processor (and its operating system) can run.
#include <cstring>

#include "kernels.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace vglm {

#if defined(__x86_64__)
namespace amx { extern const Kernels table; }
namespace avx512_bf16 { extern const Kernels table; }
namespace avx512_vnni { extern const Kernels table; }
namespace avx2_vnni { extern const Kernels table; }
namespace avx2 { extern const Kernels table; }
#endif
namespace amx_simulated { extern const Kernels table; }
namespace portable { extern const Kernels table; }

namespace {

#if defined(__x86_64__)
struct Processor {
  bool avx2 = false, avx_vnni = false, avx512_vnni = false, avx512_bf16 = false, amx = false;

  Processor() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool fma = c >> 12 & 1, osxsave = c >> 27 & 1, f16c = c >> 29 & 1;
    if (!osxsave) return;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const bool ymm = (low & 0x06) == 0x06, zmm = (low & 0xe6) == 0xe6, tiles = (low & 0x60000) == 0x60000;
    unsigned b7, c7, d7, a71 = 0, unused;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return;
    if (a >= 1) __get_cpuid_count(7, 1, &a71, &unused, &unused, &unused);
    avx2 = ymm && fma && f16c && (b7 >> 5 & 1);
    avx_vnni = avx2 && (a71 >> 4 & 1);
    const bool f = b7 >> 16 & 1, dq = b7 >> 17 & 1, bw = b7 >> 30 & 1, vl = b7 >> 31 & 1;
    avx512_vnni = avx2 && zmm && f && dq && bw && vl && (c7 >> 11 & 1);
    avx512_bf16 = avx512_vnni && (a71 >> 5 & 1);
    const bool amx_bf16 = d7 >> 22 & 1, amx_tile = d7 >> 24 & 1, amx_int8 = d7 >> 25 & 1;
    amx = avx512_bf16 && tiles && amx_bf16 && amx_tile && amx_int8 && tiles_permitted();
  }

  static bool tiles_permitted() {  // Linux gives the tile registers to a process that asks (Documentation/arch/x86/xstate)
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
  }
};
#endif

}  // namespace

int available_kernels(const Kernels** out, int capacity) {
  int n = 0;
  auto add = [&](const Kernels& k) {
    if (n < capacity) out[n++] = &k;
  };
#if defined(__x86_64__)
  static const Processor cpu;
  if (cpu.amx) add(amx::table);
  if (cpu.avx512_bf16) add(avx512_bf16::table);
  if (cpu.avx512_vnni) add(avx512_vnni::table);
  if (cpu.avx_vnni) add(avx2_vnni::table);
  if (cpu.avx2) add(avx2::table);
#endif
  add(portable::table);
  return n;
}

const Kernels* find_kernels(const char* name) {
  const Kernels* all[8];
  const int n = available_kernels(all, 8);
  for (int i = 0; i < n; i++)
    if (!strcmp(all[i]->name, name)) return all[i];
  return strcmp(name, amx_simulated::table.name) ? nullptr : &amx_simulated::table;
}

}  // namespace vglm
