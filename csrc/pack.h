// Packing: fills the panel of a tile with f and L_i f as it copies, so that L_i f never reaches memory.
//
//   rows of the panel, for the channels [c0, c0 + width): r = 0 is f itself (if the identity takes part), then L_1 f,
//   ... points-major   (channels-last data):  panel[p * stride + r * width + c] channels-major (channels-first data):
//   panel[(r * width + c) * kTile + p]
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "coefficients.h"

namespace lconv_fast::LCONV_ISA {

// What the panel's rows are.
enum class Panel {
  kLayer,       // f (if identity), then L_i f
  kDifferences  // D_a f, one per component
};

template <class S>
struct Packer {
  using A = Accumulate<S>;

  const Problem& problem;
  const Neighbours& near;
  const View& source;
  Panel panel_kind;
  int64_t taps, components;
  // Forward, a component gathers its taps; transposed, each tap has a coefficient of its own.
  bool one_tap_each;
  bool identity;
  std::vector<A> weights;          // of the taps
  std::vector<int64_t> first_tap;  // of each component
  std::vector<const S*> neighbour;
  std::vector<int64_t> advance;  // of each neighbour, from point to point
  std::vector<S> zeros;
  std::vector<A> lines;  // channels-major: the taps' values along the tile, kTile each
  std::vector<A> differences;

  Packer(const Problem& p, const Neighbours& n, const View& view, Panel kind, int64_t max_width)
      : problem(p),
        near(n),
        source(view),
        panel_kind(kind),
        taps(p.tap_count()),
        components(n.transposed ? p.tap_count() : p.component_count),
        identity(kind == Panel::kLayer && p.identity),
        neighbour(taps + 1),
        advance(taps + 1),
        zeros(max_width + kLanes<A>),
        lines((taps + 1) * kTile),
        differences(components * kTile) {
    one_tap_each = components == taps;
    line_.resize(taps + 1);
    for (int64_t j = 0; j < taps; ++j) {
      weights.push_back(n.transposed ? A(1) : static_cast<A>(p.tap_weights[j]));
      const int64_t component = n.transposed ? j : p.components[j];
      while (static_cast<int64_t>(first_tap.size()) <= component) first_tap.push_back(j);
    }
    first_tap.resize(components + 1, taps);
  }

  int64_t rows() const { return panel_kind == Panel::kDifferences ? components : problem.generators + identity; }

  // ---- channels-last: a point's channels are contiguous ----

  void points_major(int64_t batch, int64_t channel, int64_t width, const std::vector<Segment>& segments,
                    const A* coefficients, A* panel, int64_t stride) {
    const S* base = static_cast<const S*>(source.data) + batch * source.batch_stride + channel;
    std::vector<int64_t>& row = row_offsets_;
    row.resize(taps + 1);
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

  // `count` points whose neighbours advance by a step from each to the next.
  void run(const A* coefficients, int64_t width, int64_t count, A* out, int64_t stride) {
    if (panel_kind == Panel::kDifferences) {
      run_with(coefficients, width, count, out, stride, [this](auto... a) { differ(a...); });
    } else if (!one_tap_each && components == 1) {
      run_with(coefficients, width, count, out, stride, [this](auto... a) { combine<1>(a...); });
    } else if (!one_tap_each && components == 2) {
      run_with(coefficients, width, count, out, stride, [this](auto... a) { combine<2>(a...); });
    } else if (!one_tap_each && components == 3) {
      run_with(coefficients, width, count, out, stride, [this](auto... a) { combine<3>(a...); });
    } else {
      run_with(coefficients, width, count, out, stride, [this](auto... a) { gather(a...); });
    }
  }

  template <class Rows>
  inline void run_with(const A* coefficients, int64_t width, int64_t count, A* out, int64_t stride, Rows rows) {
    for (int64_t point = 0; point < count; ++point, ++coefficients, out += stride) {
      A* generated = out + (identity ? width : 0);
      int64_t c = 0;
      for (; c + kLanes<A> <= width; c += kLanes<A>) {
        const auto value = [&](int64_t j) { return load(neighbour[j] + c); };
        const auto write = [](A* p, Vector<A> x) { store(p, x); };
        if (identity) write(out + c, value(taps));
        rows(coefficients, width, generated + c, value, write);
      }
      if (c < width) {
        const int64_t n = width - c;
        const auto value = [&](int64_t j) { return load_first(neighbour[j] + c, n); };
        const auto write = [n](A* p, Vector<A> x) { store_first(p, x, n); };
        if (identity) write(out + c, value(taps));
        rows(coefficients, width, generated + c, value, write);
      }
      for (int64_t j = 0; j <= taps; ++j) neighbour[j] += advance[j];
    }
  }

  template <class Load, class Store>
  inline void differ(const A*, int64_t width, A* out, Load value, Store write) {
    for (int64_t a = 0; a < components; ++a) write(out + a * width, difference(a, value));
  }

  template <class Load>
  inline Vector<A> difference(int64_t a, Load value) {
    Vector<A> sum = {};
    for (int64_t j = first_tap[a]; j < first_tap[a + 1]; ++j) sum += broadcast(weights[j]) * value(j);
    return sum;
  }

  // L_i f = sum_a v[i,a] D_a f with the few differences D_a f in registers.
  template <int kComponents, class Load, class Store>
  inline void combine(const A* coefficients, int64_t width, A* out, Load value, Store write) {
    Vector<A> d[kComponents];
    for (int a = 0; a < kComponents; ++a) d[a] = difference(a, value);
    for (int64_t i = 0; i < problem.generators; ++i) {
      const A* v = coefficients + i * kComponents * kTile;
      Vector<A> sum = broadcast(v[0]) * d[0];
      for (int a = 1; a < kComponents; ++a) sum += broadcast(v[a * kTile]) * d[a];
      write(out + i * width, sum);
    }
  }

  // The same with any number of components: four generators at a time pass over the taps.
  template <class Load, class Store>
  inline void gather(const A* coefficients, int64_t width, A* out, Load value, Store write) {
    int64_t i = 0;
    for (; i + 4 <= problem.generators; i += 4) gather_block<4>(coefficients, i, width, out, value, write);
    for (; i < problem.generators; ++i) gather_block<1>(coefficients, i, width, out, value, write);
  }

  template <int kCount, class Load, class Store>
  inline void gather_block(const A* coefficients, int64_t i, int64_t width, A* out, Load value, Store write) {
    Vector<A> sum[kCount] = {};
    for (int64_t a = 0; a < components; ++a) {
      const Vector<A> d = difference(a, value);
      for (int g = 0; g < kCount; ++g) sum[g] += broadcast(coefficients[((i + g) * components + a) * kTile]) * d;
    }
    for (int g = 0; g < kCount; ++g) write(out + (i + g) * width, sum[g]);
  }

  // ---- channels-first: a row's points are contiguous ----

  void channels_major(int64_t batch, int64_t channel, int64_t width, const std::vector<Segment>& segments,
                      const A* coefficients, A* panel) {
    std::vector<int64_t>& row = row_offsets_;
    row.resize(segments.size() * (taps + 1));
    for (size_t s = 0; s < segments.size(); ++s) {
      for (int64_t j = 0; j <= taps; ++j) {
        row[s * (taps + 1) + j] = near.row_offset(j, segments[s].z, segments[s].y, source);
      }
    }
    const int64_t points = segments.back().first + segments.back().length;
    for (int64_t c = 0; c < width; ++c) {
      const S* base =
          static_cast<const S*>(source.data) + batch * source.batch_stride + (channel + c) * source.channel_stride;
      for (int64_t j = identity ? taps : taps - 1; j >= 0; --j) line_[j] = find_line(base, j, segments);
      for (int64_t a = 0; a < components; ++a) {
        difference_line(
            a, points,
            panel_kind == Panel::kDifferences ? panel + (a * width + c) * kTile : differences.data() + a * kTile);
      }
      if (panel_kind == Panel::kDifferences) continue;
      if (identity) std::copy_n(line_[taps], points, panel + c * kTile);
      for (int64_t i = 0; i < problem.generators; ++i) {
        combine_line(coefficients + i * components * kTile, points, panel + ((i + identity) * width + c) * kTile);
      }
    }
  }

 private:
  std::vector<int64_t> row_offsets_;
  std::vector<const A*> line_;  // channels-major: of each tap, in the data themselves or in `lines`

  // What tap j sees at the points of the tile, for one channel: the data where they lie so, else a copy.
  const A* find_line(const S* base, int64_t j, const std::vector<Segment>& segments) {
    if constexpr (std::is_same_v<S, A>) {
      const Segment& s = segments[0];
      const AxisTap& axis = near.at(j, 2);
      if (segments.size() == 1 && row_offsets_[j] >= 0 && axis.slope() * source.stride[2] == 1 &&
          axis.regular(s.x, s.length)) {
        return base + row_offsets_[j] + s.x + axis.shift;
      }
    }
    A* line = lines.data() + j * kTile;
    read_line(base, j, segments, line);
    return line;
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

  void difference_line(int64_t a, int64_t points, A* out) const {
    const auto add = [&](auto read) {
      Vector<A> sum = {};
      for (int64_t j = first_tap[a]; j < first_tap[a + 1]; ++j) sum += broadcast(weights[j]) * read(line_[j]);
      return sum;
    };
    int64_t x = 0;
    for (; x + kLanes<A> <= points; x += kLanes<A>) {
      store(out + x, add([x](const A* line) { return load(line + x); }));
    }
    if (x < points) {
      store(out + x, add([x, points](const A* line) { return load_first(line + x, points - x); }));
    }
  }

  // Panels are padded to kTile, a multiple of the vector: whole vectors throughout.
  void combine_line(const A* v, int64_t points, A* out) const {
    for (int64_t x = 0; x < points; x += kLanes<A>) {
      Vector<A> sum = {};
      for (int64_t a = 0; a < components; ++a) {
        sum += load(v + a * kTile + x) * load(differences.data() + a * kTile + x);
      }
      store(out + x, sum);
    }
  }
};

// W as the right (points-major) or left (channels-major) factor, for the rows and the channels of one panel:
// packed[block][k][lane], k = r * width + c; lanes past `outs` are zero.
template <class S>
void pack_weight(const WeightView& w, int64_t first_row, int64_t rows, int64_t channel, int64_t width, int64_t out0,
                 int64_t outs, int64_t lanes, Accumulate<S>* packed) {
  for (int64_t block = 0; block < outs; block += lanes) {
    for (int64_t r = first_row; r < first_row + rows; ++r) {
      for (int64_t c = channel; c < channel + width; ++c) {
        const S* at = static_cast<const S*>(w.data) + r * w.row_stride + c * w.in_stride;
        for (int64_t o = 0; o < lanes; ++o) {
          *packed++ = block + o < outs ? to_accumulate(at[(out0 + block + o) * w.out_stride]) : Accumulate<S>(0);
        }
      }
    }
  }
}

// A tile of a tensor at its own points, as [p][lane] (lanes = channels, zero-padded to `stride`; missing points zero)
template <class S>
void pack_points_major(const View& v, int64_t batch, int64_t channel, int64_t width,
                       const std::vector<Segment>& segments, int64_t points, int64_t stride, Accumulate<S>* packed) {
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
      for (int64_t c = 0; c < width; ++c) {
        for (int64_t x = 0; x < s.length; ++x) {
          out[x * stride + c] = to_accumulate(row[c * v.channel_stride + x * v.stride[2]]);
        }
      }
    }
  }
  const int64_t filled = segments.back().first + segments.back().length;
  for (int64_t p = 0; p < filled; ++p) std::fill(packed + p * stride + width, packed + (p + 1) * stride, A(0));
  std::fill(packed + filled * stride, packed + points * stride, A(0));
}

// The same as [c][p], kTile points each.
template <class S>
void pack_channels_major(const View& v, int64_t batch, int64_t channel, int64_t width,
                         const std::vector<Segment>& segments, Accumulate<S>* packed) {
  for (const Segment& s : segments) {
    const S* row = static_cast<const S*>(v.data) + batch * v.batch_stride + channel * v.channel_stride +
                   s.z * v.stride[0] + s.y * v.stride[1] + s.x * v.stride[2];
    for (int64_t c = 0; c < width; ++c) {
      for (int64_t x = 0; x < s.length; ++x) {
        packed[c * kTile + s.first + x] = to_accumulate(row[c * v.channel_stride + x * v.stride[2]]);
      }
    }
  }
}

}  // namespace lconv_fast::LCONV_ISA
