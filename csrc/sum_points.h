// The sum of each channel over all points, in an order that depends on the shape alone.
#pragma once

#include "problem.h"

namespace lconv_fast {

// result[c] = sum over b, x of v[b, c, x], in the type of v; summed in double. (channels,), contiguous.
void sum_over_points(Scalar scalar, const View& v, int64_t batch, int64_t channels, const int64_t extent[kAxes],
                     void* result);

}  // namespace lconv_fast
