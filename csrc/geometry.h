// What a call of the operators is about, apart from its tensors, and the one road from there to a Problem.
// lconv_fast/ops/geometry.py holds the same list for Python and Triton; tests/test_sizes.py compares the two.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "problem.h"

namespace lconv_fast {

using Integers = std::vector<int64_t>;
using Numbers = std::vector<double>;

// FIELD(type in the schema, type here, name), in the schema's order; n axes, T taps.
#define LCONV_GEOMETRY(FIELD)                                                                                   \
  FIELD("int", int64_t, kind)                              /* a CoefficientKind */                              \
  FIELD("int[]", const Integers&, taps)                    /* T * n offsets */                                  \
  FIELD("float[]", const Numbers&, tap_weights)            /* T */                                              \
  FIELD("int[]", const Integers&, components)              /* T, counting up from 0 */                          \
  FIELD("SymInt[]", const Integers&, spatial)              /* n extents of the grid */                          \
  FIELD("int", int64_t, padding_mode)                      /* a Padding */                                      \
  FIELD("SymInt[]", const Integers&, halo)                 /* (low, high) of each axis around the grid */       \
  FIELD("SymInt[]", const Integers&, origin)               /* n: the grid's first point in the full grid, */    \
  FIELD("SymInt[]", const Integers&, full)                 /* and the extents of that, for the coordinates */   \
  FIELD("float?", std::optional<double>, coordinate_scale) /* of affine kinds; none: half the largest extent */ \
  FIELD("int[]", const Integers&, stride)                  /* n */                                              \
  FIELD("int", int64_t, groups)

struct Geometry {
#define LCONV_MEMBER(schema, type, name) type name;
  LCONV_GEOMETRY(LCONV_MEMBER)
#undef LCONV_MEMBER
};

// For signatures of the operators, `f(const Tensor& input LCONV_PARAMETERS, bool identity)`, and their schemas.
#define LCONV_PARAMETER(schema, type, name) , type name
#define LCONV_PARAMETERS LCONV_GEOMETRY(LCONV_PARAMETER)
#define LCONV_ARGUMENT(schema, type, name) , name
#define LCONV_ARGUMENTS LCONV_GEOMETRY(LCONV_ARGUMENT)
#define LCONV_SCHEMA_OF(schema, type, name) ", " schema " " #name
#define LCONV_SCHEMA LCONV_GEOMETRY(LCONV_SCHEMA_OF)
#define LCONV_GEOMETRY_OF_PARAMETERS                                                                                 \
  Geometry {                                                                                                         \
    kind, taps, tap_weights, components, spatial, padding_mode, halo, origin, full, coordinate_scale, stride, groups \
  }

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::runtime_error("lconv_fast: " + message);
}

// Offsets, strides and halos beyond this serve nobody; below it, and with so many points at most, no sum or product of
// two of them leaves 64 bits.
constexpr int64_t kMostSteps = (int64_t{1} << 31) - 1;
constexpr int64_t kMostPoints = int64_t{1} << 48;

// Checks all that memory safety needs of the integers before any arithmetic with them; throws std::runtime_error.
// Channels are those of one group.
Problem problem_of(const Geometry& g, int64_t batch, int64_t generators, int64_t in_channels, int64_t out_channels,
                   bool identity);

}  // namespace lconv_fast
