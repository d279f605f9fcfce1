// The Python side that needs no tensor. Importing the module also loads operators.cpp, which registers the operators.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <map>

#include "dispatch.h"
#include "memory.h"
#include "plan.h"

namespace {

using lconv_fast::kAxes;

// The ways through the three operators for a geometry: what it takes to count products, and no tensor.
std::map<std::string, std::map<std::string, double>> plan(int kind, int64_t generators,
                                                          const std::vector<int64_t>& taps,
                                                          const std::vector<int>& components,
                                                          const std::vector<int64_t>& spatial,
                                                          const std::vector<int64_t>& stride, int64_t batch) {
  lconv_fast::Problem p;
  p.kind = static_cast<lconv_fast::CoefficientKind>(kind);
  p.ndim = static_cast<int>(spatial.size());
  if (p.ndim < 1 || p.ndim > kAxes || stride.size() != spatial.size() || taps.size() != components.size() * p.ndim) {
    throw std::invalid_argument("plan: taps, components, spatial and stride differ in length");
  }
  p.generators = generators;
  p.batch = batch;
  p.components = components;
  p.component_count = components.empty() ? 0 : components.back() + 1;
  p.tap_weights.assign(components.size(), 1);
  p.taps.assign(components.size() * kAxes, 0);
  for (int a = 0; a < kAxes; ++a) {
    const int k = a - (kAxes - p.ndim);
    p.array[a] = p.grid[a] = k < 0 ? 1 : spatial[k];
    p.step[a] = k < 0 ? 1 : stride[k];
    p.out[a] = (p.grid[a] - 1) / p.step[a] + 1;
    for (size_t j = 0; k >= 0 && j < components.size(); ++j) p.taps[j * kAxes + a] = taps[j * p.ndim + k];
  }
  const auto numbers = [](const lconv_fast::Plan& plan) {
    return std::map<std::string, double>{{"row_basis", plan.row_basis},
                                         {"products", static_cast<double>(plan.products)},
                                         {"direct_cost", plan.direct_cost},
                                         {"row_basis_cost", plan.row_basis_cost}};
  };
  return {{"forward", numbers(lconv_fast::plan_apply(p, false))},
          {"input gradient", numbers(lconv_fast::plan_apply(p, true))},
          {"weight gradient", numbers(lconv_fast::plan_gram(p))}};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled core of lconv_fast: registers torch.ops.lconv_fast.apply, gram and correlate.";
  m.def(
      "cpu_capability", [] { return std::string(lconv_fast::active_kernels().name); },
      "The instruction set whose kernels run.");
  m.def("kernels", &lconv_fast::available_kernels,
        "The instruction sets built that this processor has, narrowest first.");
  m.def(
      "fused_multiply_add_rate",
      [](double seconds) {
        const pybind11::gil_scoped_release released;
        using Clock = std::chrono::steady_clock;
        const Clock::time_point start = Clock::now();
        int64_t operations = 0;
        double elapsed = 0;
        while (elapsed < seconds) {
          operations += lconv_fast::active_kernels().fused_multiply_adds(1000);
          elapsed = std::chrono::duration<double>(Clock::now() - start).count();
        }
        return static_cast<double>(operations) / elapsed;
      },
      "Floating-point operations per second that one thread reaches from registers, float32.");
  m.def("plan", &plan, pybind11::arg("kind"), pybind11::arg("generators"), pybind11::arg("taps"),
        pybind11::arg("components"), pybind11::arg("spatial"), pybind11::arg("stride"), pybind11::arg("batch"),
        "For each operator: whether it works in the basis of a row, and the products per point (csrc/plan.h).");
  m.def("huge_page_policy", &lconv_fast::huge_page_policy,
        "Who decides about huge pages for large results: 'asked for', 'always', 'never', 'unknown' or 'off'.");
  m.def("second_level_cache_bytes", &lconv_fast::second_level_cache_bytes, "What the size of tiles follows.");
  m.def("build_info", [] {
    return std::map<std::string, std::string>{
        {"compiler", __VERSION__},
        {"cxx_standard", std::to_string(__cplusplus)},
#ifdef LCONV_BUILD_TORCH
        {"torch", LCONV_BUILD_TORCH},
#endif
    };
  });
}
