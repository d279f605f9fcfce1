// Between the two layouts, in registers: a point's channels contiguous, or a line's points.
#pragma once

#include <algorithm>

#include "../microkernel.h"

namespace lconv_fast::LCONV_ISA {

// The lanes of 2^k vectors in one row: `zip` moves the element at place f of n to the place 2 f mod (n - 1), a rotation
// of its index's bits, and `unzip` moves it back. As many of them as the number of channels has bits exchange the index
// of the point with that of the channel.
template <class A, int kVectors>
inline void zip(Vector<A> (&rows)[kVectors]) {
  Vector<A> next[kVectors];
  for (int k = 0; k < kVectors / 2; ++k) {
    next[2 * k] = interleave<A>(rows[k], rows[k + kVectors / 2], true);
    next[2 * k + 1] = interleave<A>(rows[k], rows[k + kVectors / 2], false);
  }
  std::copy_n(next, kVectors, rows);
}
template <class A, int kVectors>
inline void unzip(Vector<A> (&rows)[kVectors]) {
  Vector<A> next[kVectors];
  for (int k = 0; k < kVectors / 2; ++k) {
    next[k] = every_second<A>(rows[2 * k], rows[2 * k + 1], 0);
    next[k + kVectors / 2] = every_second<A>(rows[2 * k], rows[2 * k + 1], 1);
  }
  std::copy_n(next, kVectors, rows);
}

// Whole vectors of points whose kChannels channels follow each other without a gap; returns how many points.
template <int kChannels, class S>
inline int64_t dense_points_to_lines(const S* from, int64_t points, Accumulate<S>* to, int64_t line_stride) {
  using A = Accumulate<S>;
  int64_t x = 0;
  for (; x + kLanes<A> <= points; x += kLanes<A>) {
    Vector<A> rows[kChannels];
    for (int k = 0; k < kChannels; ++k) rows[k] = load(from + x * kChannels + k * kLanes<A>);
    for (int bit = 1; bit < kChannels; bit *= 2) unzip<A>(rows);
    for (int k = 0; k < kChannels; ++k) store(to + k * line_stride + x, rows[k]);
  }
  return x;
}
template <int kChannels, class S>
inline int64_t dense_lines_to_points(const Accumulate<S>* from, int64_t line_stride, int64_t points, S* to) {
  using A = Accumulate<S>;
  int64_t x = 0;
  for (; x + kLanes<A> <= points; x += kLanes<A>) {
    Vector<A> rows[kChannels];
    for (int k = 0; k < kChannels; ++k) rows[k] = load(from + k * line_stride + x);
    for (int bit = 1; bit < kChannels; bit *= 2) zip<A>(rows);
    for (int k = 0; k < kChannels; ++k) store(to + x * kChannels + k * kLanes<A>, rows[k]);
  }
  return x;
}

// to[c * line_stride + x] = from[x * point_stride + c] for `channels` and `points`.
template <class S>
inline void points_to_lines(const S* from, int64_t point_stride, int64_t channels, int64_t points, Accumulate<S>* to,
                            int64_t line_stride) {
  using A = Accumulate<S>;
  constexpr int n = kLanes<A>;
  int64_t x = 0;
  if (point_stride == channels) {
    if (channels == 1) x = dense_points_to_lines<1>(from, points, to, line_stride);
    if (channels == 2) x = dense_points_to_lines<2>(from, points, to, line_stride);
    if (channels == 4) x = dense_points_to_lines<4>(from, points, to, line_stride);
    if (channels == 8) x = dense_points_to_lines<8>(from, points, to, line_stride);
  }
  for (; x + n <= points; x += n) {
    for (int64_t c = 0; c < channels; c += n) {
      const int64_t width = std::min<int64_t>(n, channels - c);
      const S* at = from + x * point_stride + c;
      Vector<A> square[n];
      for (int k = 0; k < n; ++k) {
        square[k] = width == n ? load(at + k * point_stride) : load_first(at + k * point_stride, width);
      }
      transpose<A>(square);
      for (int k = 0; k < width; ++k) store(to + (c + k) * line_stride + x, square[k]);
    }
  }
  for (; x < points; ++x) {
    for (int64_t c = 0; c < channels; ++c) to[c * line_stride + x] = to_accumulate(from[x * point_stride + c]);
  }
}

// to[x * point_stride + c] = from[c * line_stride + x].
template <class S>
inline void lines_to_points(const Accumulate<S>* from, int64_t line_stride, int64_t channels, int64_t points, S* to,
                            int64_t point_stride) {
  using A = Accumulate<S>;
  constexpr int n = kLanes<A>;
  int64_t x = 0;
  if (point_stride == channels) {
    if (channels == 1) x = dense_lines_to_points<1>(from, line_stride, points, to);
    if (channels == 2) x = dense_lines_to_points<2>(from, line_stride, points, to);
    if (channels == 4) x = dense_lines_to_points<4>(from, line_stride, points, to);
    if (channels == 8) x = dense_lines_to_points<8>(from, line_stride, points, to);
  }
  for (; x + n <= points; x += n) {
    for (int64_t c = 0; c < channels; c += n) {
      const int64_t width = std::min<int64_t>(n, channels - c);
      Vector<A> square[n];
      for (int k = 0; k < n; ++k) square[k] = k < width ? load(from + (c + k) * line_stride + x) : Vector<A>{};
      transpose<A>(square);
      S* at = to + x * point_stride + c;
      for (int k = 0; k < n; ++k) {
        if (width == n) {
          store(at + k * point_stride, square[k]);
        } else {
          store_first(at + k * point_stride, square[k], width);
        }
      }
    }
  }
  for (; x < points; ++x) {
    for (int64_t c = 0; c < channels; ++c) from_accumulate(from[c * line_stride + x], to + x * point_stride + c);
  }
}

}  // namespace lconv_fast::LCONV_ISA
