#include "geometry.h"

#include <algorithm>
#include <cmath>

namespace lconv_fast {

namespace {

bool within(const Integers& values, int64_t least, int64_t most) {
  return std::all_of(values.begin(), values.end(), [=](int64_t v) { return v >= least && v <= most; });
}

void check(const Geometry& g) {
  const size_t n = g.spatial.size(), taps = g.tap_weights.size();
  require(n >= 1 && n <= kAxes, "expected 1 to 3 spatial axes");
  require(g.taps.size() == taps * n && g.components.size() == taps && g.stride.size() == n && g.halo.size() == 2 * n &&
              g.origin.size() == n && g.full.size() == n,
          "taps, tap_weights, components, stride, halo, origin and full differ in length");
  require(g.kind >= 0 && g.kind <= static_cast<int64_t>(CoefficientKind::kAffine) && g.padding_mode >= 0 &&
              g.padding_mode < kPaddings,
          "unknown kind or padding mode");
  require(g.groups >= 1 && g.groups <= kMostSteps, "expected one group or more");
  require(within(g.taps, -kMostSteps, kMostSteps) && within(g.halo, -kMostSteps, kMostSteps) &&
              within(g.stride, -kMostSteps, kMostSteps),
          "an offset is too large");
  require(within(g.spatial, 1, INT64_MAX) && within(g.stride, 1, kMostSteps) && within(g.halo, 0, kMostSteps),
          "expected spatial >= 1, stride >= 1 and halo >= 0");
  int64_t points = 1;
  for (size_t a = 0; a < n; ++a) {
    require(g.spatial[a] <= kMostPoints, "the grid has too many points");
    const int64_t size = g.spatial[a] + g.halo[2 * a] + g.halo[2 * a + 1];
    require(size <= kMostPoints / points, "the grid has too many points");
    points *= size;
  }
  require(within(g.full, 1, kMostPoints) && within(g.origin, -kMostPoints, kMostPoints),
          "expected full >= 1, and origin and full within 2^48");
  require(!g.coordinate_scale || (*g.coordinate_scale > 0 && std::isfinite(*g.coordinate_scale) &&
                                  std::isfinite(1.0 / *g.coordinate_scale)),
          "expected a positive coordinate_scale");
  const auto padding = static_cast<Padding>(g.padding_mode);
  require(padding == Padding::kZeros || within(g.halo, 0, 0), "a halo goes with padding mode zeros");
  for (size_t j = 0; j < taps; ++j) {
    const int64_t component = g.components[j];
    require(j == 0 ? component == 0 : component == g.components[j - 1] || component == g.components[j - 1] + 1,
            "components must count up from 0");
    for (size_t a = 0; a < n; ++a) {
      require(!boundary_of(padding).bounded || std::abs(g.taps[j * n + a]) < g.spatial[a],
              "taps reach beyond the far side of the grid");
    }
  }
}

}  // namespace

Problem problem_of(const Geometry& g, int64_t batch, int64_t generators, int64_t in_channels, int64_t out_channels,
                   bool identity) {
  check(g);
  Problem p;
  const int64_t n = static_cast<int64_t>(g.spatial.size()), taps = static_cast<int64_t>(g.tap_weights.size());
  p.ndim = static_cast<int>(n);
  p.kind = static_cast<CoefficientKind>(g.kind);
  p.padding = static_cast<Padding>(g.padding_mode);
  p.identity = identity;
  p.batch = batch;
  p.groups = g.groups;
  p.in_channels = in_channels;
  p.out_channels = out_channels;
  p.generators = generators;
  // On a single point half the extent is nothing: the scale is then one pixel.
  const int64_t largest = *std::max_element(g.full.begin(), g.full.end());
  p.inverse_scale = 1.0 / g.coordinate_scale.value_or(largest > 1 ? static_cast<double>(largest - 1) / 2 : 1.0);
  for (int a = 0; a < kAxes; ++a) {
    p.grid[a] = p.array[a] = p.step[a] = p.out[a] = 1;
    p.halo_low[a] = 0;
  }
  p.taps.assign(taps * kAxes, 0);
  for (int64_t k = 0; k < n; ++k) {
    const int64_t a = k + kAxes - n;
    p.grid[a] = g.spatial[k];
    p.halo_low[a] = g.halo[2 * k];
    p.array[a] = g.spatial[k] + g.halo[2 * k] + g.halo[2 * k + 1];
    p.step[a] = g.stride[k];
    p.out[a] = (g.spatial[k] - 1) / g.stride[k] + 1;
    p.center[a] = static_cast<double>(g.full[k] - 1) / 2 - static_cast<double>(g.origin[k]);
    for (int64_t j = 0; j < taps; ++j) p.taps[j * kAxes + a] = g.taps[j * n + k];
  }
  p.tap_weights = g.tap_weights;
  p.components.assign(g.components.begin(), g.components.end());
  p.component_count = taps ? g.components.back() + 1 : 0;
  return p;
}

}  // namespace lconv_fast
