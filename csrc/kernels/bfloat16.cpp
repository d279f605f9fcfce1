// An instruction set that adds products of bfloat16 pairs to another one (LCONV_NARROWER), which keeps all the rest.
#include "apply_pairs.h"

namespace lconv_fast {

namespace LCONV_NARROWER {
extern const GraphKernels graph_kernels;
extern const Kernels kernels;
}  // namespace LCONV_NARROWER

namespace LCONV_ISA {

namespace {

namespace narrower = LCONV_NARROWER;

void apply(const Problem& p, bool transposed, const View& source, const WeightView& weight, const void* bias,
           const View& target) {
  const auto way = takes_pairs(p, transposed, source, target) ? apply_pairs : narrower::kernels.apply;
  way(p, transposed, source, weight, bias, target);
}
void gram(const Problem& p, const View& f, const View& g, void* result) { narrower::kernels.gram(p, f, g, result); }
void correlate(const Problem& p, const View& f, const WeightView& weight, const View& g, void* result) {
  narrower::kernels.correlate(p, f, weight, g, result);
}
int64_t fused_multiply_adds(int64_t repeats) { return narrower::kernels.fused_multiply_adds(repeats); }

}  // namespace

#define LCONV_TEXT_OF(x) #x
#define LCONV_TEXT(x) LCONV_TEXT_OF(x)

extern const Kernels kernels;
const Kernels kernels = {LCONV_TEXT(LCONV_ISA), apply, gram, correlate, fused_multiply_adds, &narrower::graph_kernels};

}  // namespace LCONV_ISA
}  // namespace lconv_fast
