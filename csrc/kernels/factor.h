// The weight as the factor of the panels, made ready once for a call.
#pragma once

#include "pack/panel.h"
#include "pack/weight.h"
#include "tiles.h"
#include "workspace.h"

namespace lconv_fast::LCONV_ISA {

template <class S>
class LayerFactor {
  using A = Accumulate<S>;

 public:
  LayerFactor(const Problem& p, bool transposed, bool row_basis, bool in_columns, const WeightView& weight,
              const ChannelBlocks& blocks)
      : p_(p),
        transposed_(transposed),
        row_basis_(row_basis),
        in_columns_(in_columns),
        ins_(blocks.channels),
        outs_(transposed ? p.in_channels : p.out_channels),
        rows_(panel_rows(p,
                         !row_basis   ? PanelRows::kLayer
                         : transposed ? PanelRows::kTransposedBasis
                                      : PanelRows::kDifferences,
                         p.identity)),
        scaled_rows_(!row_basis   ? 0
                     : transposed ? p.ndim - 1
                                  : p.ndim),
        columns_(in_columns ? round_up(outs_, kBlockLanes<A>) : padded_rows(outs_)),
        blocks_(blocks),
        main_(p.groups * ins_ * rows_ * columns_),
        scaled_(p.groups * ins_ * scaled_rows_ * columns_),
        per_row_(row_basis ? kAxes * p.groups * ins_ * p.ndim * columns_ : 0) {
    parallel_for(p.groups * blocks.count, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) pack(weight, k / blocks.count, k % blocks.count);
    });
  }

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t size() const { return p_.groups * ins_ * rows_ * columns_; }
  // Of group g and the channels from c on.
  const A* main(int64_t g, int64_t c) const { return main_.data() + (g * ins_ + c) * rows_ * columns_; }
  const A* scaled(int64_t g, int64_t c) const { return scaled_.data() + (g * ins_ + c) * scaled_rows_ * columns_; }
  int64_t scaled_rows() const { return scaled_rows_; }

  // The main factor with P_a = P + z P_z + y P_y of the grid row (z, y) in its place; `factor` holds size() numbers, a
  // copy of main(0, 0) at first.
  void set_row(A z, A y, A* factor) const {
    for (int64_t g = 0; g < p_.groups; ++g) {
      for (int64_t b = 0; b < blocks_.count; ++b) {
        const int64_t c = blocks_.first(b), width = blocks_.size(b), depth = p_.ndim * width;
        const A* from = per_row_at(g, c);
        const int64_t part = depth * columns_;
        A* to = factor + (g * ins_ + c) * rows_ * columns_;
        for_lane_blocks<A>(outs_, in_columns_, [&](int64_t out, int64_t lanes) {
          A* target = to + out * rows_ * width + p_.identity * width * lanes;
          const A* constant = from + out * depth;
          const int64_t count = depth * lanes;
          if (p_.ndim == 2) {
            for (int64_t k = 0; k < count; ++k) target[k] = constant[k] + y * constant[part + k];
          } else {
            for (int64_t k = 0; k < count; ++k) {
              target[k] = constant[k] + y * constant[part + k] + z * constant[2 * part + k];
            }
          }
        });
      }
    }
  }

 private:
  A* per_row_at(int64_t g, int64_t c) const { return per_row_.data() + (g * ins_ + c) * kAxes * p_.ndim * columns_; }

  void pack(const WeightView& weight, int64_t g, int64_t b) {
    // Seen from the source, W's channels of this group: transposed, they are its output channels.
    WeightView w = weight;
    w.data = static_cast<const S*>(weight.data) + g * p_.out_channels * weight.out_stride;
    if (transposed_) std::swap(w.in_stride, w.out_stride);
    const int64_t c = blocks_.first(b), width = blocks_.size(b);
    A* main = main_.data() + (g * ins_ + c) * rows_ * columns_;
    if (!row_basis_) {
      pack_weight<S>(w, p_.identity ? 0 : 1, rows_, c, width, outs_, in_columns_, main);
      return;
    }
    const int n = p_.ndim;
    const Workspace<A> one(width * columns_, Contents::kAny);
    A* scaled = scaled_.data() + (g * ins_ + c) * scaled_rows_ * columns_;
    A* per_row = per_row_at(g, c);
    const int64_t part = n * width * columns_;  // P, then P_y, then P_z
    // to[row] += factor W_r, in a factor of `rows` rows.
    const auto add = [&](A factor, A* to, int64_t rows, int64_t row) {
      if (factor == 0) return;
      for_lane_blocks<A>(outs_, in_columns_, [&](int64_t out, int64_t lanes) {
        A* target = to + out * rows * width + row * width * lanes;
        const A* from = one.data() + out * width;
        for (int64_t k = 0; k < width * lanes; ++k) target[k] += factor * from[k];
      });
    };
    for (int64_t r = p_.identity ? 0 : 1; r <= p_.generators; ++r) {
      pack_weight<S>(w, r, 1, c, width, outs_, in_columns_, one.data());
      if (r == 0) {
        add(A(1), main, rows_, 0);
        continue;
      }
      for (int a = 0; a < n; ++a) {
        const A* v = static_cast<const A*>(p_.coefficients) + ((r - 1) * n + a) * (kAxes + 1);
        add(v[3], per_row, n, a);
        if (n > 1) add(v[1], per_row + part, n, a);
        if (n > 2) add(v[0], per_row + 2 * part, n, a);
        if (!transposed_) {
          add(v[2], scaled, scaled_rows_, a);
        } else if (a + 1 < n) {
          add(v[2], scaled, scaled_rows_, a);
          add(v[p_.axis_of(a)], main, rows_, p_.identity + n + 1 + a);
        } else {
          add(v[2], main, rows_, p_.identity + n);
        }
      }
    }
    // P itself never changes along the only axis.
    for (int a = 0; n == 1 && a < n; ++a) {
      for_lane_blocks<A>(outs_, in_columns_, [&](int64_t out, int64_t lanes) {
        std::copy_n(per_row + out * width, width * lanes, main + out * rows_ * width + p_.identity * width * lanes);
      });
    }
  }

  const Problem& p_;
  const bool transposed_, row_basis_, in_columns_;
  const int64_t ins_, outs_, rows_, scaled_rows_, columns_;
  const ChannelBlocks& blocks_;
  const Workspace<A> main_, scaled_, per_row_;
};

}  // namespace lconv_fast::LCONV_ISA
