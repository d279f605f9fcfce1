// Products of pairs: two bfloat16 numbers of the inner dimension at a time, summed in float32. With AMX in tiles of
// registers, else with vdpbf16ps. Both take subnormal numbers for zero.
//
//   left [rows][k]                        panels of bfloat16, points-major
//   right [block of 16 columns][k / 2][16][2]
//   sums [rows][columns] = or += left right
#pragma once

#include "simd.h"

namespace lconv_fast::LCONV_ISA {

constexpr int64_t kPairLanes = 16, kPairColumns = 2 * kPairLanes, kPairDepth = 32;

#if defined(__AMX_BF16__)

constexpr int64_t kPairRows = 32;

// The tile registers of this thread: two by two tiles of sums, two of each factor, all 16 rows of 64 bytes.
struct PairProducts {
  PairProducts() {
    alignas(64) struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    asm volatile("" : : "r"(&shape) : "memory");
    _tile_loadconfig(&shape);
  }
  ~PairProducts() { _tile_release(); }
  PairProducts(const PairProducts&) = delete;

  void multiply(int64_t rows, int64_t columns, int64_t depth, const BFloat16* left, int64_t left_stride,
                const BFloat16* right, float* sums, int64_t sums_stride, bool add) const {
    const int64_t left_bytes = left_stride * 2, sums_bytes = sums_stride * 4, block = depth * kPairLanes;
    asm volatile("" : : : "memory");  // the intrinsics do not tell the compiler that they read and write
    for (int64_t column = 0; column < columns; column += kPairColumns) {
      const BFloat16* b = right + column / kPairLanes * block;
      for (int64_t row = 0; row < rows; row += kPairRows) {
        const BFloat16* a = left + row * left_stride;
        float* c = sums + row * sums_stride + column;
        float* below = c + 16 * sums_stride;
        if (add) {
          _tile_loadd(0, c, sums_bytes);
          _tile_loadd(1, c + 16, sums_bytes);
          _tile_loadd(2, below, sums_bytes);
          _tile_loadd(3, below + 16, sums_bytes);
        } else {
          _tile_zero(0);
          _tile_zero(1);
          _tile_zero(2);
          _tile_zero(3);
        }
        for (int64_t k = 0; k < depth; k += kPairDepth) {
          _tile_loadd(4, a + k, left_bytes);
          _tile_loadd(6, b + k * kPairLanes, 64);
          _tile_dpbf16ps(0, 4, 6);
          _tile_loadd(7, b + block + k * kPairLanes, 64);
          _tile_dpbf16ps(1, 4, 7);
          _tile_loadd(5, a + 16 * left_stride + k, left_bytes);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, c, sums_bytes);
        _tile_stored(1, c + 16, sums_bytes);
        _tile_stored(2, below, sums_bytes);
        _tile_stored(3, below + 16, sums_bytes);
      }
    }
    asm volatile("" : : : "memory");
  }
};

#else

constexpr int64_t kPairRows = 12;

struct PairProducts {
  void multiply(int64_t rows, int64_t columns, int64_t depth, const BFloat16* left, int64_t left_stride,
                const BFloat16* right, float* sums, int64_t sums_stride, bool add) const {
    const int64_t block = depth * kPairLanes;
    for (int64_t column = 0; column < columns; column += kPairColumns) {
      for (int64_t row = 0; row < rows; row += kPairRows) {
        const BFloat16* b = right + column / kPairLanes * block;
        const BFloat16* a = left + row * left_stride;
        float* c = sums + row * sums_stride + column;
        __m512 sum[kPairRows][2];
        for (int64_t r = 0; r < kPairRows; ++r) {
          for (int v = 0; v < 2; ++v) sum[r][v] = add ? _mm512_loadu_ps(c + r * sums_stride + v * 16) : __m512{};
        }
        for (int64_t k = 0; k < depth; k += 2, b += kPairColumns) {
          const __m512bh first = pairs(_mm512_loadu_si512(b)), second = pairs(_mm512_loadu_si512(b + block));
          for (int64_t r = 0; r < kPairRows; ++r) {
            int32_t both;
            std::memcpy(&both, a + r * left_stride + k, sizeof(both));
            const __m512bh factor = pairs(_mm512_set1_epi32(both));
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], factor, first);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], factor, second);
          }
        }
        for (int64_t r = 0; r < kPairRows; ++r) {
          for (int v = 0; v < 2; ++v) _mm512_storeu_ps(c + r * sums_stride + v * 16, sum[r][v]);
        }
      }
    }
  }

 private:
  static __m512bh pairs(__m512i bits) { return reinterpret_cast<__m512bh>(bits); }
};

#endif

}  // namespace lconv_fast::LCONV_ISA
