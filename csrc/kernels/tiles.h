// How a call is cut into tiles of points and blocks of channels.
#pragma once

#include <algorithm>
#include <vector>

#include "../plan.h"
#include "microkernel.h"

namespace lconv_fast::LCONV_ISA {

static_assert(kTile % kBlockRows<1> == 0 && kTile % kBlockRows<2> == 0 && kTile % kBlockLanes<float> == 0);

// A run of a tile's points along the last axis: points [first, first + length) of the tile.
struct Segment {
  int64_t z, y, x;
  int64_t length, first;
};

// The points [begin, end) of a grid in row-major order, as segments.
inline void split_into_segments(const int64_t extent[kAxes], int64_t begin, int64_t end,
                                std::vector<Segment>& segments) {
  segments.clear();
  for (int64_t point = begin; point < end;) {
    const int64_t x = point % extent[2], row = point / extent[2];
    const int64_t length = std::min(extent[2] - x, end - point);
    // Number by number: a copy of the whole from the stack would wait until all results before it have left the store
    // buffer.
    segments.emplace_back();
    Segment& s = segments.back();
    s.z = row / extent[1];
    s.y = row % extent[1];
    s.x = x;
    s.length = length;
    s.first = point - begin;
    point += length;
  }
}

// Channels are taken in blocks so that a panel of a tile's points stays in the second-level cache and a packed block of
// W in the first: rows * width <= kPanelDepth.
struct ChannelBlocks {
  int64_t channels, width, count;
  ChannelBlocks(int64_t channels_, int64_t rows, int64_t lanes) : channels(channels_) {
    const int64_t most = std::max(lanes, kPanelDepth / std::max<int64_t>(rows, 1) / lanes * lanes);
    count = std::max<int64_t>(1, divide_up(channels, most));
    width = std::min(channels, round_up(divide_up(channels, count), lanes));
    count = std::max<int64_t>(1, divide_up(channels, std::max<int64_t>(width, 1)));  // without channels, an empty sum
  }
  int64_t first(int64_t block) const { return block * width; }
  int64_t size(int64_t block) const { return std::min(width, channels - block * width); }
};

inline bool is_channels_last(const View& v) { return v.channel_stride == 1 && v.stride[2] != 1; }

// The step from each point to the next in row-major order, where it is the same all over; -1 otherwise.
inline int64_t even_stride(const View& v, const int64_t extent[kAxes]) {
  int64_t step = -1, covered = 1;
  for (int a = kAxes - 1; a >= 0; --a) {
    if (extent[a] == 1) continue;
    if (step < 0) step = v.stride[a];
    if (v.stride[a] != step * covered) return -1;
    covered *= extent[a];
  }
  return step < 0 ? 1 : step;
}

// Whether little is lost to padding in tiles that are pieces of rows.
inline bool has_long_rows(const int64_t extent[kAxes]) {
  return extent[2] >= 32 && 8 * (round_up(extent[2], kBlockLanes<float>) - extent[2]) <= extent[2];
}

// Whether channels-last data are better transposed than worked on along their channels, which fill a quarter of a
// vector on one side and half of one on the other at most. Measured: at half a vector on both sides neither gains.
template <class A>
bool lines_pay(int64_t ins, int64_t outs) {
  return 4 * std::min(ins, outs) <= kLanes<A> && 2 * std::max(ins, outs) <= kLanes<A>;
}

// The tiles of one sample: consecutive points, as many as the cache holds a panel of (plan.h); or pieces of a row,
// which share what depends on the row and which channels-first data can be read from in place, worth it where little is
// lost to padding. With a slab of so many rows, tiles lie in it and go through it plane by plane, slab after slab.
struct Tiles {
  enum Cut { kAnywhere, kAtLongRows, kAtRows };
  const int64_t* extent;
  int64_t points, slab, width, per_row, count;
  Tiles(const int64_t* extent_, Cut cut, int64_t slab_ = 0)
      : extent(extent_), points(extent[0] * extent[1] * extent[2]), slab(slab_ ? slab_ : extent[1]) {
    constexpr int64_t lanes = kBlockLanes<float>;
    const int64_t most = tile_points(kTile, kPanelStride * sizeof(float));
    if (cut == kAtRows || (cut == kAtLongRows && has_long_rows(extent))) {
      width = std::min(most, round_up(divide_up(extent[2], divide_up(extent[2], most)), lanes));
      per_row = divide_up(extent[2], width);
      count = extent[0] * extent[1] * per_row;
    } else {
      width = most;
      per_row = 0;
      const int64_t rest = extent[1] % slab;
      count = slab == extent[1] ? divide_up(points, most)
                                : extent[0] * (extent[1] / slab * in_piece(slab) + (rest ? in_piece(rest) : 0));
    }
  }
  int64_t begin(int64_t tile) const { return range(tile).begin; }
  int64_t size(int64_t tile) const { return range(tile).size; }
  void segments(int64_t tile, std::vector<Segment>& out) const {
    const Range at = range(tile);
    split_into_segments(extent, at.begin, at.begin + at.size, out);
  }

 private:
  struct Range {
    int64_t begin, size;
  };
  // Tiles of so many rows of a plane.
  int64_t in_piece(int64_t rows) const { return divide_up(rows * extent[2], width); }

  Range range(int64_t tile) const {
    if (!per_row && slab == extent[1]) return {tile * width, std::min(width, points - tile * width)};
    // In each slab, for each plane: its rows, and the pieces of each; or pieces of all its rows together.
    const int64_t in_slab = extent[0] * (per_row ? slab * per_row : in_piece(slab));
    const int64_t first_row = tile / in_slab * slab, rows = std::min(slab, extent[1] - first_row);
    const int64_t in_plane = per_row ? rows * per_row : in_piece(rows), rest = tile % in_slab;
    const int64_t first = (rest / in_plane * extent[1] + first_row) * extent[2], k = rest % in_plane;
    if (!per_row) return {first + k * width, std::min(width, rows * extent[2] - k * width)};
    const int64_t x = k % per_row * width;
    return {first + k / per_row * extent[2] + x, std::min(width, extent[2] - x)};
  }
};

// Tiles of all samples. A few samples follow each other at the same tile, which shares its coefficients; not all, so
// that the rows which neighbouring tiles have in common stay in the cache.
struct Tasks {
  static constexpr int64_t kTogether = 4;
  int64_t batch, tiles, together, count;
  Tasks(int64_t batch_, int64_t tiles_, int64_t together_ = kTogether)
      : batch(batch_), tiles(tiles_), together(together_), count(batch_ * tiles_) {}
  struct Task {
    int64_t batch, tile;
  };
  Task at(int64_t task) const {
    const int64_t first = task / (together * tiles) * together, rest = task - first * tiles;
    const int64_t samples = std::min(together, batch - first);
    return {first + rest % samples, rest / samples};
  }
};

}  // namespace lconv_fast::LCONV_ISA
