// correlate: dQ/dv = (W_i^T g) . D_a f at each point, and its sums for coefficients that points share.
#pragma once

#include "pack/cotangent.h"
#include "pack/packer.h"
#include "pack/weight.h"
#include "reduction.h"
#include "strips/correlate.h"
#include "tiles.h"
#include "workspace.h"

namespace lconv_fast::LCONV_ISA {

template <class S>
class Correlation {
  using A = Accumulate<S>;

 public:
  Correlation(const Problem& problem, const View& f, const WeightView& weight, const View& g)
      : p_(problem),
        f_(f),
        g_(g),
        near_(problem, false),
        store_(plan_tile_store<S>(problem, near_, f, problem.in_channels, problem.out_channels)),
        points_major_(is_channels_last(f) || store_.capacity > 0),
        tiles_(near_.target, points_major_ ? Tiles::kAnywhere : Tiles::kAtLongRows, store_.slab),
        blocks_(problem.in_channels, std::max(problem.generators, problem.component_count), kLanes<A>),
        columns_(round_up(problem.generators * blocks_.width, points_major_ ? kBlockLanes<A> : 1)),
        packed_size_(points_major_ ? columns_ : padded_rows(columns_)),
        packed_(problem.groups * blocks_.count * packed_size_ * problem.out_channels) {
    parallel_for(p_.groups * blocks_.count, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) pack(weight, k / blocks_.count, k % blocks_.count);
    });
  }

  void run(void* result) {
    if (p_.kind == CoefficientKind::kSampled) {
      run_sampled(static_cast<A*>(result));
    } else {
      run_reduced(static_cast<A*>(result));
    }
  }

 private:
  struct Scratch {
    Workspace<A> cotangent, products, differences, gradient;
    Packer<S> packer;
    std::vector<Segment> segments;
    explicit Scratch(const Correlation& c)
        : cotangent(c.points_major_ ? kTile * c.p_.out_channels : line_panel_size<A>(c.p_.out_channels)),
          products(kTile * c.columns_, Contents::kAny),
          differences(c.points_major_ ? kTile * panel_stride(c.p_.component_count * c.blocks_.width)
                                      : line_panel_size<A>(c.p_.component_count * c.blocks_.width)),
          gradient(c.slots() * kTile),
          packer(c.p_, c.near_, c.f_, PanelRows::kDifferences, false, c.blocks_.width, c.points_major_, c.store_) {}
  };

  int64_t slots() const { return p_.generators * p_.component_count; }
  A* packed_at(int64_t group, int64_t block) const {
    return packed_.data() + (group * blocks_.count + block) * packed_size_ * p_.out_channels;
  }

  // Columns n = i * width + c, depth o: [block of n][o][lane].
  void pack(const WeightView& weight, int64_t group, int64_t b) {
    A* packed = packed_at(group, b);
    const int64_t width = blocks_.size(b), outs = p_.out_channels;
    for_lane_blocks<A>(p_.generators * width, points_major_, [&](int64_t first, int64_t lanes) {
      for (int64_t n = first; n < std::min(first + lanes, p_.generators * width); ++n) {
        const S* from = static_cast<const S*>(weight.data) + (n / width + 1) * weight.row_stride +
                        (blocks_.first(b) + n % width) * weight.in_stride + group * outs * weight.out_stride;
        A* to = packed + first * outs + n - first;
        for (int64_t o = 0; o < outs; ++o) to[o * lanes] = to_accumulate(from[o * weight.out_stride]);
      }
    });
  }

  // Adds one sample's dQ/dv at the tile's points to scratch.gradient[slot * kTile + point].
  void add_tile(int64_t batch, int64_t tile, Scratch& scratch) const {
    const int64_t outs = p_.out_channels, points = tiles_.size(tile);
    const A* cotangent = scratch.cotangent.data();
    A* products = scratch.products.data();
    A* differences = scratch.differences.data();
    for (int64_t group = 0; group < p_.groups; ++group) {
      if (points_major_) {
        pack_points_major<S>(g_, batch, group * outs, outs, scratch.segments, outs, scratch.cotangent.data());
      } else {
        pack_channels_major<S>(g_, batch, group * outs, outs, scratch.segments, scratch.cotangent.data());
      }
      for (int64_t b = 0; b < blocks_.count; ++b) {
        const int64_t width = blocks_.size(b), channel = group * p_.in_channels + blocks_.first(b);
        const int64_t columns = p_.generators * width;
        const A* packed = packed_at(group, b);
        if (points_major_) {
          const int64_t stride = panel_stride(p_.component_count * blocks_.width);
          multiply(
              Sum<A>{{outs, {cotangent, Layout::kAlongDepth, outs}, {packed, outs * kBlockLanes<A>, kBlockLanes<A>}}},
              points, columns, Output<A>{products, columns_, Output<A>::kByRow, zeros_.data()});
          scratch.packer.pack(batch, channel, width, scratch.segments, differences, differences, stride);
          if (sums_lanes()) {
            sum_channels(points, width, products, differences, stride, scratch.gradient.data());
          } else {
            dot_channels(points, width, products, differences, stride, scratch.gradient.data());
          }
        } else {
          multiply(Sum<A>{{outs, {packed}, {cotangent, line_block_stride<A>(outs), kBlockLanes<A>}}}, columns, points,
                   Output<A>{products, kTile, Output<A>::kByColumn, zeros_.data()});
          scratch.packer.pack(batch, channel, width, scratch.segments, differences, differences, 0);
          if (sums_lanes()) {
            sum_lines(points, width, products, differences, scratch.gradient.data());
          } else {
            dot_lines(points, width, products, differences, scratch.gradient.data());
          }
        }
      }
    }
  }

  // Of coefficients that all points share, no point's own sum is needed: the lanes of a vector are summed on their own,
  // at the first places of scratch.gradient.
  bool sums_lanes() const { return p_.kind == CoefficientKind::kConstant; }

  void sum_channels(int64_t points, int64_t width, const A* products, const A* differences, int64_t stride,
                    A* gradient) const {
    const auto chunk = [&](auto number, int64_t i, int64_t k) {
      constexpr int kNumber = decltype(number)::value;
      Vector<A> sums[kNumber];
      A* out = gradient + (i * p_.component_count + k) * kTile;
      for (int q = 0; q < kNumber; ++q) sums[q] = load(out + q * kTile);
      const auto add = [&](int64_t c, auto read) {
        const A *h = products + i * width + c, *d = differences + k * width + c;
        for (int64_t x = 0; x < points; ++x, h += columns_, d += stride) {
          const Vector<A> left = read(h);
#pragma GCC unroll 8
          for (int q = 0; q < kNumber; ++q) sums[q] += left * read(d + q * width);
        }
      };
      int64_t c = 0;
      for (; c + kLanes<A> <= width; c += kLanes<A>) add(c, [](const A* at) { return load(at); });
      const int64_t rest = width - c;
      if (rest > 0) add(c, [rest](const A* at) { return load_first(at, rest); });
      for (int q = 0; q < kNumber; ++q) store(out + q * kTile, sums[q]);
    };
    for (int64_t i = 0; i < p_.generators; ++i) {
      int64_t k = 0;
      for (; k + 8 <= p_.component_count; k += 8) chunk(std::integral_constant<int, 8>(), i, k);
      for (; k + 4 <= p_.component_count; k += 4) chunk(std::integral_constant<int, 4>(), i, k);
      for (; k < p_.component_count; ++k) chunk(std::integral_constant<int, 1>(), i, k);
    }
  }

  void sum_lines(int64_t points, int64_t width, const A* products, const A* differences, A* gradient) const {
    constexpr int kChains = 4;
    for (int64_t q = 0; q < slots(); ++q) {
      const A* h = products + q / p_.component_count * width * kTile;
      const A* d = differences + q % p_.component_count * width * kBlockLanes<A>;
      const int64_t depth = p_.component_count * width;
      Vector<A> sums[kChains] = {};
      for (int64_t x = 0; x < points; x += kLanes<A>) {
        // Beyond the last point there is what a tile of more points left.
        const int64_t left = std::min<int64_t>(kLanes<A>, points - x);
        const A* at = d + line_place<A>(x, depth);
        const auto term = [&](int64_t c) {
          const A *one = h + c * kTile + x, *other = at + c * kBlockLanes<A>;
          return left == kLanes<A> ? load(one) * load(other) : load_first(one, left) * load_first(other, left);
        };
        int64_t c = 0;
        for (; c + kChains <= width; c += kChains) {
#pragma GCC unroll 4
          for (int k = 0; k < kChains; ++k) sums[k] += term(c + k);
        }
        for (; c < width; ++c) sums[0] += term(c);
      }
      A* out = gradient + q * kTile;
      store(out, load(out) + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
    }
  }

  void dot_lines(int64_t points, int64_t width, const A* products, const A* differences, A* gradient) const {
    for (int64_t q = 0; q < slots(); ++q) {
      const A* h = products + q / p_.component_count * width * kTile;
      const A* d = differences + q % p_.component_count * width * kBlockLanes<A>;
      const int64_t depth = p_.component_count * width;
      A* out = gradient + q * kTile;
      for (int64_t x = 0; x < points; x += kLanes<A>) {
        Vector<A> sum = load(out + x);
        const A* at = d + line_place<A>(x, depth);
        for (int64_t c = 0; c < width; ++c) sum += load(h + c * kTile + x) * load(at + c * kBlockLanes<A>);
        store(out + x, sum);
      }
    }
  }

  void dot_channels(int64_t points, int64_t width, const A* products, const A* differences, int64_t stride,
                    A* gradient) const {
    for (int64_t first = 0; first < points; first += kLanes<A>) {
      for (int64_t q = 0; q < slots(); ++q) {
        Vector<A> sums[kLanes<A>];
        for (int k = 0; k < kLanes<A>; ++k) {
          const A* h = products + (first + k) * columns_ + q / p_.component_count * width;
          const A* d = differences + (first + k) * stride + q % p_.component_count * width;
          Vector<A> sum = {};
          int64_t c = 0;
          for (; c + kLanes<A> <= width; c += kLanes<A>) sum += load(h + c) * load(d + c);
          if (c < width) sum += load_first(h + c, width - c) * load_first(d + c, width - c);
          sums[k] = sum;
        }
        A* out = gradient + q * kTile + first;
        store(out, load(out) + sum_each<A>(sums));
      }
    }
  }

  // Each tile owns its points, for all samples.
  void run_sampled(A* result) const {
    std::fill_n(result, slots() * p_.grid_points(), A(0));
    parallel_for(tiles_.count, [&](int64_t begin, int64_t end) {
      Scratch scratch(*this);
      for (int64_t tile = begin; tile < end; ++tile) {
        tiles_.segments(tile, scratch.segments);
        std::fill_n(scratch.gradient.data(), slots() * kTile, A(0));
        for (int64_t batch = 0; batch < p_.batch; ++batch) add_tile(batch, tile, scratch);
        for (const Segment& s : scratch.segments) {
          const int64_t row = (s.z * p_.step[0] * p_.grid[1] + s.y * p_.step[1]) * p_.grid[2];
          for (int64_t q = 0; q < slots(); ++q) {
            A* out = result + q * p_.grid_points() + row;
            const A* from = scratch.gradient.data() + q * kTile + s.first;
            for (int64_t k = 0; k < s.length; ++k) out[(s.x + k) * p_.step[2]] = from[k];
          }
        }
      }
    });
  }

  // Constant and affine coefficients: sums of dQ/dv, and of dQ/dv x_b, over all points, in double.
  void run_reduced(A* result) const {
    const bool affine = p_.kind == CoefficientKind::kAffine;
    const int64_t moments = affine ? kAxes + 1 : 1, size = slots() * moments;
    const int64_t tasks = p_.batch * tiles_.count,
                  parts = part_count(tasks, p_.batch * tiles_.points, size * sizeof(double));
    const Workspace<double> partial(parts * size);
    parallel_for(parts, [&](int64_t begin, int64_t end) {
      Scratch scratch(*this);
      for (int64_t part = begin; part < end; ++part) {
        double* sums = partial.data() + part * size;
        for (int64_t task = tasks * part / parts; task < tasks * (part + 1) / parts; ++task) {
          const int64_t tile = task % tiles_.count;
          tiles_.segments(tile, scratch.segments);
          std::fill_n(scratch.gradient.data(), slots() * kTile, A(0));
          add_tile(task / tiles_.count, tile, scratch);
          for (int64_t q = 0; q < slots(); ++q) {
            const A* const of_slot = scratch.gradient.data() + q * kTile;
            for (int k = 0; sums_lanes() && k < kLanes<A>; ++k) sums[q] += static_cast<double>(of_slot[k]);
            for (const Segment& s : scratch.segments) {
              if (affine) add_moments(s, of_slot, sums + q * moments);
            }
          }
        }
      }
    });
    for (int64_t k = 0; k < size; ++k) {
      double sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += partial.data()[part * size + k];
      result[k] = static_cast<A>(sum);
    }
  }

  void add_moments(const Segment& s, const A* gradient, double* sums) const {
    double total = 0, along = 0;
    for (int64_t k = 0; k < s.length; ++k) {
      const double value = static_cast<double>(gradient[s.first + k]);
      total += value;
      along += value * p_.coordinate<double>((s.x + k) * p_.step[2], 2);
    }
    sums[0] += total * p_.coordinate<double>(s.z * p_.step[0], 0);
    sums[1] += total * p_.coordinate<double>(s.y * p_.step[1], 1);
    sums[2] += along;
    sums[3] += total;
  }

  const Problem& p_;
  const View &f_, &g_;
  const Neighbours near_;
  const LineStorePlan store_;
  const bool points_major_;
  const Tiles tiles_;
  const ChannelBlocks blocks_;
  const int64_t columns_, packed_size_;
  const Workspace<A> packed_;
  const Workspace<A> zeros_ = Workspace<A>(columns_ + kTile);
};

template <class S>
void correlate(const Problem& p, const View& f, const WeightView& weight, const View& g, void* result) {
  if (takes_strip_correlation<S>(p, f, g)) return correlate_strips<S>(p, f, weight, g, result);
  Correlation<S>(p, f, weight, g).run(result);
}

}  // namespace lconv_fast::LCONV_ISA
