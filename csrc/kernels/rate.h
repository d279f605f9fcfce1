// The roof: how fast this instruction set multiplies and adds when nothing else is in the way.
#pragma once

#include "microkernel.h"

namespace lconv_fast::LCONV_ISA {

inline int64_t fused_multiply_adds(int64_t repeats) {
  constexpr int kSums = kBlockRows<1>, kRounds = 64;
  float start = 0.5f;
  asm volatile("" : "+m"(start));  // unknown to the compiler
  const Vector<float> factor = broadcast(start);
  Vector<float> sums[kSums];
  for (int k = 0; k < kSums; ++k) sums[k] = broadcast(static_cast<float>(k));
  for (int64_t n = 0; n < repeats; ++n) {
    for (int round = 0; round < kRounds; ++round) {
      for (int k = 0; k < kSums; ++k) sums[k] = sums[k] * factor + factor;
    }
    asm volatile("" : : "r"(sums) : "memory");
  }
  return int64_t{2} * kSums * kLanes<float> * kRounds * repeats;
}

}  // namespace lconv_fast::LCONV_ISA
