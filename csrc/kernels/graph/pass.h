// One pass over the nodes: a tile's panel of f and L_i f (or of g and L_i^T g) is gathered once, and multiplied with
// the weight, with what came from the other side, or with both. So apply, gram and backward.
#pragma once

#include <atomic>
#include <optional>

#include "../factor.h"
#include "../pack/cotangent.h"
#include "../reduction.h"
#include "gather.h"

namespace lconv_fast::LCONV_ISA {

// The tasks of a graph split evenly. The samples of a batch cost the same; within one, nodes cost as their entries do.
class GraphTasks {
 public:
  GraphTasks(const GraphProblem& p, const Rows& rows, const Tiles& tiles, int64_t batch)
      : tasks_(batch, tiles.count), tiles_(tiles), rows_(rows), nodes_(p.nodes) {}
  int64_t count() const { return tasks_.count; }
  Tasks::Task at(int64_t task) const { return tasks_.at(task); }
  // The first task of a share.
  int64_t first(int64_t share, int64_t shares) const {
    if (tasks_.batch != 1 || share == 0 || share == shares) return tasks_.count * share / shares;
    const double wanted = static_cast<double>(cost(nodes_)) * static_cast<double>(share) / static_cast<double>(shares);
    int64_t low = 0, high = tiles_.count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (static_cast<double>(cost(tiles_.begin(middle))) < wanted) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

 private:
  static constexpr int64_t kNode = 8;  // a node's product with the weight, in entries
  int64_t cost(int64_t node) const { return rows_.starts[node] + kNode * node; }
  const Tasks tasks_;
  const Tiles& tiles_;
  const Rows& rows_;
  const int64_t nodes_;
};

template <class S>
class GraphPass {
  using A = Accumulate<S>;

 public:
  // Of f if !transposed, of g otherwise.
  GraphPass(const GraphProblem& problem, bool transposed, const View& source)
      : problem_(problem),
        p_(problem.layer),
        transposed_(transposed),
        source_(source),
        gather_(problem, transposed, source),
        ins_(transposed ? p_.out_channels : p_.in_channels),
        outs_(transposed ? p_.in_channels : p_.out_channels),
        rows_(p_.generators + p_.identity),
        blocks_(ins_, rows_, kLanes<A>),
        tiles_(p_.grid, Tiles::kAnywhere),
        tasks_(problem, transposed ? problem.by_source : problem.by_target, tiles_, p_.batch) {}

  // y, or dQ/df.
  void multiply(const WeightView& weight, const void* bias, const View& target) {
    factor_.emplace(p_, transposed_, false, true, weight, blocks_);
    target_ = target;
    starts_.emplace(p_.groups * factor_->columns());
    for (int64_t o = 0; bias && o < p_.groups * outs_; ++o) {
      starts_->data()[o / outs_ * factor_->columns() + o % outs_] = to_accumulate(static_cast<const S*>(bias)[o]);
    }
  }

  // dQ/dW: `partner` is g if !transposed, f otherwise.
  void correlate(const View& partner, void* result) {
    partner_ = partner;
    result_ = static_cast<S*>(result);
    columns_ = round_up(outs_, kBlockLanes<A>);
    group_size_ = rows_ * ins_ * columns_;
    const int64_t bytes = p_.groups * group_size_ * static_cast<int64_t>(sizeof(A));
    parts_ = part_count(tasks_.count(), p_.batch * problem_.nodes, bytes);
    sums_.emplace(parts_ * p_.groups * group_size_);
    in_place_ = std::is_same_v<S, A> && partner.stride[2] >= outs_ && outs_ % kLanes<A> == 0;
  }

  bool run() {
    // Without sums, what a task gives does not depend on the others.
    const int64_t shares = result_ ? parts_ : tasks_.count();
    std::atomic<bool> valid{true};
    parallel_for(shares, [&](int64_t begin, int64_t end) {
      Scratch scratch(*this);
      for (int64_t share = begin; share < end; ++share) {
        A* sums = result_ ? sums_->data() + share * p_.groups * group_size_ : nullptr;
        for (int64_t task = tasks_.first(share, shares); task < tasks_.first(share + 1, shares); ++task) {
          const Tasks::Task at = tasks_.at(task);
          const int64_t first = tiles_.begin(at.tile), count = tiles_.size(at.tile);
          if (!gather_.valid(first, count)) {
            valid = false;
            return;
          }
          for (int64_t group = 0; group < p_.groups; ++group) add_tile(at.batch, group, first, count, scratch, sums);
        }
      }
    });
    if (result_ && valid) finish();
    return valid;
  }

 private:
  struct Scratch {
    int64_t stride;
    Workspace<A> panel, partner, sums;
    std::vector<Segment> segments;
    explicit Scratch(const GraphPass& k)
        : stride(panel_stride(k.rows_ * k.blocks_.width + (k.result_ ? kBlockRows<2> : 0))),
          panel(kTile * stride, Contents::kAny),
          partner(k.result_ && !k.in_place_ ? kTile * k.columns_ : 0),
          sums(k.own_sums() ? kTile * k.factor_->columns() : 0, Contents::kAny),
          segments(1) {}
  };

  // Half types: several blocks of channels are added up in float32.
  bool own_sums() const { return factor_ && !std::is_same_v<S, A> && blocks_.count > 1; }

  void add_tile(int64_t batch, int64_t group, int64_t first, int64_t count, Scratch& scratch, A* sums) const {
    Right<A> right{scratch.partner.data(), kBlockLanes<A>, columns_};
    if (result_ && in_place_) {
      right.data = static_cast<const A*>(partner_.data) + batch * partner_.batch_stride + group * outs_ +
                   first * partner_.stride[2];
      right.k_stride = partner_.stride[2];
    } else if (result_) {
      scratch.segments[0] = {0, 0, first, count, 0};
      pack_points_major<S>(partner_, batch, group * outs_, outs_, scratch.segments, columns_, scratch.partner.data());
    }
    for (int64_t b = 0; b < blocks_.count; ++b) {
      const int64_t c = blocks_.first(b), width = blocks_.size(b), depth = rows_ * width;
      gather_.pack(batch, group * ins_ + c, width, first, count, scratch.panel.data(), scratch.stride);
      if (factor_) put(batch, group, b, first, count, scratch);
      if (!result_) continue;
      A* to = sums + group * group_size_ + c * rows_ * columns_;
      // The reduction runs over nodes: the panel is read along its other axis.
      LCONV_ISA::multiply(Sum<A>{{count, {scratch.panel.data(), Layout::kAlongRows, scratch.stride}, right}}, depth,
                          outs_, Output<A>{to, columns_, Output<A>::kSums, to, columns_}, Hold::kLeft);
    }
  }

  // Block b of the product with the weight.
  void put(int64_t batch, int64_t group, int64_t b, int64_t first, int64_t count, Scratch& scratch) const {
    const int64_t columns = factor_->columns(), depth = rows_ * blocks_.size(b), step = target_.stride[2];
    const A* start = starts_->data() + group * columns;
    const Left<A> panel{scratch.panel.data(), layout_of_panel(scratch.stride), scratch.stride};
    const Right<A> weight{factor_->main(group, blocks_.first(b)), depth * kBlockLanes<A>, kBlockLanes<A>};
    const Sum<A> sum{{depth, panel, weight}};
    S* out = static_cast<S*>(target_.data) + batch * target_.batch_stride + group * outs_ + first * step;
    A* own = scratch.sums.data();
    const bool last = b + 1 == blocks_.count;
    if (own_sums() && !last) {
      LCONV_ISA::multiply(sum, count, outs_,
                          b == 0 ? Output<A>{own, columns, Output<A>::kByColumn, start}
                                 : Output<A>{own, columns, Output<A>::kSums, own, columns});
    } else if (b == 0) {
      LCONV_ISA::multiply(sum, count, outs_, Output<S>{out, step, Output<S>::kByColumn, start});
    } else if (own_sums()) {
      LCONV_ISA::multiply(sum, count, outs_, Output<S>{out, step, Output<S>::kSums, own, columns});
    } else if constexpr (std::is_same_v<S, A>) {
      LCONV_ISA::multiply(sum, count, outs_, Output<S>{out, step, Output<S>::kSums, out, step});
    }
  }

  // Adds the parts in order, and lays the sums out as dQ/dW (n_L + 1, groups * out, in).
  void finish() const {
    const int64_t size = p_.groups * group_size_, weights = p_.groups * p_.out_channels * p_.in_channels;
    parallel_for(p_.groups * ins_, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t group = k / ins_, channel = k % ins_, b = channel / blocks_.width;
        for (int64_t r = 0; r < rows_; ++r) {
          const int64_t at = group * group_size_ + blocks_.first(b) * rows_ * columns_ +
                             (r * blocks_.size(b) + channel - blocks_.first(b)) * columns_;
          for (int64_t other = 0; other < outs_; ++other) {
            A sum = 0;
            for (int64_t part = 0; part < parts_; ++part) sum += sums_->data()[part * size + at + other];
            const int64_t o = transposed_ ? channel : other, c = transposed_ ? other : channel;
            from_accumulate(
                sum, result_ + (r + 1 - p_.identity) * weights + (group * p_.out_channels + o) * p_.in_channels + c);
          }
        }
      }
    });
    if (!p_.identity) std::fill_n(result_, weights, S{});
  }

  const GraphProblem& problem_;
  const Problem& p_;
  const bool transposed_;
  const View& source_;
  const Gather<S> gather_;
  const int64_t ins_, outs_, rows_;
  const ChannelBlocks blocks_;
  const Tiles tiles_;
  const GraphTasks tasks_;
  // With a weight:
  std::optional<LayerFactor<S>> factor_;
  std::optional<Workspace<A>> starts_;  // the bias, padded like the factor
  View target_;
  // With a partner:
  View partner_;
  S* result_ = nullptr;
  std::optional<Workspace<A>> sums_;
  int64_t columns_ = 0, group_size_ = 0, parts_ = 0;
  bool in_place_ = false;
};

template <class S>
bool graph_apply(const GraphProblem& p, bool transposed, const View& source, const WeightView& weight, const void* bias,
                 const View& target) {
  GraphPass<S> pass(p, transposed, source);
  pass.multiply(weight, bias, target);
  return pass.run();
}

// Gathered on the side of fewer channels: sum (L_i f)^T g = sum f^T L_i^T g.
template <class S>
bool graph_gram(const GraphProblem& p, const View& f, const View& g, void* result) {
  const bool transposed = p.layer.out_channels < p.layer.in_channels;
  GraphPass<S> pass(p, transposed, transposed ? g : f);
  pass.correlate(transposed ? f : g, result);
  return pass.run();
}

template <class S>
bool graph_backward(const GraphProblem& p, const View& g, const View& f, const WeightView& weight, const View& features,
                    void* result) {
  GraphPass<S> pass(p, true, g);
  pass.multiply(weight, nullptr, features);
  pass.correlate(f, result);
  return pass.run();
}

}  // namespace lconv_fast::LCONV_ISA
