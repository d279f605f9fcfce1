// From the operators' tensors to a Problem's pointers, with the checks that memory safety needs. Python has raised its
// clearer errors before; these hold for whoever calls torch.ops.lconv_fast directly.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "geometry.h"

namespace lconv_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

inline size_t item_bytes(ScalarType type) { return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2; }

// Past the interface of the stable ABI the allocator's own message is lost.
template <class Allocate>
Tensor allocated(const std::vector<int64_t>& sizes, ScalarType type, Allocate allocate) {
  try {
    return allocate();
  } catch (const std::exception&) {
    std::string shape;
    double bytes = static_cast<double>(item_bytes(type));
    for (const int64_t size : sizes) {
      shape += (shape.empty() ? "" : ", ") + std::to_string(size);
      bytes *= static_cast<double>(size);
    }
    const std::string number = std::to_string(bytes);  // beyond 64 bits as well
    throw std::runtime_error("lconv_fast: can't allocate memory: you tried to allocate " +
                             number.substr(0, number.find('.')) + " bytes, for a tensor of shape (" + shape + ")");
  }
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> result(t.dim());
  for (int64_t a = 0; a < t.dim(); ++a) result[a] = t.size(a);
  return result;
}

inline Tensor made_contiguous(const Tensor& t) {
  return allocated(sizes_of(t), t.scalar_type(), [&] { return torch::stable::contiguous(t); });
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
    for (size_t a = 0; fits && a < expected.size(); ++a) fits = given.size(static_cast<int64_t>(a)) == expected[a];
    STD_TORCH_CHECK(fits, "lconv_fast: the shape of coefficients does not fit the other arguments");
    coefficients = given;
    if (given.scalar_type() != type) {
      coefficients = allocated(expected, type, [&] { return torch::stable::to(given, type); });
    }
    coefficients = made_contiguous(coefficients);
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
                            int64_t out_channels, bool identity) {
  STD_TORCH_CHECK(data.is_cpu() && data.dim() == static_cast<int64_t>(g.spatial.size()) + 2,
                  "lconv_fast: expected a CPU tensor (batch, channels, *spatial)");
  CheckedProblem result;
  result.problem = problem_of(g, data.size(0), generators, in_channels, out_channels, identity);
  result.problem.scalar = scalar_of(data);
  result.ndim = result.problem.ndim;
  return result;
}

}  // namespace lconv_fast
