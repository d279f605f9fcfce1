// What one call computes, in plain C++: no torch type passes this line.
//
//   Q(v, f, W, g) = sum  g[b,x,o] v[i,a](x) (D_a f)[b,x,c] W[i,o,c],
//   (D_a f)[x]    = sum over the taps j of component a of  tap_weight[j] f[x + tap[j]]
//
// Grids have three axes here; missing ones come first, with extent 1.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "boundary.h"

namespace lconv_fast {

constexpr int kAxes = 3;

enum class Scalar { kFloat, kDouble, kBFloat16, kHalf };
enum class CoefficientKind { kConstant, kSampled, kAffine };

// A tensor (batch, channel, axis 0, axis 1, axis 2): strides in elements. It belongs to somebody else.
struct View {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t channel_stride = 0;
  int64_t stride[kAxes] = {0, 0, 0};
};

// W[r][o][c], r = 0 the identity: strides in elements, o over all output channels, c within a group.
struct WeightView {
  const void* data = nullptr;
  int64_t row_stride = 0;
  int64_t out_stride = 0;
  int64_t in_stride = 0;
};

struct Problem {
  Scalar scalar = Scalar::kFloat;
  Padding padding = Padding::kZeros;
  CoefficientKind kind = CoefficientKind::kConstant;
  bool identity = true;  // whether row 0 of the weight takes part

  int64_t grid[kAxes];      // points the generators act on
  int64_t halo_low[kAxes];  // points that the array of f has before the grid,
  int64_t array[kAxes];     // and the extent of that array
  int64_t step[kAxes];      // stride of the layer
  int64_t out[kAxes];       // ceil(grid / step): points of y and g

  int ndim = kAxes;
  int64_t batch = 0, groups = 1;
  int64_t in_channels = 0, out_channels = 0;  // of one group
  int64_t generators = 0;                     // n_L

  std::vector<int64_t> taps;        // kAxes offsets each
  std::vector<double> tap_weights;  // one each
  std::vector<int> components;      // the component of each tap, nondecreasing
  int64_t component_count = 0;      // m

  // float, or double for double data: (n_L, m), (n_L, m, *grid), or (n_L, m, kAxes + 1) with the shift last.
  const void* coefficients = nullptr;
  double center[kAxes] = {0, 0, 0};
  double inverse_scale = 1;

  int64_t tap_count() const { return static_cast<int64_t>(tap_weights.size()); }
  int64_t grid_points() const { return grid[0] * grid[1] * grid[2]; }

  // x_a = (index_a - center_a) / scale
  template <class A>
  A coordinate(int64_t index, int axis) const {
    return static_cast<A>((static_cast<double>(index) - center[axis]) * inverse_scale);
  }
  // Of an affine component: the last one differentiates along the last axis.
  int axis_of(int64_t component) const { return static_cast<int>(kAxes - component_count + component); }
};

struct GraphProblem;

// The operators on a graph (graph.h), for one instruction set: each returns whether all nodes and edges that it was
// told of exist; where not, the result holds nothing of use.
struct GraphKernels {
  // As in Kernels.
  bool (*apply)(const GraphProblem&, bool transposed, const View& source, const WeightView&, const void* bias,
                const View& target);
  bool (*gram)(const GraphProblem&, const View& f, const View& g, void* result);
  // dQ/df and dQ/dW of one g, which share L_i^T g.
  bool (*backward)(const GraphProblem&, const View& g, const View& f, const WeightView&, const View& features,
                   void* result);
  // dQ/ds, (n_L, E), in the type of s.
  bool (*correlate)(const GraphProblem&, const View& f, const WeightView&, const View& g, void* result);
};

// The three operators for one instruction set. Each result is written whole; nothing is read from it.
struct Kernels {
  const char* name;
  // dQ/dg (y, with an optional bias) when !transposed: f -> y; dQ/df when transposed: g -> gradient of f.
  void (*apply)(const Problem&, bool transposed, const View& source, const WeightView&, const void* bias,
                const View& target);
  // dQ/dW, contiguous (n_L + 1, groups * out_channels, in_channels), in the data's type.
  void (*gram)(const Problem&, const View& f, const View& g, void* result);
  // dQ/dv, in the layout and type of the coefficients.
  void (*correlate)(const Problem&, const View& f, const WeightView&, const View& g, void* result);
  // Fused multiply-adds of float vectors from registers, as fast as they come: the roof of all the others. Returns how
  // many floating-point operations that were.
  int64_t (*fused_multiply_adds)(int64_t repeats);
  const GraphKernels* graph;
};

// Calls body(begin, end) on disjoint ranges that cover [0, count), on torch's own threads.
void parallel_for(int64_t count, const std::function<void(int64_t, int64_t)>& body);

}  // namespace lconv_fast
