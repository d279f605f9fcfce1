// Checks one instruction set's kernels against sums written out by the definition of Q (csrc/problem.h), on random
// problems, without PyTorch: so the same check runs natively, under sanitizers, and in an emulator of another
// processor.
//
//   check_kernels [problems] [seed]
//
// All arrays stand between bands of NaN, and so do results: a read beyond an input shows in the result, a write beyond
// a result shows in its bands. Each operator runs twice, with different splits into tasks: results must be the same
// bits.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

#include "problem.h"

namespace lconv_fast {

namespace LCONV_ISA {
extern const Kernels kernels;
}

namespace {

int split = 1;

}  // namespace

void parallel_for(int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  for (int k = split - 1; k >= 0; --k) {
    const int64_t begin = count * k / split, end = count * (k + 1) / split;
    if (begin < end) body(begin, end);
  }
}

namespace {

std::mt19937 engine;
int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
double normal() { return std::normal_distribution<double>()(engine); }

constexpr int64_t kBand = 64;

template <class T>
struct Banded {
  std::vector<T> all;
  int64_t size;
  explicit Banded(int64_t n) : all(n + 2 * kBand, std::numeric_limits<T>::quiet_NaN()), size(n) {}
  T* data() { return all.data() + kBand; }
  void draw_numbers() {
    for (int64_t k = 0; k < size; ++k) data()[k] = static_cast<T>(normal());
  }
  bool bands_are_whole() const {
    for (int64_t k = 0; k < kBand; ++k) {
      if (!std::isnan(all[k]) || !std::isnan(all[kBand + size + k])) return false;
    }
    return true;
  }
};

View view_of(void* data, int64_t channels, const int64_t extent[kAxes], bool last) {
  View v;
  v.data = data;
  int64_t step = last ? channels : 1;
  for (int a = kAxes - 1; a >= 0; --a) v.stride[a] = step, step *= extent[a];
  v.channel_stride = last ? 1 : step;
  v.batch_stride = last ? step : step * channels;
  return v;
}

template <class T>
struct Check {
  Problem p;
  bool last = false;
  int64_t ins = 0, outs = 0;  // over all groups
  std::vector<T> coefficients;

  int64_t slot_size() const {
    return p.kind == CoefficientKind::kConstant ? 1 : p.kind == CoefficientKind::kSampled ? p.grid_points() : kAxes + 1;
  }

  explicit Check(int64_t number) {
    p.scalar = sizeof(T) == 8 ? Scalar::kDouble : Scalar::kFloat;
    p.ndim = static_cast<int>(draw(1, 3));
    p.kind = static_cast<CoefficientKind>(number % 3);
    p.padding = static_cast<Padding>(draw(0, kPaddings - 1));
    p.identity = draw(0, 3) > 0;
    const bool halo = p.padding == Padding::kZeros && draw(0, 2) == 0;
    for (int a = 0; a < kAxes; ++a) {
      const bool there = a >= kAxes - p.ndim;
      // Long rows now and then: the basis of a row pays there.
      p.grid[a] = !there ? 1 : a == 2 && draw(0, 2) == 0 ? draw(16, 210) : draw(3, 7);
      p.halo_low[a] = there && halo ? draw(0, 2) : 0;
      p.array[a] = p.grid[a] + p.halo_low[a] + (there && halo ? draw(0, 2) : 0);
      p.step[a] = there && draw(0, 3) == 0 ? draw(2, 3) : 1;
      p.out[a] = (p.grid[a] - 1) / p.step[a] + 1;
      p.center[a] = there ? 0.5 * static_cast<double>(p.grid[a] - 1) : 0;
    }
    p.inverse_scale = 0.3;
    p.batch = draw(1, 5);
    p.groups = draw(1, 2);
    // Whole vectors now and then, as most layers have.
    p.in_channels = draw(0, 1) ? int64_t{4} << draw(0, 3) : draw(1, 20);
    p.out_channels = draw(0, 1) ? int64_t{4} << draw(0, 3) : draw(1, 20);
    p.generators = draw(1, 14);
    ins = p.groups * p.in_channels;
    outs = p.groups * p.out_channels;
    last = draw(0, 1) == 1;
    p.component_count = p.ndim;
    const bool shifts = p.kind == CoefficientKind::kConstant && draw(0, 1) == 0;  // one tap for each generator
    const bool central = !shifts && draw(0, 3) > 0;
    if (shifts) p.component_count = draw(1, 9);
    for (int64_t a = 0; a < p.component_count; ++a) {
      const int64_t count = central ? 2 : shifts ? 1 : draw(1, 3);
      for (int64_t j = 0; j < count; ++j) {
        for (int axis = 0; axis < kAxes; ++axis) {
          const bool own = central && axis == p.axis_of(a);
          p.taps.push_back(central ? own * (2 * j - 1) : axis >= kAxes - p.ndim ? draw(-2, 2) : 0);
        }
        p.tap_weights.push_back(central ? 0.5 * static_cast<double>(2 * j - 1) : shifts ? 1 : normal());
        p.components.push_back(static_cast<int>(a));
      }
    }
    coefficients.resize(p.generators * p.component_count * slot_size());
    // Zeros decide which products are left out.
    const int64_t zeros = p.kind == CoefficientKind::kSampled ? 0 : draw(0, 3);
    for (T& v : coefficients) v = static_cast<T>(draw(0, 3) < zeros ? 0 : normal());
    for (int64_t i = 0; shifts && i < p.generators; ++i) {
      T* const row = coefficients.data() + i * p.component_count;
      const int64_t tap = draw(-1, p.component_count - 1);
      for (int64_t j = 0; j < p.component_count; ++j) row[j] = j != tap ? 0 : draw(0, 1) ? 1 : row[j];
    }
    p.coefficients = coefficients.data();
  }

  double coefficient(int64_t i, int64_t a, const int64_t x[kAxes]) const {
    const T* v = coefficients.data() + (i * p.component_count + a) * slot_size();
    if (p.kind == CoefficientKind::kConstant) return v[0];
    if (p.kind == CoefficientKind::kSampled) return v[(x[0] * p.grid[1] + x[1]) * p.grid[2] + x[2]];
    double sum = v[kAxes];
    for (int b = kAxes - p.ndim; b < kAxes; ++b) {
      sum += v[b] * (static_cast<double>(x[b]) - p.center[b]) * p.inverse_scale;
    }
    return sum;
  }

  // Where in the array a tap of grid point x lies; false where it sees zero.
  bool place(const int64_t x[kAxes], int64_t j, int64_t at[kAxes]) const {
    for (int a = 0; a < kAxes; ++a) {
      const int64_t size = p.array[a];
      int64_t k = x[a] + p.halo_low[a] + (j < p.tap_count() ? p.taps[j * kAxes + a] : 0);
      if (k < 0 || k >= size) {
        if (p.padding == Padding::kZeros) return false;
        if (p.padding == Padding::kCircular) k = (k % size + size) % size;
        if (p.padding == Padding::kReplicate) k = k < 0 ? 0 : size - 1;
        if (p.padding == Padding::kReflect) k = k < 0 ? -k : 2 * (size - 1) - k;
      }
      at[a] = k;
    }
    return true;
  }

  static int64_t offset(const View& v, int64_t b, int64_t c, const int64_t x[kAxes]) {
    return b * v.batch_stride + c * v.channel_stride + x[0] * v.stride[0] + x[1] * v.stride[1] + x[2] * v.stride[2];
  }

  // Calls term(batch, out point, grid point, row r, tap j or tap_count for the identity, place in the array,
  // component).
  template <class Term>
  void for_terms(Term term) const {
    for (int64_t b = 0; b < p.batch; ++b) {
      int64_t o[kAxes];
      for (o[0] = 0; o[0] < p.out[0]; ++o[0]) {
        for (o[1] = 0; o[1] < p.out[1]; ++o[1]) {
          for (o[2] = 0; o[2] < p.out[2]; ++o[2]) {
            const int64_t x[kAxes] = {o[0] * p.step[0], o[1] * p.step[1], o[2] * p.step[2]};
            for (int64_t j = 0; j <= p.tap_count(); ++j) {
              int64_t at[kAxes];
              if (place(x, j, at)) term(b, o, x, j, at);
            }
          }
        }
      }
    }
  }

  bool compare(const char* name, int64_t number, const std::vector<double>& expected, Banded<T>& found,
               Banded<T>& again) const {
    double difference = 0, norm = 1e-300;
    for (int64_t k = 0; k < found.size; ++k) {
      const double e = static_cast<double>(found.data()[k]) - expected[k];
      difference += e * e;
      norm += expected[k] * expected[k];
    }
    const double error = std::sqrt(difference / norm);
    const bool same = std::memcmp(found.data(), again.data(), found.size * sizeof(T)) == 0;
    const bool whole = found.bands_are_whole() && again.bands_are_whole();
    const bool fine = error < (sizeof(T) == 8 ? 1e-13 : 2e-6) && same && whole;
    if (!fine) {
      std::printf("problem %lld, %s (kind %d, %dD, padding %d, %s): error %.2e%s%s\n", static_cast<long long>(number),
                  name, static_cast<int>(p.kind), p.ndim, static_cast<int>(p.padding),
                  last ? "channels-last" : "contiguous", error, same ? "" : ", bits differ",
                  whole ? "" : ", written outside");
    }
    return fine;
  }

  bool run(int64_t number) {
    const int64_t in_points = p.array[0] * p.array[1] * p.array[2], out_points = p.out[0] * p.out[1] * p.out[2];
    Banded<T> f(p.batch * ins * in_points), g(p.batch * outs * out_points),
        w((p.generators + 1) * outs * p.in_channels), bias(outs);
    f.draw_numbers(), g.draw_numbers(), w.draw_numbers(), bias.draw_numbers();
    const View f_view = view_of(f.data(), ins, p.array, last), g_view = view_of(g.data(), outs, p.out, last);
    const WeightView weight{w.data(), outs * p.in_channels, p.in_channels, 1};

    std::vector<double> y(g.size), df(f.size), dw(w.size), dv(coefficients.size());
    for (int64_t b = 0; b < p.batch; ++b) {
      int64_t o[kAxes];
      for (o[0] = 0; o[0] < p.out[0]; ++o[0]) {
        for (o[1] = 0; o[1] < p.out[1]; ++o[1]) {
          for (o[2] = 0; o[2] < p.out[2]; ++o[2]) {
            for (int64_t c = 0; c < outs; ++c) y[offset(g_view, b, c, o)] = bias.data()[c];
          }
        }
      }
    }
    for_terms([&](int64_t b, const int64_t o[kAxes], const int64_t x[kAxes], int64_t j, const int64_t at[kAxes]) {
      const bool identity = j == p.tap_count();
      if (identity && !p.identity) return;
      const int64_t a = identity ? 0 : p.components[j];
      for (int64_t i = 0; i < (identity ? 1 : p.generators); ++i) {
        const int64_t r = identity ? 0 : i + 1;
        const double s = identity ? 1 : p.tap_weights[j] * coefficient(i, a, x);
        double touched = 0;
        for (int64_t out = 0; out < outs; ++out) {
          const int64_t first = out / p.out_channels * p.in_channels, g_at = offset(g_view, b, out, o);
          for (int64_t c = 0; c < p.in_channels; ++c) {
            const int64_t f_at = offset(f_view, b, first + c, at), w_at = (r * outs + out) * p.in_channels + c;
            const double fv = f.data()[f_at], gv = g.data()[g_at], wv = w.data()[w_at];
            y[g_at] += s * fv * wv;
            df[f_at] += s * gv * wv;
            dw[w_at] += s * fv * gv;
            touched += fv * gv * wv;
          }
        }
        if (identity) continue;
        double* v = dv.data() + (i * p.component_count + a) * slot_size();
        touched *= p.tap_weights[j];
        if (p.kind == CoefficientKind::kConstant) v[0] += touched;
        if (p.kind == CoefficientKind::kSampled) v[(x[0] * p.grid[1] + x[1]) * p.grid[2] + x[2]] += touched;
        if (p.kind == CoefficientKind::kAffine) {
          for (int axis = 0; axis < kAxes; ++axis) {
            v[axis] += touched * (static_cast<double>(x[axis]) - p.center[axis]) * p.inverse_scale;
          }
          v[kAxes] += touched;
        }
      }
    });

    const auto twice = [&](const char* name, const std::vector<double>& expected, auto call) {
      Banded<T> found(static_cast<int64_t>(expected.size())), again(found.size);
      split = 1;
      call(found.data());
      split = 3;
      call(again.data());
      return compare(name, number, expected, found, again);
    };
    const Kernels& kernels = LCONV_ISA::kernels;
    bool fine = twice("apply", y, [&](T* out) {
      kernels.apply(p, false, f_view, weight, bias.data(), view_of(out, outs, p.out, last));
    });
    if (inverts(p.padding)) {
      fine &= twice("apply transposed", df,
                    [&](T* out) { kernels.apply(p, true, g_view, weight, nullptr, view_of(out, ins, p.array, last)); });
    }
    fine &= twice("gram", dw, [&](T* out) { kernels.gram(p, f_view, g_view, out); });
    fine &= twice("correlate", dv, [&](T* out) { kernels.correlate(p, f_view, weight, g_view, out); });
    return fine;
  }
};

}  // namespace
}  // namespace lconv_fast

// 77 tells the test runner that this processor lacks the instruction set.
int main(int count, char** values) {
#if defined(LCONV_NEEDS_avx2)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 77;
#elif defined(LCONV_NEEDS_avx512)
  if (!__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bw")) return 77;
#endif
  const int64_t problems = count > 1 ? std::atoll(values[1]) : 200;
  lconv_fast::engine.seed(static_cast<unsigned>(count > 2 ? std::atoll(values[2]) : 0));
  int64_t wrong = 0;
  for (int64_t k = 0; k < problems; ++k) {
    wrong += k % 2 ? !lconv_fast::Check<float>(k).run(k) : !lconv_fast::Check<double>(k).run(k);
  }
  std::printf("%s: %lld of %lld problems wrong\n", lconv_fast::LCONV_ISA::kernels.name, static_cast<long long>(wrong),
              static_cast<long long>(problems));
  return wrong ? 1 : 0;
}
