// Coefficient providers: each fills a tile with the numbers that weigh the taps, one kind of generator each.
//
//   forward:    tile[(i * m + a) * kTile + p] = v[i,a](x_p)                         one per component
//   transposed: tile[(i * T + j) * kTile + p] = tap_weight[j] v[i,a(j)](x_p - tap_j)  one per tap, 0 outside the grid
#pragma once

#include "microkernel.h"
#include "neighbours.h"
#include "tiles.h"

namespace lconv_fast::LCONV_ISA {

// Each Row is v of one (i, a) along the row (z, y) of the grid: at(x), and fill(x, step, count, ...) for the points x,
// x + step, ...: out[k] = weight * v.
template <class A>
struct AffineRow {
  A base, slope, inverse_scale;
  double center;
  AffineRow(const Problem& p, int64_t q, int64_t z, int64_t y)
      : inverse_scale(static_cast<A>(p.inverse_scale)), center(p.center[2]) {
    const A* row = static_cast<const A*>(p.coefficients) + q * (kAxes + 1);
    base = row[3] + row[0] * p.coordinate<A>(z, 0) + row[1] * p.coordinate<A>(y, 1);
    slope = row[2];
  }
  A at(int64_t x) const { return base + slope * (static_cast<A>(static_cast<double>(x) - center) * inverse_scale); }
  void fill(int64_t x, int64_t step, int64_t count, A weight, A* out) const {
    const A first = static_cast<A>(static_cast<double>(x) - center), by = static_cast<A>(step);
    for (int k = 0; k < static_cast<int>(count); ++k) {
      out[k] = weight * (base + slope * ((first + static_cast<A>(k) * by) * inverse_scale));
    }
  }
};

template <class A>
struct SampledRow {
  const A* row;
  SampledRow(const Problem& p, int64_t q, int64_t z, int64_t y)
      : row(static_cast<const A*>(p.coefficients) + ((q * p.grid[0] + z) * p.grid[1] + y) * p.grid[2]) {}
  A at(int64_t x) const { return row[x]; }
  void fill(int64_t x, int64_t step, int64_t count, A weight, A* out) const {
    if (step == 1) {
      for (int64_t k = 0; k < count; ++k) out[k] = weight * row[x + k];
    } else {
      for (int64_t k = 0; k < count; ++k) out[k] = weight * row[x + k * step];
    }
  }
};

template <class A>
struct ConstantRow {
  A value;
  ConstantRow(const Problem& p, int64_t q, int64_t, int64_t) : value(static_cast<const A*>(p.coefficients)[q]) {}
  A at(int64_t) const { return value; }
  void fill(int64_t, int64_t, int64_t count, A weight, A* out) const { std::fill_n(out, count, weight * value); }
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
    const bool shifted = near.transposed && axis.regular(s.x, s.length);
    for (int64_t i = 0; i < p.generators; ++i) {
      A* out = tile + (i * slots + slot) * kTile + s.first;
      if (z < 0 || y < 0) {
        std::fill(out, out + s.length, A(0));
        continue;
      }
      const Row v(p, i * p.component_count + component, z, y);
      if (shifted) {
        v.fill((s.x + axis.shift) * axis.step, axis.step, s.length, weight, out);
      } else if (!near.transposed) {
        v.fill(s.x * axis.step, axis.step, s.length, A(1), out);
      } else {
        for (int64_t k = 0; k < s.length; ++k) {
          const int64_t x = axis.grid_index(s.x + k);
          out[k] = x < 0 ? A(0) : weight * v.at(x);
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

// x_a of the tile's points on the last axis a, in the grid's coordinates.
template <class A>
void fill_coordinates(const Problem& p, const Neighbours& near, const std::vector<Segment>& segments, A* tile) {
  const AxisTap& axis = near.at(p.tap_count(), 2);
  for (const Segment& s : segments) {
    for (int64_t k = 0; k < s.length; ++k) tile[s.first + k] = p.coordinate<A>(axis.position(s.x + k), 2);
  }
}

// For each tap, along its own axis a: tap_weight (x_a at the grid point it comes from - x_a here), 0 where it comes
// from nowhere; then the coordinates of the last axis.
template <class A>
void fill_shifts(const Problem& p, const Neighbours& near, const std::vector<Segment>& segments, A* tile) {
  for (const Segment& s : segments) {
    for (int64_t j = 0; j < p.tap_count(); ++j) {
      const int a = p.axis_of(p.components[j]);
      const AxisTap& axis = near.at(j, a);
      const int64_t start[kAxes] = {s.z, s.y, s.x};
      for (int64_t k = 0; k < s.length; ++k) {
        const int64_t at = start[a] + (a == kAxes - 1 ? k : 0), from = axis.grid_index(at);
        tile[j * kTile + s.first + k] =
            from < 0
                ? A(0)
                : static_cast<A>(p.tap_weights[j] * static_cast<double>(from - axis.position(at)) * p.inverse_scale);
      }
    }
  }
  fill_coordinates(p, near, segments, tile + p.tap_count() * kTile);
}

}  // namespace lconv_fast::LCONV_ISA
