// How sums over all points are split, so that their bits do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lconv_fast::LCONV_ISA {

// Sums over points are split into parts of this many points at least, whatever the number of threads, and added up in
// order: the result is the same for every number of threads. Bounded in bytes as well.
constexpr int64_t kPartPoints = 4096;
constexpr int64_t kMostPartBytes = int64_t{1} << 26;

inline int64_t part_count(int64_t tasks, int64_t points, int64_t bytes) {
  const int64_t affordable = kMostPartBytes / std::max<int64_t>(bytes, 1);
  return std::max<int64_t>(1, std::min({tasks, points / kPartPoints, affordable}));
}

}  // namespace lconv_fast::LCONV_ISA
