// Checks one instruction set's kernels on graphs against sums over edges (csrc/graph.h), on random graphs, under
// sanitizers: arrays have no room to spare. Each operator runs with two splits into tasks, whose bits must agree.
//
//   check_graph [problems] [seed]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "graph.h"

namespace lconv_fast {

namespace LCONV_ISA {
extern const GraphKernels graph_kernels;
}

namespace {

int split = 1;
std::mt19937 engine;
int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }

template <class T>
std::vector<T> normal(int64_t size) {
  std::vector<T> result(size);
  for (T& x : result) x = static_cast<T>(std::normal_distribution<double>()(engine));
  return result;
}

struct Sorted {
  std::vector<int64_t> starts, nodes, edges;
  Sorted(const std::vector<int64_t>& row, const std::vector<int64_t>& other, int64_t count) : starts(count + 1) {
    for (int64_t r = 0; r < count; ++r) {
      for (size_t e = 0; e < row.size(); ++e) {
        if (row[e] == r) nodes.push_back(other[e]), edges.push_back(static_cast<int64_t>(e));
      }
      starts[r + 1] = static_cast<int64_t>(nodes.size());
    }
    nodes.shrink_to_fit(), edges.shrink_to_fit();
  }
  Rows rows() const { return {starts.data(), nodes.data(), edges.data()}; }
};

template <class T>
bool check(int64_t number) {
  GraphProblem p;
  Problem& q = p.layer;
  q.scalar = sizeof(T) == 8 ? Scalar::kDouble : Scalar::kFloat;
  q.ndim = 1;
  q.identity = draw(0, 2) > 0;
  q.batch = draw(1, 3), q.groups = draw(1, 2), q.generators = draw(1, 9);
  q.in_channels = draw(1, 70), q.out_channels = draw(1, 70);
  p.nodes = draw(1, 450), p.edges = draw(0, 900), p.incidence = draw(0, 1) == 1;
  for (int a = 0; a < kAxes; ++a) {
    q.grid[a] = q.array[a] = q.out[a] = a == 2 ? p.nodes : 1;
    q.halo_low[a] = 0, q.step[a] = 1;
  }
  std::vector<int64_t> source(p.edges), target(p.edges);
  for (int64_t& v : source) v = draw(0, p.nodes - 1);
  for (int64_t& v : target) v = draw(0, 4) ? draw(0, p.nodes - 1) : 0;
  const Sorted in(target, source, p.nodes), out(source, target, p.nodes);
  p.by_target = in.rows(), p.by_source = out.rows();
  const int64_t ins = q.in_channels * q.groups, outs = q.out_channels * q.groups, rows = q.generators + 1;
  const std::vector<T> s = normal<T>(q.generators * p.edges), bias = normal<T>(outs);
  std::vector<T> f = normal<T>(q.batch * p.nodes * ins), g = normal<T>(q.batch * p.nodes * outs),
                 w = normal<T>(rows * outs * q.in_channels);
  p.weights = s.data();
  const auto view = [&](T* data, int64_t channels) {
    View v;
    v.data = data, v.batch_stride = p.nodes * channels, v.channel_stride = 1, v.stride[2] = channels;
    return v;
  };
  const View f_view = view(f.data(), ins), g_view = view(g.data(), outs);
  const WeightView weight{w.data(), outs * q.in_channels, q.in_channels, 1};

  std::vector<double> y(g.size()), df(f.size()), dw(w.size()), ds(s.size());
  // One term g[mu,o] s f[nu,c] W[r,o,c] of the form; `edge` < 0 for the identity.
  const auto add = [&](int64_t r, int64_t edge, double sign, int64_t nu, int64_t mu) {
    const double number = edge < 0 ? 1 : sign * s[(r - 1) * p.edges + edge];
    for (int64_t b = 0; b < q.batch; ++b) {
      for (int64_t o = 0; o < outs; ++o) {
        for (int64_t c = 0; c < q.in_channels; ++c) {
          const int64_t fk = (b * p.nodes + nu) * ins + o / q.out_channels * q.in_channels + c;
          const int64_t gk = (b * p.nodes + mu) * outs + o, wk = (r * outs + o) * q.in_channels + c;
          y[gk] += number * f[fk] * w[wk];
          df[fk] += number * g[gk] * w[wk];
          dw[wk] += number * f[fk] * g[gk];
          if (edge >= 0) ds[(r - 1) * p.edges + edge] += sign * f[fk] * g[gk] * w[wk];
        }
      }
    }
  };
  for (int64_t node = 0; q.identity && node < p.nodes; ++node) add(0, -1, 1, node, node);
  for (int64_t e = 0; e < p.edges; ++e) {
    for (int64_t r = 1; r < rows; ++r) {
      add(r, e, 1, source[e], target[e]);
      if (p.incidence) add(r, e, -1, target[e], target[e]);
    }
  }
  for (size_t k = 0; k < y.size(); ++k) y[k] += bias[k % outs];

  bool fine = true;
  const auto compare = [&](const char* name, const std::vector<double>& expected, auto call) {
    std::vector<T> found(expected.size()), again(expected.size());
    split = 1;
    bool valid = call(found);
    split = 3;
    valid &= call(again);
    double difference = 0, norm = 1e-300;
    for (size_t k = 0; k < expected.size(); ++k) {
      difference += (found[k] - expected[k]) * (found[k] - expected[k]);
      norm += expected[k] * expected[k];
    }
    const double error = std::sqrt(difference / norm);
    if (valid && found == again && error < (sizeof(T) == 8 ? 1e-13 : 2e-6)) return;
    fine = false;
    std::printf("problem %lld, %s: error %.2e%s\n", static_cast<long long>(number), name, error,
                found == again ? "" : ", bits differ");
  };
  const GraphKernels& kernels = LCONV_ISA::graph_kernels;
  compare("apply", y, [&](std::vector<T>& to) {
    return kernels.apply(p, false, f_view, weight, bias.data(), view(to.data(), outs));
  });
  compare("apply transposed", df,
          [&](std::vector<T>& to) { return kernels.apply(p, true, g_view, weight, nullptr, view(to.data(), ins)); });
  compare("gram", dw, [&](std::vector<T>& to) { return kernels.gram(p, f_view, g_view, to.data()); });
  std::vector<T> other(f.size());
  compare("backward", dw, [&](std::vector<T>& to) {
    return kernels.backward(p, g_view, f_view, weight, view(other.data(), ins), to.data());
  });
  if (p.edges) {
    compare("correlate", ds,
            [&](std::vector<T>& to) { return kernels.correlate(p, f_view, weight, g_view, to.data()); });
    std::vector<int64_t> wrong = in.nodes;
    wrong[draw(0, p.edges - 1)] = draw(0, 1) ? -1 : p.nodes;
    GraphProblem bad = p;
    bad.by_target.nodes = wrong.data();
    std::vector<T> to(g.size());
    if (kernels.apply(bad, false, f_view, weight, nullptr, view(to.data(), outs))) {
      fine = false;
      std::printf("problem %lld: a node that does not exist was taken\n", static_cast<long long>(number));
    }
  }
  return fine;
}

}  // namespace

void parallel_for(int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  for (int k = split - 1; k >= 0; --k) {
    const int64_t begin = count * k / split, end = count * (k + 1) / split;
    if (begin < end) body(begin, end);
  }
}

}  // namespace lconv_fast

// 77 tells the test runner that this processor lacks the instruction set.
int main(int count, char** values) {
#if defined(LCONV_NEEDS_avx2)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 77;
#elif defined(LCONV_NEEDS_avx512)
  if (!__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bw")) return 77;
#endif
  const int64_t problems = count > 1 ? std::atoll(values[1]) : 20;
  lconv_fast::engine.seed(static_cast<unsigned>(count > 2 ? std::atoll(values[2]) : 0));
  int64_t wrong = 0;
  for (int64_t k = 0; k < problems; ++k) wrong += k % 2 ? !lconv_fast::check<float>(k) : !lconv_fast::check<double>(k);
  std::printf("graphs: %lld of %lld problems wrong\n", static_cast<long long>(wrong), static_cast<long long>(problems));
  return wrong ? 1 : 0;
}
