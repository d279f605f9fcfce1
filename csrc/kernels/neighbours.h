// Where a tap of a point lies, forward and transposed.
#pragma once

#include <algorithm>
#include <vector>

#include "../problem.h"

// In the namespace of the instruction set, as all inline code must be: the linker would merge the copies otherwise.
namespace lconv_fast::LCONV_ISA {

// One axis of one tap: target index -> source index, and -> the grid index whose coefficient applies.
//   forward:    target = index in y, source = index in the array of f, grid index = target * step
//   transposed: target = index in the array of f, source = index in g, grid index = the x with x + tap = target.
//               With a stride the target's points are taken phase by phase: target * step + phase is that index, and a
//               tap sees g all along a phase or nowhere (phases.h).
struct AxisTap {
  bool transposed;
  Padding padding;
  int64_t tap, step, phase, grid, halo_low, array;
  int64_t begin, end, shift;  // for begin <= target < end: source = target * (transposed ? 1 : step) + shift

  AxisTap(const Problem& p, int axis, int64_t tap_, bool transposed_, int64_t phase_)
      : transposed(transposed_),
        padding(p.padding),
        tap(tap_),
        step(p.step[axis]),
        phase(phase_),
        grid(p.grid[axis]),
        halo_low(p.halo_low[axis]),
        array(p.array[axis]) {
    if (!transposed) {
      shift = halo_low + tap;
      begin = shift >= 0 ? 0 : (-shift + step - 1) / step;
      end = array - shift <= 0 ? 0 : (array - shift + step - 1) / step;
    } else if (modulo(phase - halo_low - tap, step) == 0) {
      shift = (phase - halo_low - tap) / step;
      begin = std::max<int64_t>(0, -shift);
      end = (grid - 1) / step + 1 - shift;
    } else {
      shift = begin = end = 0;
    }
  }

  bool regular(int64_t first, int64_t count) const { return first >= begin && first + count <= end; }
  int64_t slope() const { return transposed ? 1 : step; }

  int64_t source(int64_t target) const {
    if (target >= begin && target < end) return target * slope() + shift;
    if (!transposed) return shown_index(target * step + shift, array, padding);
    const int64_t x = grid_index(target);
    return x >= 0 && x % step == 0 ? x / step : -1;
  }

  // The place of a target on the grid's axis: outside [0, grid) in a halo.
  int64_t position(int64_t target) const { return target * step + (transposed ? phase - halo_low : 0); }

  int64_t grid_index(int64_t target) const {
    if (!transposed) return target * step;
    return showing_index(position(target) - tap, grid, padding);
  }
};

// All taps of a problem in one direction. The last one is the identity, tap 0.
struct Neighbours {
  bool transposed;
  int64_t target[kAxes];  // extents of the target
  std::vector<AxisTap> axes;

  Neighbours(const Problem& p, bool transposed_, const int64_t* phase = nullptr) : transposed(transposed_) {
    const auto first = [=](int axis) { return phase ? phase[axis] : 0; };
    for (int a = 0; a < kAxes; ++a) {
      target[a] = transposed ? (p.array[a] - first(a) + p.step[a] - 1) / p.step[a] : p.out[a];
    }
    axes.reserve((p.tap_count() + 1) * kAxes);
    for (int64_t j = 0; j <= p.tap_count(); ++j) {
      for (int a = 0; a < kAxes; ++a) {
        axes.emplace_back(p, a, j < p.tap_count() ? p.taps[j * kAxes + a] : 0, transposed, first(a));
      }
    }
  }

  const AxisTap& at(int64_t tap, int axis) const { return axes[tap * kAxes + axis]; }
  int64_t points() const { return target[0] * target[1] * target[2]; }

  // Offset of the row (z, y, .) that the tap sees, or -1 for zeros.
  int64_t row_offset(int64_t tap, int64_t z, int64_t y, const View& source) const {
    const int64_t sz = at(tap, 0).source(z), sy = at(tap, 1).source(y);
    return sz < 0 || sy < 0 ? -1 : sz * source.stride[0] + sy * source.stride[1];
  }
};

}  // namespace lconv_fast::LCONV_ISA
