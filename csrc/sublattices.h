// dQ/df of a layer with strides, as problems without strides.
//
// With step s on an axis, the point t = s m + r of the array sees point m - q of g through the taps with
//   tap = s q + delta(r),    delta(r) = halo_low - r - s ceil((halo_low - r) / s),   in (-s, 0],
// and nothing through the others. So the points of one residue r of all axes are a transposed problem of their own:
// grid and g coincide, taps are q, and generators without a tap drop out, the identity unless delta = 0. All of them
// together take as many products as there are points of g times taps and their generators, not as many as points of the
// array.
#pragma once

#include "problem.h"

namespace lconv_fast {

// Whether each point belongs to one such problem: not where a periodic axis is no multiple of its step.
bool has_sublattices(const Problem& p);

// apply(p, transposed, source, weight, no bias, target), for problems with sublattices; target is dense.
void apply_on_sublattices(const Kernels& kernels, const Problem& p, const View& source, const WeightView& weight,
                          const View& target);

}  // namespace lconv_fast
