// What the rows of a panel are and where they lie. Packing fills the panel of a tile with f and L_i f as it copies, so
// that L_i f never reaches memory.
//
// For the channels [c0, c0 + width), row r of the panel (what the rows are: PanelRows) lies at
//   points-major   (channels-last data):   panel[p * stride + r * width + c]
//   channels-major (channels-first data):  panel[line_place(p, rows * width) + (r * width + c) * kBlockLanes]
#pragma once

#include <algorithm>
#include <vector>

#include "../coefficients.h"

namespace lconv_fast::LCONV_ISA {

enum class PanelRows {
  kLayer,           // L_i f, or L_i^T g: coefficients from fill_coefficients
  kDifferences,     // D_a f, one per component
  kTransposedBasis  // of g: all D_a^T g, D_b^T (x_b g) for the last axis b, and S_a g for the others, where
                    // D_a^T (x_a g) = x_a D_a^T g + S_a g: coefficients from fill_shifts
};

// Their number, with f itself first if the identity takes part.
inline int64_t panel_rows(const Problem& p, PanelRows rows, bool identity) {
  const int64_t components = p.component_count;
  return identity + (rows == PanelRows::kLayer         ? p.generators
                     : rows == PanelRows::kDifferences ? components
                                                       : 2 * components);
}

// Channels-major panels hold blocks of kBlockLanes points, as the micro-kernel reads them; the blocks start on
// different sets of the cache.
template <class A>
inline int64_t line_block_stride(int64_t depth) {
  return depth * kBlockLanes<A> + 16;
}
template <class A>
inline int64_t line_place(int64_t point, int64_t depth) {
  return point / kBlockLanes<A> * line_block_stride<A>(depth) + point % kBlockLanes<A>;
}
template <class A>
inline int64_t line_panel_size(int64_t depth) {
  return kTile / kBlockLanes<A> * line_block_stride<A>(depth);
}

// How the components are made of taps.
enum class TapForm {
  kShift,    // no components: each generator is one tap times a number, the same at all points, or nothing
  kCentral,  // two opposite taps each, as central differences of order 2 have
  kOneEach,  // one tap each, with a coefficient of its own: always when transposed
  kAny
};

// What makes the rows of a panel from the taps, for either layout: L_i f = sum_a v[i,a] D_a f over components a, where
// D_a f = sum of weights[j] times tap j for first_tap[a] <= j < first_tap[a + 1].
template <class S>
struct RowFormula {
  using A = Accumulate<S>;

  const Problem& problem;
  const Neighbours& near;
  const View& source;
  const PanelRows rows;
  const bool identity;
  const int64_t taps;
  TapForm form;
  const int64_t components;
  std::vector<A> weights;          // of the taps
  std::vector<int64_t> first_tap;  // of each component

  RowFormula(const Problem& p, const Neighbours& n, const View& view, PanelRows rows_, bool identity_)
      : problem(p),
        near(n),
        source(view),
        rows(rows_),
        identity(identity_),
        taps(p.tap_count()),
        form(rows == PanelRows::kLayer && (n.transposed || has_plain_taps(p)) ? TapForm::kOneEach : TapForm::kAny),
        components(form == TapForm::kOneEach ? p.tap_count() : p.component_count) {
    const bool one_each = form == TapForm::kOneEach;
    for (int64_t j = 0; j < taps; ++j) {
      weights.push_back(one_each ? A(1) : static_cast<A>(p.tap_weights[j]));
      const int64_t component = one_each ? j : p.components[j];
      while (static_cast<int64_t>(first_tap.size()) <= component) first_tap.push_back(j);
    }
    first_tap.resize(components + 1, taps);
    bool central = !one_each;
    for (int64_t a = 0; a < components; ++a) {
      const int64_t j = first_tap[a];
      central = central && first_tap[a + 1] == j + 2 && p.tap_weights[j] == -p.tap_weights[j + 1];
    }
    if (central) form = TapForm::kCentral;
    if (one_each && p.kind == CoefficientKind::kConstant) find_shifts();
  }

  // Of kShift, for each generator.
  struct Shift {
    int64_t tap;  // -1 for none
    A weight;
  };
  std::vector<Shift> shifts;

  // D_a f; value(j) is what tap j sees.
  template <class Value>
  inline Vector<A> difference(int64_t a, Value value) const {
    if (form == TapForm::kOneEach) return value(a);
    Vector<A> sum = {};
    for (int64_t j = first_tap[a]; j < first_tap[a + 1]; ++j) sum += broadcast(weights[j]) * value(j);
    return sum;
  }

 private:
  void find_shifts() {
    const A* v = static_cast<const A*>(problem.coefficients);
    for (int64_t i = 0; i < problem.generators; ++i) {
      Shift shift{-1, A(0)};
      for (int64_t j = 0; j < taps; ++j) {
        const A weight =
            static_cast<A>(problem.tap_weights[j]) * v[i * problem.component_count + problem.components[j]];
        if (weight == 0) continue;
        if (shift.tap >= 0) return;
        shift = {j, weight};
      }
      shifts.push_back(shift);
    }
    form = TapForm::kShift;
  }

  static bool has_plain_taps(const Problem& p) {
    return p.component_count == p.tap_count() &&
           std::all_of(p.tap_weights.begin(), p.tap_weights.end(), [](double w) { return w == 1; });
  }
};

}  // namespace lconv_fast::LCONV_ISA
