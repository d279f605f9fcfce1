// The operators torch.ops.lconv_fast.*: schemas, and their CPU kernels on tensors, through LibTorch's stable ABI.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "arguments.h"
#include "dispatch.h"
#include "memory.h"
#include "sum_points.h"

namespace lconv_fast {

void parallel_for(int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  if (count > 0) torch::stable::parallel_for(0, count, 1, body);
}

namespace {

Tensor new_empty(const Tensor& like, const Integers& sizes, ScalarType type) {
  return allocated(sizes, type, [&] { return torch::stable::new_empty(like, sizes, type); });
}

// Laid out as `like` is: channels-last for channels-last, contiguous otherwise.
Tensor empty_like_format(const Tensor& like, const Integers& sizes) {
  const int64_t ndim = like.dim();
  if (!(like.size(1) > 1 && like.stride(1) == 1 && like.stride(ndim - 1) != 1)) {
    return new_empty(like, sizes, like.scalar_type());
  }
  // Made with these strides, not transposed: a view could not be changed in place.
  Integers strides(sizes.size(), 1);
  int64_t step = std::max<int64_t>(sizes[1], 1);
  for (int64_t k = ndim - 1; k >= 2; --k) {
    strides[k] = step;
    step *= std::max<int64_t>(sizes[k], 1);
  }
  strides[0] = step;
  return allocated(sizes, like.scalar_type(), [&] {
    int32_t dtype = 0, device = 0, index = 0;
    AtenTensorHandle made = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(ndim, sizes.data(), strides.data(), dtype, device, index, &made));
    return Tensor(made);
  });
}

int64_t per_group(int64_t channels, int64_t groups) {
  STD_TORCH_CHECK(groups >= 1 && channels % groups == 0, "lconv_fast: groups does not divide the channels");
  return channels / groups;
}

void check_weight(const Tensor& weight, int64_t groups) {
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(0) >= 1, "lconv_fast: expected weight (n_L + 1, out, in / groups)");
  STD_TORCH_CHECK(groups >= 1 && weight.size(2) <= kMostPoints / groups, "lconv_fast: too many groups");
}

Tensor apply(const Tensor& input, const Tensor& weight, const Tensor& coefficients,
             std::optional<Tensor> bias LCONV_PARAMETERS, bool identity, bool transposed) {
  const Geometry g = LCONV_GEOMETRY_OF_PARAMETERS;
  check_weight(weight, groups);
  CheckedProblem c = check(g, input, weight.size(0) - 1, weight.size(2), per_group(weight.size(1), groups), identity);
  const Problem& p = c.problem;
  STD_TORCH_CHECK(!transposed || inverts(p.padding),
                  "lconv_fast: transposed, padding that does not invert is a halo that is folded back");
  c.take_coefficients(coefficients);
  const int64_t ins = p.in_channels * groups, outs = p.out_channels * groups;
  const View source = transposed ? c.view(input, "input", outs, p.out) : c.view(input, "input", ins, p.array);
  const WeightView w = c.weight(weight, input);
  const int64_t targets = transposed ? ins : outs;
  std::optional<Tensor> shift;
  if (bias) {
    STD_TORCH_CHECK(
        bias->dim() == 1 && bias->size(0) == targets && bias->is_cpu() && bias->scalar_type() == input.scalar_type(),
        "lconv_fast: the shape or type of bias does not fit the other arguments");
    shift = made_contiguous(*bias);
  }
  Tensor output = empty_like_format(input, c.sizes(targets, transposed ? p.array : p.out));
  advise_huge_pages(output.data_ptr(), output.numel() * static_cast<int64_t>(output.element_size()));
  const View target = c.view(output, "output", targets, transposed ? p.array : p.out);
  if (output.numel() > 0) {
    active_kernels().apply(p, transposed, source, w, shift ? shift->data_ptr() : nullptr, target);
  }
  return output;
}

Tensor gram(const Tensor& input, const Tensor& cotangent, const Tensor& coefficients LCONV_PARAMETERS, bool identity) {
  const Geometry g = LCONV_GEOMETRY_OF_PARAMETERS;
  STD_TORCH_CHECK(input.dim() >= 3 && cotangent.dim() == input.dim() && coefficients.dim() >= 2 &&
                      cotangent.scalar_type() == input.scalar_type(),
                  "lconv_fast: input, cotangent and coefficients do not fit each other");
  CheckedProblem c = check(g, input, coefficients.size(0), per_group(input.size(1), groups),
                           per_group(cotangent.size(1), groups), identity);
  c.take_coefficients(coefficients);
  const Problem& p = c.problem;
  const View f = c.view(input, "input", input.size(1), p.array);
  const View u = c.view(cotangent, "cotangent", cotangent.size(1), p.out);
  Tensor result = new_empty(input, {p.generators + 1, cotangent.size(1), p.in_channels}, input.scalar_type());
  if (result.numel() > 0) active_kernels().gram(p, f, u, result.data_ptr());
  return result;
}

Tensor correlate(const Tensor& input, const Tensor& weight, const Tensor& cotangent LCONV_PARAMETERS) {
  const Geometry g = LCONV_GEOMETRY_OF_PARAMETERS;
  check_weight(weight, groups);
  STD_TORCH_CHECK(cotangent.scalar_type() == input.scalar_type(), "lconv_fast: input and cotangent differ in type");
  CheckedProblem c = check(g, input, weight.size(0) - 1, weight.size(2), per_group(weight.size(1), groups), false);
  const Problem& p = c.problem;
  const View f = c.view(input, "input", p.in_channels * groups, p.array);
  const View u = c.view(cotangent, "cotangent", p.out_channels * groups, p.out);
  const WeightView w = c.weight(weight, input);
  Integers sizes{p.generators, p.component_count};
  if (p.kind == CoefficientKind::kSampled) sizes.insert(sizes.end(), spatial.begin(), spatial.end());
  if (p.kind == CoefficientKind::kAffine) sizes.push_back(kAxes + 1);
  Tensor result = new_empty(input, sizes, accumulate_type(input.scalar_type()));
  if (p.in_channels == 0 || p.out_channels == 0) {
    torch::stable::zero_(result);
  } else if (result.numel() > 0) {
    active_kernels().correlate(p, f, w, u, result.data_ptr());
  }
  if (p.kind != CoefficientKind::kAffine || c.ndim == kAxes) return result;
  // Missing axes come first in the kernel's rows.
  return made_contiguous(torch::stable::narrow(result, 2, kAxes - c.ndim, c.ndim + 1));
}

// dQ/df and dQ/dW of one cotangent; here nothing is shared.
std::tuple<Tensor, Tensor> backward(const Tensor& cotangent, const Tensor& input, const Tensor& weight,
                                    const Tensor& coefficients LCONV_PARAMETERS, bool identity) {
  // The larger result first: where memory does not suffice, that shows before any work is done.
  Tensor features = apply(cotangent, weight, coefficients, std::nullopt LCONV_ARGUMENTS, identity, true);
  return {features, gram(input, cotangent, coefficients LCONV_ARGUMENTS, identity)};
}

// The sum of each channel over batch and points, the gradient of a bias.
Tensor sum_points(const Tensor& cotangent) {
  STD_TORCH_CHECK(cotangent.is_cpu() && cotangent.dim() >= 3 && cotangent.dim() <= 2 + kAxes,
                  "lconv_fast: expected a CPU tensor (batch, channels, *spatial)");
  const int64_t channels = cotangent.size(1);
  View v;
  v.data = cotangent.data_ptr();
  v.batch_stride = cotangent.stride(0);
  v.channel_stride = cotangent.stride(1);
  int64_t extent[kAxes] = {1, 1, 1};
  for (int64_t a = 2; a < cotangent.dim(); ++a) {
    const int64_t axis = a + kAxes - cotangent.dim();
    extent[axis] = cotangent.size(a);
    v.stride[axis] = cotangent.stride(a);
  }
  Tensor result = new_empty(cotangent, {channels}, cotangent.scalar_type());
  if (channels > 0) {
    sum_over_points(scalar_of(cotangent), v, cotangent.size(0), channels, extent, result.data_ptr());
  }
  return result;
}

STABLE_TORCH_LIBRARY(lconv_fast, m) {
  m.def("apply(Tensor input, Tensor weight, Tensor coefficients, Tensor? bias" LCONV_SCHEMA
        ", bool identity, bool transposed) -> Tensor");
  m.def("gram(Tensor input, Tensor cotangent, Tensor coefficients" LCONV_SCHEMA ", bool identity) -> Tensor");
  m.def("correlate(Tensor input, Tensor weight, Tensor cotangent" LCONV_SCHEMA ") -> Tensor");
  m.def("backward(Tensor cotangent, Tensor input, Tensor weight, Tensor coefficients" LCONV_SCHEMA
        ", bool identity) -> (Tensor, Tensor)");
  m.def("sum_points(Tensor cotangent) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lconv_fast, CPU, m) {
  m.impl("apply", TORCH_BOX(&apply));
  m.impl("gram", TORCH_BOX(&gram));
  m.impl("correlate", TORCH_BOX(&correlate));
  m.impl("backward", TORCH_BOX(&backward));
  m.impl("sum_points", TORCH_BOX(&sum_points));
}

}  // namespace
}  // namespace lconv_fast
