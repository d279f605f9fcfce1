#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

#ifdef LCONV_HAVE_AMX
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace lconv_fast {

namespace baseline {
extern const Kernels kernels;
}
#ifdef LCONV_HAVE_AVX2
namespace avx2 {
extern const Kernels kernels;
}
#endif
#ifdef LCONV_HAVE_AVX512
namespace avx512 {
extern const Kernels kernels;
}
#endif
#ifdef LCONV_HAVE_AVX512BF16
namespace avx512bf16 {
extern const Kernels kernels;
}
#endif
#ifdef LCONV_HAVE_AMX
namespace amx {
extern const Kernels kernels;
}
#endif

namespace {

#ifdef LCONV_HAVE_AMX
// The processor has tiles for bfloat16, and the system lets this process use them: they are a large state to save.
bool may_use_tiles() {
#if defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kTilesOfBFloat16 = 1u << 22, kTiles = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kTilesOfBFloat16) || !(d & kTiles)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> sets{&baseline::kernels};
#ifdef LCONV_HAVE_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    sets.push_back(&avx2::kernels);
  }
#endif
#ifdef LCONV_HAVE_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    sets.push_back(&avx512::kernels);
#ifdef LCONV_HAVE_AVX512BF16
    // Taken by default where it stands last. Zen 4 multiplies pairs as often as single numbers; Sapphire Rapids took
    // 1.5 times as long for them.
    if (__builtin_cpu_supports("avx512bf16")) {
      sets.insert(__builtin_cpu_is("amd") ? sets.end() : sets.end() - 1, &avx512bf16::kernels);
    }
#endif
#ifdef LCONV_HAVE_AMX
    if (__builtin_cpu_supports("avx512bf16") && may_use_tiles()) sets.push_back(&amx::kernels);
#endif
  }
#endif
  return sets;
}

const Kernels& choose() {
  const std::vector<const Kernels*> sets = available();
  const char* wanted = std::getenv("LCONV_FAST_CPU_CAPABILITY");
  if (!wanted || !*wanted) return *sets.back();
  std::string names;
  for (const Kernels* set : sets) {
    if (std::string(wanted) == set->name) return *set;
    names += (names.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::runtime_error("LCONV_FAST_CPU_CAPABILITY is '" + std::string(wanted) + "', expected one of: " + names);
}

}  // namespace

const Kernels& active_kernels() {
  static const Kernels& kernels = choose();
  return kernels;
}

std::vector<std::string> available_kernels() {
  std::vector<std::string> names;
  for (const Kernels* set : available()) names.push_back(set->name);
  return names;
}

}  // namespace lconv_fast
