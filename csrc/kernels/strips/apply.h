// apply for few channels of channels-last data, strip by strip: a panel of a few points of a line is made and
// multiplied while it is in the first-level cache.
#pragma once

#include "../tiles.h"
#include "rows.h"

namespace lconv_fast::LCONV_ISA {

// Most of the inner dimension, and most numbers of the matrices, that leave room for a strip in the first-level cache.
constexpr int64_t kStripDepth = 224, kStripNumbers = 8192;

inline int64_t strip_products(const Problem& p, bool transposed) {
  int64_t products = p.generators + 1;
  if (p.kind == CoefficientKind::kConstant) products = std::min(products, p.component_count + 1);
  if (p.kind == CoefficientKind::kAffine)
    products = std::min<int64_t>(products, (transposed ? 3 : 2) * p.component_count + 1);
  return products;
}

inline bool fits_strips(const Problem& p, bool transposed, int64_t ins, int64_t outs) {
  const int64_t depth = strip_products(p, transposed) * ins;
  return ins > 0 && depth <= kStripDepth && depth * round_up(outs, 16) <= kStripNumbers;
}

// Whether strips are faster than tiles of points, measured on lines of 33 to 512: always where the outputs fill no more
// than half a vector; else on long lines if a matrix is used for more than one generator, or for many of them.
template <class A>
bool gains_from_strips(const Problem& p, bool transposed, int64_t line, int64_t outs) {
  if (2 * outs <= kLanes<A>) return line >= 16;
  const int64_t products = strip_products(p, transposed);
  return products > 2 && line >= (products < 5 ? 96 : 32);
}

// Whether each component of an affine field is a difference along its own axis, as its transpose takes for granted.
inline bool differs_along_own_axes(const Problem& p) {
  if (p.component_count != p.ndim) return false;
  for (int64_t j = 0; j < p.tap_count(); ++j) {
    for (int a = 0; a < kAxes; ++a) {
      if (a != p.axis_of(p.components[j]) && p.taps[j * kAxes + a] != 0) return false;
    }
  }
  return true;
}

template <class S>
StripProgram<S> strip_program(const Problem& p, bool transposed) {
  StripProgram<S> direct = direct_program<S>(p, transposed);
  if (p.kind == CoefficientKind::kSampled ||
      (p.kind == CoefficientKind::kAffine && transposed && !differs_along_own_axes(p))) {
    return direct;
  }
  StripProgram<S> differences = difference_program<S>(p, transposed);
  return differences.products() <= direct.products() ? differences : direct;
}

// Channels-first data are turned on the way, where that was measured to be faster than tiles of lines: of layers
// without groups or stride, with channels that fill half a vector at least.
template <class A>
constexpr int64_t kLeastTurned = kLanes<A> / 2;

// Half types are converted, a line at a time.
template <class S>
LineStorePlan plan_strip_store(const Problem& p, const Neighbours& near, const View& source, int64_t ins,
                               int64_t outs) {
  using A = Accumulate<S>;
  const bool turns = is_channels_first(source) && p.groups == 1 && near.at(0, 2).slope() == 1 &&
                     std::min(ins, outs) >= kLeastTurned<A>;
  const bool converts = !std::is_same_v<S, A> && source.channel_stride == 1;
  return turns || converts ? plan_line_store<A>(p, near, source, ins) : LineStorePlan{};
}
template <class A>
bool turns_lines(const Problem& p, const View& v, int64_t channels) {
  return is_channels_first(v) && p.groups == 1 && channels >= kLeastTurned<A>;
}

// Whether the lines of a source, some of them in a store, can be read with channels side by side, and those of the
// other side read or written so; one of the two is channels-last, or turned.
template <class S>
bool suits_strips(const Problem& p, const View& source, const LineStorePlan& line_store, const View& other,
                  int64_t channels) {
  const bool stored = line_store.capacity > 0, turns = turns_lines<Accumulate<S>>(p, other, channels);
  return (stored || (source.channel_stride == 1 && std::is_same_v<S, Accumulate<S>>)) &&
         (turns || other.channel_stride == 1) &&
         (turns || (stored && is_channels_first(source)) || is_channels_last(source) || is_channels_last(other));
}

template <class S>
bool takes_strips(const Problem& p, bool transposed, const Neighbours& near, const View& source, const View& target,
                  const LineStorePlan& line_store) {
  const int64_t ins = transposed ? p.out_channels : p.in_channels, outs = transposed ? p.in_channels : p.out_channels;
  return suits_strips<S>(p, source, line_store, target, outs) &&
         gains_from_strips<Accumulate<S>>(p, transposed, near.target[2], outs) && fits_strips(p, transposed, ins, outs);
}

// The matrices of a program's rows, one group after the other: [row][channel][output].
template <class S>
class StripFactor {
  using A = Accumulate<S>;

 public:
  StripFactor(const Problem& p, bool transposed, const WeightView& weight, const std::vector<StripMatrix>& matrices)
      : matrices_(matrices),
        ins_(transposed ? p.out_channels : p.in_channels),
        outs_(transposed ? p.in_channels : p.out_channels),
        groups_(p.groups),
        rows_(p.generators + 1),
        columns_(round_up(outs_, 2 * kLanes<A>)),
        weights_(groups_ * rows_ * ins_ * columns_) {
    for (const StripMatrix& m : matrices_) changes_ = changes_ || m.changes();
    for (int64_t g = 0; g < groups_; ++g) {
      WeightView w = weight;
      w.data = static_cast<const S*>(weight.data) + g * p.out_channels * weight.out_stride;
      if (transposed) std::swap(w.in_stride, w.out_stride);
      A* to = weights_.data() + g * rows_ * ins_ * columns_;
      for (int64_t r = p.identity ? 0 : 1; r < rows_; ++r) {
        for (int64_t c = 0; c < ins_; ++c) {
          const S* from = static_cast<const S*>(w.data) + r * w.row_stride + c * w.in_stride;
          for (int64_t o = 0; o < outs_; ++o) to[(r * ins_ + c) * columns_ + o] = to_accumulate(from[o * w.out_stride]);
        }
      }
    }
  }
  bool changes() const { return changes_; }
  int64_t columns() const { return columns_; }
  int64_t group_size() const { return matrices_.size() * ins_ * columns_; }
  int64_t size() const { return groups_ * group_size(); }

  // For the line at (z, y).
  void make(double z, double y, A* out) const {
    const int64_t part = ins_ * columns_;
    for (int64_t g = 0; g < groups_; ++g) {
      for (const StripMatrix& m : matrices_) {
        std::fill_n(out, part, A(0));
        for (const auto& t : m.terms) {
          const A factor = static_cast<A>(t.constant + y * t.by_y + z * t.by_z);
          const A* from = weights_.data() + (g * rows_ + t.r) * part;
          for (int64_t k = 0; k < part; ++k) out[k] += factor * from[k];
        }
        out += part;
      }
    }
  }

 private:
  const std::vector<StripMatrix>& matrices_;
  const int64_t ins_, outs_, groups_, rows_, columns_;
  const Workspace<A> weights_;
  bool changes_ = false;
};

// w_j x(the point that tap j comes from), along the last axis.
template <class A>
void fill_moments(const Problem& p, const Neighbours& near, const Segment& s, A* table) {
  for (int64_t j = 0; j < p.tap_count(); ++j) {
    const AxisTap& axis = near.at(j, 2);
    for (int64_t k = 0; k < s.length; ++k) {
      const int64_t from = axis.grid_index(s.x + k);
      table[j * kTile + s.first + k] = from < 0 ? A(0) : static_cast<A>(p.tap_weights[j]) * p.coordinate<A>(from, 2);
    }
  }
}

template <class S>
void apply_strips(const Problem& p, bool transposed, const Neighbours& near, const View& source,
                  const WeightView& weight, const void* bias, const View& target, const LineStorePlan& line_store) {
  using A = Accumulate<S>;
  const int64_t ins = transposed ? p.out_channels : p.in_channels;
  const int64_t outs = transposed ? p.in_channels : p.out_channels;
  const StripProgram<S> program = strip_program<S>(p, transposed);
  const StripFactor<S> main(p, transposed, weight, program.main), scaled(p, transposed, weight, program.scaled);
  const int64_t columns = main.columns();
  const Tiles tiles(near.target, Tiles::kAtRows, line_store.slab);
  const Tasks tasks(p.batch, tiles.count, line_store.capacity > 0 ? 1 : Tasks::kTogether);
  const bool turns = target.channel_stride != 1;
  const int64_t slots = program.table == StripTable::kMoments ? p.tap_count()
                        : program.table == StripTable::kNone  ? 0
                        : transposed                          ? p.generators * p.tap_count()
                                                              : p.generators * p.component_count;
  const Workspace<A> starts(p.groups * columns);
  for (int64_t o = 0; bias && o < p.groups * outs; ++o) {
    starts.data()[o / outs * columns + o % outs] = to_accumulate(static_cast<const S*>(bias)[o]);
  }

  parallel_for(tasks.count, [&](int64_t begin, int64_t end) {
    const Workspace<A> table(slots * kTile), x(kTile + kStripUnit), main_weights(main.size()),
        scaled_weights(scaled.size()), sums(turns || !std::is_same_v<S, A> ? kTile * outs : 0);
    StripRows<S> rows(p, near, source, program, ins, line_store);
    scaled.make(0, 0, scaled_weights.data());
    const int64_t most = rows.most();
    std::vector<uintptr_t> fetches(strip_blocks<A>(most, outs) * program.products());
    std::vector<Segment> segments;
    int64_t tile = -1, line = -1;
    for (int64_t task = begin; task < end; ++task) {
      const Tasks::Task at = tasks.at(task);
      if (at.tile != tile) {
        tile = at.tile;
        tiles.segments(tile, segments);
        if (program.table == StripTable::kCoefficients) fill_coefficients(p, near, segments, table.data());
        if (program.table == StripTable::kMoments) fill_moments(p, near, segments[0], table.data());
        if (!program.scaled.empty()) fill_coordinates(p, near, segments, x.data());
        const Segment& s = segments[0];
        const int64_t here = main.changes() ? s.z * near.target[1] + s.y : 0;
        if (here != line) {
          line = here;
          main.make(p.coordinate<double>(near.at(p.tap_count(), 0).position(s.z), 0),
                    p.coordinate<double>(near.at(p.tap_count(), 1).position(s.y), 1), main_weights.data());
        }
      }
      const Segment& s = segments[0];
      const int64_t strips = divide_up(s.length, most);
      for (int64_t g = 0; g < p.groups; ++g) {
        rows.start(at.batch, g * ins, s);
        StripProduct<A> product{nullptr,
                                static_cast<int64_t>(program.main.size()),
                                static_cast<int64_t>(program.scaled.size()),
                                program.rows,
                                ins,
                                ins,
                                columns,
                                main_weights.data() + g * main.group_size(),
                                scaled_weights.data() + g * scaled.group_size(),
                                x.data(),
                                starts.data() + g * columns,
                                fetches.data()};
        S* out = static_cast<S*>(target.data) + at.batch * target.batch_stride + g * outs * target.channel_stride +
                 s.z * target.stride[0] + s.y * target.stride[1] + s.x * target.stride[2];
        LineAhead next;
        if (turns && s.y + 1 < near.target[1]) {
          next = {out - s.x + target.stride[1], outs, target.channel_stride * static_cast<int64_t>(sizeof(S)),
                  near.target[2] * static_cast<int64_t>(sizeof(S))};
        }
        for (int64_t k = 0; k < strips; ++k) {
          const int64_t first = k * most, points = std::min(most, s.length - first);
          product.rows = rows.make(s, first, points, table.data() + first);
          product.x = x.data() + first;
          S* to = out + first * target.stride[2];
          size_t pieces = 0;
          const auto fetch = [&](uintptr_t from, int64_t bytes) {
            for (int64_t done = 0; done < bytes && pieces < fetches.size(); done += 64 * ins)
              fetches[pieces++] = from + done;
          };
          rows.for_news(s, first, points, 64 * ins, fetch);
          if (turns) {
            next.for_pieces(64 * ins, s.x + first, s.x + first + points, near.target[2],
                            [&](uintptr_t from) { fetch(from, 64 * ins); });
          } else {
            fetch(reinterpret_cast<uintptr_t>(to) + points * target.stride[2] * sizeof(S), points * outs * sizeof(S));
          }
          std::fill(fetches.begin() + static_cast<std::ptrdiff_t>(pieces), fetches.end(),
                    reinterpret_cast<uintptr_t>(x.data()));
          if (turns) {
            multiply_strip(product, points, outs, sums.data() + first * outs, outs);
          } else if constexpr (std::is_same_v<S, A>) {
            multiply_strip(product, points, outs, to, target.stride[2]);
          } else {
            multiply_strip(product, points, outs, sums.data(), outs);
            for (int64_t q = 0; q < points; ++q) {
              const A* from = sums.data() + q * outs;
              int64_t o = 0;
              for (; o + kLanes<A> <= outs; o += kLanes<A>) store(to + q * target.stride[2] + o, load(from + o));
              if (o < outs) store_first(to + q * target.stride[2] + o, load_first(from + o, outs - o), outs - o);
            }
          }
        }
        if (turns) points_to_lines(sums.data(), outs, outs, s.length, out, target.channel_stride);
      }
    }
  });
}

}  // namespace lconv_fast::LCONV_ISA
