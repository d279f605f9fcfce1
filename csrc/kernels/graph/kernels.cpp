// The operators on a graph, compiled once for each instruction set.
#include "../scalar.h"
#include "correlate.h"
#include "pass.h"

namespace lconv_fast::LCONV_ISA {

namespace {

bool apply_any(const GraphProblem& p, bool transposed, const View& source, const WeightView& weight, const void* bias,
               const View& target) {
  LCONV_FOR_SCALAR(p.layer.scalar, graph_apply, p, transposed, source, weight, bias, target)
  return false;
}
bool gram_any(const GraphProblem& p, const View& f, const View& g, void* result) {
  LCONV_FOR_SCALAR(p.layer.scalar, graph_gram, p, f, g, result)
  return false;
}
bool backward_any(const GraphProblem& p, const View& g, const View& f, const WeightView& weight, const View& features,
                  void* result) {
  LCONV_FOR_SCALAR(p.layer.scalar, graph_backward, p, g, f, weight, features, result)
  return false;
}
bool correlate_any(const GraphProblem& p, const View& f, const WeightView& weight, const View& g, void* result) {
  LCONV_FOR_SCALAR(p.layer.scalar, graph_correlate, p, f, weight, g, result)
  return false;
}

}  // namespace

extern const GraphKernels graph_kernels;
const GraphKernels graph_kernels = {apply_any, gram_any, backward_any, correlate_any};

}  // namespace lconv_fast::LCONV_ISA
