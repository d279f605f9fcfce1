// The rows of a panel from the rows of a sparse matrix: f, then L_i f, of the nodes of a tile.
#pragma once

#include "../../graph.h"
#include "../tiles.h"

namespace lconv_fast::LCONV_ISA {

template <class S>
class Gather {
  using A = Accumulate<S>;

 public:
  Gather(const GraphProblem& p, bool transposed, const View& source)
      : p_(p), rows_(transposed ? p.by_source : p.by_target), transposed_(transposed), source_(source) {}

  // Whether what a tile's entries name exists. (Where rows start has been checked.)
  bool valid(int64_t first, int64_t count) const {
    return within(rows_, first, count) && (!(p_.incidence && transposed_) || within(p_.by_target, first, count));
  }

  // Channels [channel, channel + width) of a sample at the nodes [first, first + count): panel[node * stride + row *
  // width + c].
  void pack(int64_t batch, int64_t channel, int64_t width, int64_t first, int64_t count, A* panel,
            int64_t stride) const {
    const S* base = static_cast<const S*>(source_.data) + batch * source_.batch_stride + channel;
    const int64_t step = source_.stride[2], identity = p_.layer.identity;
    for (int64_t node = first; node < first + count; ++node, panel += stride) {
      const S* own = base + node * step;
      if (identity) copy(own, width, panel);
      sum_entries(node, base, own, width, panel + identity * width);
    }
  }

  // Asks for what a later entry names: rows are on their way from memory while others are added up. Of the row, the
  // first `bytes`; of the weights, those of `count` generators. Inlined always: GCC takes a function that only asks for
  // memory for one without effects, and drops calls of it.
  [[gnu::always_inline]] inline void fetch_ahead(const S* base, int64_t entry, int64_t bytes, const A* weights,
                                                 int64_t count) const {
    constexpr int64_t kAhead = 16, kLine = 64;
    const int64_t later = std::min(entry + kAhead, p_.edges - 1);
    // Addresses are numbers here: nodes and edges of later tiles have not been checked yet.
    const uintptr_t row = reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(rows_.nodes[later]) *
                                                                  static_cast<uintptr_t>(source_.stride[2]) * sizeof(S);
    const uintptr_t weight =
        reinterpret_cast<uintptr_t>(weights) + static_cast<uintptr_t>(rows_.edges[later]) * sizeof(A);
    for (int64_t k = 0; k < bytes; k += kLine) __builtin_prefetch(reinterpret_cast<const void*>(row + k));
    for (int64_t r = 0; r < count; ++r) {
      __builtin_prefetch(reinterpret_cast<const void*>(weight + r * p_.edges * sizeof(A)));
    }
  }

 private:
  static constexpr int kWide = kVectorBytes == 64 ? 4 : 2;  // vectors of a row that are summed at a time

  // What a sum over the entries of a node is of.
  enum class Terms { kValues, kDifferences, kValuesLessOwn };

  bool within(const Rows& rows, int64_t first, int64_t count) const {
    uint64_t node = 0, edge = 0;  // the largest; a negative one is larger than all
    const int64_t end = rows.starts[first + count];
    for (int64_t k = rows.starts[first]; k < end; ++k) {
      node = std::max(node, static_cast<uint64_t>(rows.nodes[k]));
      edge = std::max(edge, static_cast<uint64_t>(rows.edges[k]));
    }
    return node < static_cast<uint64_t>(p_.nodes) && edge < static_cast<uint64_t>(std::max<int64_t>(p_.edges, 1));
  }

  static void copy(const S* own, int64_t width, A* to) {
    int64_t c = 0;
    for (; c + kLanes<A> <= width; c += kLanes<A>) store(to + c, load(own + c));
    if (c < width) store_first(to + c, load_first(own + c, width - c), width - c);
  }

  void sum_entries(int64_t node, const S* base, const S* own, int64_t width, A* out) const {
    if (!p_.incidence) return sum_as<Terms::kValues>(node, base, own, width, out);
    if (!transposed_) return sum_as<Terms::kDifferences>(node, base, own, width, out);
    sum_as<Terms::kValuesLessOwn>(node, base, own, width, out);
  }

  template <Terms kTerms>
  void sum_as(int64_t node, const S* base, const S* own, int64_t width, A* out) const {
    int64_t i = 0;
    for (; i + 4 <= p_.layer.generators; i += 4) sum_generators<kTerms, 4>(node, i, base, own, width, out);
    switch (p_.layer.generators - i) {
      case 3:
        return sum_generators<kTerms, 3>(node, i, base, own, width, out);
      case 2:
        return sum_generators<kTerms, 2>(node, i, base, own, width, out);
      case 1:
        return sum_generators<kTerms, 1>(node, i, base, own, width, out);
    }
  }

  template <Terms kTerms, int kCount>
  void sum_generators(int64_t node, int64_t i, const S* base, const S* own, int64_t width, A* out) const {
    out += i * width;
    int64_t c = 0;
    constexpr int64_t wide = kWide * kLanes<A>;
    for (; c + wide <= width; c += wide)
      sum<kTerms, kCount, kWide, false>(node, i, base + c, own + c, width, out + c, 0);
    for (; c + kLanes<A> <= width; c += kLanes<A>) {
      sum<kTerms, kCount, 1, false>(node, i, base + c, own + c, width, out + c, 0);
    }
    if (c < width) sum<kTerms, kCount, 1, true>(node, i, base + c, own + c, width, out + c, width - c);
  }

  // kVectors of a row, or the first `lanes` of one, for the generators i to i + kCount - 1.
  template <Terms kTerms, int kCount, int kVectors, bool kPart>
  void sum(int64_t node, int64_t i, const S* base, const S* own, int64_t width, A* out, int64_t lanes) const {
    const A* weights = static_cast<const A*>(p_.weights) + i * p_.edges;
    const auto read = [&](const S* at, int v) {
      if constexpr (kPart) {
        return load_first(at, lanes);
      } else {
        return load(at + v * kLanes<A>);
      }
    };
    Vector<A> sum[kCount][kVectors], mine[kVectors];
    for (int r = 0; r < kCount; ++r) {
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Vector<A>{};
    }
    if constexpr (kTerms != Terms::kValues) {
      for (int v = 0; v < kVectors; ++v) mine[v] = read(own, v);
    }
    const int64_t end = rows_.starts[node + 1], step = source_.stride[2];
    // Rows are asked for once, with the first generators.
    const int64_t bytes = i == 0 ? (kPart ? lanes : kVectors * kLanes<A>)*static_cast<int64_t>(sizeof(S)) : 0;
    for (int64_t k = rows_.starts[node]; k < end; ++k) {
      fetch_ahead(base, k, bytes, weights, kCount);
      const S* row = base + rows_.nodes[k] * step;
      const A* weight = weights + rows_.edges[k];
      Vector<A> x[kVectors];
      for (int v = 0; v < kVectors; ++v) x[v] = read(row, v);
      if constexpr (kTerms == Terms::kDifferences) {
        for (int v = 0; v < kVectors; ++v) x[v] -= mine[v];
      }
      for (int r = 0; r < kCount; ++r) {
        const Vector<A> w = broadcast(weight[r * p_.edges]);
        for (int v = 0; v < kVectors; ++v) sum[r][v] += w * x[v];
      }
    }
    if constexpr (kTerms == Terms::kValuesLessOwn) {
      for (int r = 0; r < kCount; ++r) {
        A total = 0;
        for (int64_t k = p_.by_target.starts[node]; k < p_.by_target.starts[node + 1]; ++k) {
          total += weights[r * p_.edges + p_.by_target.edges[k]];
        }
        for (int v = 0; v < kVectors; ++v) sum[r][v] -= broadcast(total) * mine[v];
      }
    }
    for (int r = 0; r < kCount; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        A* to = out + r * width + v * kLanes<A>;
        if constexpr (kPart) {
          store_first(to, sum[r][v], lanes);
        } else {
          store(to, sum[r][v]);
        }
      }
    }
  }

  const GraphProblem& p_;
  const Rows rows_;
  const bool transposed_;
  const View& source_;
};

}  // namespace lconv_fast::LCONV_ISA
