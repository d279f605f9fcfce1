#include "sublattices.h"

#include <algorithm>
#include <cstring>

namespace lconv_fast {

namespace {

int64_t item_bytes(Scalar scalar) { return scalar == Scalar::kDouble ? 8 : scalar == Scalar::kFloat ? 4 : 2; }

int64_t divide_up(int64_t a, int64_t b) { return a > 0 ? (a - 1) / b + 1 : -(-a / b); }

// A problem of one residue, with what its pointers borrow from.
struct Sublattice {
  Problem problem;
  std::vector<int64_t> generators;  // those of the whole problem that have a tap here
  std::vector<char> weight, coefficients;
};

// Coefficients at the points of g alone: (n_L, m, *out) of (n_L, m, *grid).
std::vector<char> coefficients_at_steps(const Problem& p) {
  const int64_t item = p.scalar == Scalar::kDouble ? 8 : 4, count = p.generators * p.component_count;
  const int64_t points = p.out[0] * p.out[1] * p.out[2];
  std::vector<char> result(count * points * item);
  const char* from = static_cast<const char*>(p.coefficients);
  parallel_for(count * p.out[0] * p.out[1], [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = row % p.out[1], z = row / p.out[1] % p.out[0], q = row / (p.out[0] * p.out[1]);
      const char* line = from + ((q * p.grid[0] + z * p.step[0]) * p.grid[1] + y * p.step[1]) * p.grid[2] * item;
      char* to = result.data() + row * p.out[2] * item;
      for (int64_t x = 0; x < p.out[2]; ++x) std::memcpy(to + x * item, line + x * p.step[2] * item, item);
    }
  });
  return result;
}

// The numbers of one generator's component, of kinds that have few.
int64_t numbers_of_component(const Problem& p) { return p.kind == CoefficientKind::kAffine ? kAxes + 1 : 1; }

template <class A>
bool is_zero(const Problem& p, int64_t generator, int64_t component) {
  const int64_t count = numbers_of_component(p);
  const A* row = static_cast<const A*>(p.coefficients) + (generator * p.component_count + component) * count;
  return std::all_of(row, row + count, [](A v) { return v == A(0); });
}

// Whether a generator moves anything through the taps of `here`.
bool takes_part(const Problem& whole, const Problem& here, int64_t generator) {
  if (here.components.empty()) return false;
  if (whole.kind == CoefficientKind::kSampled) return true;
  return !std::all_of(here.components.begin(), here.components.end(), [&](int component) {
    return whole.scalar == Scalar::kDouble ? is_zero<double>(whole, generator, component)
                                           : is_zero<float>(whole, generator, component);
  });
}

// The kept generators' coefficients; affine ones in units of the coarse grid, v = shift + sum_a (s_a matrix_a) x_a /
// s_a.
template <class A>
void take_coefficients(const Problem& whole, const std::vector<char>& sampled, Sublattice& s) {
  Problem& p = s.problem;
  const bool is_sampled = whole.kind == CoefficientKind::kSampled;
  const int64_t each = whole.component_count * (is_sampled ? p.grid_points() : numbers_of_component(whole));
  const A* from = is_sampled ? reinterpret_cast<const A*>(sampled.data()) : static_cast<const A*>(whole.coefficients);
  if (is_sampled) {  // all generators take part
    p.coefficients = from;
    return;
  }
  s.coefficients.resize(s.generators.size() * each * sizeof(A));
  A* to = reinterpret_cast<A*>(s.coefficients.data());
  for (size_t k = 0; k < s.generators.size(); ++k) {
    std::copy_n(from + s.generators[k] * each, each, to + static_cast<int64_t>(k) * each);
  }
  p.coefficients = to;
  if (whole.kind != CoefficientKind::kAffine) return;
  for (int64_t row = 0; row < static_cast<int64_t>(s.generators.size()) * whole.component_count; ++row) {
    for (int a = 0; a < kAxes; ++a) to[row * (kAxes + 1) + a] *= static_cast<A>(whole.step[a]);
  }
}

// The identity's and the kept generators' rows of W; all of them where they are.
WeightView take_weight(const Problem& whole, const WeightView& weight, Sublattice& s) {
  const auto kept = static_cast<int64_t>(s.generators.size());
  if (kept == whole.generators) return weight;
  const int64_t item = item_bytes(whole.scalar), outs = whole.groups * whole.out_channels, ins = whole.in_channels;
  s.weight.resize((kept + 1) * outs * ins * item);
  const char* from = static_cast<const char*>(weight.data);
  for (int64_t r = 0; r <= kept; ++r) {
    const int64_t row = r == 0 ? 0 : s.generators[r - 1] + 1;
    for (int64_t o = 0; o < outs; ++o) {
      for (int64_t c = 0; c < ins; ++c) {
        std::memcpy(&s.weight[((r * outs + o) * ins + c) * item],
                    from + (row * weight.row_stride + o * weight.out_stride + c * weight.in_stride) * item, item);
      }
    }
  }
  return {s.weight.data(), outs * ins, ins, 1};
}

// The problem of the points with this residue of each axis, but its coefficients.
Sublattice sublattice_of(const Problem& whole, const int64_t residue[kAxes]) {
  Sublattice s;
  Problem& p = s.problem = whole;
  int64_t delta[kAxes];
  for (int a = 0; a < kAxes; ++a) {
    const int64_t step = whole.step[a], low = whole.halo_low[a] - residue[a];
    p.halo_low[a] = divide_up(low, step);
    delta[a] = low - step * p.halo_low[a];
    p.step[a] = 1;
    p.grid[a] = p.out[a] = whole.out[a];
    p.array[a] = residue[a] < whole.array[a] ? (whole.array[a] - 1 - residue[a]) / step + 1 : 0;
    p.center[a] = whole.center[a] / static_cast<double>(step);
    p.identity = p.identity && delta[a] == 0;
  }
  p.taps.clear();
  p.tap_weights.clear();
  p.components.clear();
  for (int64_t j = 0; j < whole.tap_count(); ++j) {
    int64_t q[kAxes];
    bool divides = true;
    for (int a = 0; a < kAxes; ++a) {
      const int64_t distance = whole.taps[j * kAxes + a] + delta[a];
      divides = divides && distance % whole.step[a] == 0;
      q[a] = distance / whole.step[a];
    }
    if (!divides) continue;
    p.taps.insert(p.taps.end(), q, q + kAxes);
    p.tap_weights.push_back(whole.tap_weights[j]);
    p.components.push_back(whole.components[j]);
  }
  for (int64_t i = 0; i < whole.generators; ++i) {
    if (takes_part(whole, p, i)) s.generators.push_back(i);
  }
  p.generators = static_cast<int64_t>(s.generators.size());
  return s;
}

// Zeros at all points of a sublattice's view.
void clear(const Problem& p, const View& v) {
  const int64_t item = item_bytes(p.scalar), channels = p.groups * p.in_channels;
  char* data = static_cast<char*>(v.data);
  parallel_for(p.batch * p.array[0] * p.array[1], [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = row % p.array[1], z = row / p.array[1] % p.array[0], b = row / (p.array[0] * p.array[1]);
      char* line = data + (b * v.batch_stride + z * v.stride[0] + y * v.stride[1]) * item;
      for (int64_t x = 0; x < p.array[2]; ++x) {
        for (int64_t c = 0; c < channels; ++c) {
          std::memset(line + (x * v.stride[2] + c * v.channel_stride) * item, 0, item);
        }
      }
    }
  });
}

}  // namespace

bool has_sublattices(const Problem& p) {
  bool strided = false;
  for (int a = 0; a < kAxes; ++a) {
    strided = strided || p.step[a] > 1;
    if (p.padding == Padding::kCircular && p.grid[a] % p.step[a] != 0) return false;
  }
  return strided;
}

void apply_on_sublattices(const Kernels& kernels, const Problem& p, const View& source, const WeightView& weight,
                          const View& target) {
  std::vector<char> sampled;
  if (p.kind == CoefficientKind::kSampled) sampled = coefficients_at_steps(p);
  int64_t residue[kAxes];
  for (residue[0] = 0; residue[0] < p.step[0]; ++residue[0]) {
    for (residue[1] = 0; residue[1] < p.step[1]; ++residue[1]) {
      for (residue[2] = 0; residue[2] < p.step[2]; ++residue[2]) {
        Sublattice s = sublattice_of(p, residue);
        if (s.problem.array[0] * s.problem.array[1] * s.problem.array[2] == 0) continue;
        View part = target;
        for (int a = 0; a < kAxes; ++a) {
          part.data = static_cast<char*>(part.data) + residue[a] * target.stride[a] * item_bytes(p.scalar);
          part.stride[a] *= p.step[a];
        }
        if (!s.problem.identity && s.generators.empty()) {
          clear(s.problem, part);
          continue;
        }
        if (p.scalar == Scalar::kDouble) {
          take_coefficients<double>(p, sampled, s);
        } else {
          take_coefficients<float>(p, sampled, s);
        }
        kernels.apply(s.problem, true, source, take_weight(p, weight, s), nullptr, part);
      }
    }
  }
}

}  // namespace lconv_fast
