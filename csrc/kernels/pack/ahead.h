// Data that are transposed or converted are read and written a line at a time. Those of the next line come into the
// second-level cache while this one is worked on.
#pragma once

#include <cstdint>

#include "../../plan.h"
#include "../../problem.h"

namespace lconv_fast::LCONV_ISA {

// `runs` runs of `bytes`, their beginnings `stride` bytes apart; none where they would push out what is worked on.
struct LineAhead {
  uintptr_t from = 0;
  int64_t runs = 0, stride = 0, bytes = 0;

  LineAhead() = default;
  LineAhead(const void* from_, int64_t runs_, int64_t stride_, int64_t bytes_)
      : from(reinterpret_cast<uintptr_t>(from_)), runs(runs_), stride(stride_), bytes(bytes_) {
    if (runs * bytes > second_level_cache_bytes() / 4) runs = 0;
  }

  // body(address) for the pieces whose turn it is at the points [begin, end) of a line of `points`.
  template <class Body>
  void for_pieces(int64_t piece, int64_t begin, int64_t end, int64_t points, Body body) const {
    const int64_t in_run = divide_up(bytes, piece), all = runs * in_run;
    for (int64_t k = all * begin / points; k < all * end / points; ++k) {
      body(from + static_cast<uintptr_t>(k / in_run * stride + k % in_run * piece));
    }
  }
};

}  // namespace lconv_fast::LCONV_ISA
