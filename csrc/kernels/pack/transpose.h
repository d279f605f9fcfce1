// Between the two layouts, in registers: a point's channels contiguous, or a line's points.
#pragma once

#include <algorithm>
#include <type_traits>

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

// `rows` rows of a square, `length` numbers each; what lies beyond is zero, and not written.
template <class S>
inline void load_square(const S* from, int64_t stride, int64_t rows, int64_t length,
                        Vector<Accumulate<S>> (&square)[kLanes<Accumulate<S>>]) {
  constexpr int n = kLanes<Accumulate<S>>;
  if (rows == n && length == n) {
    for (int k = 0; k < n; ++k) square[k] = load(from + k * stride);
  } else {
    for (int k = 0; k < n; ++k) {
      square[k] = k < rows ? load_first(from + k * stride, length) : Vector<Accumulate<S>>{};
    }
  }
}
template <class S>
inline void store_square(const Vector<Accumulate<S>> (&square)[kLanes<Accumulate<S>>], S* to, int64_t stride,
                         int64_t rows, int64_t length) {
  constexpr int n = kLanes<Accumulate<S>>;
  if (rows == n && length == n) {
    for (int k = 0; k < n; ++k) store(to + k * stride, square[k]);
  } else {
    for (int k = 0; k < n && k < rows; ++k) store_first(to + k * stride, square[k], length);
  }
}

// to[x * to_stride + c] = from[x * stride + c], each in its own type.
template <class S, class T>
inline void copy_points(const S* from, int64_t stride, int64_t channels, int64_t points, T* to, int64_t to_stride) {
  using A = Accumulate<S>;
  if (stride == channels && to_stride == channels) channels *= points, points = 1;
  for (int64_t x = 0; x < points; ++x, from += stride, to += to_stride) {
    int64_t c = 0;
    for (; c + kLanes<A> <= channels; c += kLanes<A>) store(to + c, load(from + c));
    if (c < channels) store_first(to + c, load_first(from + c, channels - c), channels - c);
  }
}

// to[c * line_stride + x] = from[x * point_stride + c] for `channels` and `points`.
template <class S, class T>
inline void points_to_lines(const S* from, int64_t point_stride, int64_t channels, int64_t points, T* to,
                            int64_t line_stride) {
  using A = Accumulate<S>;
  constexpr int n = kLanes<A>;
  int64_t x = 0;
  if constexpr (std::is_same_v<T, A>) {
    if (point_stride == channels) {
      if (channels == 1) x = dense_points_to_lines<1>(from, points, to, line_stride);
      if (channels == 2) x = dense_points_to_lines<2>(from, points, to, line_stride);
      if (channels == 4) x = dense_points_to_lines<4>(from, points, to, line_stride);
      if (channels == 8) x = dense_points_to_lines<8>(from, points, to, line_stride);
    }
  }
  // A few lines at a time: reading or writing at as many places as there are channels took up to five times as long.
  const int64_t first = x;
  for (int64_t c = 0; c < channels; c += n) {
    const int64_t width = std::min<int64_t>(n, channels - c);
    for (x = first; x < points; x += n) {
      const int64_t length = std::min<int64_t>(n, points - x);
      Vector<A> square[n];
      load_square(from + x * point_stride + c, point_stride, length, width, square);
      transpose<A>(square);
      store_square(square, to + c * line_stride + x, line_stride, width, length);
    }
  }
}

// to[x * point_stride + c] = from[c * line_stride + x].
template <class S, class T>
inline void lines_to_points(const T* from, int64_t line_stride, int64_t channels, int64_t points, S* to,
                            int64_t point_stride) {
  using A = Accumulate<S>;
  constexpr int n = kLanes<A>;
  int64_t x = 0;
  if constexpr (std::is_same_v<T, A>) {
    if (point_stride == channels) {
      if (channels == 1) x = dense_lines_to_points<1>(from, line_stride, points, to);
      if (channels == 2) x = dense_lines_to_points<2>(from, line_stride, points, to);
      if (channels == 4) x = dense_lines_to_points<4>(from, line_stride, points, to);
      if (channels == 8) x = dense_lines_to_points<8>(from, line_stride, points, to);
    }
  }
  const int64_t first = x;
  for (int64_t c = 0; c < channels; c += n) {
    const int64_t width = std::min<int64_t>(n, channels - c);
    for (x = first; x < points; x += n) {
      const int64_t length = std::min<int64_t>(n, points - x);
      Vector<A> square[n];
      load_square(from + c * line_stride + x, line_stride, width, length, square);
      transpose<A>(square);
      store_square(square, to + x * point_stride + c, point_stride, length, width);
    }
  }
}

}  // namespace lconv_fast::LCONV_ISA
