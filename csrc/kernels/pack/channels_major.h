// Channels-major panels: a line's points are contiguous, vectors go along them. Channels-first data are read as they
// lie, channels-last data transposed in registers.
#pragma once

#include <optional>
#include <type_traits>

#include "../workspace.h"
#include "panel.h"
#include "transpose.h"

namespace lconv_fast::LCONV_ISA {

template <class S>
class ChannelsMajorPacker {
  using A = Accumulate<S>;

 public:
  ChannelsMajorPacker(const RowFormula<S>& formula, int64_t max_width)
      : k_(formula),
        from_points_(formula.source.channel_stride == 1 && formula.source.stride[2] != 1),
        lines_((formula.taps + 1) * kTile),
        line_(formula.taps + 1),
        way_(way()) {
    find_leaders(from_points_ ? max_width : 1);
  }

  void pack(int64_t batch, int64_t channel, int64_t width, const std::vector<Segment>& segments, const A* coefficients,
            A* panel) {
    row_offsets_.resize(segments.size() * (k_.taps + 1));
    for (size_t s = 0; s < segments.size(); ++s) {
      for (int64_t j = 0; j <= k_.taps; ++j) {
        row_offsets_[s * (k_.taps + 1) + j] = k_.near.row_offset(j, segments[s].z, segments[s].y, k_.source);
      }
    }
    const int64_t points = segments.back().first + segments.back().length;
    for (int64_t c = 0; c < width; ++c) {
      const S* base = static_cast<const S*>(k_.source.data) + batch * k_.source.batch_stride +
                      (channel + c) * k_.source.channel_stride;
      if (!from_points_ && c + kAhead < width) fetch_lines(base + kAhead * k_.source.channel_stride, segments[0]);
      if (c == 0 || !from_points_) std::fill(wide_line_filled_.begin(), wide_line_filled_.end(), false);
      for (int64_t j = k_.identity ? k_.taps : k_.taps - 1; j >= 0; --j)
        line_[j] = find_line(base, c, width, j, segments);
      A* out = panel + c * kBlockLanes<A>;
      depth_ = panel_rows(k_.problem, k_.rows, k_.identity) * width;
      if (k_.identity) {
        for_points(points, [&](int64_t x, auto read) { store(out + place(x), read(line_[k_.taps] + x)); });
        out += width * kBlockLanes<A>;
      }
      (this->*way_)(coefficients, points, width * kBlockLanes<A>, out);
    }
  }

 private:
  // Makes the panel's rows of one channel. Panels are padded to kTile, a multiple of the vector: whole vectors are
  // written throughout.
  using Run = void (ChannelsMajorPacker::*)(const A* coefficients, int64_t points, int64_t row_stride, A* out) const;
  struct Way {
    PanelRows rows;
    TapForm taps;
    int count;
    Run run;
  };

  // The closed list of ways: the first that fits is taken.
  Run way() const {
    static constexpr Way kWays[] = {
        // rows, taps, components or taps (0: any number)
        {PanelRows::kLayer, TapForm::kCentral, 1, &ChannelsMajorPacker::central_lines<1>},
        {PanelRows::kLayer, TapForm::kCentral, 2, &ChannelsMajorPacker::central_lines<2>},
        {PanelRows::kLayer, TapForm::kCentral, 3, &ChannelsMajorPacker::central_lines<3>},
        {PanelRows::kDifferences, TapForm::kCentral, 1, &ChannelsMajorPacker::central_lines<1>},
        {PanelRows::kDifferences, TapForm::kCentral, 2, &ChannelsMajorPacker::central_lines<2>},
        {PanelRows::kDifferences, TapForm::kCentral, 3, &ChannelsMajorPacker::central_lines<3>},
        {PanelRows::kLayer, TapForm::kOneEach, 2, &ChannelsMajorPacker::gather_all_lines<2>},
        {PanelRows::kLayer, TapForm::kOneEach, 4, &ChannelsMajorPacker::gather_all_lines<4>},
        {PanelRows::kLayer, TapForm::kOneEach, 6, &ChannelsMajorPacker::gather_all_lines<6>},
        {PanelRows::kLayer, TapForm::kShift, 0, &ChannelsMajorPacker::shift_lines},
        {PanelRows::kTransposedBasis, TapForm::kAny, 0, &ChannelsMajorPacker::basis_lines},
        {PanelRows::kDifferences, TapForm::kAny, 0, &ChannelsMajorPacker::difference_lines},
        {PanelRows::kLayer, TapForm::kAny, 0, &ChannelsMajorPacker::gather_all_lines<0>},
    };
    for (const Way* w = kWays;; ++w) {
      const bool taps_fit = w->taps == TapForm::kAny || w->taps == k_.form;
      if (w->rows == k_.rows && taps_fit && (w->count == 0 || w->count == k_.components)) return w->run;
    }
  }

  int64_t place(int64_t point) const { return line_place<A>(point, depth_); }

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
    for (int a = 0; a < kComponents; ++a) weight[a] = broadcast(k_.weights[2 * a + 1]);
    const int64_t generators = k_.problem.generators;
    const bool differences = k_.rows == PanelRows::kDifferences;
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

  void shift_lines(const A*, int64_t points, int64_t row_stride, A* out) const {
    for (const auto& shift : k_.shifts) {
      const A* line = shift.tap >= 0 ? line_[shift.tap] : nullptr;
      const Vector<A> weight = broadcast(shift.weight);
      for_points(points,
                 [&](int64_t x, auto read) { store(out + place(x), line ? weight * read(line + x) : Vector<A>{}); });
      out += row_stride;
    }
  }

  void difference_lines(const A*, int64_t points, int64_t row_stride, A* out) const {
    for (int64_t a = 0; a < k_.components; ++a) {
      for_points(points, [&](int64_t x, auto read) {
        store(out + a * row_stride + place(x), k_.difference(a, [&](int64_t j) { return read(line_[j] + x); }));
      });
    }
  }

  void basis_lines(const A* shifts, int64_t points, int64_t row_stride, A* out) const {
    for (int64_t a = 0; a < k_.components; ++a) {
      A* shifted = out + (a + 1 < k_.components ? k_.components + 1 + a : k_.components) * row_stride;
      for_points(points, [&](int64_t x, auto read) {
        Vector<A> d = {}, s = {};
        for (int64_t j = k_.first_tap[a]; j < k_.first_tap[a + 1]; ++j) {
          const Vector<A> g = read(line_[j] + x);
          d += broadcast(k_.weights[j]) * g;
          s += load(shifts + j * kTile + x) * g;
        }
        store(out + a * row_stride + place(x), d);
        store(shifted + place(x), a + 1 < k_.components ? s : s + load(shifts + k_.taps * kTile + x) * d);
      });
    }
  }

  template <int kTaps>
  void gather_all_lines(const A* coefficients, int64_t points, int64_t row_stride, A* out) const {
    int64_t i = 0;
    for (; i + 4 <= k_.problem.generators; i += 4) gather_lines<kTaps, 4>(coefficients, i, points, row_stride, out);
    if (k_.problem.generators - i == 3) return gather_lines<kTaps, 3>(coefficients, i, points, row_stride, out);
    if (k_.problem.generators - i == 2) return gather_lines<kTaps, 2>(coefficients, i, points, row_stride, out);
    if (k_.problem.generators - i == 1) return gather_lines<kTaps, 1>(coefficients, i, points, row_stride, out);
  }

  // kTaps: of one_tap_each; 0 for any number and rows of components.
  template <int kTaps, int kCount>
  void gather_lines(const A* coefficients, int64_t i, int64_t points, int64_t row_stride, A* out) const {
    const int64_t count = kTaps ? kTaps : k_.components, each = count * kTile;
    const A* line[kTaps + 1];
    for (int j = 0; j < kTaps; ++j) line[j] = line_[j];
    for_points(points, [&](int64_t x, auto read) {
      Vector<A> sum[kCount] = {};
      const A* v = coefficients + i * each + x;
      for (int64_t a = 0; a < count; ++a, v += kTile) {
        const Vector<A> d = kTaps ? read(line[a] + x) : k_.difference(a, [&](int64_t j) { return read(line_[j] + x); });
        for (int g = 0; g < kCount; ++g) sum[g] += load(v + g * each) * d;
      }
      for (int g = 0; g < kCount; ++g) store(out + (i + g) * row_stride + place(x), sum[g]);
    });
  }

  // What tap j sees at the points of the tile, for one channel: the data where they lie so, else a copy; taps that see
  // the same row share one.
  const A* find_line(const S* base, int64_t c, int64_t width, int64_t j, const std::vector<Segment>& segments) {
    const Segment& s = segments[0];
    const AxisTap& axis = k_.near.at(j, 2);
    const bool one_row = segments.size() == 1 && row_offsets_[j] >= 0;
    if (one_row && axis.slope() * k_.source.stride[2] == 1) {
      if constexpr (std::is_same_v<S, A>) {
        if (axis.regular(s.x, s.length)) return base + row_offsets_[j] + s.x + axis.shift;
      }
      if (axis.step == 1 && reach_[row_leader_[j]] <= kReach) return find_wide_line(base, 0, 1, j, s);
    }
    if (one_row && from_points_ && axis.step == 1 && reach_[row_leader_[j]] <= kReach) {
      return find_wide_line(base - c, c, width, j, s);
    }
    A* line = lines_.data() + j * kTile;
    read_line(base, j, segments, line);
    return line;
  }

  void find_leaders(int64_t channels) {
    for (int64_t j = 0; j <= k_.taps; ++j) {
      int64_t leader = 0;
      while (k_.near.at(leader, 0).tap != k_.near.at(j, 0).tap || k_.near.at(leader, 1).tap != k_.near.at(j, 1).tap)
        ++leader;
      row_leader_.push_back(leader);
      reach_.push_back(0);
      reach_[leader] = std::max(reach_[leader], std::abs(k_.near.at(j, 2).tap));
    }
    wide_size_ = channels * kWide;
    wide_lines_.emplace((k_.taps + 1) * wide_size_);
    wide_line_filled_.resize(k_.taps + 1);
  }

  // Channel c of the row that tap j sees, with as many points beyond the tile on both sides as its taps reach; all
  // `width` channels from `base` on are read at once.
  const A* find_wide_line(const S* base, int64_t c, int64_t width, int64_t j, const Segment& s) {
    const int64_t leader = row_leader_[j], reach = reach_[leader], tap = k_.near.at(j, 2).tap;
    const AxisTap& axis = k_.near.at(k_.taps, 2);  // tap 0
    A* line = wide_lines_->data() + leader * wide_size_ + kReach;
    if (!wide_line_filled_[leader]) {
      wide_line_filled_[leader] = true;
      const S* values = base + row_offsets_[j];
      const int64_t first = -reach, last = s.length + reach;
      const int64_t begin = std::clamp(axis.begin - s.x, first, last), end = std::clamp(axis.end - s.x, begin, last);
      const int64_t step = k_.source.stride[2];
      const auto edge = [&](int64_t x) {
        const int64_t at = axis.source(s.x + x);
        for (int64_t k = 0; k < width; ++k) line[k * kWide + x] = at < 0 ? A(0) : to_accumulate(values[at * step + k]);
      };
      const S* inside = values + (s.x + axis.shift) * step;
      // From the first point of the tile on, where the lines are aligned; what lies before it are single points.
      const int64_t aligned = std::clamp<int64_t>(0, begin, end);
      for (int64_t x = first; x < aligned; ++x) edge(x);
      points_to_lines(inside + aligned * step, step, width, end - aligned, line + aligned, kWide);
      for (int64_t x = end; x < last; ++x) edge(x);
    }
    return line + c * kWide + (k_.near.transposed ? -tap : tap);
  }

  // Pieces of a row are too short for the hardware to foresee those of the next channels.
  void fetch_lines(const S* base, const Segment& s) const {
    for (int64_t j = 0; j <= k_.taps; ++j) {
      if (row_offsets_[j] < 0 || row_leader_[j] != j) continue;
      const int64_t x = k_.near.at(k_.taps, 2).source(s.x);
      if (x < 0) continue;
      const S* row = base + row_offsets_[j] + x * k_.source.stride[2];
      const int64_t bytes = s.length * k_.near.at(k_.taps, 2).slope() * static_cast<int64_t>(sizeof(S));
      for (int64_t at = 0; k_.source.stride[2] == 1 && at < bytes; at += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(row) + at);
      }
    }
  }

  // What tap j sees at the points of the tile, for one channel.
  void read_line(const S* base, int64_t j, const std::vector<Segment>& segments, A* line) const {
    const AxisTap& axis = k_.near.at(j, 2);
    for (size_t k = 0; k < segments.size(); ++k) {
      const Segment& s = segments[k];
      A* out = line + s.first;
      const int64_t row = row_offsets_[k * (k_.taps + 1) + j];
      if (row < 0) {
        std::fill(out, out + s.length, A(0));
        continue;
      }
      const S* values = base + row;
      const int64_t begin = std::clamp<int64_t>(axis.begin - s.x, 0, s.length);
      const int64_t end = std::clamp<int64_t>(axis.end - s.x, begin, s.length);
      const auto edge = [&](int64_t x) {
        const int64_t at = axis.source(s.x + x);
        return at < 0 ? A(0) : to_accumulate(values[at * k_.source.stride[2]]);
      };
      for (int64_t x = 0; x < begin; ++x) out[x] = edge(x);
      const int64_t step = axis.slope() * k_.source.stride[2];
      const S* first = values + (s.x * axis.slope() + axis.shift) * k_.source.stride[2];
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

  static constexpr int64_t kReach = 16, kWide = kTile + 2 * kReach;
  static constexpr int64_t kAhead = 2;  // channels that are fetched before their turn

  const RowFormula<S>& k_;
  const bool from_points_;      // whether the data are channels-last
  std::vector<A> lines_;        // the taps' values along the tile, kTile each
  std::vector<const A*> line_;  // of each tap, in the data themselves or in `lines_`
  const Run way_;
  int64_t depth_ = 0;  // of the panel
  std::vector<int64_t> row_offsets_;
  std::vector<int64_t> row_leader_;  // of each tap: the first one that sees the same row
  std::vector<int64_t> reach_;       // of each leader: how far the taps of its row go along it
  int64_t wide_size_ = 0;
  std::optional<Workspace<A>> wide_lines_;  // of each leader: kWide numbers for each channel
  std::vector<bool> wide_line_filled_;
};

}  // namespace lconv_fast::LCONV_ISA
