// The Python side that needs no tensor. Importing the module also loads operators.cpp, which registers the operators.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <map>

#include "dispatch.h"

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
