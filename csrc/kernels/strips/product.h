// The product of a strip's panel with the matrices of its rows: outputs in lanes, points in registers.
#pragma once

#include "../microkernel.h"

namespace lconv_fast::LCONV_ISA {

constexpr int64_t kStripUnit = 24;  // points of a strip: a multiple of it, which all blocks divide

// Points of a strip whose panel takes a third of the first-level cache, beside the matrices and the data.
inline int64_t strip_points(int64_t bytes_per_point) {
  constexpr int64_t kBytes = 10240, kMost = 96;
  return std::clamp(kBytes / bytes_per_point / kStripUnit * kStripUnit, kStripUnit, kMost);
}

// Points of a block of the product: as many sums as registers hold beside the factors.
#if defined(__AVX512F__) || defined(__aarch64__)
template <int kVectors>
constexpr int kStripRows = kVectors == 1 ? 24 : 12;
#else
template <int kVectors>
constexpr int kStripRows = kVectors == 1 ? 12 : 6;
#endif
template <class A>
inline int64_t strip_blocks(int64_t points, int64_t outs) {
  return divide_up(points, outs > kLanes<A> ? kStripRows<2> : kStripRows<1>);
}

// Half a vector, where 512 bits are two of 256: eight outputs do not leave half of the lanes empty.
template <class A>
struct HalfOf {
  typedef A type __attribute__((vector_size(kVectorBytes / 2)));
};
template <class A>
using HalfVector = typename HalfOf<A>::type;

template <class V, class A>
inline V load_as(const A* p) {
  V result;
  std::memcpy(&result, p, sizeof(V));
  return result;
}

// Rows of [point * stride + channel]; weights[(row * channels + channel) * columns + output]. The sum over the rows, x
// times that over the scaled rows, and the start. Meanwhile what the next strip needs is fetched: a piece of memory for
// each row of each block of points, of as many cache lines as there are channels.
template <class A>
struct StripProduct {
  const A* const* rows;         // where each row begins
  int64_t main, scaled, count;  // rows: the first `main` ones, and the last `scaled` ones of `count`
  int64_t channels, stride, columns;
  const A *main_weights, *scaled_weights, *x, *start;
  const uintptr_t* fetches;

  int64_t products() const { return main + scaled; }
};

template <class V, int kStride, int kRows, int kVectors, class A>
inline void add_strip_rows(const StripProduct<A>& s, int64_t first_row, int64_t rows, const A* weights,
                           const uintptr_t* fetches, int64_t point, int64_t column, V (&sum)[kRows][kVectors]) {
  constexpr int64_t kVectorLanes = sizeof(V) / sizeof(A);
  const int64_t stride = kStride ? kStride : s.stride, channels = s.channels, columns = s.columns;
  const A* b = weights + column;
  for (int64_t r = 0; r < rows; ++r) {
    const A* a = s.rows[first_row + r] + point * stride;
    uintptr_t fetch = fetches[r];
    const A* const end = a + (kStride ? kStride : channels);
#pragma GCC unroll 4
    for (; a != end; ++a, b += columns, fetch += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(fetch), 0, 2);
      V right[kVectors];
      for (int v = 0; v < kVectors; ++v) right[v] = load_as<V>(b + v * kVectorLanes);
#pragma GCC unroll 24
      for (int q = 0; q < kRows; ++q) {
        const V factor = a[q * stride] - V{};
        for (int v = 0; v < kVectors; ++v) sum[q][v] += factor * right[v];
      }
    }
  }
}

// kRows points from `point` on, kVectors vectors of outputs; `left` outputs are written.
template <class V, int kStride, int kRows, int kVectors, class A>
__attribute__((noinline)) void multiply_strip_block(const StripProduct<A>& s, int64_t point, int64_t points,
                                                    int64_t column, int64_t left, A* out, int64_t out_stride) {
  constexpr int64_t kVectorLanes = sizeof(V) / sizeof(A);
  const uintptr_t* fetches = s.fetches + point / kStripRows<kVectors> * s.products();
  V sum[kRows][kVectors];
#pragma GCC unroll 24
  for (int q = 0; q < kRows; ++q) {
    for (int v = 0; v < kVectors; ++v) sum[q][v] = V{};
  }
  if (s.scaled > 0) {
    add_strip_rows<V, kStride>(s, s.count - s.scaled, s.scaled, s.scaled_weights, fetches + s.main, point, column, sum);
#pragma GCC unroll 24
    for (int q = 0; q < kRows; ++q) {
      const V x = s.x[point + q] - V{};
      for (int v = 0; v < kVectors; ++v) sum[q][v] *= x;
    }
  }
  add_strip_rows<V, kStride>(s, 0, s.main, s.main_weights, fetches, point, column, sum);
  for (int v = 0; v < kVectors; ++v) {
    const V start = load_as<V>(s.start + column + v * kVectorLanes);
#pragma GCC unroll 24
    for (int q = 0; q < kRows; ++q) sum[q][v] += start;
  }
  const bool whole = point + kRows <= points && left >= kVectors * kVectorLanes;
  A buffer[int64_t{kRows} * kVectors * kVectorLanes];
  A* const target = out + point * out_stride + column;
  A* to = whole ? target : buffer;
  const int64_t to_stride = whole ? out_stride : kVectors * kVectorLanes;
#pragma GCC unroll 24
  for (int q = 0; q < kRows; ++q, to += to_stride) {
    for (int v = 0; v < kVectors; ++v) std::memcpy(to + v * kVectorLanes, &sum[q][v], sizeof(V));
  }
  for (int64_t q = 0; !whole && q < std::min<int64_t>(kRows, points - point); ++q) {
    std::copy_n(buffer + q * kVectors * kVectorLanes, std::min<int64_t>(left, kVectors * kVectorLanes),
                target + q * out_stride);
  }
}

template <class V, int kStride, int kVectors, class A>
void multiply_strip_columns(const StripProduct<A>& s, int64_t points, int64_t column, int64_t left, A* out,
                            int64_t out_stride) {
  constexpr int kRows = kStripRows<kVectors>;
  int64_t point = 0;
  for (; point + kRows <= points; point += kRows) {
    multiply_strip_block<V, kStride, kRows, kVectors>(s, point, points, column, left, out, out_stride);
  }
  constexpr int kFew = kRows / 3;
  for (; point < points; point += kFew) {
    multiply_strip_block<V, kStride, kFew, kVectors>(s, point, points, column, left, out, out_stride);
  }
}

template <int kStride, class A>
void multiply_strip_as(const StripProduct<A>& s, int64_t points, int64_t outs, A* out, int64_t out_stride) {
  constexpr int64_t n = kLanes<A>;
  int64_t column = 0;
  for (; column + n < outs; column += 2 * n) {
    multiply_strip_columns<Vector<A>, kStride, 2>(s, points, column, outs - column, out, out_stride);
  }
  if (column >= outs) return;
#if defined(__AVX512F__)
  if (outs - column <= n / 2) {
    return multiply_strip_columns<HalfVector<A>, kStride, 1>(s, points, column, outs - column, out, out_stride);
  }
#endif
  multiply_strip_columns<Vector<A>, kStride, 1>(s, points, column, outs - column, out, out_stride);
}

// out[point * out_stride + output] for the points of a strip.
template <class A>
void multiply_strip(const StripProduct<A>& s, int64_t points, int64_t outs, A* out, int64_t out_stride) {
  switch (s.stride == s.channels ? s.stride : 0) {
    case 4:
      return multiply_strip_as<4>(s, points, outs, out, out_stride);
    case 8:
      return multiply_strip_as<8>(s, points, outs, out, out_stride);
    case 16:
      return multiply_strip_as<16>(s, points, outs, out, out_stride);
    case 32:
      return multiply_strip_as<32>(s, points, outs, out, out_stride);
    default:
      return multiply_strip_as<0>(s, points, outs, out, out_stride);
  }
}

}  // namespace lconv_fast::LCONV_ISA
