// From the operators' arguments to a Problem, with the checks that memory safety needs. Python has raised its clearer
// errors before; these hold for whoever calls torch.ops.lconv_fast directly.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "problem.h"

namespace lconv_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Geometry {
  int64_t kind;
  const std::vector<int64_t>& taps;
  const std::vector<double>& tap_weights;
  const std::vector<int64_t>& components;
  const std::vector<int64_t>& spatial;
  int64_t padding_mode;
  const std::vector<int64_t>& halo;  // (low, high) per axis
  const std::vector<double>& center;
  double scale;
  const std::vector<int64_t>& stride;
  int64_t groups;
  bool identity;
};

inline ScalarType accumulate_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Scalar scalar_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Scalar::kFloat;
    case ScalarType::Double:
      return Scalar::kDouble;
    case ScalarType::BFloat16:
      return Scalar::kBFloat16;
    case ScalarType::Half:
      return Scalar::kHalf;
    default:
      STD_TORCH_CHECK(false, "lconv_fast: expected float32, float64, bfloat16 or float16 tensors");
  }
}

// A Problem and the coefficient tensor that its pointer borrows from.
struct CheckedProblem {
  Problem problem;
  int ndim = 0;
  Tensor coefficients;
  std::vector<float> affine_float;
  std::vector<double> affine_double;

  int64_t axis(int a) const { return a + kAxes - ndim; }

  std::vector<int64_t> sizes(int64_t channels, const int64_t* extent) const {
    std::vector<int64_t> result{problem.batch, channels};
    for (int a = 0; a < ndim; ++a) result.push_back(extent[axis(a)]);
    return result;
  }

  // The view of a tensor (batch, channels, *extent), whose shape is checked.
  View view(const Tensor& t, const char* name, int64_t channels, const int64_t* extent) const {
    const std::vector<int64_t> expected = sizes(channels, extent);
    bool fits = t.dim() == ndim + 2 && t.is_cpu();
    for (int a = 0; fits && a < ndim + 2; ++a) fits = t.size(a) == expected[a];
    STD_TORCH_CHECK(fits, "lconv_fast: the shape of ", name, " does not fit the other arguments");
    View v;
    v.data = t.data_ptr();
    v.batch_stride = t.stride(0);
    v.channel_stride = t.stride(1);
    for (int a = 0; a < ndim; ++a) v.stride[axis(a)] = t.stride(a + 2);
    return v;
  }

  WeightView weight(const Tensor& w, const Tensor& data) const {
    STD_TORCH_CHECK(w.dim() == 3 && w.is_cpu() && w.scalar_type() == data.scalar_type() &&
                        w.size(0) == problem.generators + 1 && w.size(1) == problem.out_channels * problem.groups &&
                        w.size(2) == problem.in_channels,
                    "lconv_fast: the shape or type of weight does not fit the other arguments");
    return {w.data_ptr(), w.stride(0), w.stride(1), w.stride(2)};
  }

  // Coefficients in the accumulation type, contiguous; affine rows widened to kAxes + 1 numbers.
  void take_coefficients(const Tensor& given) {
    Problem& p = problem;
    const auto type = p.scalar == Scalar::kDouble ? ScalarType::Double : ScalarType::Float;
    std::vector<int64_t> expected{p.generators, p.component_count};
    if (p.kind == CoefficientKind::kAffine) expected.push_back(ndim + 1);
    if (p.kind == CoefficientKind::kSampled) {
      for (int a = 0; a < ndim; ++a) expected.push_back(p.grid[axis(a)]);
    }
    bool fits = given.dim() == static_cast<int64_t>(expected.size()) && given.is_cpu();
    for (size_t a = 0; fits && a < expected.size(); ++a) fits = given.size(a) == expected[a];
    STD_TORCH_CHECK(fits, "lconv_fast: the shape of coefficients does not fit the other arguments");
    coefficients = given.scalar_type() == type ? given : torch::stable::to(given, type);
    coefficients = torch::stable::contiguous(coefficients);
    p.coefficients = coefficients.data_ptr();
    if (p.kind != CoefficientKind::kAffine) return;
    if (type == ScalarType::Double) {
      p.coefficients = widen(affine_double);
    } else {
      p.coefficients = widen(affine_float);
    }
  }

 private:
  template <class A>
  const A* widen(std::vector<A>& rows) const {
    const int64_t count = problem.generators * problem.component_count;
    rows.assign(count * (kAxes + 1), A(0));
    const A* from = static_cast<const A*>(problem.coefficients);
    for (int64_t q = 0; q < count; ++q) {
      std::copy_n(from + q * (ndim + 1), ndim, &rows[q * (kAxes + 1) + kAxes - ndim]);
      rows[q * (kAxes + 1) + kAxes] = from[q * (ndim + 1) + ndim];
    }
    return rows.data();
  }
};

// `data` gives batch and type; channels are those of one group.
inline CheckedProblem check(const Geometry& g, const Tensor& data, int64_t generators, int64_t in_channels,
                            int64_t out_channels) {
  CheckedProblem result;
  Problem& p = result.problem;
  const size_t ndim = g.spatial.size();
  STD_TORCH_CHECK(ndim >= 1 && ndim <= kAxes, "lconv_fast: expected 1 to 3 spatial axes");
  const size_t taps = g.tap_weights.size();
  STD_TORCH_CHECK(g.taps.size() == taps * ndim && g.components.size() == taps && g.stride.size() == ndim &&
                      g.halo.size() == 2 * ndim && (g.kind != 2 || g.center.size() == ndim),
                  "lconv_fast: taps, tap_weights, components, stride, halo and center differ in length");
  STD_TORCH_CHECK(g.kind >= 0 && g.kind <= 2 && g.padding_mode >= 0 && g.padding_mode <= 3 && g.groups >= 1,
                  "lconv_fast: unknown kind or padding mode, or no group");
  STD_TORCH_CHECK(data.is_cpu() && data.dim() == static_cast<int64_t>(ndim) + 2,
                  "lconv_fast: expected a CPU tensor (batch, channels, *spatial)");
  result.ndim = p.ndim = static_cast<int>(ndim);
  p.scalar = scalar_of(data);
  p.kind = static_cast<CoefficientKind>(g.kind);
  p.padding = static_cast<Padding>(g.padding_mode);
  p.identity = g.identity;
  p.batch = data.size(0);
  p.groups = g.groups;
  p.in_channels = in_channels;
  p.out_channels = out_channels;
  p.generators = generators;
  p.inverse_scale = 1.0 / g.scale;
  for (int a = 0; a < kAxes; ++a) {
    p.grid[a] = p.array[a] = p.step[a] = p.out[a] = 1;
    p.halo_low[a] = 0;
  }
  p.taps.assign(taps * kAxes, 0);
  bool has_halo = false;
  for (size_t k = 0; k < ndim; ++k) {
    const int64_t a = result.axis(static_cast<int>(k)), low = g.halo[2 * k], high = g.halo[2 * k + 1];
    STD_TORCH_CHECK(g.spatial[k] >= 1 && g.stride[k] >= 1 && low >= 0 && high >= 0,
                    "lconv_fast: expected spatial >= 1, stride >= 1 and halo >= 0");
    p.grid[a] = g.spatial[k];
    p.halo_low[a] = low;
    p.array[a] = g.spatial[k] + low + high;
    p.step[a] = g.stride[k];
    p.out[a] = (g.spatial[k] - 1) / g.stride[k] + 1;
    if (g.kind == 2) p.center[a] = g.center[k];
    has_halo = has_halo || low > 0 || high > 0;
    for (size_t j = 0; j < taps; ++j) {
      const int64_t tap = g.taps[j * ndim + k];
      p.taps[j * kAxes + a] = tap;
      STD_TORCH_CHECK(p.padding != Padding::kReflect || (tap < p.grid[a] && -tap < p.grid[a]),
                      "lconv_fast: reflect padding is wider than the grid");
    }
  }
  STD_TORCH_CHECK(!has_halo || p.padding == Padding::kZeros, "lconv_fast: a halo goes with padding mode zeros");
  p.tap_weights = g.tap_weights;
  for (size_t j = 0; j < taps; ++j) {
    const int64_t component = g.components[j], before = j ? g.components[j - 1] : -1;
    STD_TORCH_CHECK(component == before || component == before + 1, "lconv_fast: components must count up from 0");
    p.components.push_back(static_cast<int>(component));
  }
  p.component_count = taps ? g.components.back() + 1 : 0;
  return result;
}

}  // namespace lconv_fast
