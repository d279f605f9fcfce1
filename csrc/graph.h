// One call on a graph, in plain C++:
//
//   Q(s, f, W, g) = sum  g[b,mu,o] s[i,e] f[b,nu,c] W[i,o,c]   over the edges e = (nu, mu),
//
// with f[b,nu,c] - f[b,mu,c] in the place of f where the generators are of differences along the edges (incidence).
// Nodes are the points of a grid of one axis, whose channels are contiguous.
#pragma once

#include "problem.h"

namespace lconv_fast {

// A sparse matrix by rows: entries [starts[r], starts[r + 1]) of row r, each with the node at its other end and the
// edge that it stands for.
struct Rows {
  const int64_t *starts = nullptr, *nodes = nullptr, *edges = nullptr;
};

struct GraphProblem {
  Problem layer;  // batch, groups, channels, generators, identity, type, and the nodes as grid[2]
  int64_t nodes = 0, edges = 0;
  Rows by_target, by_source;  // of L and of its transpose
  bool incidence = false;
  const void* weights = nullptr;  // s, (n_L, E): float, or double for double data
};

}  // namespace lconv_fast
