// The one inner loop of the library: a register block of a matrix product.
#pragma once

#include "simd.h"

namespace lconv_fast::LCONV_ISA {

// Rows of the register block. With two vectors a row, 24 of 32 registers accumulate under AVX-512, 12 of 16 elsewhere.
#if defined(__AVX512F__)
constexpr int kBlockRows = 12;
#else
constexpr int kBlockRows = 6;
#endif
constexpr int kBlockVectors = 2;
template <class A>
constexpr int kBlockLanes = kBlockVectors * kLanes<A>;

// c[r * c_stride + v] += sum_k a[r * row_stride + k * k_stride] * b[k * b_stride + v]
// for r < kBlockRows and v < kVectors * kLanes. The sum starts from zero, so that long reductions are summed in blocks.
template <class A, int kVectors>
inline void multiply_block(int64_t depth, const A* a, int64_t row_stride, int64_t k_stride, const A* b,
                           int64_t b_stride, A* c, int64_t c_stride) {
  Vector<A> sum[kBlockRows][kVectors] = {};
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; ++k) {
    Vector<A> row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = load(b + k * b_stride + v * kLanes<A>);
    for (int r = 0; r < kBlockRows; ++r) {
      const Vector<A> factor = broadcast(a[r * row_stride + k * k_stride]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] += factor * row[v];
    }
  }
  for (int r = 0; r < kBlockRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      A* place = c + r * c_stride + v * kLanes<A>;
      store(place, load(place) + sum[r][v]);
    }
  }
}

// The operands of a product whose row blocks and column blocks all have the same strides.
template <class A>
struct Factor {
  const A* data;
  int64_t block_stride;  // from one block of rows (of columns) to the next
  int64_t row_stride;    // within a block; columns are contiguous
  int64_t k_stride;
};

// c[rows, columns] += a b, with rows and columns rounded up to whole blocks: the operands and c are padded for that.
template <class A>
inline void multiply(int64_t rows, int64_t columns, int64_t depth, const Factor<A>& a, const Factor<A>& b, A* c,
                     int64_t c_stride) {
  for (int64_t column = 0, j = 0; column < columns; column += kBlockLanes<A>, ++j) {
    const bool one_vector = columns - column <= kLanes<A>;
    const A* b_block = b.data + j * b.block_stride;
    for (int64_t row = 0, i = 0; row < rows; row += kBlockRows, ++i) {
      const A* a_block = a.data + i * a.block_stride;
      A* c_block = c + row * c_stride + column;
      if (one_vector) {
        multiply_block<A, 1>(depth, a_block, a.row_stride, a.k_stride, b_block, b.k_stride, c_block, c_stride);
      } else {
        multiply_block<A, 2>(depth, a_block, a.row_stride, a.k_stride, b_block, b.k_stride, c_block, c_stride);
      }
    }
  }
}

}  // namespace lconv_fast::LCONV_ISA
