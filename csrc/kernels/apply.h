// apply: y = sum_r (L_r f) W_r, or its transpose.
#pragma once

#include "../plan.h"
#include "factor.h"
#include "pack/packer.h"
#include "phases.h"
#include "strips/apply.h"
#include "tiles.h"
#include "workspace.h"

namespace lconv_fast::LCONV_ISA {

// At all points of the target, or, transposed, at those of a phase.
template <class S>
void apply_at(const Problem& p, bool transposed, const int64_t* phase, const View& source, const WeightView& weight,
              const void* bias, const View& target) {
  using A = Accumulate<S>;
  const Plan plan = plan_apply(p, transposed);
  const Neighbours near(p, transposed, phase);
  const int64_t ins = transposed ? p.out_channels : p.in_channels;
  const int64_t outs = transposed ? p.in_channels : p.out_channels;
  const LineStorePlan strip_store = plan_strip_store<S>(p, near, source, ins, outs);
  if (takes_strips<S>(p, transposed, near, source, target, strip_store)) {
    return apply_strips<S>(p, transposed, near, source, weight, bias, target, strip_store);
  }
  // One channel has both layouts: the other side decides.
  const bool channels_last = target.channel_stride == 1 && (is_channels_last(source) || is_channels_last(target));
  // Few channels leave vectors along them empty: vectors go along the line, transposed on the way in and out.
  const bool transposes = channels_last && has_long_rows(near.target) && lines_pay<A>(ins, outs);
  // Channels-first data go the way of channels-last ones, turned on the way in and out.
  const LineStorePlan store = channels_last ? LineStorePlan{} : plan_tile_store<S>(p, near, source, ins, outs);
  const bool turns = store.capacity > 0, points_major = (channels_last && !transposes) || turns;
  const bool even = even_stride(target, near.target) >= 0;  // a phase has gaps between its lines
  const Tiles tiles(near.target,
                    plan.row_basis || !even ? Tiles::kAtRows
                    : points_major          ? Tiles::kAnywhere
                                            : Tiles::kAtLongRows,
                    store.slab);
  const Tasks tasks(p.batch, tiles.count, turns ? 1 : Tasks::kTogether);
  const int64_t point_stride = even ? even_stride(target, near.target) : target.stride[2];
  const PanelRows panel_of = !plan.row_basis ? PanelRows::kLayer
                             : transposed    ? PanelRows::kTransposedBasis
                                             : PanelRows::kDifferences;
  const int64_t rows = panel_rows(p, panel_of, p.identity);
  const ChannelBlocks blocks(ins, rows, kLanes<A>);
  const LayerFactor<S> factor(p, transposed, plan.row_basis, points_major, weight, blocks);
  const int64_t columns = factor.columns();
  const int64_t slots = plan.row_basis ? p.tap_count() + 1
                        : transposed   ? p.generators * p.tap_count()
                                       : p.generators * p.component_count;
  // Lines of sums whose points the target does not have side by side are scattered.
  const bool scatters = transposes || turns || (!points_major && point_stride != 1);
  // Sums over several blocks of channels need a place in the accumulation type, those to be scattered one by lines: the
  // target, or their own.
  const bool own_sums = scatters || (!std::is_same_v<S, A> && blocks.count > 1);

  const Workspace<A> starts(p.groups * columns);  // the bias, padded like the factor
  for (int64_t o = 0; bias && o < p.groups * outs; ++o) {
    starts.data()[o / outs * columns + o % outs] = to_accumulate(static_cast<const S*>(bias)[o]);
  }

  parallel_for(tasks.count, [&](int64_t begin, int64_t end) {
    const int64_t depth = rows * blocks.width, stride = panel_stride(depth);
    const Workspace<A> coefficients(slots * kTile, Contents::kAny),
        panel(points_major ? kTile * stride : line_panel_size<A>(depth), Contents::kAny),
        sums(own_sums ? kTile * std::max(columns, outs) : 0, Contents::kAny),
        row_factor(plan.row_basis ? factor.size() : 0, Contents::kAny);
    const A* coordinates = coefficients.data() + (transposed ? p.tap_count() * kTile : 0);
    if (plan.row_basis) std::copy_n(factor.main(0, 0), factor.size(), row_factor.data());
    Packer<S> packer(p, near, source, panel_of, p.identity, blocks.width, points_major, store);
    std::vector<Segment> segments;
    int64_t tile = -1, row = -1;
    for (int64_t task = begin; task < end; ++task) {
      const Tasks::Task at = tasks.at(task);
      if (at.tile != tile) {
        tile = at.tile;
        tiles.segments(tile, segments);
        if (!plan.row_basis) {
          if (packer.takes_coefficients()) fill_coefficients(p, near, segments, coefficients.data());
        } else {
          if (transposed) {
            fill_shifts(p, near, segments, coefficients.data());
          } else {
            fill_coordinates(p, near, segments, coefficients.data());
          }
          const Segment& s = segments[0];
          if (p.ndim > 1 && s.z * near.target[1] + s.y != row) {
            row = s.z * near.target[1] + s.y;
            factor.set_row(p.coordinate<A>(near.at(p.tap_count(), 0).position(s.z), 0),
                           p.coordinate<A>(near.at(p.tap_count(), 1).position(s.y), 1), row_factor.data());
          }
        }
      }
      const int64_t points = tiles.size(tile);
      for (int64_t g = 0; g < p.groups; ++g) {
        S* out = static_cast<S*>(target.data) + at.batch * target.batch_stride + g * outs * target.channel_stride +
                 segments[0].z * target.stride[0] + segments[0].y * target.stride[1] + segments[0].x * target.stride[2];
        const int64_t out_stride = points_major ? point_stride : target.channel_stride;
        for (int64_t b = 0; b < blocks.count; ++b) {
          const int64_t c = blocks.first(b), width = blocks.size(b);
          const A* main =
              plan.row_basis ? row_factor.data() + (factor.main(g, c) - factor.main(0, 0)) : factor.main(g, c);
          const int64_t main_depth = rows * width, scaled_depth = factor.scaled_rows() * width;
          Sum<A> sum;
          if (rows > 0) packer.pack(at.batch, g * ins + c, width, segments, coefficients.data(), panel.data(), stride);
          if (points_major) {
            sum.second = {main_depth,
                          {panel.data(), layout_of_panel(stride), stride},
                          {main, main_depth * kBlockLanes<A>, kBlockLanes<A>}};
            sum.first = {scaled_depth,
                         {panel.data() + p.identity * width, layout_of_panel(stride), stride},
                         {factor.scaled(g, c), scaled_depth * kBlockLanes<A>, kBlockLanes<A>}};
          } else {
            sum.second = {main_depth, {main}, {panel.data(), line_block_stride<A>(main_depth), kBlockLanes<A>}};
            sum.first = {
                scaled_depth,
                {factor.scaled(g, c)},
                {panel.data() + p.identity * width * kBlockLanes<A>, line_block_stride<A>(main_depth), kBlockLanes<A>}};
          }
          if (plan.row_basis && scaled_depth > 0) sum.scale = coordinates;
          sum.scale_rows = points_major;
          const A* start = starts.data() + g * columns;
          const auto start_kind = points_major ? Output<S>::kByColumn : Output<S>::kByRow;
          const int64_t product_rows = points_major ? points : outs, product_columns = points_major ? outs : points;
          const bool last_block = b + 1 == blocks.count;
          if (own_sums && (scatters || !last_block)) {
            const int64_t sums_stride = points_major ? columns : kTile;
            const auto first_kind = points_major ? Output<A>::kByColumn : Output<A>::kByRow;
            multiply(sum, product_rows, product_columns,
                     b == 0 ? Output<A>{sums.data(), sums_stride, first_kind, start}
                            : Output<A>{sums.data(), sums_stride, Output<A>::kSums, sums.data(), sums_stride});
          } else if (b == 0) {
            multiply(sum, product_rows, product_columns, Output<S>{out, out_stride, start_kind, start});
          } else if (own_sums) {
            multiply(sum, product_rows, product_columns,
                     Output<S>{out, out_stride, Output<S>::kSums, sums.data(), points_major ? columns : kTile});
          } else if constexpr (std::is_same_v<S, A>) {
            multiply(sum, product_rows, product_columns, Output<S>{out, out_stride, Output<S>::kSums, out, out_stride});
          }
        }
        if (transposes) {
          lines_to_points(sums.data(), kTile, outs, points, out, point_stride);
        } else if (turns && point_stride == 1) {
          points_to_lines(sums.data(), columns, outs, points, out, target.channel_stride);
        } else if (scatters) {
          const int64_t along_outs = turns ? 1 : kTile, along_points = turns ? columns : 1;
          for (int64_t o = 0; o < outs; ++o) {
            for (int64_t k = 0; k < points; ++k) {
              from_accumulate(sums.data()[o * along_outs + k * along_points],
                              out + o * target.channel_stride + k * point_stride);
            }
          }
        }
      }
    }
  });
}

template <class S>
void apply(const Problem& p, bool transposed, const View& source, const WeightView& weight, const void* bias,
           const View& target) {
  if (!transposed || (p.step[0] == 1 && p.step[1] == 1 && p.step[2] == 1)) {
    return apply_at<S>(p, transposed, nullptr, source, weight, bias, target);
  }
  for_phases(p, target, [&](const int64_t first[kAxes], const Phase& phase) {
    apply_at<S>(phase.problem, true, first, source, weight, bias, phase.target);
  });
}

}  // namespace lconv_fast::LCONV_ISA
