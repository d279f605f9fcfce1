// The Python side that needs no tensor. Importing the module also loads operators.cpp, which registers the operators.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <map>

#include "dispatch.h"
#include "geometry.h"
#include "memory.h"
#include "plan.h"

namespace {

using namespace lconv_fast;

// The ways through the three operators for a geometry: what it takes to count products, and no tensor.
std::map<std::string, std::map<std::string, double>> plan(int64_t generators, int64_t batch LCONV_PARAMETERS) {
  const Problem p = problem_of(LCONV_GEOMETRY_OF_PARAMETERS, batch, generators, 1, 1, /*identity=*/true);
  const auto numbers = [](const Plan& plan) {
    return std::map<std::string, double>{{"row_basis", plan.row_basis},
                                         {"products", static_cast<double>(plan.products)},
                                         {"direct_cost", plan.direct_cost},
                                         {"row_basis_cost", plan.row_basis_cost}};
  };
  return {{"forward", numbers(plan_apply(p, false))},
          {"input gradient", numbers(plan_apply(p, true))},
          {"weight gradient", numbers(plan_gram(p))}};
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
  m.def(
      "boundaries",
      [] {
        std::vector<std::tuple<std::string, bool, bool>> rows;
        for (const Boundary& row : kBoundaries) rows.emplace_back(row.name, row.inverts, row.bounded);
        return rows;
      },
      "(name, inverts, bounded) of each padding mode, in the order of their codes.");
  m.def("plan", &plan,
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
