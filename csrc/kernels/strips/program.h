// The panel of a strip as a program: each row is a linear combination of taps, its coefficients constant along a line
// or one for each point; and the matrices that the rows are multiplied with.
//
// Direct:      y = sum_i (L_i f) W_i             with rows f, L_i f and matrices W_i.
// Differences: y = f W_0 + sum_a D_a f P_a(x)    with rows f, D_a f, where P_a(x) = sum_i v[i,a](x) W_i is the same at
// all
//              points, or, of an affine field, P_a(z, y) + x R_a along a line. Products with zero are left out: none of
//              the generators of SE(2) has an x-dependence along its own axis.
// Transposed, D_a^T (v g) with an affine v takes the coefficient of the point where g comes from:
//   D_b^T (P_b + x R_b) g            two rows, D_b^T g and D_b^T (x g), for the last axis b,
//   (D_a^T g) (P_a + x R_a) + (S_a g) E_a    for another axis a, with E_a = dP_a/dx_a and S_a g = D_a^T (x_a g) - x_a
//   D_a^T g.
#pragma once

#include <vector>

#include "../pack/panel.h"

namespace lconv_fast::LCONV_ISA {

// Combines sources (the taps, the point itself last, then rows made before) into a row of the panel, or, for
// others to use, into a source.
template <class A>
struct StripStep {
  struct Term {
    int64_t source;
    A factor;            // where coefficients do not vary
    int64_t table = -1;  // the line of the table of coefficients, at the points of the tile: those of terms and of
                         // neighbouring steps follow each other
  };
  int64_t row = -1;   // of the panel; -1: the next source
  int64_t axis = -1;  // S_a: the factors are those of this line, along this axis
  std::vector<Term> terms;
  bool varies() const { return !terms.empty() && terms[0].table >= 0; }
  bool copies() const { return terms.size() == 1 && !varies() && terms[0].factor == 1; }
};

// The matrix of a row: sum of factor W_r, the factor affine in the place of the line.
struct StripMatrix {
  struct Term {
    int64_t r;  // row of W, 0 the identity
    double constant, by_y = 0, by_z = 0;
  };
  std::vector<Term> terms;
  bool changes() const {
    return std::any_of(terms.begin(), terms.end(), [](const Term& t) { return t.by_y != 0 || t.by_z != 0; });
  }
};

// What fills the table of coefficients.
enum class StripTable { kNone, kCoefficients, kMoments };

template <class S>
struct StripProgram {
  using A = Accumulate<S>;
  std::vector<StripStep<A>> steps;
  // Rows [0, main) take part in the sum, the last `scaled` rows in the one that x multiplies; they may overlap.
  std::vector<StripMatrix> main, scaled;
  int64_t rows = 0, sources = 0;
  StripTable table = StripTable::kNone;
  int64_t products() const { return static_cast<int64_t>(main.size() + scaled.size()); }
};

namespace strips {

// v[i,a] as numbers: that of the last axis, of the middle, of the first, and the constant. Axes that the grid lacks
// have the coordinate 0.
struct Numbers {
  double x, y, z, constant;
};
template <class A>
Numbers numbers_of(const Problem& p, int64_t i, int64_t a) {
  const A* v = static_cast<const A*>(p.coefficients);
  const int64_t q = i * p.component_count + a;
  if (p.kind == CoefficientKind::kConstant) return {0, 0, 0, static_cast<double>(v[q])};
  v += q * (kAxes + 1);
  return {static_cast<double>(v[2]), p.ndim > 1 ? static_cast<double>(v[1]) : 0,
          p.ndim > 2 ? static_cast<double>(v[0]) : 0, static_cast<double>(v[3])};
}

// D_a f or D_a^T g with the weights of its taps.
template <class A>
StripStep<A> difference(const Problem& p, int64_t a) {
  StripStep<A> step;
  for (int64_t j = 0; j < p.tap_count(); ++j) {
    if (p.components[j] == a) step.terms.push_back({j, static_cast<A>(p.tap_weights[j])});
  }
  return step;
}

}  // namespace strips

// Rows f, L_i f.
template <class S>
StripProgram<S> direct_program(const Problem& p, bool transposed) {
  using A = Accumulate<S>;
  StripProgram<S> result;
  result.sources = p.tap_count() + 1;
  if (p.identity) {
    result.steps.push_back({0, -1, {{p.tap_count(), A(1)}}});
    result.main.push_back({{{0, 1}}});
  }
  result.table = p.generators > 0 ? StripTable::kCoefficients : StripTable::kNone;
  const bool plain =
      transposed || (p.component_count == p.tap_count() &&
                     std::all_of(p.tap_weights.begin(), p.tap_weights.end(), [](double w) { return w == 1; }));
  const int64_t slots = transposed ? p.tap_count() : p.component_count, first = plain ? 0 : result.sources;
  for (int64_t a = 0; !plain && p.generators > 0 && a < slots; ++a) {
    result.steps.push_back(strips::difference<A>(p, a));
    ++result.sources;
  }
  for (int64_t i = 0; i < p.generators; ++i) {
    StripStep<A> step;
    step.row = result.main.size();
    for (int64_t a = 0; a < slots; ++a) step.terms.push_back({first + a, A(1), i * slots + a});
    result.steps.push_back(step);
    result.main.push_back({{{i + 1, 1}}});
  }
  result.rows = result.main.size();
  return result;
}

// Rows f, D_a f, and transposed more.
template <class S>
StripProgram<S> difference_program(const Problem& p, bool transposed) {
  using A = Accumulate<S>;
  StripProgram<S> result;
  result.sources = p.tap_count() + 1;
  const auto add = [&](StripStep<A> step) {
    step.row = result.rows++;
    result.steps.push_back(std::move(step));
  };
  if (p.identity) {
    add({-1, -1, {{p.tap_count(), A(1)}}});
    result.main.push_back({{{0, 1}}});
  }
  struct Component {
    int64_t a;
    StripMatrix main, scaled;
  };
  std::vector<Component> components;
  for (int64_t a = 0; a < p.component_count; ++a) {
    if (std::find(p.components.begin(), p.components.end(), a) == p.components.end()) continue;  // another phase's
    const bool affine = p.kind == CoefficientKind::kAffine;
    const int axis = affine ? p.axis_of(a) : kAxes;
    Component c{a, {}, {}};
    StripMatrix own;  // of the dependence along the component's own axis
    for (int64_t i = 0; i < p.generators; ++i) {
      const strips::Numbers v = strips::numbers_of<A>(p, i, a);
      if (v.constant != 0 || v.y != 0 || v.z != 0) c.main.terms.push_back({i + 1, v.constant, v.y, v.z});
      if (v.x != 0) c.scaled.terms.push_back({i + 1, v.x});
      const double slope = axis == 2 ? v.x : axis == 1 ? v.y : axis == 0 ? v.z : 0;
      if (slope != 0) own.terms.push_back({i + 1, slope});
    }
    if (transposed && !own.terms.empty()) {
      StripStep<A> step = strips::difference<A>(p, a);
      if (axis == kAxes - 1) {
        for (auto& term : step.terms) term.table = term.source;
        result.table = StripTable::kMoments;
        c.scaled.terms.clear();
      } else {
        step.axis = axis;
      }
      add(step);
      result.main.push_back(own);
    }
    components.push_back(c);
  }
  // Those without P_a last, those without R_a first: both sums then run over neighbouring rows.
  for (const bool has_main : {true, false}) {
    for (const bool has_scaled : {false, true}) {
      for (const Component& c : components) {
        if (c.main.terms.empty() == has_main || c.scaled.terms.empty() == has_scaled || (!has_main && !has_scaled))
          continue;
        add(strips::difference<A>(p, c.a));
        if (has_main) result.main.push_back(c.main);
        if (has_scaled) result.scaled.push_back(c.scaled);
      }
    }
  }
  return result;
}

}  // namespace lconv_fast::LCONV_ISA
