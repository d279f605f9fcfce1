#include "plan.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <limits>

namespace lconv_fast {

namespace {

// To combine two C_in x C_out matrices costs as much as to multiply one with the features of this many points: the
// product runs from registers, the combination from the second-level cache.
constexpr double kCombination = 4;

// Whether component a of an affine field is a difference along axis a, as the basis of a row takes for granted.
bool differentiates_along_own_axes(const Problem& p) {
  if (p.component_count != p.ndim) return false;
  for (int64_t j = 0; j < p.tap_count(); ++j) {
    for (int a = 0; a < kAxes; ++a) {
      if (a != p.axis_of(p.components[j]) && p.taps[j * kAxes + a] != 0) return false;
    }
  }
  return true;
}

Plan choose(const Problem& p, int64_t basis_products, int64_t matrices_per_row, const int64_t target[kAxes]) {
  const int64_t rows = p.batch * target[0] * target[1], direct = p.generators + p.identity;
  const double points = static_cast<double>(rows * target[2]);
  Plan plan{false, direct, points * static_cast<double>(direct), std::numeric_limits<double>::infinity()};
  if (p.kind != CoefficientKind::kAffine || !differentiates_along_own_axes(p)) return plan;
  plan.row_basis_cost = points * static_cast<double>(basis_products) +
                        kCombination * static_cast<double>(rows * matrices_per_row + p.generators * p.ndim);
  if (plan.row_basis_cost < plan.direct_cost) {
    plan.row_basis = true;
    plan.products = basis_products;
  }
  return plan;
}

}  // namespace

Plan plan_apply(const Problem& p, bool transposed) {
  const int64_t n = p.ndim, products = p.identity + (transposed ? 3 * n - 1 : 2 * n);
  return choose(p, products, n * (n - 1), transposed ? p.array : p.out);
}

Plan plan_gram(const Problem& p) {
  const int64_t n = p.ndim;
  return choose(p, p.identity + 2 * n, n > 1 ? n * n : 0, p.out);
}

int64_t second_level_cache_bytes() {
  static const int64_t bytes = [] {
    int64_t found = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    if (const char* wanted = std::getenv("LCONV_FAST_CACHE_BYTES")) found = std::strtoll(wanted, nullptr, 10);
    return found > 0 ? found : int64_t{1} << 20;
  }();
  return bytes;
}

int64_t tile_points(int64_t most, int64_t bytes_per_point) {
  constexpr int64_t unit = 96;  // a multiple of all register blocks
  return std::clamp(second_level_cache_bytes() / 2 / bytes_per_point / unit * unit, unit, most);
}

}  // namespace lconv_fast
