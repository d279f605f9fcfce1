// gram: dQ/dW = sum over points of (L_r f)^T g.
#pragma once

#include "../plan.h"
#include "pack/cotangent.h"
#include "pack/packer.h"
#include "reduction.h"
#include "strips/gram.h"
#include "tiles.h"
#include "workspace.h"

namespace lconv_fast::LCONV_ISA {

// Where the sums of one group and one block of channels lie. Direct: f^T g, then (L_i f)^T g. In the basis of a row:
// f^T g, then for each a the sums of (D_a f)^T g over the current row, weighted with x, over all rows, weighted with y,
// and with z; the last three are only there where the row does not tell.
struct GramRows {
  int64_t product, scaled, total;  // rows of the two products, and of all
  GramRows(const Problem& p, bool row_basis)
      : product(panel_rows(p, row_basis ? PanelRows::kDifferences : PanelRows::kLayer, p.identity)),
        scaled(row_basis ? p.ndim : 0),
        total(product + scaled + (row_basis && p.ndim > 1 ? p.ndim * p.ndim : 0)) {}
};

template <class S>
class Gram {
  using A = Accumulate<S>;

 public:
  Gram(const Problem& problem, const View& f, const View& g)
      : p_(problem),
        f_(f),
        g_(g),
        basis_(plan_gram(problem).row_basis),
        near_(problem, false),
        store_(plan_tile_store<S>(problem, near_, f, problem.in_channels, problem.out_channels)),
        points_major_(store_.capacity > 0 ||
                      (is_channels_last(f) &&
                       !(has_long_rows(near_.target) && lines_pay<A>(problem.in_channels, problem.out_channels)))),
        tiles_(near_.target,
               basis_          ? Tiles::kAtRows
               : points_major_ ? Tiles::kAnywhere
                               : Tiles::kAtLongRows,
               store_.slab),
        tasks_(problem.batch, tiles_.count, store_.capacity > 0 ? 1 : Tasks::kTogether),
        rows_(problem, basis_),
        outs_(problem.out_channels),
        columns_(round_up(outs_, kBlockLanes<A>)),
        point_stride_(even_stride(g, near_.target)),
        blocks_(problem.in_channels, rows_.product, kLanes<A>),
        group_size_(rows_.total * problem.in_channels * columns_),
        parts_(part_count(tasks_.count, problem.batch * tiles_.points, problem.groups * group_size_ * sizeof(A))),
        partial_(parts_ * problem.groups * group_size_) {
    // The cotangent is read where it lies, if whole vectors of it can be.
    in_place_ = std::is_same_v<S, A> && g.channel_stride == 1 && point_stride_ >= outs_ && outs_ % kLanes<A> == 0;
  }

  void run(void* result) {
    parallel_for(parts_, [&](int64_t begin, int64_t end) {
      Scratch scratch(*this);
      for (int64_t part = begin; part < end; ++part) sum_part(part, scratch);
    });
    const int64_t size = p_.groups * group_size_;
    parallel_for(divide_up(size, kChunk), [&](int64_t begin, int64_t end) {
      for (int64_t part = 1; part < parts_; ++part) {
        const A* from = partial_.data() + part * size;
        for (int64_t k = begin * kChunk; k < std::min(end * kChunk, size); ++k) partial_.data()[k] += from[k];
      }
    });
    parallel_for(p_.groups * outs_, [&](int64_t begin, int64_t end) {
      std::vector<A> sums(rows_.total);
      for (int64_t output = begin; output < end; ++output) {
        for (int64_t c = 0; c < p_.in_channels; ++c) write(output, c, sums, static_cast<S*>(result));
      }
    });
  }

 private:
  static constexpr int64_t kChunk = 4096;  // numbers that are added up at a time

  struct Scratch {
    int64_t depth, stride;
    Workspace<A> coefficients, panel, cotangent, scaled;
    Packer<S> packer;
    std::vector<Segment> segments;
    explicit Scratch(const Gram& k)
        : depth(k.rows_.product * k.blocks_.width),
          stride(panel_stride(depth + kBlockRows<2>)),
          coefficients(std::max<int64_t>(1, k.p_.generators * k.p_.component_count) * kTile, Contents::kAny),
          panel(k.points_major_ ? kTile * stride : line_panel_size<A>(depth) + kBlockRows<2> * kBlockLanes<A>,
                Contents::kAny),
          cotangent(kTile * k.columns_),
          scaled(k.basis_ ? kTile * k.columns_ : 0),
          packer(k.p_, k.near_, k.f_, k.basis_ ? PanelRows::kDifferences : PanelRows::kLayer, k.p_.identity,
                 k.blocks_.width, k.points_major_, k.store_) {}
  };

  void sum_part(int64_t part, Scratch& scratch) const {
    A* sums = partial_.data() + part * p_.groups * group_size_;
    int64_t tile = -1, row = -1;
    Segment current = {};
    for (int64_t task = tasks_.count * part / parts_; task < tasks_.count * (part + 1) / parts_; ++task) {
      const Tasks::Task at = tasks_.at(task);
      if (at.tile != tile) {
        tile = at.tile;
        tiles_.segments(tile, scratch.segments);
        if (!basis_) {
          if (scratch.packer.takes_coefficients()) {
            fill_coefficients(p_, near_, scratch.segments, scratch.coefficients.data());
          }
        } else {
          fill_coordinates(p_, near_, scratch.segments, scratch.coefficients.data());
          const Segment& s = scratch.segments[0];
          if (p_.ndim > 1 && s.z * near_.target[1] + s.y != row) {
            if (row >= 0) add_row(current, sums);
            row = s.z * near_.target[1] + s.y;
            current = s;
          }
        }
      }
      add_tile(at.batch, tile, scratch, sums);
    }
    if (row >= 0) add_row(current, sums);
  }

  void add_tile(int64_t batch, int64_t tile, Scratch& scratch, A* sums) const {
    const int64_t points = tiles_.size(tile), n = p_.ndim;
    for (int64_t group = 0; group < p_.groups; ++group) {
      Right<A> right{scratch.cotangent.data(), kBlockLanes<A>, columns_};
      if (in_place_) {
        right.data = static_cast<const A*>(g_.data) + batch * g_.batch_stride + group * outs_ +
                     tiles_.begin(tile) * point_stride_;
        right.k_stride = point_stride_;
      } else {
        pack_points_major<S>(g_, batch, group * outs_, outs_, scratch.segments, columns_, scratch.cotangent.data());
      }
      for (int64_t k = 0; basis_ && k < points; ++k) {
        const A x = scratch.coefficients.data()[k];
        const A* from = right.data + k * right.k_stride;
        A* to = scratch.scaled.data() + k * columns_;
        for (int64_t o = 0; o < outs_; ++o) to[o] = x * from[o];
      }
      for (int64_t b = 0; b < blocks_.count; ++b) {
        const int64_t c = group * p_.in_channels + blocks_.first(b), width = blocks_.size(b);
        A* block_sums = sums + group * group_size_ + blocks_.first(b) * rows_.total * columns_;
        // The reduction runs over points, so the panel is read along its other axis.
        Left<A> left{scratch.panel.data(), Layout::kAlongRows, scratch.stride};
        Left<A> differences{scratch.panel.data() + p_.identity * width, Layout::kAlongRows, scratch.stride};
        scratch.packer.pack(batch, c, width, scratch.segments, scratch.coefficients.data(), scratch.panel.data(),
                            scratch.stride);
        if (!points_major_) {
          const int64_t lanes = kBlockLanes<A>, block_stride = line_block_stride<A>(rows_.product * width);
          left = {scratch.panel.data(), Layout::kAlongDepth, lanes, lanes, block_stride};
          differences = {scratch.panel.data() + p_.identity * width * lanes, Layout::kAlongDepth, lanes, lanes,
                         block_stride};
        }
        const auto add = [&](const Left<A>& factor, const Right<A>& cotangent, int64_t first_row, int64_t rows) {
          A* to = block_sums + first_row * width * columns_;
          multiply(Sum<A>{{points, factor, cotangent}}, rows * width, outs_,
                   Output<A>{to, columns_, Output<A>::kSums, to, columns_}, Hold::kLeft);
        };
        add(left, right, 0, rows_.product);
        if (basis_) {
          add(differences, Right<A>{scratch.scaled.data(), kBlockLanes<A>, columns_}, rows_.product, n);
        }
      }
    }
  }

  // Moves the sums over a row to those over all rows.
  void add_row(const Segment& row, A* sums) const {
    const A z = p_.coordinate<A>(row.z * p_.step[0], 0), y = p_.coordinate<A>(row.y * p_.step[1], 1);
    for (int64_t group = 0; group < p_.groups; ++group) {
      for (int64_t b = 0; b < blocks_.count; ++b) {
        A* block = sums + group * group_size_ + blocks_.first(b) * rows_.total * columns_;
        const int64_t count = p_.ndim * blocks_.size(b) * columns_;
        A* over_row = block + p_.identity * blocks_.size(b) * columns_;
        A* total = block + (rows_.product + rows_.scaled) * blocks_.size(b) * columns_;
        for (int64_t k = 0; k < count; ++k) {
          total[k] += over_row[k];
          total[count + k] += y * over_row[k];
          if (p_.ndim == 3) total[2 * count + k] += z * over_row[k];
          over_row[k] = 0;
        }
      }
    }
  }

  // One output's and one input channel's numbers for all rows of W.
  void write(int64_t output, int64_t c, std::vector<A>& sums, S* result) const {
    const int64_t group = output / outs_, b = c / blocks_.width, width = blocks_.size(b);
    const int64_t outputs = p_.groups * outs_, n = p_.ndim;
    const A* first = partial_.data() + group * group_size_ + blocks_.first(b) * rows_.total * columns_ +
                     (c - blocks_.first(b)) * columns_ + output % outs_;
    for (int64_t r = 0; r < rows_.total; ++r) sums[r] = first[r * width * columns_];
    const auto put = [&](int64_t r, A value) {
      from_accumulate(value, result + (r * outputs + output) * p_.in_channels + c);
    };
    put(0, p_.identity ? sums[0] : A(0));
    const A* found = sums.data() + p_.identity;
    for (int64_t i = 0; i < p_.generators; ++i) {
      if (!basis_) {
        put(i + 1, found[i]);
        continue;
      }
      A sum = 0;
      for (int64_t a = 0; a < n; ++a) {
        const A* v = static_cast<const A*>(p_.coefficients) + (i * n + a) * (kAxes + 1);
        const A* total = n == 1 ? found : found + 2 * n;
        sum += v[3] * total[a] + v[2] * found[n + a];
        if (n > 1) sum += v[1] * total[n + a];
        if (n > 2) sum += v[0] * total[2 * n + a];
      }
      put(i + 1, sum);
    }
  }

  const Problem& p_;
  const View &f_, &g_;
  const bool basis_;
  const Neighbours near_;
  const LineStorePlan store_;
  const bool points_major_;
  const Tiles tiles_;
  const Tasks tasks_;
  const GramRows rows_;
  const int64_t outs_, columns_, point_stride_;
  const ChannelBlocks blocks_;
  const int64_t group_size_, parts_;
  const Workspace<A> partial_;
  bool in_place_ = false;
};

template <class S>
void gram(const Problem& p, const View& f, const View& g, void* result) {
  if (takes_strip_sums<S>(p, f, g) && gains_from_strips<Accumulate<S>>(p, false, p.out[2], p.out_channels))
    return gram_strips<S>(p, f, g, result);
  Gram<S>(p, f, g).run(result);
}

}  // namespace lconv_fast::LCONV_ISA
