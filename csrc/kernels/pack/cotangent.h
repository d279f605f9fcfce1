// A tile of a tensor at its own points, in the layout of a panel.
#pragma once

#include "panel.h"

namespace lconv_fast::LCONV_ISA {

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
