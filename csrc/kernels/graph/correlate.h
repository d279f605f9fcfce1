// correlate: dQ/ds[i,e] = sum over b of (W_i^T g)[b,mu] . f[b,nu] for each edge e = (nu, mu).
#pragma once

#include "../pack/cotangent.h"
#include "../pack/weight.h"
#include "gather.h"
#include "pass.h"

namespace lconv_fast::LCONV_ISA {

// Sums of the lanes of vectors, as many vectors at a time as they have lanes; each is added where it belongs.
template <class A>
class LaneSums {
 public:
  void add(Vector<A> vector, A* place) {
    vectors_[count_] = vector;
    places_[count_] = place;
    if (++count_ == kLanes<A>) flush();
  }
  void flush() {
    for (int k = count_; k < kLanes<A>; ++k) vectors_[k] = Vector<A>{};
    const Vector<A> sums = sum_each<A>(vectors_);
    for (int k = 0; k < count_; ++k) *places_[k] += sums[k];
    count_ = 0;
  }

 private:
  Vector<A> vectors_[kLanes<A>];
  A* places_[kLanes<A>];
  int count_ = 0;
};

template <class S>
class GraphCorrelation {
  using A = Accumulate<S>;

 public:
  GraphCorrelation(const GraphProblem& problem, const View& f, const WeightView& weight, const View& g)
      : problem_(problem),
        p_(problem.layer),
        rows_(problem.by_target),
        f_(f),
        g_(g),
        gather_(problem, false, f),
        blocks_(p_.in_channels, p_.generators, kLanes<A>),
        columns_(round_up(p_.generators * blocks_.width, kBlockLanes<A>)),
        tiles_(p_.grid, Tiles::kAnywhere),
        tasks_(problem, rows_, tiles_, 1),
        parts_(tiles_.count >= kTasks ? 1 : std::clamp<int64_t>(kTasks / tiles_.count, 1, p_.batch)),
        packed_(p_.groups * blocks_.count * columns_ * p_.out_channels),
        zeros_(columns_) {
    for (int64_t k = 0; k < p_.groups * blocks_.count; ++k) pack(weight, k / blocks_.count, k % blocks_.count);
  }

  bool run(A* result) {
    const int64_t size = p_.generators * problem_.edges;
    const Workspace<A> others((parts_ - 1) * size);
    std::atomic<bool> valid{true};
    std::fill_n(result, size, A(0));
    parallel_for(parts_ * tiles_.count, [&](int64_t begin, int64_t end) {
      const Workspace<A> cotangent(kTile * p_.out_channels, Contents::kAny), products(kTile * columns_, Contents::kAny);
      for (int64_t share = begin; share < end; ++share) {
        const int64_t part = share / tiles_.count, piece = share % tiles_.count;
        A* to = part == 0 ? result : others.data() + (part - 1) * size;
        for (int64_t tile = tasks_.first(piece, tiles_.count); tile < tasks_.first(piece + 1, tiles_.count); ++tile) {
          if (!gather_.valid(tiles_.begin(tile), tiles_.size(tile))) {
            valid = false;
            return;
          }
          for (int64_t b = p_.batch * part / parts_; b < p_.batch * (part + 1) / parts_; ++b) {
            add_tile(b, tiles_.begin(tile), tiles_.size(tile), cotangent.data(), products.data(), to);
          }
        }
      }
    });
    for (int64_t part = 1; part < parts_; ++part) {
      for (int64_t k = 0; k < size; ++k) result[k] += others.data()[(part - 1) * size + k];
    }
    return valid;
  }

 private:
  static constexpr int64_t kTasks = 16;  // where a graph has fewer tiles, samples are shared out as well

  A* packed_at(int64_t group, int64_t b) const {
    return packed_.data() + (group * blocks_.count + b) * columns_ * p_.out_channels;
  }

  // Columns n = i * width + c, depth o: [block of n][o][lane].
  void pack(const WeightView& weight, int64_t group, int64_t b) {
    const int64_t width = blocks_.size(b), outs = p_.out_channels;
    for (int64_t n = 0; n < p_.generators * width; ++n) {
      const S* from = static_cast<const S*>(weight.data) + (n / width + 1) * weight.row_stride +
                      (blocks_.first(b) + n % width) * weight.in_stride + group * outs * weight.out_stride;
      A* to = packed_at(group, b) + n / kBlockLanes<A> * kBlockLanes<A> * outs + n % kBlockLanes<A>;
      for (int64_t o = 0; o < outs; ++o) to[o * kBlockLanes<A>] = to_accumulate(from[o * weight.out_stride]);
    }
  }

  void add_tile(int64_t batch, int64_t first, int64_t count, A* cotangent, A* products, A* result) const {
    const int64_t outs = p_.out_channels;
    const std::vector<Segment> segments{{0, 0, first, count, 0}};
    for (int64_t group = 0; group < p_.groups; ++group) {
      pack_points_major<S>(g_, batch, group * outs, outs, segments, outs, cotangent);
      for (int64_t b = 0; b < blocks_.count; ++b) {
        const Right<A> weight{packed_at(group, b), outs * kBlockLanes<A>, kBlockLanes<A>};
        LCONV_ISA::multiply(Sum<A>{{outs, {cotangent, Layout::kAlongDepth, outs}, weight}}, count,
                            p_.generators * blocks_.size(b),
                            Output<A>{products, columns_, Output<A>::kByColumn, zeros_.data()});
        const S* f =
            static_cast<const S*>(f_.data) + batch * f_.batch_stride + group * p_.in_channels + blocks_.first(b);
        dot_entries(f, blocks_.size(b), first, count, products, result);
      }
    }
  }

  void dot_entries(const S* f, int64_t width, int64_t first, int64_t count, const A* products, A* result) const {
    const int64_t step = f_.stride[2], whole = width / kLanes<A> * kLanes<A>;
    LaneSums<A> sums;
    for (int64_t node = first; node < first + count; ++node, products += columns_) {
      const S* own = f + node * step;
      for (int64_t k = rows_.starts[node]; k < rows_.starts[node + 1]; ++k) {
        gather_.fetch_ahead(f, k, width * static_cast<int64_t>(sizeof(S)), nullptr, 0);
        const S* row = f + rows_.nodes[k] * step;
        for (int64_t i = 0; i < p_.generators; ++i) {
          const A* h = products + i * width;
          Vector<A> sum = {};
          const auto add = [&](Vector<A> x, Vector<A> mine, Vector<A> other) {
            sum += (problem_.incidence ? x - mine : x) * other;
          };
          for (int64_t c = 0; c < whole; c += kLanes<A>) add(load(row + c), load(own + c), load(h + c));
          if (whole < width) {
            const int64_t n = width - whole;
            add(load_first(row + whole, n), load_first(own + whole, n), load_first(h + whole, n));
          }
          sums.add(sum, result + i * problem_.edges + rows_.edges[k]);
        }
      }
    }
    sums.flush();
  }

  const GraphProblem& problem_;
  const Problem& p_;
  const Rows& rows_;
  const View &f_, &g_;
  const Gather<S> gather_;
  const ChannelBlocks blocks_;
  const int64_t columns_;
  const Tiles tiles_;
  const GraphTasks tasks_;
  const int64_t parts_;
  const Workspace<A> packed_, zeros_;
};

template <class S>
bool graph_correlate(const GraphProblem& p, const View& f, const WeightView& weight, const View& g, void* result) {
  return GraphCorrelation<S>(p, f, weight, g).run(static_cast<Accumulate<S>*>(result));
}

}  // namespace lconv_fast::LCONV_ISA
