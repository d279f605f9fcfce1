// The operators, compiled once for each instruction set.
#include "apply.h"
#include "correlate.h"
#include "gram.h"
#include "rate.h"
#include "scalar.h"

namespace lconv_fast::LCONV_ISA {

namespace {

void apply_any(const Problem& p, bool transposed, const View& source, const WeightView& weight, const void* bias,
               const View& target) {
  LCONV_FOR_SCALAR(p.scalar, apply, p, transposed, source, weight, bias, target)
}
void gram_any(const Problem& p, const View& f, const View& g, void* result) {
  LCONV_FOR_SCALAR(p.scalar, gram, p, f, g, result)
}
void correlate_any(const Problem& p, const View& f, const WeightView& weight, const View& g, void* result) {
  LCONV_FOR_SCALAR(p.scalar, correlate, p, f, weight, g, result)
}

}  // namespace

#define LCONV_TEXT_OF(x) #x
#define LCONV_TEXT(x) LCONV_TEXT_OF(x)

extern const GraphKernels graph_kernels;  // graph/kernels.cpp
extern const Kernels kernels;
const Kernels kernels = {LCONV_TEXT(LCONV_ISA), apply_any,           gram_any,
                         correlate_any,         fused_multiply_adds, &graph_kernels};

}  // namespace lconv_fast::LCONV_ISA
