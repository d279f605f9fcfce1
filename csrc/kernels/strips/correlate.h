// correlate for coefficients that are numbers, for few channels: dQ/dv[i,a] = <W_i, M_a> with the sums M_a of (D_a f)^T
// g over all points, and of an affine field the same with D_a f times x, y and z. So the generators' gradients take two
// products for each component, whatever their number, and no dot product at any point.
#pragma once

#include "gram.h"

namespace lconv_fast::LCONV_ISA {

template <class S>
bool takes_strip_correlation(const Problem& p, const View& f, const View& g) {
  const int64_t products = p.component_count * (p.kind == CoefficientKind::kAffine ? 2 : 1);
  return p.kind != CoefficientKind::kSampled && products <= 2 * p.generators + 2 && takes_strip_sums<S>(p, f, g);
}

template <class S>
void correlate_strips(const Problem& p, const View& f, const WeightView& weight, const View& g, void* result) {
  using A = Accumulate<S>;
  const bool affine = p.kind == CoefficientKind::kAffine, lines = affine && p.ndim > 1;
  StripProgram<S> program;
  program.sources = p.tap_count() + 1;
  for (int64_t a = 0; a < p.component_count; ++a) {
    program.steps.push_back(strips::difference<A>(p, a));
    program.steps.back().row = a;
    program.main.emplace_back();
    if (affine) program.scaled.emplace_back();
  }
  program.rows = p.component_count;
  const StripSums<S> sums(p, f, g, program, lines);
  const int64_t moments = affine ? kAxes + 1 : 1;
  for (int64_t i = 0; i < p.generators; ++i) {
    for (int64_t a = 0; a < p.component_count; ++a) {
      double found[kAxes + 1] = {};  // times z, y and x, and the sum itself
      for (int64_t group = 0; group < p.groups; ++group) {
        const A* const matrix[kAxes + 1] = {lines && p.ndim > 2 ? sums.by_z(group, a) : nullptr,
                                            lines ? sums.by_y(group, a) : nullptr,
                                            affine ? sums.by_x(group, a) : nullptr, sums.total(group, a)};
        for (int64_t o = 0; o < p.out_channels; ++o) {
          const S* w = static_cast<const S*>(weight.data) + (i + 1) * weight.row_stride +
                       (group * p.out_channels + o) * weight.out_stride;
          for (int64_t c = 0; c < p.in_channels; ++c) {
            const double factor = static_cast<double>(to_accumulate(w[c * weight.in_stride]));
            for (int k = 0; k <= kAxes; ++k) {
              if (matrix[k]) found[k] += factor * static_cast<double>(matrix[k][c * sums.columns() + o]);
            }
          }
        }
      }
      A* const to = static_cast<A*>(result) + (i * p.component_count + a) * moments;
      for (int64_t k = 0; k < moments; ++k) to[k] = static_cast<A>(found[kAxes + 1 - moments + k]);
    }
  }
}

}  // namespace lconv_fast::LCONV_ISA
