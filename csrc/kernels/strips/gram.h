// gram, and correlate for coefficients that are numbers, for few channels: sums over points of (row of a strip)^T g.
//
// With P_k = sum_r (c + y c_y + z c_z)[k,r] W_r the matrix of row k (program.h),
//   dQ/dW_r = sum_k  c M_k + c_y M_k^y + c_z M_k^z,   M_k = sum of (row k)^T g, M_k^y = sum of y (row k)^T g, ...
//   dQ/dv[i,a] = <W_i, M_a>, and of an affine field <W_i, M_a^x>, <W_i, M_a^y>, <W_i, M_a^z> as well.
#pragma once

#include "../reduction.h"
#include "apply.h"
#include "outer.h"

namespace lconv_fast::LCONV_ISA {

template <class S>
class StripSums {
  using A = Accumulate<S>;

 public:
  // What is summed: each row, the last `scaled` rows times x, and where a place on the line matters, rows times y and
  // z.
  StripSums(const Problem& problem, const View& f, const View& g, const StripProgram<S>& program, bool lines)
      : p_(problem),
        f_(f),
        g_(g),
        program_(program),
        near_(problem, false),
        store_(plan_strip_store<S>(problem, near_, f, problem.in_channels, problem.out_channels)),
        tiles_(near_.target, Tiles::kAtRows, store_.slab),
        tasks_(problem.batch, tiles_.count, store_.capacity > 0 ? 1 : Tasks::kTogether),
        ins_(problem.in_channels),
        outs_(problem.out_channels),
        padded_(outer_outputs<A>(outs_)),
        columns_(round_up(outs_, 2 * kLanes<A>)),
        panel_(ins_ * columns_),
        main_(program.main.size()),
        scaled_(program.scaled.size()),
        moments_(!lines ? 0 : problem.ndim),
        matrices_(main_ * (1 + moments_) + scaled_),
        group_size_(matrices_ * panel_),
        parts_(part_count(tasks_.count, problem.batch * tiles_.points, problem.groups * group_size_ * sizeof(A))),
        partial_(parts_ * problem.groups * group_size_) {
    parallel_for(parts_, [&](int64_t begin, int64_t end) {
      Scratch scratch(*this);
      for (int64_t part = begin; part < end; ++part) sum_part(part, scratch);
    });
    constexpr int64_t chunk = 4096;
    const int64_t size = problem.groups * group_size_;
    parallel_for(divide_up(size, chunk), [&](int64_t begin, int64_t end) {
      for (int64_t part = 1; part < parts_; ++part) {
        const A* from = partial_.data() + part * size;
        for (int64_t k = begin * chunk; k < std::min(end * chunk, size); ++k) partial_.data()[k] += from[k];
      }
    });
  }

  int64_t columns() const { return columns_; }
  // [channel][output] of row k: its sum, that times x, y or z.
  const A* total(int64_t group, int64_t k) const { return at(group, moments_ > 0 ? main_ + k : k); }
  const A* by_y(int64_t group, int64_t k) const { return at(group, 2 * main_ + k); }
  const A* by_z(int64_t group, int64_t k) const { return at(group, 3 * main_ + k); }
  const A* by_x(int64_t group, int64_t k) const { return at(group, matrices_ - scaled_ + k); }

 private:
  struct Scratch {
    Workspace<A> table, x, cotangent, scaled;
    StripRows<S> rows;
    std::vector<Segment> segments;
    std::vector<uintptr_t> fetches;
    explicit Scratch(const StripSums& k)
        : table(std::max<int64_t>(1, k.p_.generators * k.p_.component_count) * kTile, Contents::kAny),
          x(kTile),
          cotangent(kTile * k.padded_),
          scaled(kTile * k.padded_),
          rows(k.p_, k.near_, k.f_, k.program_, k.ins_, k.store_),
          fetches(k.main_ + k.scaled_) {}
  };

  A* at(int64_t group, int64_t matrix) const { return partial_.data() + group * group_size_ + matrix * panel_; }

  void sum_part(int64_t part, Scratch& scratch) const {
    A* const sums = partial_.data() + part * p_.groups * group_size_;
    int64_t tile = -1, line = -1;
    Segment current = {};
    for (int64_t task = tasks_.count * part / parts_; task < tasks_.count * (part + 1) / parts_; ++task) {
      const Tasks::Task at = tasks_.at(task);
      if (at.tile != tile) {
        tile = at.tile;
        tiles_.segments(tile, scratch.segments);
        if (program_.table == StripTable::kCoefficients) {
          fill_coefficients(p_, near_, scratch.segments, scratch.table.data());
        }
        if (scaled_ > 0) fill_coordinates(p_, near_, scratch.segments, scratch.x.data());
        const Segment& s = scratch.segments[0];
        if (moments_ > 0 && s.z * near_.target[1] + s.y != line) {
          if (line >= 0) add_line(current, sums);
          line = s.z * near_.target[1] + s.y;
          current = s;
        }
      }
      for (int64_t group = 0; group < p_.groups; ++group) {
        add_segment(at.batch, group, scratch, sums + group * group_size_);
      }
    }
    if (line >= 0) add_line(current, sums);
  }

  void add_segment(int64_t batch, int64_t group, Scratch& scratch, A* sums) const {
    const Segment& s = scratch.segments[0];
    scratch.rows.start(batch, group * ins_, s);
    const S* from = static_cast<const S*>(g_.data) + batch * g_.batch_stride + group * outs_ * g_.channel_stride +
                    s.z * g_.stride[0] + s.y * g_.stride[1] + s.x * g_.stride[2];
    const bool turns = g_.channel_stride != 1;
    LineAhead next;
    if (turns && s.y + 1 < near_.target[1]) {
      next = {from - s.x + g_.stride[1], outs_, g_.channel_stride * static_cast<int64_t>(sizeof(S)),
              near_.target[2] * static_cast<int64_t>(sizeof(S))};
    }
    const A* cotangents = scratch.cotangent.data();
    int64_t stride = padded_;
    if (turns) {
      lines_to_points(from, g_.channel_stride, outs_, s.length, scratch.cotangent.data(), padded_);
    } else if (std::is_same_v<S, A> && padded_ == outs_) {
      cotangents = reinterpret_cast<const A*>(from), stride = g_.stride[2];
    } else {
      copy_points(from, g_.stride[2], outs_, s.length, scratch.cotangent.data(), padded_);
    }
    for (int64_t first = 0; first < s.length; first += scratch.rows.most()) {
      const int64_t points = std::min(scratch.rows.most(), s.length - first);
      OuterProduct<A> outer{scratch.rows.make(s, first, points, scratch.table.data() + first),
                            main_,
                            ins_,
                            cotangents + first * stride,
                            stride,
                            points,
                            sums,
                            panel_,
                            columns_,
                            scratch.fetches.data()};
      fill_fetches(s, first, points, reinterpret_cast<uintptr_t>(from + (first + points) * g_.stride[2]), next,
                   scratch);
      add_outer(outer, outs_);
      if (scaled_ == 0) continue;
      const A* x = scratch.x.data() + first;
      for (int64_t q = 0; q < points; ++q) {
        for (int64_t o = 0; o < padded_; ++o)
          scratch.scaled.data()[q * padded_ + o] = x[q] * outer.g[q * outer.g_stride + o];
      }
      outer.rows += program_.rows - scaled_;
      outer.count = scaled_;
      outer.g = scratch.scaled.data();
      outer.g_stride = padded_;
      outer.sums = sums + (matrices_ - scaled_) * panel_;
      outer.fetches += main_;
      add_outer(outer, outs_);
    }
  }

  // The next strip's news and cotangents, a piece of as many cache lines as a row of this one's products has points.
  void fill_fetches(const Segment& s, int64_t first, int64_t points, uintptr_t cotangent, const LineAhead& next,
                    Scratch& scratch) const {
    size_t pieces = 0;
    const auto fetch = [&](uintptr_t from, int64_t bytes) {
      for (int64_t done = 0; done < bytes && pieces < scratch.fetches.size(); done += ins_ * points * 4) {
        scratch.fetches[pieces++] = from + static_cast<uintptr_t>(done);
      }
    };
    const int64_t piece = ins_ * points * 4;
    if (g_.channel_stride == 1) {
      fetch(cotangent, points * outs_ * static_cast<int64_t>(sizeof(S)));
    } else {
      next.for_pieces(piece, s.x + first, s.x + first + points, near_.target[2],
                      [&](uintptr_t from) { fetch(from, piece); });
    }
    scratch.rows.for_news(s, first, points, piece, fetch);
    std::fill(scratch.fetches.begin() + pieces, scratch.fetches.end(), cotangent);
  }

  // Moves the sums over a line to those over all lines.
  void add_line(const Segment& line, A* sums) const {
    const A z = p_.coordinate<A>(line.z * p_.step[0], 0), y = p_.coordinate<A>(line.y * p_.step[1], 1);
    const int64_t count = main_ * panel_;
    for (int64_t group = 0; group < p_.groups; ++group) {
      A *of_line = sums + group * group_size_, *total = of_line + count;
      for (int64_t k = 0; k < count; ++k) {
        const A sum = of_line[k];
        total[k] += sum;
        if (moments_ > 1) total[count + k] += y * sum;
        if (moments_ > 2) total[2 * count + k] += z * sum;
        of_line[k] = 0;
      }
    }
  }

  const Problem& p_;
  const View &f_, &g_;
  const StripProgram<S>& program_;
  const Neighbours near_;
  const LineStorePlan store_;
  const Tiles tiles_;
  const Tasks tasks_;
  const int64_t ins_, outs_, padded_, columns_, panel_, main_, scaled_;
  const int64_t moments_;  // with a place on the grid: the sum itself, and times y, and z
  const int64_t matrices_, group_size_, parts_;
  const Workspace<A> partial_;
};

// Sums of rows of few channels along lines.
template <class S>
bool takes_strip_sums(const Problem& p, const View& f, const View& g) {
  const LineStorePlan store = plan_strip_store<S>(p, Neighbours(p, false), f, p.in_channels, p.out_channels);
  return suits_strips<S>(p, f, store, g, p.out_channels) && p.out[2] >= 16 &&
         fits_strips(p, false, p.in_channels, p.out_channels);
}

template <class S>
void gram_strips(const Problem& p, const View& f, const View& g, void* result) {
  using A = Accumulate<S>;
  const StripProgram<S> program = strip_program<S>(p, false);
  bool lines = false;
  for (const StripMatrix& m : program.main) lines = lines || m.changes();
  const StripSums<S> sums(p, f, g, program, lines);
  const int64_t ins = p.in_channels, outs = p.out_channels, all = p.groups * outs;
  S* const to = static_cast<S*>(result);
  std::vector<A> found((p.generators + 1) * ins);
  for (int64_t output = 0; output < all; ++output) {
    std::fill(found.begin(), found.end(), A(0));
    const auto add = [&](const A* matrix, const StripMatrix::Term& t, double factor) {
      if (factor == 0) return;
      for (int64_t c = 0; c < ins; ++c) {
        found[t.r * ins + c] += static_cast<A>(factor) * matrix[c * sums.columns() + output % outs];
      }
    };
    const int64_t group = output / outs;
    for (size_t k = 0; k < program.main.size(); ++k) {
      for (const auto& t : program.main[k].terms) {
        add(sums.total(group, k), t, t.constant);
        if (t.by_y != 0) add(sums.by_y(group, k), t, t.by_y);
        if (t.by_z != 0) add(sums.by_z(group, k), t, t.by_z);
      }
    }
    for (size_t k = 0; k < program.scaled.size(); ++k) {
      for (const auto& t : program.scaled[k].terms) add(sums.by_x(group, k), t, t.constant);
    }
    for (int64_t r = 0; r <= p.generators; ++r) {
      for (int64_t c = 0; c < ins; ++c) from_accumulate(found[r * ins + c], to + (r * all + output) * ins + c);
    }
  }
}

}  // namespace lconv_fast::LCONV_ISA
