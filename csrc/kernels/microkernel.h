// The one inner loop of the library: a register block of a matrix product.
#pragma once

#include <algorithm>
#include <type_traits>

#include "simd.h"

namespace lconv_fast::LCONV_ISA {

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

constexpr int64_t kTile = 192;        // most points of a tile: a multiple of all block sizes
constexpr int64_t kPanelDepth = 384;  // most of the inner dimension that one pass takes

// A block has 1 or 2 vectors of columns and 3, 2 or 1 units of rows. The largest one fills the registers with
// accumulators (24 of 32 or 12 of 16, by two vectors) and has enough of them to hide the latency of the additions.
#if defined(__AVX512F__) || defined(__aarch64__)
template <int kVectors>
constexpr int kUnit = 4;
#else
template <int kVectors>
constexpr int kUnit = kVectors == 1 ? 4 : 2;
#endif
template <int kVectors>
constexpr int kBlockRows = 3 * kUnit<kVectors>;
constexpr int kBlockVectors = 2;
template <class A>
constexpr int kBlockLanes = kBlockVectors * kLanes<A>;

// Calls body(row, units) for blocks of `units` units that cover `rows` with the least padding: 3 of them while they
// last, no single one if two blocks of 2 do.
template <int kVectors, class Body>
inline void for_row_blocks(int64_t rows, Body body) {
  constexpr int64_t unit = kUnit<kVectors>;
  const int64_t units = divide_up(rows, unit);
  const int64_t twos = units % 3 == 2 ? 1 : (units % 3 == 1 && units > 1 ? 2 : 0), threes = (units - 2 * twos) / 3;
  int64_t row = 0;
  for (int64_t k = 0; k < threes; ++k, row += 3 * unit) body(row, std::integral_constant<int, 3>());
  for (int64_t k = 0; k < twos; ++k, row += 2 * unit) body(row, std::integral_constant<int, 2>());
  if (row < rows) body(row, std::integral_constant<int, 1>());
}

// Rows of a panel that fell on the same cache sets would evict each other: an odd number of cache lines. Panels of
// usual depth have one of two strides, so that the rows of a block have constant addresses.
constexpr int64_t kNarrowStride = 64 + 16, kPanelStride = kPanelDepth + 16;
inline int64_t panel_stride(int64_t depth) {
  return depth <= 64 ? kNarrowStride : depth <= kPanelDepth ? kPanelStride : round_up(depth, 32) + 16;
}

// How the left factor lies: packed for the micro-kernel, [block][k][row in block]; with k contiguous, the rows
// kNarrowStride, kPanelStride or any stride apart; or with rows contiguous. Known at compile time.
enum class Layout { kPacked, kNarrowPanel, kPanel, kAlongDepth, kAlongRows };

inline Layout layout_of_panel(int64_t stride) {
  return stride == kNarrowStride ? Layout::kNarrowPanel : stride == kPanelStride ? Layout::kPanel : Layout::kAlongDepth;
}

template <class A>
struct Left {
  const A* data;
  Layout layout = Layout::kPacked;
  int64_t stride = 0;  // from row to row, or from k to k
  // kAlongDepth: a k of more than k_block goes on at the next multiple of k_block_stride.
  int64_t k_block = 0, k_block_stride = 0;
};

// The right factor: columns are contiguous in each block of kBlockLanes.
template <class A>
struct Right {
  const A* data;
  int64_t block_stride, k_stride;
};

template <class A>
struct Product {
  int64_t depth;
  Left<A> left;
  Right<A> right;
};

// sum(first) scaled by rows or by columns, plus sum(second): with `scale` the coordinate x of a point, it is Horner's
// form of B + x A.
template <class A>
struct Sum {
  Product<A> second;
  Product<A> first = {};
  const A* scale = nullptr;
  bool scale_rows = false;
};

// Where a product goes: target[row * row_stride + column] = sum + start.
template <class T>
struct Output {
  using A = Accumulate<T>;
  enum Start { kByColumn, kByRow, kSums };
  T* data;
  int64_t row_stride;
  Start start_kind;
  const A* start;  // of each column, of each row, or of each place of [row * start_stride + column]
  int64_t start_stride = 0;

  template <int kRows, int kVectors>
  inline void write(int64_t row, int64_t column, Vector<A> (&sum)[kRows][kVectors]) const {
    // Copies: for all the compiler knows, a store could change the members.
    const int64_t line = row_stride;
    T* place = data + row * line + column;
    const A* from = start + (start_kind == kSums ? row * start_stride : 0) + (start_kind == kByRow ? row : column);
    if (start_kind == kByRow) {
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) sum[r][v] += broadcast(from[r]);
      }
    } else {
      const int64_t step = start_kind == kSums ? start_stride : 0;
      for (int r = 0; r < kRows; ++r, from += step) {
        for (int v = 0; v < kVectors; ++v) sum[r][v] += load(from + v * kLanes<A>);
      }
    }
    for (int r = 0; r < kRows; ++r, place += line) {
      for (int v = 0; v < kVectors; ++v) store(place + v * kLanes<A>, sum[r][v]);
    }
  }
  // The first n lanes of one vector.
  inline void write_first(int64_t row, int64_t column, Vector<A> sum, int64_t n) const {
    if (start_kind == kByRow) {
      sum += broadcast(start[row]);
    } else {
      sum += load_first(start + (start_kind == kSums ? row * start_stride : 0) + column, n);
    }
    store_first(data + row * row_stride + column, sum, n);
  }
};

template <class A, Layout kLayout, int kRows, int kVectors>
inline void accumulate(const Product<A>& p, int64_t row, int64_t block, Vector<A> (&sum)[kRows][kVectors]) {
  constexpr bool kAlongDepth =
      kLayout == Layout::kAlongDepth || kLayout == Layout::kPanel || kLayout == Layout::kNarrowPanel;
  const int64_t row_stride = kLayout == Layout::kPanel         ? kPanelStride
                             : kLayout == Layout::kNarrowPanel ? kNarrowStride
                             : kLayout == Layout::kAlongDepth  ? p.left.stride
                                                               : 1;
  const int64_t k_stride = kLayout == Layout::kPacked ? kRows : kAlongDepth ? 1 : p.left.stride;
  const int64_t b_stride = p.right.k_stride;
  const A* left = p.left.data + row * (kLayout == Layout::kPacked ? p.depth : row_stride);
  const A* b = p.right.data + block * p.right.block_stride;
  const int64_t k_block = kLayout == Layout::kAlongDepth && p.left.k_block ? p.left.k_block : p.depth;
  for (int64_t rest = p.depth; rest > 0; rest -= k_block, left += p.left.k_block_stride) {
    const int64_t depth = std::min(rest, k_block);
    const A* a = left;
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; ++k, a += k_stride, b += b_stride) {
      Vector<A> columns[kVectors];
      for (int v = 0; v < kVectors; ++v) columns[v] = load(b + v * kLanes<A>);
      for (int r = 0; r < kRows; ++r) {
        const Vector<A> factor = broadcast(a[r * row_stride]);
        for (int v = 0; v < kVectors; ++v) sum[r][v] += factor * columns[v];
      }
    }
  }
}

template <Layout kLayout, int kRows, int kVectors, class A, class T>
inline void multiply_block(const Sum<A>& s, int64_t row, int64_t block, int64_t rows, int64_t columns,
                           const Output<T>& out) {
  const int64_t column = block * kBlockLanes<A>;
  Vector<A> sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = Vector<A>{};
  }
  if (s.scale) {
    accumulate<A, kLayout, kRows, kVectors>(s.first, row, block, sum);
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] *= s.scale_rows ? broadcast(s.scale[row + r]) : load(s.scale + column + v * kLanes<A>);
      }
    }
  }
  accumulate<A, kLayout, kRows, kVectors>(s.second, row, block, sum);
  if (row + kRows <= rows && column + kVectors * kLanes<A> <= columns) {
    out.template write<kRows, kVectors>(row, column, sum);
    return;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t n = std::min<int64_t>(columns - column - v * kLanes<A>, kLanes<A>);
      if (row + r < rows && n > 0) out.write_first(row + r, column + v * kLanes<A>, sum[r][v], n);
    }
  }
}

// Which factor's block stays in the first-level cache while blocks of the other pass by.
enum class Hold { kRight, kLeft };

template <Layout kLayout, class A, class T>
void multiply_as(const Sum<A>& s, int64_t rows, int64_t columns, const Output<T>& out, Hold hold) {
  const int64_t blocks = divide_up(columns, kBlockLanes<A>);
  const bool half = blocks * kBlockLanes<A> - columns >= kLanes<A>;  // the last block has one vector
  const int64_t whole = blocks - half;
  if (hold == Hold::kLeft) {
    for_row_blocks<2>(rows, [&](int64_t row, auto units) {
      for (int64_t block = 0; block < whole; ++block) {
        multiply_block<kLayout, units * kUnit<2>, 2>(s, row, block, rows, columns, out);
      }
    });
  } else {
    for (int64_t block = 0; block < whole; ++block) {
      for_row_blocks<2>(rows, [&](int64_t row, auto units) {
        multiply_block<kLayout, units * kUnit<2>, 2>(s, row, block, rows, columns, out);
      });
    }
  }
  if (!half) return;
  constexpr int kPackedFor = kLayout == Layout::kPacked ? 2 : 1;
  for_row_blocks<kPackedFor>(rows, [&](int64_t row, auto units) {
    multiply_block<kLayout, units * kUnit<kPackedFor>, 1>(s, row, whole, rows, columns, out);
  });
}

// All of a [rows, columns] product. The factors are padded to whole blocks, scales too; the output is not.
template <class A, class T>
void multiply(const Sum<A>& s, int64_t rows, int64_t columns, const Output<T>& out, Hold hold = Hold::kRight) {
  switch (s.second.left.layout) {
    case Layout::kPacked:
      return multiply_as<Layout::kPacked>(s, rows, columns, out, hold);
    case Layout::kNarrowPanel:
      return multiply_as<Layout::kNarrowPanel>(s, rows, columns, out, hold);
    case Layout::kPanel:
      return multiply_as<Layout::kPanel>(s, rows, columns, out, hold);
    case Layout::kAlongDepth:
      return multiply_as<Layout::kAlongDepth>(s, rows, columns, out, hold);
    case Layout::kAlongRows:
      return multiply_as<Layout::kAlongRows>(s, rows, columns, out, hold);
  }
}

// Rows of a left factor in blocks, padding included.
inline int64_t padded_rows(int64_t rows) {
  int64_t result = 0;
  for_row_blocks<2>(rows, [&](int64_t row, auto units) { result = row + units * kUnit<2>; });
  return result;
}

}  // namespace lconv_fast::LCONV_ISA
