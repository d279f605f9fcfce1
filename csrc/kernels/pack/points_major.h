// Points-major panels, of channels-last data: a point's channels are contiguous, vectors go along them.
#pragma once

#include <type_traits>

#include "lines.h"
#include "panel.h"

namespace lconv_fast::LCONV_ISA {

// P: the type of the panel.
template <class S, class P = Accumulate<S>>
class PointsMajorPacker {
  using A = Accumulate<S>;

 public:
  PointsMajorPacker(const RowFormula<S>& formula, int64_t max_width, const LineStorePlan& plan = {})
      : k_(formula),
        lines_(formula.problem, formula.near, formula.source, plan),
        neighbour_(formula.taps + 1),
        advance_(formula.taps + 1),
        line_(formula.taps + 1),
        zeros_(max_width + kLanes<A>),
        in_step_(way(true)),
        out_of_step_(way(false)) {}

  void pack(int64_t batch, int64_t channel, int64_t width, const std::vector<Segment>& segments, const A* coefficients,
            P* panel, int64_t stride) {
    const int64_t taps = k_.taps, step = lines_.point_stride();
    const S** const line = line_.data();
    for (const Segment& s : segments) {
      // Where no tap meets the border of the row, the neighbours of the next point are one step on.
      int64_t begin = 0, end = s.length;
      lines_.release();
      for (int64_t j = 0; j <= taps; ++j) {
        const int64_t z = k_.near.at(j, 0).source(s.z), y = k_.near.at(j, 1).source(s.y);
        line[j] = z < 0 || y < 0 ? nullptr : lines_.find(batch, z, y) + channel;
        if (!line[j]) continue;
        begin = std::max(begin, k_.near.at(j, 2).begin - s.x);
        end = std::min(end, k_.near.at(j, 2).end - s.x);
      }
      if (begin >= end) begin = end = s.length;
      const auto points = [&](int64_t first, int64_t count) {
        for (int64_t j = 0; j <= taps; ++j) {
          const int64_t x = line[j] ? k_.near.at(j, 2).source(s.x + first) : -1;
          neighbour_[j] = x < 0 ? zeros_.data() : line[j] + x * step;
          advance_[j] = x < 0 ? 0 : k_.near.at(j, 2).slope() * step;
        }
        run(coefficients + s.first + first, width, count, panel + (s.first + first) * stride, stride);
      };
      for (int64_t k = 0; k < begin; ++k) points(k, 1);
      if (begin < end) points(begin, end - begin);
      for (int64_t k = end; k < s.length; ++k) points(k, 1);
    }
  }

 private:
  // Makes the panel's rows of `count` points whose neighbours advance by a step from each to the next.
  using Run = void (PointsMajorPacker::*)(const A* coefficients, int64_t width, int64_t count, P* out, int64_t stride);
  struct Way {
    PanelRows rows;
    TapForm taps;  // but kAny and kShift: all of them in step
    int count, generators;
    Run run;
  };

  // The closed list of ways: the first that fits is taken.
  Run way(bool in_step) const {
    static constexpr Way kWays[] = {
        // rows, taps, components or taps (0: any number), generators (0: any number)
        {PanelRows::kDifferences, TapForm::kCentral, 1, 0, &PointsMajorPacker::run_central<1, -1>},
        {PanelRows::kDifferences, TapForm::kCentral, 2, 0, &PointsMajorPacker::run_central<2, -1>},
        {PanelRows::kDifferences, TapForm::kCentral, 3, 0, &PointsMajorPacker::run_central<3, -1>},
        {PanelRows::kLayer, TapForm::kCentral, 1, 1, &PointsMajorPacker::run_central<1, 1>},
        {PanelRows::kLayer, TapForm::kCentral, 1, 2, &PointsMajorPacker::run_central<1, 2>},
        {PanelRows::kLayer, TapForm::kCentral, 1, 3, &PointsMajorPacker::run_central<1, 3>},
        {PanelRows::kLayer, TapForm::kCentral, 1, 4, &PointsMajorPacker::run_central<1, 4>},
        {PanelRows::kLayer, TapForm::kCentral, 1, 0, &PointsMajorPacker::run_central<1, 0>},
        {PanelRows::kLayer, TapForm::kCentral, 2, 1, &PointsMajorPacker::run_central<2, 1>},
        {PanelRows::kLayer, TapForm::kCentral, 2, 2, &PointsMajorPacker::run_central<2, 2>},
        {PanelRows::kLayer, TapForm::kCentral, 2, 3, &PointsMajorPacker::run_central<2, 3>},
        {PanelRows::kLayer, TapForm::kCentral, 2, 4, &PointsMajorPacker::run_central<2, 4>},
        {PanelRows::kLayer, TapForm::kCentral, 2, 0, &PointsMajorPacker::run_central<2, 0>},
        {PanelRows::kLayer, TapForm::kCentral, 3, 1, &PointsMajorPacker::run_central<3, 1>},
        {PanelRows::kLayer, TapForm::kCentral, 3, 2, &PointsMajorPacker::run_central<3, 2>},
        {PanelRows::kLayer, TapForm::kCentral, 3, 3, &PointsMajorPacker::run_central<3, 3>},
        {PanelRows::kLayer, TapForm::kCentral, 3, 4, &PointsMajorPacker::run_central<3, 4>},
        {PanelRows::kLayer, TapForm::kCentral, 3, 0, &PointsMajorPacker::run_central<3, 0>},
        {PanelRows::kLayer, TapForm::kOneEach, 2, 1, &PointsMajorPacker::run_taps<2, 1>},
        {PanelRows::kLayer, TapForm::kOneEach, 2, 2, &PointsMajorPacker::run_taps<2, 2>},
        {PanelRows::kLayer, TapForm::kOneEach, 2, 3, &PointsMajorPacker::run_taps<2, 3>},
        {PanelRows::kLayer, TapForm::kOneEach, 2, 0, &PointsMajorPacker::run_taps<2, 4>},
        {PanelRows::kLayer, TapForm::kOneEach, 4, 1, &PointsMajorPacker::run_taps<4, 1>},
        {PanelRows::kLayer, TapForm::kOneEach, 4, 2, &PointsMajorPacker::run_taps<4, 2>},
        {PanelRows::kLayer, TapForm::kOneEach, 4, 3, &PointsMajorPacker::run_taps<4, 3>},
        {PanelRows::kLayer, TapForm::kOneEach, 4, 0, &PointsMajorPacker::run_taps<4, 4>},
        {PanelRows::kLayer, TapForm::kOneEach, 6, 1, &PointsMajorPacker::run_taps<6, 1>},
        {PanelRows::kLayer, TapForm::kOneEach, 6, 2, &PointsMajorPacker::run_taps<6, 2>},
        {PanelRows::kLayer, TapForm::kOneEach, 6, 3, &PointsMajorPacker::run_taps<6, 3>},
        {PanelRows::kLayer, TapForm::kOneEach, 6, 0, &PointsMajorPacker::run_taps<6, 4>},
        {PanelRows::kLayer, TapForm::kShift, 0, 0, &PointsMajorPacker::run_shifts},
        {PanelRows::kTransposedBasis, TapForm::kAny, 0, 0, &PointsMajorPacker::run_rows<Basis>},
        {PanelRows::kDifferences, TapForm::kAny, 0, 0, &PointsMajorPacker::run_rows<Differences>},
        {PanelRows::kLayer, TapForm::kAny, 0, 0, &PointsMajorPacker::run_rows<Gather>},
    };
    for (const Way* w = kWays;; ++w) {
      const bool taps_fit = w->taps == TapForm::kAny || (w->taps == k_.form && (in_step || k_.form == TapForm::kShift));
      if (w->rows == k_.rows && taps_fit && (w->count == 0 || w->count == k_.components) &&
          (w->generators == 0 || w->generators == k_.problem.generators)) {
        return w->run;
      }
    }
  }

  void run(const A* coefficients, int64_t width, int64_t count, P* out, int64_t stride) {
    bool in_step = true;  // a tap outside the array stays on its zeros
    for (int64_t j = 0; j < k_.taps; ++j) in_step = in_step && (count == 1 || advance_[j] == advance_[k_.taps]);
    (this->*(in_step ? in_step_ : out_of_step_))(coefficients, width, count, out, stride);
  }

  // Few channels: what is done once per point costs as much as what is done for its channels. body(vectors): their
  // number where it is 1 or 2, known at compile time; else 0.
  template <class Body>
  static inline void with_vectors(int64_t width, Body body) {
    switch (width) {
      case kLanes<A>:
        return body(std::integral_constant<int, 1>());
      case 2 * kLanes<A>:
        return body(std::integral_constant<int, 2>());
      default:
        return body(std::integral_constant<int, 0>());
    }
  }

  template <int kComponents, int kGenerators>
  void run_central(const A* coefficients, int64_t width, int64_t count, P* out, int64_t stride) {
    with_vectors(width, [&](auto vectors) {
      run_central_of<kComponents, kGenerators, vectors>(coefficients, width, count, out, stride);
    });
  }

  // Central differences of order 2, by far the most frequent: pointers and coefficients stay in registers.
  // kGenerators: their number; 0 where it is known at run time; -1 for the differences themselves.
  // kVectors: of channels; 0 where their number is known at run time.
  template <int kComponents, int kGenerators, int kVectors>
  void run_central_of(const A* coefficients, int64_t any_width, int64_t count, P* out, int64_t stride) {
    const int64_t width = kVectors ? kVectors * kLanes<A> : any_width;
    constexpr int kTaps = 2 * kComponents, kHeld = kGenerators > 0 ? kGenerators * kComponents : 1;
    const S* tap[kTaps + 1];
    Vector<A> weight[kComponents];
    for (int j = 0; j <= kTaps; ++j) tap[j] = neighbour_[j];
    const int64_t step = advance_[kTaps];
    for (int a = 0; a < kComponents; ++a) weight[a] = broadcast(k_.weights[2 * a + 1]);
    const bool with_identity = k_.identity;
    const int64_t generators = k_.problem.generators;
    int64_t at = 0;
    for (int64_t point = 0; point < count; ++point, ++coefficients, out += stride, at += step) {
      Vector<A> held[kHeld];
      for (int q = 0; kGenerators > 0 && q < kHeld; ++q) held[q] = broadcast(coefficients[q * kTile]);
      const auto rows = [&](int64_t c, auto read, auto write) {
        P* row = out + c;
        if (with_identity) {
          write(row, read(tap[kTaps] + at + c));
          row += width;
        }
        Vector<A> d[kComponents];
        for (int a = 0; a < kComponents; ++a) {
          d[a] = weight[a] * (read(tap[2 * a + 1] + at + c) - read(tap[2 * a] + at + c));
        }
        if (kGenerators < 0) {
          for (int a = 0; a < kComponents; ++a) write(row + a * width, d[a]);
        } else if (kGenerators > 0) {
          for (int i = 0; i < kGenerators; ++i) {
            Vector<A> sum = held[i * kComponents] * d[0];
            for (int a = 1; a < kComponents; ++a) sum += held[i * kComponents + a] * d[a];
            write(row + i * width, sum);
          }
        } else {
          for (int64_t i = 0; i < generators; ++i) {
            const A* v = coefficients + i * kComponents * kTile;
            Vector<A> sum = broadcast(v[0]) * d[0];
            for (int a = 1; a < kComponents; ++a) sum += broadcast(v[a * kTile]) * d[a];
            write(row + i * width, sum);
          }
        }
      };
      for_lanes(width, rows);
    }
  }

  // rows(c, read, write) for the channels c, c + kLanes, ..., the last vector masked.
  template <class Rows>
  static inline void for_lanes(int64_t width, Rows rows) {
    int64_t c = 0;
    for (; c + kLanes<A> <= width; c += kLanes<A>) {
      rows(c, [](const S* p) { return load(p); }, [](P* p, Vector<A> x) { store(p, x); });
    }
    if (c < width) {
      const int64_t n = width - c;
      rows(c, [n](const S* p) { return load_first(p, n); }, [n](P* p, Vector<A> x) { store_first(p, x, n); });
    }
  }

  template <class Rows>
  void run_rows(const A* coefficients, int64_t width, int64_t count, P* out, int64_t stride) {
    for (int64_t point = 0; point < count; ++point, ++coefficients, out += stride) {
      for_lanes(width, [&](int64_t c, auto read, auto write) {
        P* row = out + c;
        const auto value = [&](int64_t j) { return read(neighbour_[j] + c); };
        if (k_.identity) {
          write(row, value(k_.taps));
          row += width;
        }
        Rows::make(k_, coefficients, width, row, value, write);
      });
      for (int64_t j = 0; j <= k_.taps; ++j) neighbour_[j] += advance_[j];
    }
  }

  struct Differences {
    template <class Load, class Store>
    static inline void make(const RowFormula<S>& k, const A*, int64_t width, P* out, Load value, Store write) {
      for (int64_t a = 0; a < k.components; ++a) write(out + a * width, k.difference(a, value));
    }
  };

  struct Basis {
    template <class Load, class Store>
    static inline void make(const RowFormula<S>& k, const A* shifts, int64_t width, P* out, Load value, Store write) {
      for (int64_t a = 0; a < k.components; ++a) {
        Vector<A> d = {}, s = {};
        for (int64_t j = k.first_tap[a]; j < k.first_tap[a + 1]; ++j) {
          const Vector<A> g = value(j);
          d += broadcast(k.weights[j]) * g;
          s += broadcast(shifts[j * kTile]) * g;
        }
        write(out + a * width, d);
        if (a + 1 < k.components) {
          write(out + (k.components + 1 + a) * width, s);
        } else {
          write(out + k.components * width, s + broadcast(shifts[k.taps * kTile]) * d);
        }
      }
    }
  };

  // L_i f = sum_a v[i,a] D_a f with any number of components: a few generators at a time pass over the taps.
  struct Gather {
    template <class Load, class Store>
    static inline void make(const RowFormula<S>& k, const A* coefficients, int64_t width, P* out, Load value,
                            Store write) {
      int64_t i = 0;
      for (; i + 4 <= k.problem.generators; i += 4) block<4>(k, coefficients, i, width, out, value, write);
      for (; i < k.problem.generators; ++i) block<1>(k, coefficients, i, width, out, value, write);
    }
    template <int kCount, class Load, class Store>
    static inline void block(const RowFormula<S>& k, const A* coefficients, int64_t i, int64_t width, P* out,
                             Load value, Store write) {
      Vector<A> sum[kCount] = {};
      for (int64_t a = 0; a < k.components; ++a) {
        const Vector<A> d = k.difference(a, value);
        for (int g = 0; g < kCount; ++g) sum[g] += broadcast(coefficients[((i + g) * k.components + a) * kTile]) * d;
      }
      for (int g = 0; g < kCount; ++g) write(out + (i + g) * width, sum[g]);
    }
  };

  // One tap each: no more than copies.
  void run_shifts(const A*, int64_t width, int64_t count, P* out, int64_t stride) {
    const auto copy = [&](int64_t tap, A factor, P* to) {
      const S* from = neighbour_[tap];
      const int64_t advance = advance_[tap];
      const Vector<A> weight = broadcast(factor);
      for (int64_t point = 0; point < count; ++point, from += advance, to += stride) {
        for_lanes(width, [&](int64_t c, auto read, auto write) { write(to + c, weight * read(from + c)); });
      }
    };
    if (k_.identity) {
      copy(k_.taps, A(1), out);
      out += width;
    }
    for (const auto& shift : k_.shifts) {
      if (shift.tap >= 0) {
        copy(shift.tap, shift.weight, out);
      } else {
        for (int64_t point = 0; point < count; ++point) std::fill_n(out + point * stride, width, P{});
      }
      out += width;
    }
  }

  // Gather with a coefficient of its own for each of a few taps, whose pointers stay in registers: kCount generators at
  // a time.
  template <int kTaps, int kCount>
  void run_taps(const A* coefficients, int64_t width, int64_t count, P* out, int64_t stride) {
    with_vectors(width,
                 [&](auto vectors) { run_taps_of<kTaps, kCount, vectors>(coefficients, width, count, out, stride); });
  }

  template <int kTaps, int kCount, int kVectors>
  void run_taps_of(const A* coefficients, int64_t any_width, int64_t count, P* out, int64_t stride) {
    const int64_t width = kVectors ? kVectors * kLanes<A> : any_width;
    const S* tap[kTaps + 1];
    for (int j = 0; j <= kTaps; ++j) tap[j] = neighbour_[j];
    const int64_t step = advance_[kTaps];
    const bool with_identity = k_.identity;
    const int64_t generators = k_.problem.generators;
    int64_t at = 0;
    for (int64_t point = 0; point < count; ++point, ++coefficients, out += stride, at += step) {
      for_lanes(width, [&](int64_t c, auto read, auto write) {
        P* row = out + c;
        if (with_identity) {
          write(row, read(tap[kTaps] + at + c));
          row += width;
        }
        Vector<A> f[kTaps];
        for (int j = 0; j < kTaps; ++j) f[j] = read(tap[j] + at + c);
        const A* v = coefficients;
        const auto rows = [&](auto number) {
          for (int g = 0; g < number; ++g, v += kTaps * kTile, row += width) {
            Vector<A> sum = broadcast(v[0]) * f[0];
            for (int j = 1; j < kTaps; ++j) sum += broadcast(v[j * kTile]) * f[j];
            write(row, sum);
          }
        };
        if (kCount < 4) {
          rows(std::integral_constant<int, kCount>());
        } else {
          int64_t i = 0;
          for (; i + 4 <= generators; i += 4) rows(std::integral_constant<int, 4>());
          for (; i < generators; ++i) rows(std::integral_constant<int, 1>());
        }
      });
    }
  }

  const RowFormula<S>& k_;
  Lines<S> lines_;
  std::vector<const S*> neighbour_;
  std::vector<int64_t> advance_;  // of each neighbour, from point to point
  std::vector<const S*> line_;    // that each tap sees; none where it sees zeros
  std::vector<S> zeros_;
  const Run in_step_, out_of_step_;
};

}  // namespace lconv_fast::LCONV_ISA
