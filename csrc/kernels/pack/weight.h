// The weight as the factor of a panel.
#pragma once

#include "../microkernel.h"

namespace lconv_fast::LCONV_ISA {

// Calls body(first lane, lanes) for the blocks in which the outputs lie in a packed factor: blocks of columns for
// points-major panels, the micro-kernel's blocks of rows for channels-major ones.
template <class A, class Body>
inline void for_lane_blocks(int64_t outs, bool in_columns, Body body) {
  if (in_columns) {
    for (int64_t out = 0; out < outs; out += kBlockLanes<A>) body(out, int64_t{kBlockLanes<A>});
  } else {
    for_row_blocks<2>(outs, [&](int64_t out, auto units) { body(out, int64_t{units * kUnit<2>}); });
  }
}

// Rows [first_row, first_row + rows) of W for the channels of one panel, as the factor of the panel, k = r * width + c,
// zero past `outs`: [block][k][lane]. Successive elements of a block lie `lanes` apart, and blocks depth * lanes.
template <class S>
void pack_weight(const WeightView& w, int64_t first_row, int64_t rows, int64_t channel, int64_t width, int64_t outs,
                 bool in_columns, Accumulate<S>* packed) {
  const auto block = [&](int64_t out, int64_t lanes) {
    for (int64_t r = first_row; r < first_row + rows; ++r) {
      for (int64_t c = channel; c < channel + width; ++c) {
        const S* at = static_cast<const S*>(w.data) + r * w.row_stride + c * w.in_stride;
        for (int64_t o = out; o < out + lanes; ++o) {
          *packed++ = o < outs ? to_accumulate(at[o * w.out_stride]) : Accumulate<S>(0);
        }
      }
    }
  };
  for_lane_blocks<Accumulate<S>>(outs, in_columns, block);
}

}  // namespace lconv_fast::LCONV_ISA
