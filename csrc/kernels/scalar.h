// Run-time type to compile-time type.
#pragma once

#include "simd.h"

#define LCONV_FOR_SCALAR(scalar, function, ...) \
  switch (scalar) {                             \
    case Scalar::kFloat:                        \
      return function<float>(__VA_ARGS__);      \
    case Scalar::kDouble:                       \
      return function<double>(__VA_ARGS__);     \
    case Scalar::kBFloat16:                     \
      return function<BFloat16>(__VA_ARGS__);   \
    case Scalar::kHalf:                         \
      return function<Half>(__VA_ARGS__);       \
  }
