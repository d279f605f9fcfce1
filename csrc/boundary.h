// What lies outside the grid: one row for each padding mode, and the two rules of the kernels.
// lconv_fast/ops/boundary.py holds the same rows for Python (tests/test_boundary.py compares them); nothing else here
// knows one mode from another.
//
// All functions are static: each instruction set compiles its own, and the linker merges none.
#pragma once

#include <cstdint>

namespace lconv_fast {

enum class Padding { kZeros, kCircular, kReplicate, kReflect };

struct Boundary {
  const char* name;
  bool inverts;  // each point is seen through a tap from one point at most, so that taps can be turned round
  bool bounded;  // taps must not reach beyond the far side of the grid
};

constexpr Boundary kBoundaries[] = {
    {"zeros", true, false},
    {"circular", true, false},
    {"replicate", false, false},
    {"reflect", false, true},
};
constexpr int64_t kPaddings = sizeof(kBoundaries) / sizeof(kBoundaries[0]);

static inline const Boundary& boundary_of(Padding padding) { return kBoundaries[static_cast<int>(padding)]; }
static inline bool inverts(Padding padding) { return boundary_of(padding).inverts; }

static inline int64_t modulo(int64_t a, int64_t n) {
  const int64_t r = a % n;
  return r < 0 ? r + n : r;
}

// The index in [0, size) that the array shows at `index`; -1 where it shows zero.
static inline int64_t shown_index(int64_t index, int64_t size, Padding padding) {
  if (index >= 0 && index < size) return index;
  switch (padding) {
    case Padding::kZeros:
      return -1;
    case Padding::kCircular:
      return modulo(index, size);
    case Padding::kReplicate:
      return index < 0 ? 0 : size - 1;
    case Padding::kReflect:
      return index < 0 ? -index : 2 * (size - 1) - index;
  }
  return -1;
}

// Of boundaries that invert, the same backwards: the index in [0, size) that is shown where `index` is reckoned, a tap
// before the point that it shows; -1 where there is none.
static inline int64_t showing_index(int64_t index, int64_t size, Padding padding) {
  if (padding == Padding::kCircular) return modulo(index, size);
  return index >= 0 && index < size ? index : -1;
}

// Whether a tap may see points of another phase of a stride: those that come round from the other side.
static inline bool mixes_phases(Padding padding, int64_t size, int64_t step) {
  return padding == Padding::kCircular && size % step != 0;
}

}  // namespace lconv_fast
