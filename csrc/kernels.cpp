// The three operators, compiled once for each instruction set. Each walks over tiles of kTile points: a provider fills
// the coefficients, a packer the panel, the micro-kernel multiplies, and the result is written or reduced.
#include <cstdlib>
#include <memory>
#include <new>

#include "microkernel.h"
#include "pack.h"
#include "problem.h"

namespace lconv_fast::LCONV_ISA {

namespace {

static_assert(kTile % kBlockRows == 0 && kTile % kBlockLanes<float> == 0);

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Zero-initialised workspace, aligned to a cache line.
template <class A>
class Workspace {
 public:
  explicit Workspace(int64_t count) {
    const size_t bytes = static_cast<size_t>(round_up(std::max<int64_t>(count, 1) * sizeof(A), 64));
    data_.reset(static_cast<A*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    std::memset(static_cast<void*>(data_.get()), 0, bytes);
  }
  A* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(A* p) const { std::free(p); }
  };
  std::unique_ptr<A, Free> data_;
};

// Channels are taken in blocks so that a panel of kTile points stays in the second-level cache and a packed block of W
// in the first: rows * width <= 384.
constexpr int64_t kPanelDepth = 384;

struct ChannelBlocks {
  int64_t channels, width, count;
  ChannelBlocks(int64_t channels_, int64_t rows, int64_t lanes) : channels(channels_) {
    const int64_t most = std::max(lanes, kPanelDepth / std::max<int64_t>(rows, 1) / lanes * lanes);
    count = std::max<int64_t>(1, divide_up(channels, most));
    width = std::min(channels, round_up(divide_up(channels, count), lanes));
    count = divide_up(channels, std::max<int64_t>(width, 1));
  }
  int64_t first(int64_t block) const { return block * width; }
  int64_t size(int64_t block) const { return std::min(width, channels - block * width); }
};

// Rows of the panel that fall on the same cache sets would evict each other.
int64_t panel_stride(int64_t depth) { return round_up(depth, 16) + 16; }

bool channels_last(const View& v) { return v.channel_stride == 1 && v.stride[2] != 1; }

// The tiles of one sample: kTile consecutive points each; or, where rows are long enough, pieces of a row, which
// channels-first data can be read from in place.
struct Tiles {
  const int64_t* extent;
  int64_t points, width, per_row, count;
  Tiles(const int64_t* extent_, bool along_rows) : extent(extent_), points(extent[0] * extent[1] * extent[2]) {
    if (along_rows && 2 * extent[2] >= kTile) {
      width = std::min(kTile, round_up(divide_up(extent[2], divide_up(extent[2], kTile)), int64_t{kBlockLanes<float>}));
      per_row = divide_up(extent[2], width);
      count = extent[0] * extent[1] * per_row;
    } else {
      width = kTile;
      per_row = 0;
      count = divide_up(points, kTile);
    }
  }
  int64_t begin(int64_t tile) const {
    return per_row ? tile / per_row * extent[2] + tile % per_row * width : tile * width;
  }
  int64_t size(int64_t tile) const {
    return per_row ? std::min(width, extent[2] - tile % per_row * width) : std::min(width, points - tile * width);
  }
  void segments(int64_t tile, std::vector<Segment>& out) const {
    split_into_segments(extent, begin(tile), begin(tile) + size(tile), out);
  }
};

template <class S>
void write_tile(const Accumulate<S>* sums, int64_t point_stride, int64_t channel_stride, int64_t channels,
                const View& target, int64_t batch, int64_t channel, const std::vector<Segment>& segments) {
  using A = Accumulate<S>;
  for (const Segment& s : segments) {
    S* row = static_cast<S*>(target.data) + batch * target.batch_stride + channel * target.channel_stride +
             s.z * target.stride[0] + s.y * target.stride[1] + s.x * target.stride[2];
    const bool along_channels = channel_stride == 1;
    const int64_t lines = along_channels ? s.length : channels, length = along_channels ? channels : s.length;
    const int64_t line_step = along_channels ? target.stride[2] : target.channel_stride;
    const int64_t step = along_channels ? target.channel_stride : target.stride[2];
    const A* from = sums + s.first * point_stride;
    for (int64_t l = 0; l < lines; ++l) {
      const A* in = from + l * (along_channels ? point_stride : channel_stride);
      S* out = row + l * line_step;
      int64_t k = 0;
      if (step == 1) {
        for (; k + kLanes<A> <= length; k += kLanes<A>) store(out + k, load(in + k));
      }
      for (; k < length; ++k) from_accumulate(in[k], out + k * step);
    }
  }
}

// ---- apply: y = sum_r (L_r f) W_r, or its transpose ----

template <class S>
void apply_typed(const Problem& p, bool transposed, const View& source, const WeightView& weight, const void* bias,
                 const View& target) {
  using A = Accumulate<S>;
  const Neighbours near(p, transposed);
  const bool last = channels_last(source);
  const Tiles tiles(near.target, !last);
  const int64_t ins = transposed ? p.out_channels : p.in_channels;
  const int64_t outs = transposed ? p.in_channels : p.out_channels;
  const int64_t rows = p.generators + p.identity, first_row = p.identity ? 0 : 1;
  const int64_t lanes = last ? kBlockLanes<A> : kBlockRows;
  const int64_t padded_outs = round_up(outs, lanes);
  const ChannelBlocks blocks(ins, rows, kLanes<A>);
  const int64_t slots = p.generators * (transposed ? p.tap_count() : p.component_count);

  // W of group g, channel block b starts at (g * ins + first(b)) * rows * padded_outs.
  const Workspace<A> packed(p.groups * ins * rows * padded_outs);
  const auto packed_at = [&](int64_t g, int64_t c) { return packed.data() + (g * ins + c) * rows * padded_outs; };
  for (int64_t g = 0; g < p.groups; ++g) {
    // Seen from the source, W's channels of this group: transposed, they are its output channels.
    WeightView w = weight;
    const int64_t group_offset = g * p.out_channels * weight.out_stride;
    w.data = static_cast<const S*>(weight.data) + group_offset;
    if (transposed) std::swap(w.in_stride, w.out_stride);
    for (int64_t b = 0; b < blocks.count; ++b) {
      pack_weight<S>(w, first_row, rows, blocks.first(b), blocks.size(b), 0, outs, lanes,
                     packed_at(g, blocks.first(b)));
    }
  }

  const Workspace<A> starts(p.groups * padded_outs);  // the bias, padded like the sums that start from it
  for (int64_t o = 0; bias && o < p.groups * outs; ++o) {
    starts.data()[o / outs * padded_outs + o % outs] = to_accumulate(static_cast<const S*>(bias)[o]);
  }

  parallel_for(p.batch * tiles.count, [&](int64_t begin, int64_t end) {
    const int64_t depth = rows * blocks.width, stride = panel_stride(depth);
    const Workspace<A> coefficients(slots * kTile), panel(std::max(kTile * stride, depth * kTile)),
        sums(kTile * padded_outs);
    Packer<S> packer(p, near, source, Panel::kLayer, blocks.width);
    std::vector<Segment> segments;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t batch = task / tiles.count, tile = task % tiles.count, points = tiles.size(tile);
      tiles.segments(tile, segments);
      fill_coefficients(p, near, segments, coefficients.data());
      for (int64_t g = 0; g < p.groups; ++g) {
        const A* start = starts.data() + g * padded_outs;
        if (last) {
          for (int64_t k = 0; k < points; ++k) std::copy_n(start, padded_outs, sums.data() + k * padded_outs);
        } else {
          for (int64_t o = 0; o < padded_outs; ++o) std::fill_n(sums.data() + o * kTile, points, start[o]);
        }
        for (int64_t b = 0; b < blocks.count; ++b) {
          const int64_t c = blocks.first(b), width = blocks.size(b), k = rows * width;
          if (last) {
            packer.points_major(batch, g * ins + c, width, segments, coefficients.data(), panel.data(), stride);
            multiply<A>(points, outs, k, {panel.data(), kBlockRows * stride, stride, 1},
                        {packed_at(g, c), k * lanes, 0, lanes}, sums.data(), padded_outs);
          } else {
            packer.channels_major(batch, g * ins + c, width, segments, coefficients.data(), panel.data());
            multiply<A>(outs, points, k, {packed_at(g, c), k * lanes, 1, lanes},
                        {panel.data(), kBlockLanes<A>, 0, kTile}, sums.data(), kTile);
          }
        }
        write_tile<S>(sums.data(), last ? padded_outs : 1, last ? 1 : kTile, outs, target, batch, g * outs, segments);
      }
    }
  });
}

// ---- gram: dQ/dW = sum over points of (L_r f)^T g ----

// Sums over points are split into this many parts at most, whatever the number of threads, and added up in order: the
// result is the same for every number of threads. Bounded in bytes as well.
constexpr int64_t kMostParts = 32;
constexpr int64_t kMostPartBytes = int64_t{1} << 26;

int64_t part_count(int64_t tasks, int64_t bytes) {
  const int64_t affordable = std::max<int64_t>(1, kMostPartBytes / std::max<int64_t>(bytes, 1));
  return std::max<int64_t>(1, std::min({tasks, kMostParts, affordable}));
}

template <class S>
void gram_typed(const Problem& p, const View& f, const View& g, void* result) {
  using A = Accumulate<S>;
  const Neighbours near(p, false);
  const bool last = channels_last(f);
  const Tiles tiles(near.target, !last);
  const int64_t ins = p.in_channels, outs = p.out_channels, rows = p.generators + p.identity;
  const int64_t padded_outs = round_up(outs, kBlockLanes<A>);
  const ChannelBlocks blocks(ins, rows, kLanes<A>);
  const int64_t block_rows = round_up(rows * blocks.width, kBlockRows);
  const int64_t group_size = blocks.count * block_rows * padded_outs;
  const int64_t tasks = p.batch * tiles.count, parts = part_count(tasks, p.groups * group_size * sizeof(A));

  const Workspace<A> partial(parts * p.groups * group_size);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    const int64_t depth = rows * blocks.width, stride = panel_stride(depth + kBlockRows);
    const Workspace<A> coefficients(p.generators * p.component_count * kTile),
        panel(std::max(kTile * stride, block_rows * kTile)), cotangent(kTile * padded_outs);
    Packer<S> packer(p, near, f, Panel::kLayer, blocks.width);
    std::vector<Segment> segments;
    for (int64_t part = begin; part < end; ++part) {
      A* sums = partial.data() + part * p.groups * group_size;
      for (int64_t task = tasks * part / parts; task < tasks * (part + 1) / parts; ++task) {
        const int64_t batch = task / tiles.count, tile = task % tiles.count, points = tiles.size(tile);
        tiles.segments(tile, segments);
        fill_coefficients(p, near, segments, coefficients.data());
        for (int64_t group = 0; group < p.groups; ++group) {
          pack_points_major<S>(g, batch, group * outs, outs, segments, points, padded_outs, cotangent.data());
          for (int64_t b = 0; b < blocks.count; ++b) {
            const int64_t c = group * ins + blocks.first(b), width = blocks.size(b);
            A* block_sums = sums + (group * blocks.count + b) * block_rows * padded_outs;
            // The reduction runs over points, so the panel is read along its other axis.
            Factor<A> left{panel.data(), kBlockRows, 1, stride};
            if (last) {
              packer.points_major(batch, c, width, segments, coefficients.data(), panel.data(), stride);
            } else {
              packer.channels_major(batch, c, width, segments, coefficients.data(), panel.data());
              left = {panel.data(), kBlockRows * kTile, kTile, 1};
            }
            for (int64_t o = 0; o < outs; o += kBlockLanes<A>) {
              multiply<A>(rows * width, std::min(outs - o, int64_t{kBlockLanes<A>}), points, left,
                          {cotangent.data() + o, 0, 0, padded_outs}, block_sums + o, padded_outs);
            }
          }
        }
      }
    }
  });

  const int64_t first_row = p.identity ? 0 : 1;
  S* out = static_cast<S*>(result);
  const int64_t outputs = p.groups * outs;
  if (first_row) {
    for (int64_t k = 0; k < outputs * ins; ++k) from_accumulate(A(0), out + k);
  }
  parallel_for(outputs, [&](int64_t begin, int64_t end) {
    for (int64_t output = begin; output < end; ++output) {
      const int64_t group = output / outs, o = output % outs;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < ins; ++c) {
          const int64_t b = c / blocks.width;
          const int64_t at = (group * blocks.count + b) * block_rows * padded_outs +
                             (r * blocks.size(b) + c - blocks.first(b)) * padded_outs + o;
          A sum = 0;
          for (int64_t part = 0; part < parts; ++part) sum += partial.data()[part * p.groups * group_size + at];
          from_accumulate(sum, out + ((r + first_row) * outputs + output) * ins + c);
        }
      }
    }
  });
}

// ---- correlate: dQ/dv = (W_i^T g) . D_a f at each point ----

template <class S>
class Correlation {
  using A = Accumulate<S>;

 public:
  Correlation(const Problem& problem, const View& f, const WeightView& weight, const View& g)
      : p_(problem),
        f_(f),
        g_(g),
        near_(problem, false),
        last_(channels_last(f)),
        tiles_(near_.target, !last_),
        lanes_(last_ ? kBlockLanes<A> : kBlockRows),
        blocks_(problem.in_channels, std::max(problem.generators, problem.component_count), kLanes<A>),
        columns_(round_up(problem.generators * blocks_.width, lanes_)),
        packed_(problem.groups * blocks_.count * columns_ * problem.out_channels) {
    for (int64_t group = 0; group < p_.groups; ++group) {
      for (int64_t b = 0; b < blocks_.count; ++b) {
        // Columns n = i * width + c, depth o: packed[block of n][o][lane].
        A* packed = packed_at(group, b);
        const int64_t width = blocks_.size(b), outs = p_.out_channels;
        for (int64_t n = 0; n < p_.generators * width; ++n) {
          const S* from = static_cast<const S*>(weight.data) + (n / width + 1) * weight.row_stride +
                          (blocks_.first(b) + n % width) * weight.in_stride + group * outs * weight.out_stride;
          for (int64_t o = 0; o < outs; ++o) {
            packed[(n / lanes_ * outs + o) * lanes_ + n % lanes_] = to_accumulate(from[o * weight.out_stride]);
          }
        }
      }
    }
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
        : cotangent(kTile * round_up(c.p_.out_channels, kBlockLanes<A>)),
          products(kTile * c.columns_),
          differences(kTile * panel_stride(c.p_.component_count * c.blocks_.width)),
          gradient(c.slots() * kTile),
          packer(c.p_, c.near_, c.f_, Panel::kDifferences, c.blocks_.width) {}
  };

  int64_t slots() const { return p_.generators * p_.component_count; }
  A* packed_at(int64_t group, int64_t block) const {
    return packed_.data() + (group * blocks_.count + block) * columns_ * p_.out_channels;
  }

  // Adds one sample's dQ/dv at the tile's points to scratch.gradient[slot * kTile + point].
  void add_tile(int64_t batch, int64_t tile, Scratch& scratch) const {
    const int64_t outs = p_.out_channels, points = tiles_.size(tile);
    const int64_t generators = p_.generators, components = p_.component_count;
    for (int64_t group = 0; group < p_.groups; ++group) {
      if (last_) {
        pack_points_major<S>(g_, batch, group * outs, outs, scratch.segments, kTile, outs, scratch.cotangent.data());
      } else {
        pack_channels_major<S>(g_, batch, group * outs, outs, scratch.segments, scratch.cotangent.data());
      }
      for (int64_t b = 0; b < blocks_.count; ++b) {
        const int64_t width = blocks_.size(b), channel = group * p_.in_channels + blocks_.first(b);
        A* products = scratch.products.data();
        A* differences = scratch.differences.data();
        std::fill_n(products, kTile * columns_, A(0));
        if (last_) {
          const int64_t stride = panel_stride(components * blocks_.width);
          multiply<A>(points, generators * width, outs, {scratch.cotangent.data(), kBlockRows * outs, outs, 1},
                      {packed_at(group, b), outs * lanes_, 0, lanes_}, products, columns_);
          scratch.packer.points_major(batch, channel, width, scratch.segments, nullptr, differences, stride);
          dot_channels(points, width, products, differences, stride, scratch.gradient.data());
        } else {
          multiply<A>(generators * width, points, outs, {packed_at(group, b), outs * lanes_, 1, lanes_},
                      {scratch.cotangent.data(), kBlockLanes<A>, 0, kTile}, products, kTile);
          scratch.packer.channels_major(batch, channel, width, scratch.segments, nullptr, differences);
          for (int64_t i = 0; i < generators; ++i) {
            for (int64_t a = 0; a < components; ++a) {
              A* out = scratch.gradient.data() + (i * components + a) * kTile;
              for (int64_t x = 0; x < points; x += kLanes<A>) {
                Vector<A> sum = load(out + x);
                for (int64_t c = 0; c < width; ++c) {
                  sum += load(products + (i * width + c) * kTile + x) * load(differences + (a * width + c) * kTile + x);
                }
                store(out + x, sum);
              }
            }
          }
        }
      }
    }
  }

  void dot_channels(int64_t points, int64_t width, const A* products, const A* differences, int64_t stride,
                    A* gradient) const {
    const int64_t components = p_.component_count;
    for (int64_t point = 0; point < points; ++point) {
      for (int64_t i = 0; i < p_.generators; ++i) {
        const A* h = products + point * columns_ + i * width;
        for (int64_t a = 0; a < components; ++a) {
          const A* d = differences + point * stride + a * width;
          Vector<A> sum = {};
          int64_t c = 0;
          for (; c + kLanes<A> <= width; c += kLanes<A>) sum += load(h + c) * load(d + c);
          if (c < width) sum += load_first(h + c, width - c) * load_first(d + c, width - c);
          gradient[(i * components + a) * kTile + point] += sum_lanes<A>(sum);
        }
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
    const int64_t tasks = p_.batch * tiles_.count, parts = part_count(tasks, size * sizeof(double));
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
            for (const Segment& s : scratch.segments)
              add_moments(s, scratch.gradient.data() + q * kTile, affine, sums + q * moments);
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

  void add_moments(const Segment& s, const A* gradient, bool affine, double* sums) const {
    double total = 0, along = 0;
    for (int64_t k = 0; k < s.length; ++k) {
      const double value = static_cast<double>(gradient[s.first + k]);
      total += value;
      along += value * coordinate((s.x + k) * p_.step[2], 2);
    }
    if (!affine) {
      sums[0] += total;
      return;
    }
    sums[0] += total * coordinate(s.z * p_.step[0], 0);
    sums[1] += total * coordinate(s.y * p_.step[1], 1);
    sums[2] += along;
    sums[3] += total;
  }

  double coordinate(int64_t index, int axis) const {
    return (static_cast<double>(index) - p_.center[axis]) * p_.inverse_scale;
  }

  const Problem& p_;
  const View &f_, &g_;
  const Neighbours near_;
  const bool last_;
  const Tiles tiles_;
  const int64_t lanes_;
  const ChannelBlocks blocks_;
  const int64_t columns_;
  const Workspace<A> packed_;
};

template <class S>
void correlate_typed(const Problem& p, const View& f, const WeightView& weight, const View& g, void* result) {
  Correlation<S>(p, f, weight, g).run(result);
}

// ---- run-time type to compile-time type ----

#define LCONV_FOR_SCALAR(scalar, function, ...) \
  switch (scalar) {                             \
    case Scalar::kFloat:                        \
      return function<float>(__VA_ARGS__);      \
    case Scalar::kDouble:                       \
      return function<double>(__VA_ARGS__);     \
    case Scalar::kBFloat16:                     \
      return function<BFloat16>(__VA_ARGS__);   \
    case Scalar::kHalf:                         \
      return function<Half>(__VA_ARGS__);       \
  }

void apply(const Problem& p, bool transposed, const View& source, const WeightView& weight, const void* bias,
           const View& target) {
  LCONV_FOR_SCALAR(p.scalar, apply_typed, p, transposed, source, weight, bias, target)
}
void gram(const Problem& p, const View& f, const View& g, void* result) {
  LCONV_FOR_SCALAR(p.scalar, gram_typed, p, f, g, result)
}
void correlate(const Problem& p, const View& f, const WeightView& weight, const View& g, void* result) {
  LCONV_FOR_SCALAR(p.scalar, correlate_typed, p, f, weight, g, result)
}

}  // namespace

#define LCONV_TEXT_OF(x) #x
#define LCONV_TEXT(x) LCONV_TEXT_OF(x)

extern const Kernels kernels;
const Kernels kernels = {LCONV_TEXT(LCONV_ISA), apply, gram, correlate};

}  // namespace lconv_fast::LCONV_ISA
