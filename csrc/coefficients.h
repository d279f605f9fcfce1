// Coefficient providers: each fills a tile with the numbers that weigh the taps, one kind of generator each.
//
//   forward:    tile[(i * m + a) * kTile + p] = v[i,a](x_p)                         one per component
//   transposed: tile[(i * T + j) * kTile + p] = tap_weight[j] v[i,a(j)](x_p - tap_j)  one per tap, 0 outside the grid
#pragma once

#include "neighbours.h"
#include "simd.h"

namespace lconv_fast::LCONV_ISA {

constexpr int64_t kTile = 96;  // points of a tile: a multiple of kBlockRows and of kBlockLanes everywhere

// v of one (i, a) along a row of the grid: called for grid indices (z, y, x).
template <class A>
struct AffineRow {
  A base, slope, center, inverse_scale;
  AffineRow(const Problem& p, int64_t q, int64_t z, int64_t y) {
    const A* row = static_cast<const A*>(p.coefficients) + q * (kAxes + 1);
    inverse_scale = static_cast<A>(p.inverse_scale);
    center = static_cast<A>(p.center[2]);
    base = row[3] + row[0] * ((static_cast<A>(z) - static_cast<A>(p.center[0])) * inverse_scale) +
           row[1] * ((static_cast<A>(y) - static_cast<A>(p.center[1])) * inverse_scale);
    slope = row[2];
  }
  A operator()(int64_t x) const { return base + slope * ((static_cast<A>(x) - center) * inverse_scale); }
};

template <class A>
struct SampledRow {
  const A* row;
  SampledRow(const Problem& p, int64_t q, int64_t z, int64_t y)
      : row(static_cast<const A*>(p.coefficients) + ((q * p.grid[0] + z) * p.grid[1] + y) * p.grid[2]) {}
  A operator()(int64_t x) const { return row[x]; }
};

template <class A>
struct ConstantRow {
  A value;
  ConstantRow(const Problem& p, int64_t q, int64_t, int64_t) : value(static_cast<const A*>(p.coefficients)[q]) {}
  A operator()(int64_t) const { return value; }
};

template <class A, class Row>
void fill_segment(const Problem& p, const Neighbours& near, const Segment& s, A* tile) {
  const int64_t slots = near.transposed ? p.tap_count() : p.component_count;
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t tap = near.transposed ? slot : p.tap_count();
    const int64_t component = near.transposed ? p.components[slot] : slot;
    const A weight = near.transposed ? static_cast<A>(p.tap_weights[slot]) : A(1);
    const int64_t z = near.at(tap, 0).grid_index(s.z), y = near.at(tap, 1).grid_index(s.y);
    const AxisTap& axis = near.at(tap, 2);
    // A regular run of the transposed direction is a regular run of the grid: no test per point.
    const bool shifted = near.transposed && axis.step == 1 && axis.regular(s.x, s.length);
    for (int64_t i = 0; i < p.generators; ++i) {
      A* out = tile + (i * slots + slot) * kTile + s.first;
      if (z < 0 || y < 0) {
        std::fill(out, out + s.length, A(0));
        continue;
      }
      const Row v(p, i * p.component_count + component, z, y);
      if (shifted) {
        for (int64_t k = 0; k < s.length; ++k) out[k] = weight * v(s.x + k + axis.shift);
      } else if (!near.transposed) {
        for (int64_t k = 0; k < s.length; ++k) out[k] = v((s.x + k) * axis.step);
      } else {
        for (int64_t k = 0; k < s.length; ++k) {
          const int64_t x = axis.grid_index(s.x + k);
          out[k] = x < 0 ? A(0) : weight * v(x);
        }
      }
    }
  }
}

template <class A>
void fill_coefficients(const Problem& p, const Neighbours& near, const std::vector<Segment>& segments, A* tile) {
  for (const Segment& s : segments) {
    switch (p.kind) {
      case CoefficientKind::kAffine:
        fill_segment<A, AffineRow<A>>(p, near, s, tile);
        break;
      case CoefficientKind::kSampled:
        fill_segment<A, SampledRow<A>>(p, near, s, tile);
        break;
      case CoefficientKind::kConstant:
        fill_segment<A, ConstantRow<A>>(p, near, s, tile);
        break;
    }
  }
}

}  // namespace lconv_fast::LCONV_ISA
