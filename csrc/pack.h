// Packing: fills the panel of a tile with f and L_i f as it copies, so that L_i f never reaches memory.
//
// For the channels [c0, c0 + width), row r of the panel (what the rows are: Panel) lies at
//   points-major   (channels-last data):   panel[p * stride + r * width + c]
//   channels-major (channels-first data):  panel[line_place(p, rows * width) + (r * width + c) * kBlockLanes]
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "coefficients.h"

namespace lconv_fast::LCONV_ISA {

// What the panel's rows are, after f itself if the identity takes part.
enum class Panel {
  kLayer,           // L_i f, or L_i^T g: coefficients from fill_coefficients
  kDifferences,     // D_a f, one per component
  kTransposedBasis  // of g: all D_a^T g, D_b^T (x_b g) for the last axis b, and S_a g for the others, where
                    // D_a^T (x_a g) = x_a D_a^T g + S_a g: coefficients from fill_shifts
};

inline int64_t panel_rows(const Problem& p, Panel kind, bool identity) {
  const int64_t components = p.component_count;
  return identity + (kind == Panel::kLayer ? p.generators : kind == Panel::kDifferences ? components : 2 * components);
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

template <class S>
struct Packer {
  using A = Accumulate<S>;

  const Problem& problem;
  const Neighbours& near;
  const View& source;
  const Panel kind;
  const bool identity;
  const int64_t taps;
  bool one_tap_each;  // with a coefficient of its own: always when transposed
  int64_t components;
  bool central = true;             // two opposite taps for each component, as central differences of order 2 have
  std::vector<A> weights;          // of the taps
  std::vector<int64_t> first_tap;  // of each component
  std::vector<const S*> neighbour;
  std::vector<int64_t> advance;  // of each neighbour, from point to point
  std::vector<S> zeros;
  std::vector<A> lines;  // channels-major: the taps' values along the tile, kTile each

  Packer(const Problem& p, const Neighbours& n, const View& view, Panel kind_, bool identity_, int64_t max_width)
      : problem(p),
        near(n),
        source(view),
        kind(kind_),
        identity(identity_),
        taps(p.tap_count()),
        one_tap_each(kind == Panel::kLayer && (n.transposed || has_plain_taps(p))),
        components(one_tap_each ? p.tap_count() : p.component_count),
        neighbour(taps + 1),
        advance(taps + 1),
        zeros(max_width + kLanes<A>),
        lines((taps + 1) * kTile),
        line_(taps + 1) {
    for (int64_t j = 0; j < taps; ++j) {
      weights.push_back(one_tap_each ? A(1) : static_cast<A>(p.tap_weights[j]));
      const int64_t component = one_tap_each ? j : p.components[j];
      while (static_cast<int64_t>(first_tap.size()) <= component) first_tap.push_back(j);
    }
    first_tap.resize(components + 1, taps);
    find_leaders();
    for (int64_t a = 0; a < components; ++a) {
      const int64_t j = first_tap[a];
      central = central && first_tap[a + 1] == j + 2 && p.tap_weights[j] == -p.tap_weights[j + 1];
    }
  }

  static bool has_plain_taps(const Problem& p) {
    return p.component_count == p.tap_count() &&
           std::all_of(p.tap_weights.begin(), p.tap_weights.end(), [](double w) { return w == 1; });
  }

  // ---- channels-last: a point's channels are contiguous ----

  void points_major(int64_t batch, int64_t channel, int64_t width, const std::vector<Segment>& segments,
                    const A* coefficients, A* panel, int64_t stride) {
    const S* base = static_cast<const S*>(source.data) + batch * source.batch_stride + channel;
    row_offsets_.resize(taps + 1);
    int64_t* const row = row_offsets_.data();
    for (const Segment& s : segments) {
      // Where no tap meets the border of the row, the neighbours of the next point are one step on.
      int64_t begin = 0, end = s.length;
      for (int64_t j = 0; j <= taps; ++j) {
        row[j] = near.row_offset(j, s.z, s.y, source);
        if (row[j] < 0) continue;
        begin = std::max(begin, near.at(j, 2).begin - s.x);
        end = std::min(end, near.at(j, 2).end - s.x);
      }
      if (begin >= end) begin = end = s.length;
      const auto points = [&](int64_t first, int64_t count) {
        for (int64_t j = 0; j <= taps; ++j) {
          const int64_t x = row[j] < 0 ? -1 : near.at(j, 2).source(s.x + first);
          neighbour[j] = x < 0 ? zeros.data() : base + row[j] + x * source.stride[2];
          advance[j] = x < 0 ? 0 : near.at(j, 2).slope() * source.stride[2];
        }
        run(coefficients + s.first + first, width, count, panel + (s.first + first) * stride, stride);
      };
      for (int64_t k = 0; k < begin; ++k) points(k, 1);
      if (begin < end) points(begin, end - begin);
      for (int64_t k = end; k < s.length; ++k) points(k, 1);
    }
  }

 private:
  // `count` points whose neighbours advance by a step from each to the next.
  void run(const A* coefficients, int64_t width, int64_t count, A* out, int64_t stride) {
    bool in_step = true;  // a tap outside the array stays on its zeros
    for (int64_t j = 0; j < taps; ++j) in_step = in_step && (count == 1 || advance[j] == advance[taps]);
    if (kind == Panel::kTransposedBasis) return run_rows<Basis>(coefficients, width, count, out, stride);
    if (in_step && central && kind == Panel::kDifferences) {
      if (components == 1) return run_central<1, -1>(coefficients, width, count, out, stride);
      if (components == 2) return run_central<2, -1>(coefficients, width, count, out, stride);
      if (components == 3) return run_central<3, -1>(coefficients, width, count, out, stride);
    }
    if (kind == Panel::kDifferences) return run_rows<Differences>(coefficients, width, count, out, stride);
    if (in_step && central && !one_tap_each) {
      if (components == 1) return run_generators<1>(coefficients, width, count, out, stride);
      if (components == 2) return run_generators<2>(coefficients, width, count, out, stride);
      if (components == 3) return run_generators<3>(coefficients, width, count, out, stride);
    }
    if (in_step && one_tap_each && taps == 2) return run_few_taps<2>(coefficients, width, count, out, stride);
    if (in_step && one_tap_each && taps == 4) return run_few_taps<4>(coefficients, width, count, out, stride);
    if (in_step && one_tap_each && taps == 6) return run_few_taps<6>(coefficients, width, count, out, stride);
    run_rows<Gather>(coefficients, width, count, out, stride);
  }

  template <int kComponents>
  void run_generators(const A* coefficients, int64_t width, int64_t count, A* out, int64_t stride) {
    switch (problem.generators) {
      case 1:
        return run_central<kComponents, 1>(coefficients, width, count, out, stride);
      case 2:
        return run_central<kComponents, 2>(coefficients, width, count, out, stride);
      case 3:
        return run_central<kComponents, 3>(coefficients, width, count, out, stride);
      case 4:
        return run_central<kComponents, 4>(coefficients, width, count, out, stride);
      default:
        return run_central<kComponents, 0>(coefficients, width, count, out, stride);
    }
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
  void run_central(const A* coefficients, int64_t width, int64_t count, A* out, int64_t stride) {
    with_vectors(width, [&](auto vectors) {
      run_central_of<kComponents, kGenerators, vectors>(coefficients, width, count, out, stride);
    });
  }

  // Central differences of order 2, by far the most frequent: pointers and coefficients stay in registers.
  // kGenerators: their number; 0 where it is known at run time; -1 for the differences themselves.
  // kVectors: of channels; 0 where their number is known at run time.
  template <int kComponents, int kGenerators, int kVectors>
  void run_central_of(const A* coefficients, int64_t any_width, int64_t count, A* out, int64_t stride) {
    const int64_t width = kVectors ? kVectors * kLanes<A> : any_width;
    constexpr int kTaps = 2 * kComponents, kHeld = kGenerators > 0 ? kGenerators * kComponents : 1;
    const S* tap[kTaps + 1];
    Vector<A> weight[kComponents];
    for (int j = 0; j <= kTaps; ++j) tap[j] = neighbour[j];
    const int64_t step = advance[kTaps];
    for (int a = 0; a < kComponents; ++a) weight[a] = broadcast(weights[2 * a + 1]);
    const bool with_identity = identity;
    const int64_t generators = problem.generators;
    int64_t at = 0;
    for (int64_t point = 0; point < count; ++point, ++coefficients, out += stride, at += step) {
      Vector<A> held[kHeld];
      for (int q = 0; kGenerators > 0 && q < kHeld; ++q) held[q] = broadcast(coefficients[q * kTile]);
      const auto rows = [&](int64_t c, auto read, auto write) {
        A* row = out + c;
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
      rows(c, [](const S* p) { return load(p); }, [](A* p, Vector<A> x) { store(p, x); });
    }
    if (c < width) {
      const int64_t n = width - c;
      rows(c, [n](const S* p) { return load_first(p, n); }, [n](A* p, Vector<A> x) { store_first(p, x, n); });
    }
  }

  template <class Rows>
  void run_rows(const A* coefficients, int64_t width, int64_t count, A* out, int64_t stride) {
    for (int64_t point = 0; point < count; ++point, ++coefficients, out += stride) {
      for_lanes(width, [&](int64_t c, auto read, auto write) {
        A* row = out + c;
        const auto value = [&](int64_t j) { return read(neighbour[j] + c); };
        if (identity) {
          write(row, value(taps));
          row += width;
        }
        Rows::make(*this, coefficients, width, row, value, write);
      });
      for (int64_t j = 0; j <= taps; ++j) neighbour[j] += advance[j];
    }
  }

  template <class Load>
  inline Vector<A> difference(int64_t a, Load value) const {
    if (one_tap_each) return value(a);
    Vector<A> sum = {};
    for (int64_t j = first_tap[a]; j < first_tap[a + 1]; ++j) sum += broadcast(weights[j]) * value(j);
    return sum;
  }

  struct Differences {
    template <class Load, class Store>
    static inline void make(const Packer& k, const A*, int64_t width, A* out, Load value, Store write) {
      for (int64_t a = 0; a < k.components; ++a) write(out + a * width, k.difference(a, value));
    }
  };

  struct Basis {
    template <class Load, class Store>
    static inline void make(const Packer& k, const A* shifts, int64_t width, A* out, Load value, Store write) {
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
    static inline void make(const Packer& k, const A* coefficients, int64_t width, A* out, Load value, Store write) {
      int64_t i = 0;
      for (; i + 4 <= k.problem.generators; i += 4) block<4>(k, coefficients, i, width, out, value, write);
      for (; i < k.problem.generators; ++i) block<1>(k, coefficients, i, width, out, value, write);
    }
    template <int kCount, class Load, class Store>
    static inline void block(const Packer& k, const A* coefficients, int64_t i, int64_t width, A* out, Load value,
                             Store write) {
      Vector<A> sum[kCount] = {};
      for (int64_t a = 0; a < k.components; ++a) {
        const Vector<A> d = k.difference(a, value);
        for (int g = 0; g < kCount; ++g) sum[g] += broadcast(coefficients[((i + g) * k.components + a) * kTile]) * d;
      }
      for (int g = 0; g < kCount; ++g) write(out + (i + g) * width, sum[g]);
    }
  };

  template <int kTaps>
  void run_few_taps(const A* coefficients, int64_t width, int64_t count, A* out, int64_t stride) {
    switch (problem.generators) {
      case 1:
        return run_taps<kTaps, 1>(coefficients, width, count, out, stride);
      case 2:
        return run_taps<kTaps, 2>(coefficients, width, count, out, stride);
      case 3:
        return run_taps<kTaps, 3>(coefficients, width, count, out, stride);
      default:
        return run_taps<kTaps, 4>(coefficients, width, count, out, stride);
    }
  }

  // Gather with a coefficient of its own for each of a few taps, whose pointers stay in registers: kCount generators at
  // a time.
  template <int kTaps, int kCount>
  void run_taps(const A* coefficients, int64_t width, int64_t count, A* out, int64_t stride) {
    with_vectors(width,
                 [&](auto vectors) { run_taps_of<kTaps, kCount, vectors>(coefficients, width, count, out, stride); });
  }

  template <int kTaps, int kCount, int kVectors>
  void run_taps_of(const A* coefficients, int64_t any_width, int64_t count, A* out, int64_t stride) {
    const int64_t width = kVectors ? kVectors * kLanes<A> : any_width;
    const S* tap[kTaps + 1];
    for (int j = 0; j <= kTaps; ++j) tap[j] = neighbour[j];
    const int64_t step = advance[kTaps];
    const bool with_identity = identity;
    const int64_t generators = problem.generators;
    int64_t at = 0;
    for (int64_t point = 0; point < count; ++point, ++coefficients, out += stride, at += step) {
      for_lanes(width, [&](int64_t c, auto read, auto write) {
        A* row = out + c;
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

 public:
  // ---- channels-first: a row's points are contiguous ----

  void channels_major(int64_t batch, int64_t channel, int64_t width, const std::vector<Segment>& segments,
                      const A* coefficients, A* panel) {
    row_offsets_.resize(segments.size() * (taps + 1));
    for (size_t s = 0; s < segments.size(); ++s) {
      for (int64_t j = 0; j <= taps; ++j) {
        row_offsets_[s * (taps + 1) + j] = near.row_offset(j, segments[s].z, segments[s].y, source);
      }
    }
    const int64_t points = segments.back().first + segments.back().length;
    for (int64_t c = 0; c < width; ++c) {
      const S* base =
          static_cast<const S*>(source.data) + batch * source.batch_stride + (channel + c) * source.channel_stride;
      if (c + kAhead < width) fetch_lines(base + kAhead * source.channel_stride, segments[0]);
      std::fill(wide_line_filled_.begin(), wide_line_filled_.end(), false);
      for (int64_t j = identity ? taps : taps - 1; j >= 0; --j) line_[j] = find_line(base, j, segments);
      A* out = panel + c * kBlockLanes<A>;
      depth_ = panel_rows(problem, kind, identity) * width;
      if (identity) {
        for_points(points, [&](int64_t x, auto read) { store(out + place(x), read(line_[taps] + x)); });
        out += width * kBlockLanes<A>;
      }
      lines_to_rows(coefficients, points, width * kBlockLanes<A>, out);
    }
  }

 private:
  std::vector<int64_t> row_offsets_;
  std::vector<const A*> line_;  // channels-major: of each tap, in the data themselves or in `lines`
  int64_t depth_ = 0;           // and of the panel

  int64_t place(int64_t point) const { return line_place<A>(point, depth_); }

  // The rows of one channel. Panels are padded to kTile, a multiple of the vector: whole vectors are written
  // throughout.
  void lines_to_rows(const A* coefficients, int64_t points, int64_t row_stride, A* out) const {
    if (central && !one_tap_each && kind != Panel::kTransposedBasis) {
      if (components == 1) return central_lines<1>(coefficients, points, row_stride, out);
      if (components == 2) return central_lines<2>(coefficients, points, row_stride, out);
      if (components == 3) return central_lines<3>(coefficients, points, row_stride, out);
    }
    if (kind == Panel::kTransposedBasis) return basis_lines(coefficients, points, row_stride, out);
    if (kind == Panel::kDifferences) {
      for (int64_t a = 0; a < components; ++a) {
        for_points(points, [&](int64_t x, auto read) {
          store(out + a * row_stride + place(x), difference(a, [&](int64_t j) { return read(line_[j] + x); }));
        });
      }
      return;
    }
    if (one_tap_each && taps == 2) return gather_all_lines<2>(coefficients, points, row_stride, out);
    if (one_tap_each && taps == 4) return gather_all_lines<4>(coefficients, points, row_stride, out);
    if (one_tap_each && taps == 6) return gather_all_lines<6>(coefficients, points, row_stride, out);
    gather_all_lines<0>(coefficients, points, row_stride, out);
  }

  // body(x, read) for the points x, x + kLanes, ..., where `read` does not reach past the last point.
  template <class Body>
  static inline void for_points(int64_t points, Body body) {
    int64_t x = 0;
    for (; x + kLanes<A> <= points; x += kLanes<A>) body(x, [](const A* p) { return load(p); });
    if (x < points) {
      const int64_t n = points - x;
      body(x, [n](const A* p) { return load_first(p, n); });
    }
  }

  template <int kComponents>
  void central_lines(const A* coefficients, int64_t points, int64_t row_stride, A* out) const {
    const A* line[2 * kComponents];
    Vector<A> weight[kComponents];
    for (int j = 0; j < 2 * kComponents; ++j) line[j] = line_[j];
    for (int a = 0; a < kComponents; ++a) weight[a] = broadcast(weights[2 * a + 1]);
    const int64_t generators = problem.generators;
    const bool differences = kind == Panel::kDifferences;
    for_points(points, [&](int64_t x, auto read) {
      Vector<A> d[kComponents];
      for (int a = 0; a < kComponents; ++a) d[a] = weight[a] * (read(line[2 * a + 1] + x) - read(line[2 * a] + x));
      if (differences) {
        for (int a = 0; a < kComponents; ++a) store(out + a * row_stride + place(x), d[a]);
        return;
      }
      const A* v = coefficients + x;
      A* to = out + place(x);
      for (int64_t i = 0; i < generators; ++i, v += kComponents * kTile, to += row_stride) {
        Vector<A> sum = load(v) * d[0];
        for (int a = 1; a < kComponents; ++a) sum += load(v + a * kTile) * d[a];
        store(to, sum);
      }
    });
  }

  void basis_lines(const A* shifts, int64_t points, int64_t row_stride, A* out) const {
    for (int64_t a = 0; a < components; ++a) {
      A* shifted = out + (a + 1 < components ? components + 1 + a : components) * row_stride;
      for_points(points, [&](int64_t x, auto read) {
        Vector<A> d = {}, s = {};
        for (int64_t j = first_tap[a]; j < first_tap[a + 1]; ++j) {
          const Vector<A> g = read(line_[j] + x);
          d += broadcast(weights[j]) * g;
          s += load(shifts + j * kTile + x) * g;
        }
        store(out + a * row_stride + place(x), d);
        store(shifted + place(x), a + 1 < components ? s : s + load(shifts + taps * kTile + x) * d);
      });
    }
  }

  template <int kTaps>
  void gather_all_lines(const A* coefficients, int64_t points, int64_t row_stride, A* out) const {
    int64_t i = 0;
    for (; i + 4 <= problem.generators; i += 4) gather_lines<kTaps, 4>(coefficients, i, points, row_stride, out);
    if (problem.generators - i == 3) return gather_lines<kTaps, 3>(coefficients, i, points, row_stride, out);
    if (problem.generators - i == 2) return gather_lines<kTaps, 2>(coefficients, i, points, row_stride, out);
    if (problem.generators - i == 1) return gather_lines<kTaps, 1>(coefficients, i, points, row_stride, out);
  }

  // kTaps: of one_tap_each; 0 for any number and kind of components.
  template <int kTaps, int kCount>
  void gather_lines(const A* coefficients, int64_t i, int64_t points, int64_t row_stride, A* out) const {
    const int64_t count = kTaps ? kTaps : components, each = count * kTile;
    const A* line[kTaps + 1];
    for (int j = 0; j < kTaps; ++j) line[j] = line_[j];
    for_points(points, [&](int64_t x, auto read) {
      Vector<A> sum[kCount] = {};
      const A* v = coefficients + i * each + x;
      for (int64_t a = 0; a < count; ++a, v += kTile) {
        const Vector<A> d = kTaps ? read(line[a] + x) : difference(a, [&](int64_t j) { return read(line_[j] + x); });
        for (int g = 0; g < kCount; ++g) sum[g] += load(v + g * each) * d;
      }
      for (int g = 0; g < kCount; ++g) store(out + (i + g) * row_stride + place(x), sum[g]);
    });
  }

  // What tap j sees at the points of the tile, for one channel: the data where they lie so, else a copy; taps that see
  // the same row share one.
  const A* find_line(const S* base, int64_t j, const std::vector<Segment>& segments) {
    const Segment& s = segments[0];
    const AxisTap& axis = near.at(j, 2);
    if (segments.size() == 1 && row_offsets_[j] >= 0 && axis.slope() * source.stride[2] == 1) {
      if constexpr (std::is_same_v<S, A>) {
        if (axis.regular(s.x, s.length)) return base + row_offsets_[j] + s.x + axis.shift;
      }
      if (axis.step == 1 && reach_[row_leader_[j]] <= kReach) return find_wide_line(base, j, s);
    }
    A* line = lines.data() + j * kTile;
    read_line(base, j, segments, line);
    return line;
  }

  static constexpr int64_t kReach = 16;
  std::vector<int64_t> row_leader_;  // of each tap: the first one that sees the same row
  std::vector<int64_t> reach_;       // of each leader: how far the taps of its row go along it
  std::vector<A> wide_lines_;
  std::vector<bool> wide_line_filled_;

  void find_leaders() {
    for (int64_t j = 0; j <= taps; ++j) {
      int64_t leader = 0;
      while (near.at(leader, 0).tap != near.at(j, 0).tap || near.at(leader, 1).tap != near.at(j, 1).tap) ++leader;
      row_leader_.push_back(leader);
      reach_.push_back(0);
      reach_[leader] = std::max(reach_[leader], std::abs(near.at(j, 2).tap));
    }
    wide_lines_.resize((taps + 1) * (kTile + 2 * kReach));
    wide_line_filled_.resize(taps + 1);
  }

  // The row that tap j sees, with as many points beyond the tile on both sides as its taps reach.
  const A* find_wide_line(const S* base, int64_t j, const Segment& s) {
    const int64_t leader = row_leader_[j], reach = reach_[leader], tap = near.at(j, 2).tap;
    const AxisTap& axis = near.at(taps, 2);  // tap 0
    A* line = wide_lines_.data() + leader * (kTile + 2 * kReach) + kReach;
    if (!wide_line_filled_[leader]) {
      wide_line_filled_[leader] = true;
      const S* values = base + row_offsets_[j];
      const int64_t first = -reach, last = s.length + reach;
      const int64_t begin = std::clamp(axis.begin - s.x, first, last), end = std::clamp(axis.end - s.x, begin, last);
      const auto edge = [&](int64_t x) {
        const int64_t at = axis.source(s.x + x);
        return at < 0 ? A(0) : to_accumulate(values[at]);
      };
      const S* inside = values + s.x + axis.shift;
      for (int64_t x = first; x < begin; ++x) line[x] = edge(x);
      int64_t x = begin;
      for (; x + kLanes<A> <= end; x += kLanes<A>) store(line + x, load(inside + x));
      for (; x < end; ++x) line[x] = to_accumulate(inside[x]);
      for (x = end; x < last; ++x) line[x] = edge(x);
    }
    return line + (near.transposed ? -tap : tap);
  }

  static constexpr int64_t kAhead = 2;

  // Pieces of a row are too short for the hardware to foresee those of the next channels.
  void fetch_lines(const S* base, const Segment& s) const {
    for (int64_t j = 0; j <= taps; ++j) {
      if (row_offsets_[j] < 0 || row_leader_[j] != j) continue;
      const int64_t x = near.at(taps, 2).source(s.x);
      if (x < 0) continue;
      const S* row = base + row_offsets_[j] + x * source.stride[2];
      const int64_t bytes = s.length * near.at(taps, 2).slope() * static_cast<int64_t>(sizeof(S));
      for (int64_t at = 0; source.stride[2] == 1 && at < bytes; at += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(row) + at);
      }
    }
  }

  // What tap j sees at the points of the tile, for one channel.
  void read_line(const S* base, int64_t j, const std::vector<Segment>& segments, A* line) const {
    const AxisTap& axis = near.at(j, 2);
    for (size_t k = 0; k < segments.size(); ++k) {
      const Segment& s = segments[k];
      A* out = line + s.first;
      const int64_t row = row_offsets_[k * (taps + 1) + j];
      if (row < 0) {
        std::fill(out, out + s.length, A(0));
        continue;
      }
      const S* values = base + row;
      const int64_t begin = std::clamp<int64_t>(axis.begin - s.x, 0, s.length);
      const int64_t end = std::clamp<int64_t>(axis.end - s.x, begin, s.length);
      const auto edge = [&](int64_t x) {
        const int64_t at = axis.source(s.x + x);
        return at < 0 ? A(0) : to_accumulate(values[at * source.stride[2]]);
      };
      for (int64_t x = 0; x < begin; ++x) out[x] = edge(x);
      const int64_t step = axis.slope() * source.stride[2];
      const S* first = values + (s.x * axis.slope() + axis.shift) * source.stride[2];
      if (step == 1) {
        int64_t x = begin;
        for (; x + kLanes<A> <= end; x += kLanes<A>) store(out + x, load(first + x));
        for (; x < end; ++x) out[x] = to_accumulate(first[x]);
      } else {
        for (int64_t x = begin; x < end; ++x) out[x] = to_accumulate(first[x * step]);
      }
      for (int64_t x = end; x < s.length; ++x) out[x] = edge(x);
    }
  }
};

// Rows [first_row, first_row + rows) of W for the channels of one panel, as the factor of the panel, k = r * width + c,
// zero past `outs`: [block][k][lane] in blocks of kBlockLanes (points-major panels), or in the micro-kernel's blocks of
// rows (channels-major panels). Successive elements of a block lie `lanes` apart, and blocks depth * lanes.
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
  if (in_columns) {
    for (int64_t out = 0; out < outs; out += kBlockLanes<Accumulate<S>>) block(out, kBlockLanes<Accumulate<S>>);
  } else {
    for_row_blocks<2>(outs, [&](int64_t out, auto units) { block(out, units * kUnit<2>); });
  }
}

// A tile of a tensor at its own points, as [p][lane] (lanes = channels, zero-padded to `stride`).
template <class S>
void pack_points_major(const View& v, int64_t batch, int64_t channel, int64_t width,
                       const std::vector<Segment>& segments, int64_t stride, Accumulate<S>* packed) {
  using A = Accumulate<S>;
  for (const Segment& s : segments) {
    const S* row = static_cast<const S*>(v.data) + batch * v.batch_stride + channel * v.channel_stride +
                   s.z * v.stride[0] + s.y * v.stride[1] + s.x * v.stride[2];
    A* out = packed + s.first * stride;
    if (v.channel_stride == 1) {
      for (int64_t x = 0; x < s.length; ++x) {
        const S* at = row + x * v.stride[2];
        int64_t c = 0;
        for (; c + kLanes<A> <= width; c += kLanes<A>) store(out + x * stride + c, load(at + c));
        for (; c < width; ++c) out[x * stride + c] = to_accumulate(at[c]);
      }
    } else {
      int64_t c = 0;
      for (; v.stride[2] == 1 && c + kLanes<A> <= width; c += kLanes<A>) {
        int64_t x = 0;
        for (; x + kLanes<A> <= s.length; x += kLanes<A>) {
          Vector<A> square[kLanes<A>];
          for (int k = 0; k < kLanes<A>; ++k) square[k] = load(row + (c + k) * v.channel_stride + x);
          transpose<A>(square);
          for (int k = 0; k < kLanes<A>; ++k) store(out + (x + k) * stride + c, square[k]);
        }
        for (; x < s.length; ++x) {
          for (int k = 0; k < kLanes<A>; ++k) {
            out[x * stride + c + k] = to_accumulate(row[(c + k) * v.channel_stride + x]);
          }
        }
      }
      for (; c < width; ++c) {
        for (int64_t x = 0; x < s.length; ++x) {
          out[x * stride + c] = to_accumulate(row[c * v.channel_stride + x * v.stride[2]]);
        }
      }
    }
  }
  const int64_t filled = segments.back().first + segments.back().length;
  for (int64_t p = 0; p < filled; ++p) std::fill(packed + p * stride + width, packed + (p + 1) * stride, A(0));
}

// The same as a channels-major panel of depth `width`.
template <class S>
void pack_channels_major(const View& v, int64_t batch, int64_t channel, int64_t width,
                         const std::vector<Segment>& segments, Accumulate<S>* packed) {
  using A = Accumulate<S>;
  for (const Segment& s : segments) {
    const S* row = static_cast<const S*>(v.data) + batch * v.batch_stride + channel * v.channel_stride +
                   s.z * v.stride[0] + s.y * v.stride[1] + s.x * v.stride[2];
    for (int64_t c = 0; c < width; ++c) {
      for (int64_t x = 0; x < s.length; ++x) {
        packed[line_place<A>(s.first + x, width) + c * kBlockLanes<A>] =
            to_accumulate(row[c * v.channel_stride + x * v.stride[2]]);
      }
    }
  }
}

}  // namespace lconv_fast::LCONV_ISA
