// The panel of a tile, in either layout.
#pragma once

#include <optional>

#include "channels_major.h"
#include "points_major.h"

namespace lconv_fast::LCONV_ISA {

template <class S>
class Packer {
  using A = Accumulate<S>;

 public:
  Packer(const Problem& p, const Neighbours& near, const View& source, PanelRows rows, bool identity, int64_t max_width,
         bool points_major, const LineStorePlan& plan)
      : formula_(p, near, source, rows, identity) {
    if (points_major) {
      points_major_.emplace(formula_, max_width, plan);
    } else {
      channels_major_.emplace(formula_, max_width);
    }
  }
  Packer(const Packer&) = delete;  // the packers refer to the formula

  bool takes_coefficients() const { return formula_.form != TapForm::kShift; }

  // Channels [channel, channel + width) of a sample at the points of a tile. `stride`: of points-major panels.
  void pack(int64_t batch, int64_t channel, int64_t width, const std::vector<Segment>& segments, const A* coefficients,
            A* panel, int64_t stride) {
    if (points_major_) {
      points_major_->pack(batch, channel, width, segments, coefficients, panel, stride);
    } else {
      channels_major_->pack(batch, channel, width, segments, coefficients, panel);
    }
  }

 private:
  const RowFormula<S> formula_;
  std::optional<PointsMajorPacker<S>> points_major_;
  std::optional<ChannelsMajorPacker<S>> channels_major_;
};

}  // namespace lconv_fast::LCONV_ISA
