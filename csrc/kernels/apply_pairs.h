// apply for bfloat16, where the processor multiplies pairs: the rows of the panel are rounded to bfloat16, as L_i f
// would be if it were written, and W enters as it is.
#pragma once

#include "pack/points_major.h"
#include "pairs.h"
#include "phases.h"
#include "tiles.h"
#include "workspace.h"

namespace lconv_fast::LCONV_ISA {

// Channels-last data, and channels enough: tiles lose to padding, and `vdpbf16ps` to strips in float32 (strips/).
#if defined(__AMX_BF16__)
constexpr int64_t kPairChannels = 8;
#else
constexpr int64_t kPairChannels = 16;
#endif

inline bool takes_pairs(const Problem& p, bool transposed, const View& source, const View& target) {
  const int64_t ins = transposed ? p.out_channels : p.in_channels, outs = transposed ? p.in_channels : p.out_channels;
  return p.scalar == Scalar::kBFloat16 && is_channels_last(source) && target.channel_stride == 1 &&
         ins >= kPairChannels && outs >= kPairChannels;
}

// W of one group and one block of channels as the right factor: k = r * width + c, zero past the last row and column.
inline void pack_pairs(const WeightView& w, int64_t first_row, int64_t rows, int64_t channel, int64_t width,
                       int64_t outs, int64_t depth, int64_t columns, BFloat16* packed) {
  for (int64_t out = 0; out < columns; ++out) {
    BFloat16* to = packed + out / kPairLanes * depth * kPairLanes + out % kPairLanes * 2;
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t r = k / width, c = channel + k % width;
      to[k / 2 * kPairColumns + k % 2] =
          r < rows && out < outs ? static_cast<const BFloat16*>(
                                       w.data)[(first_row + r) * w.row_stride + c * w.in_stride + out * w.out_stride]
                                 : BFloat16{0};
    }
  }
}

inline void apply_pairs_at(const Problem& p, bool transposed, const int64_t* phase, const View& source,
                           const WeightView& weight, const void* bias, const View& target) {
  const Neighbours near(p, transposed, phase);
  const int64_t ins = transposed ? p.out_channels : p.in_channels, outs = transposed ? p.in_channels : p.out_channels;
  const int64_t even = even_stride(target, near.target);
  const Tiles tiles(near.target, even < 0 ? Tiles::kAtRows : Tiles::kAnywhere);
  const Tasks tasks(p.batch, tiles.count);
  const int64_t point_stride = even < 0 ? target.stride[2] : even;
  const RowFormula<BFloat16> formula(p, near, source, PanelRows::kLayer, p.identity);
  const int64_t rows = panel_rows(p, PanelRows::kLayer, p.identity), columns = round_up(outs, kPairColumns);
  const ChannelBlocks blocks(ins, rows, kLanes<float>);
  const auto depth_of = [&](int64_t width) { return round_up(rows * width, kPairDepth); };
  const int64_t most = depth_of(blocks.width);
  const int64_t stride = most + (most / kPairDepth % 2 ? 0 : kPairDepth);  // an odd number of cache lines
  const int64_t slots = p.generators * (transposed ? p.tap_count() : p.component_count);

  const Workspace<BFloat16> factor(p.groups * blocks.count * most * columns);
  const Workspace<float> starts(p.groups * columns);
  for (int64_t o = 0; bias && o < p.groups * outs; ++o) {
    starts.data()[o / outs * columns + o % outs] = to_accumulate(static_cast<const BFloat16*>(bias)[o]);
  }
  for (int64_t g = 0; g < p.groups; ++g) {
    WeightView w = weight;
    w.data = static_cast<const BFloat16*>(weight.data) + g * p.out_channels * weight.out_stride;
    if (transposed) std::swap(w.in_stride, w.out_stride);
    for (int64_t b = 0; b < blocks.count; ++b) {
      const int64_t width = blocks.size(b);
      pack_pairs(w, p.identity ? 0 : 1, rows, blocks.first(b), width, outs, depth_of(width), columns,
                 factor.data() + (g * blocks.count + b) * most * columns);
    }
  }

  parallel_for(tasks.count, [&](int64_t begin, int64_t end) {
    const Workspace<float> coefficients(slots * kTile, Contents::kAny), sums(kTile * columns);
    const Workspace<BFloat16> panel(kTile * stride);
    PointsMajorPacker<BFloat16, BFloat16> packer(formula, blocks.width);
    const PairProducts products;
    std::vector<Segment> segments;
    int64_t tile = -1;
    for (int64_t task = begin; task < end; ++task) {
      const Tasks::Task at = tasks.at(task);
      if (at.tile != tile) {
        tile = at.tile;
        tiles.segments(tile, segments);
        if (formula.form != TapForm::kShift) fill_coefficients(p, near, segments, coefficients.data());
      }
      const int64_t points = tiles.size(tile);
      const Segment& first = segments[0];
      for (int64_t g = 0; g < p.groups; ++g) {
        for (int64_t b = 0; b < blocks.count; ++b) {
          const int64_t width = blocks.size(b), used = rows * width, depth = depth_of(width);
          packer.pack(at.batch, g * ins + blocks.first(b), width, segments, coefficients.data(), panel.data(), stride);
          // What other blocks left there could be no number.
          for (int64_t k = 0; used < depth && k < points; ++k) {
            std::fill(panel.data() + k * stride + used, panel.data() + k * stride + depth, BFloat16{0});
          }
          products.multiply(round_up(points, kPairRows), columns, depth, panel.data(), stride,
                            factor.data() + (g * blocks.count + b) * most * columns, sums.data(), columns, b > 0);
        }
        BFloat16* out = static_cast<BFloat16*>(target.data) + at.batch * target.batch_stride + g * outs +
                        first.z * target.stride[0] + first.y * target.stride[1] + first.x * target.stride[2];
        const float *sum = sums.data(), *start = starts.data() + g * columns;
        for (int64_t k = 0; k < points; ++k, out += point_stride, sum += columns) {
          int64_t o = 0;
          for (; o + kLanes<float> <= outs; o += kLanes<float>) store(out + o, load(sum + o) + load(start + o));
          if (o < outs) store_first(out + o, load(sum + o) + load(start + o), outs - o);
        }
      }
    }
  });
}

inline void apply_pairs(const Problem& p, bool transposed, const View& source, const WeightView& weight,
                        const void* bias, const View& target) {
  if (!transposed || (p.step[0] == 1 && p.step[1] == 1 && p.step[2] == 1)) {
    return apply_pairs_at(p, transposed, nullptr, source, weight, bias, target);
  }
  for_phases(p, target, [&](const int64_t first[kAxes], const Phase& phase) {
    apply_pairs_at(phase.problem, true, first, source, weight, bias, phase.target);
  });
}

}  // namespace lconv_fast::LCONV_ISA
