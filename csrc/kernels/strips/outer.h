// Sums over the points of a strip of rows times cotangents: channels in registers, outputs in lanes.
#pragma once

#include "product.h"

namespace lconv_fast::LCONV_ISA {

// sums[(panel, channel) * columns + output] += sum over points of rows[panel][point * stride + channel] g[point *
// g_stride
// + output]; one line of cache of what comes next is fetched for each point.
template <class V, int kPanels, int kRows, int kVectors, class A>
void add_outer_block(const A* const* rows, int64_t channel, int64_t stride, const A* g, int64_t g_stride,
                     int64_t points, uintptr_t fetch, A* sums, int64_t panel_size, int64_t columns) {
  constexpr int64_t n = sizeof(V) / sizeof(A);
  V sum[kPanels][kRows][kVectors];
  const A* a[kPanels];
  for (int k = 0; k < kPanels; ++k) {
    a[k] = rows[k] + channel;
#pragma GCC unroll 24
    for (int q = 0; q < kRows; ++q) {
      for (int v = 0; v < kVectors; ++v) sum[k][q][v] = V{};
    }
  }
  for (int64_t p = 0; p < points; ++p, g += g_stride, fetch += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(fetch), 0, 2);
    V right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = load_as<V>(g + v * n);
#pragma GCC unroll 3
    for (int k = 0; k < kPanels; ++k) {
#pragma GCC unroll 24
      for (int q = 0; q < kRows; ++q) {
        const V factor = a[k][p * stride + q] - V{};
        for (int v = 0; v < kVectors; ++v) sum[k][q][v] += factor * right[v];
      }
    }
  }
#pragma GCC unroll 3
  for (int k = 0; k < kPanels; ++k) {
    A* to = sums + k * panel_size + channel * columns;
#pragma GCC unroll 24
    for (int q = 0; q < kRows; ++q, to += columns) {
      for (int v = 0; v < kVectors; ++v) {
        const V total = load_as<V>(to + v * n) + sum[k][q][v];
        std::memcpy(to + v * n, &total, sizeof(V));
      }
    }
  }
}

// What an outer product reads and where it adds: `count` rows, sums of `panel_size` numbers for each.
template <class A>
struct OuterProduct {
  const A* const* rows;
  int64_t count, channels;
  const A* g;
  int64_t g_stride, points;
  A* sums;
  int64_t panel_size, columns;
  const uintptr_t* fetches;  // one for each row
};

template <class V, int kVectors, class A>
void add_outer_columns(const OuterProduct<A>& o, int64_t column) {
#if defined(__AVX512F__) || defined(__aarch64__)
  constexpr int kMost = kVectors == 1 ? 16 : 12;
#else
  constexpr int kMost = kVectors == 1 ? 12 : 6;
#endif
  int64_t row = 0;
  const auto block = [&](auto panels, auto number, int64_t channel) {
    add_outer_block<V, panels, number, kVectors>(o.rows + row, channel, o.channels, o.g + column, o.g_stride, o.points,
                                                 o.fetches[row] + channel * o.points * 4,
                                                 o.sums + row * o.panel_size + column, o.panel_size, o.columns);
  };
  using One = std::integral_constant<int, 1>;
  using Three = std::integral_constant<int, 3>;
  // Eight sums would wait for each other.
  for (; kVectors == 1 && kMost == 16 && o.channels == 8 && row + 3 <= o.count; row += 3) {
    block(Three(), std::integral_constant<int, 8>(), 0);
  }
  for (; row < o.count; ++row) {
    int64_t channel = 0;
    for (; channel + kMost <= o.channels; channel += kMost) block(One(), std::integral_constant<int, kMost>(), channel);
    if (kMost > 8 && channel + 8 <= o.channels) block(One(), std::integral_constant<int, 8>(), channel), channel += 8;
    if (channel + 4 <= o.channels) block(One(), std::integral_constant<int, 4>(), channel), channel += 4;
    for (; channel < o.channels; ++channel) block(One(), One(), channel);
  }
}

// The outputs padded to whole vectors, in g and in the sums.
template <class A>
void add_outer(const OuterProduct<A>& o, int64_t outs) {
  constexpr int64_t n = kLanes<A>;
  int64_t column = 0;
  for (; column + n < outs; column += 2 * n) add_outer_columns<Vector<A>, 2>(o, column);
  if (column >= outs) return;
#if defined(__AVX512F__)
  if (outs - column <= n / 2) return add_outer_columns<HalfVector<A>, 1>(o, column);
#endif
  add_outer_columns<Vector<A>, 1>(o, column);
}

// To how many outputs g has to be padded.
template <class A>
int64_t outer_outputs(int64_t outs) {
  constexpr int64_t n = kLanes<A>;
  const int64_t whole = outs / (2 * n) * 2 * n, rest = outs - whole;
#if defined(__AVX512F__)
  if (rest > 0 && rest <= n / 2) return whole + n / 2;
#endif
  return whole + (rest > n ? 2 * n : rest > 0 ? n : 0);
}

}  // namespace lconv_fast::LCONV_ISA
