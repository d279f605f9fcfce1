// The operators torch.ops.lconv_fast.*: schemas, and their CPU kernels on tensors, through LibTorch's stable ABI.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "arguments.h"
#include "dispatch.h"
#include "memory.h"

namespace lconv_fast {

void parallel_for(int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  if (count > 0) torch::stable::parallel_for(0, count, 1, body);
}

namespace {

// Laid out as `like` is: channels-last for channels-last, contiguous otherwise.
Tensor empty_like_format(const Tensor& like, const std::vector<int64_t>& sizes) {
  const int64_t ndim = like.dim();
  if (!(like.size(1) > 1 && like.stride(1) == 1 && like.stride(ndim - 1) != 1)) {
    return torch::stable::new_empty(like, sizes);
  }
  std::vector<int64_t> moved{sizes[0]};
  moved.insert(moved.end(), sizes.begin() + 2, sizes.end());
  moved.push_back(sizes[1]);
  Tensor result = torch::stable::new_empty(like, moved);
  for (int64_t k = ndim - 1; k >= 2; --k) result = torch::stable::transpose(result, k - 1, k);
  return result;
}

int64_t per_group(int64_t channels, int64_t groups) {
  STD_TORCH_CHECK(groups >= 1 && channels % groups == 0, "lconv_fast: groups does not divide the channels");
  return channels / groups;
}

Tensor apply(const Tensor& input, const Tensor& weight, const Tensor& coefficients, std::optional<Tensor> bias,
             int64_t kind, const std::vector<int64_t>& taps, const std::vector<double>& tap_weights,
             const std::vector<int64_t>& components, const std::vector<int64_t>& spatial, int64_t padding_mode,
             const std::vector<int64_t>& halo, const std::vector<double>& center, double scale,
             const std::vector<int64_t>& stride, int64_t groups, bool identity, bool transposed) {
  const Geometry g{kind, taps,   tap_weights, components, spatial, padding_mode,
                   halo, center, scale,       stride,     groups,  identity};
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(0) >= 1, "lconv_fast: expected weight (n_L + 1, out, in / groups)");
  STD_TORCH_CHECK(!transposed || padding_mode < 2,
                  "lconv_fast: transposed, replicate and reflect are a halo that is folded back");
  CheckedProblem c = check(g, input, weight.size(0) - 1, weight.size(2), per_group(weight.size(1), groups));
  c.take_coefficients(coefficients);
  const Problem& p = c.problem;
  const int64_t ins = p.in_channels * groups, outs = p.out_channels * groups;
  const View source = transposed ? c.view(input, "input", outs, p.out) : c.view(input, "input", ins, p.array);
  const WeightView w = c.weight(weight, input);
  const int64_t targets = transposed ? ins : outs;
  std::optional<Tensor> shift;
  if (bias) {
    STD_TORCH_CHECK(
        bias->dim() == 1 && bias->size(0) == targets && bias->is_cpu() && bias->scalar_type() == input.scalar_type(),
        "lconv_fast: the shape or type of bias does not fit the other arguments");
    shift = torch::stable::contiguous(*bias);
  }
  Tensor output = empty_like_format(input, c.sizes(targets, transposed ? p.array : p.out));
  advise_huge_pages(output.data_ptr(), output.numel() * output.element_size());
  const View target = c.view(output, "output", targets, transposed ? p.array : p.out);
  if (output.numel() > 0) {
    active_kernels().apply(p, transposed, source, w, shift ? shift->data_ptr() : nullptr, target);
  }
  return output;
}

Tensor gram(const Tensor& input, const Tensor& cotangent, const Tensor& coefficients, int64_t kind,
            const std::vector<int64_t>& taps, const std::vector<double>& tap_weights,
            const std::vector<int64_t>& components, const std::vector<int64_t>& spatial, int64_t padding_mode,
            const std::vector<int64_t>& halo, const std::vector<double>& center, double scale,
            const std::vector<int64_t>& stride, int64_t groups, bool identity) {
  const Geometry g{kind, taps,   tap_weights, components, spatial, padding_mode,
                   halo, center, scale,       stride,     groups,  identity};
  STD_TORCH_CHECK(input.dim() >= 3 && cotangent.dim() == input.dim() && coefficients.dim() >= 2 &&
                      cotangent.scalar_type() == input.scalar_type(),
                  "lconv_fast: input, cotangent and coefficients do not fit each other");
  CheckedProblem c =
      check(g, input, coefficients.size(0), per_group(input.size(1), groups), per_group(cotangent.size(1), groups));
  c.take_coefficients(coefficients);
  const Problem& p = c.problem;
  const View f = c.view(input, "input", input.size(1), p.array);
  const View u = c.view(cotangent, "cotangent", cotangent.size(1), p.out);
  Tensor result = torch::stable::new_empty(input, {p.generators + 1, cotangent.size(1), p.in_channels});
  active_kernels().gram(p, f, u, result.data_ptr());
  return result;
}

Tensor correlate(const Tensor& input, const Tensor& weight, const Tensor& cotangent, int64_t kind,
                 const std::vector<int64_t>& taps, const std::vector<double>& tap_weights,
                 const std::vector<int64_t>& components, const std::vector<int64_t>& spatial, int64_t padding_mode,
                 const std::vector<int64_t>& halo, const std::vector<double>& center, double scale,
                 const std::vector<int64_t>& stride, int64_t groups) {
  const Geometry g{kind, taps,   tap_weights, components, spatial, padding_mode,
                   halo, center, scale,       stride,     groups,  false};
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(0) >= 1, "lconv_fast: expected weight (n_L + 1, out, in / groups)");
  STD_TORCH_CHECK(cotangent.scalar_type() == input.scalar_type(), "lconv_fast: input and cotangent differ in type");
  CheckedProblem c = check(g, input, weight.size(0) - 1, weight.size(2), per_group(weight.size(1), groups));
  const Problem& p = c.problem;
  const View f = c.view(input, "input", p.in_channels * groups, p.array);
  const View u = c.view(cotangent, "cotangent", p.out_channels * groups, p.out);
  const WeightView w = c.weight(weight, input);
  std::vector<int64_t> sizes{p.generators, p.component_count};
  if (p.kind == CoefficientKind::kSampled) sizes.insert(sizes.end(), spatial.begin(), spatial.end());
  if (p.kind == CoefficientKind::kAffine) sizes.push_back(kAxes + 1);
  Tensor result = torch::stable::new_empty(input, sizes, accumulate_type(input.scalar_type()));
  if (result.numel() > 0) active_kernels().correlate(p, f, w, u, result.data_ptr());
  if (p.kind != CoefficientKind::kAffine || c.ndim == kAxes) return result;
  // Missing axes come first in the kernel's rows.
  return torch::stable::contiguous(torch::stable::narrow(result, 2, kAxes - c.ndim, c.ndim + 1));
}

// dQ/df and dQ/dW of one cotangent; here nothing is shared.
std::tuple<Tensor, Tensor> backward(const Tensor& cotangent, const Tensor& input, const Tensor& weight,
                                    const Tensor& coefficients, int64_t kind, const std::vector<int64_t>& taps,
                                    const std::vector<double>& tap_weights, const std::vector<int64_t>& components,
                                    const std::vector<int64_t>& spatial, int64_t padding_mode,
                                    const std::vector<int64_t>& halo, const std::vector<double>& center, double scale,
                                    const std::vector<int64_t>& stride, int64_t groups, bool identity) {
  Tensor weight_gradient = gram(input, cotangent, coefficients, kind, taps, tap_weights, components, spatial,
                                padding_mode, halo, center, scale, stride, groups, identity);
  return {apply(cotangent, weight, coefficients, std::nullopt, kind, taps, tap_weights, components, spatial,
                padding_mode, halo, center, scale, stride, groups, identity, true),
          weight_gradient};
}

#define LCONV_GEOMETRY                                                                                \
  "int kind, int[] taps, float[] tap_weights, int[] components, SymInt[] spatial, int padding_mode, " \
  "int[] halo, float[] center, float scale, int[] stride, int groups"

STABLE_TORCH_LIBRARY(lconv_fast, m) {
  m.def("apply(Tensor input, Tensor weight, Tensor coefficients, Tensor? bias, " LCONV_GEOMETRY
        ", bool identity, bool transposed) -> Tensor");
  m.def("gram(Tensor input, Tensor cotangent, Tensor coefficients, " LCONV_GEOMETRY ", bool identity) -> Tensor");
  m.def("correlate(Tensor input, Tensor weight, Tensor cotangent, " LCONV_GEOMETRY ") -> Tensor");
  m.def("backward(Tensor cotangent, Tensor input, Tensor weight, Tensor coefficients, " LCONV_GEOMETRY
        ", bool identity) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(lconv_fast, CPU, m) {
  m.impl("apply", TORCH_BOX(&apply));
  m.impl("gram", TORCH_BOX(&gram));
  m.impl("correlate", TORCH_BOX(&correlate));
  m.impl("backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace lconv_fast
