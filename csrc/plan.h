// Which of the two ways through an operator a call takes. Every such choice is made here, by counting.
//
// Direct: one product with a C_in x C_out matrix for each generator, and one for the identity.
//
// In the basis of a row, for affine fields: along a row of the grid v(x) = p + x r, so that
//   sum_i (L_i f) W_i = sum_a D_a f P_a + x sum_a D_a f R_a,    P_a = sum_i p[i,a] W_i,   R_a = sum_i r[i,a] W_i,
// which takes 2 products for each axis whatever the number of generators, while P_a changes from row to row.
// Transposed, the coefficient is that of the point where g comes from, one tap further on its own axis a: one product
// more for each axis but the last (Panel::kTransposedBasis).
#pragma once

#include "problem.h"

namespace lconv_fast {

struct Plan {
  bool row_basis;
  int64_t products;                    // with C_in x C_out matrices, for each point
  double direct_cost, row_basis_cost;  // in products with the features of one point; infinite where it does not apply
};

Plan plan_apply(const Problem& p, bool transposed);
Plan plan_gram(const Problem& p);

// The second-level cache as the machine reports it, or LCONV_FAST_CACHE_BYTES where that reports nothing or too much.
int64_t second_level_cache_bytes();

// Points of a tile, at most `most`: a panel of them takes no more than half of that cache.
int64_t tile_points(int64_t most, int64_t bytes_per_point);

}  // namespace lconv_fast
