#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

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

namespace {

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
