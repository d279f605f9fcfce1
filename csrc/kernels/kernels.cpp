// The operators, compiled once for each instruction set.
#include "apply.h"
#include "correlate.h"
#include "gram.h"
#include "rate.h"

namespace lconv_fast::LCONV_ISA {

namespace {

// ---- run-time type to compile-time type ----

#define LCONV_FOR_SCALAR(scalar, function, ...) \
  switch (scalar) {                             \
    case Scalar::kFloat:                        \
      return function<float>(__VA_ARGS__);      \
    case Scalar::kDouble:                       \
      return function<double>(__VA_ARGS__);     \
    case Scalar::kBFloat16:                     \
      return function<BFloat16>(__VA_ARGS__);   \
    case Scalar::kHalf:                         \
      return function<Half>(__VA_ARGS__);       \
  }

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

extern const Kernels kernels;
const Kernels kernels = {LCONV_TEXT(LCONV_ISA), apply_any, gram_any, correlate_any, fused_multiply_adds};

}  // namespace lconv_fast::LCONV_ISA
