// The transpose of a layer with a stride, phase by phase.
//
// Points of f whose index leaves the same remainder (on each axis) by the stride form a phase. Seen from one of them, a
// tap meets points of g at all points of the phase or at none, so that each phase is a transposed layer with stride 1
// and fewer taps: with central differences and stride 2 in 2D, the four phases see the identity, two taps, two taps,
// nothing.
#pragma once

#include "neighbours.h"

namespace lconv_fast::LCONV_ISA {

struct Phase {
  Problem problem;  // with the taps and the identity that the phase sees
  View target;      // its points
};

inline Phase phase_of(const Problem& p, const View& target, const int64_t first[kAxes]) {
  Phase result{p, target};
  const auto sees = [&](const int64_t* tap) {
    for (int a = 0; a < kAxes; ++a) {
      // Points that wrap change their phase, unless the stride divides the grid.
      const bool mixes = tap[a] != 0 && mixes_phases(p.padding, p.grid[a], p.step[a]);
      if (!mixes && modulo(first[a] - p.halo_low[a] - tap[a], p.step[a]) != 0) return false;
    }
    return true;
  };
  Problem& q = result.problem;
  q.taps.clear(), q.tap_weights.clear(), q.components.clear();
  for (int64_t j = 0; j < p.tap_count(); ++j) {
    const int64_t* tap = &p.taps[j * kAxes];
    if (!sees(tap)) continue;
    q.taps.insert(q.taps.end(), tap, tap + kAxes);
    q.tap_weights.push_back(p.tap_weights[j]);
    q.components.push_back(p.components[j]);
  }
  const int64_t here[kAxes] = {0, 0, 0};
  q.identity = p.identity && sees(here);
  if (q.tap_count() == 0) q.generators = 0;
  int64_t offset = 0;
  for (int a = 0; a < kAxes; ++a) {
    offset += first[a] * target.stride[a];
    // The layout is read off the strides: those of single points must not change it.
    if (first[a] + p.step[a] < p.array[a]) result.target.stride[a] = target.stride[a] * p.step[a];
  }
  const int64_t bytes = p.scalar == Scalar::kDouble ? 8 : p.scalar == Scalar::kFloat ? 4 : 2;
  result.target.data = static_cast<char*>(target.data) + offset * bytes;
  return result;
}

// body(first point, phase) for the phases that have points.
template <class Body>
void for_phases(const Problem& p, const View& target, Body body) {
  int64_t first[kAxes];
  for (first[0] = 0; first[0] < std::min(p.step[0], p.array[0]); ++first[0]) {
    for (first[1] = 0; first[1] < std::min(p.step[1], p.array[1]); ++first[1]) {
      for (first[2] = 0; first[2] < std::min(p.step[2], p.array[2]); ++first[2])
        body(first, phase_of(p, target, first));
    }
  }
}

}  // namespace lconv_fast::LCONV_ISA
