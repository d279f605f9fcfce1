#include "sum_points.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <vector>

namespace lconv_fast {

namespace {

constexpr int64_t kPartLines = 256;  // lines of a part: enough to be worth a task, whatever the number of threads
constexpr int64_t kMostParts = 256;  // each holds a sum for every channel
constexpr int64_t kChunk = 64;       // values added in float, before their sum goes to double
constexpr int64_t kLanes = 16;

// The sum of `count` neighbours.
template <class S, class A>
double sum_of(const S* values, int64_t count) {
  double total = 0;
  for (int64_t first = 0; first < count; first += kChunk * kLanes) {
    A lanes[kLanes] = {};
    const int64_t size = std::min(count - first, kChunk * kLanes), whole = size / kLanes * kLanes;
    for (int64_t k = 0; k < whole; k += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += static_cast<A>(values[first + k + lane]);
    }
    for (int64_t k = whole; k < size; ++k) lanes[k - whole] += static_cast<A>(values[first + k]);
    for (const A lane : lanes) total += static_cast<double>(lane);
  }
  return total;
}

// One line of `length` points, added to the totals of all channels.
template <class S, class A>
void add_line(const S* line, int64_t length, int64_t point_stride, int64_t channels, int64_t channel_stride,
              double* totals, std::vector<A>& sums) {
  if (point_stride == 1 || channel_stride != 1) {
    for (int64_t c = 0; c < channels; ++c) {
      const S* values = line + c * channel_stride;
      if (point_stride == 1) {
        totals[c] += sum_of<S, A>(values, length);
      } else {
        for (int64_t x = 0; x < length; ++x) totals[c] += static_cast<double>(values[x * point_stride]);
      }
    }
    return;
  }
  for (int64_t first = 0; first < length; first += kChunk) {
    std::fill(sums.begin(), sums.end(), A(0));
    for (int64_t x = first; x < std::min(first + kChunk, length); ++x) {
      const S* values = line + x * point_stride;
      for (int64_t c = 0; c < channels; ++c) sums[c] += static_cast<A>(values[c]);
    }
    for (int64_t c = 0; c < channels; ++c) totals[c] += static_cast<double>(sums[c]);
  }
}

template <class S, class A>
void sum_in_parts(const View& v, int64_t batch, int64_t channels, const int64_t extent[kAxes], void* result) {
  const int64_t lines = batch * extent[0] * extent[1];
  const int64_t per_part = std::max(kPartLines, (lines + kMostParts - 1) / kMostParts);
  const int64_t parts = std::max<int64_t>(1, (lines + per_part - 1) / per_part);
  std::vector<double> totals(parts * channels);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    std::vector<A> sums(channels);
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t line = part * per_part; line < std::min((part + 1) * per_part, lines); ++line) {
        const int64_t b = line / (extent[0] * extent[1]), plane = line % (extent[0] * extent[1]);
        const S* start = static_cast<const S*>(v.data) + b * v.batch_stride + plane / extent[1] * v.stride[0] +
                         plane % extent[1] * v.stride[1];
        add_line<S, A>(start, extent[2], v.stride[2], channels, v.channel_stride, &totals[part * channels], sums);
      }
    }
  });
  for (int64_t c = 0; c < channels; ++c) {
    double total = 0;
    for (int64_t part = 0; part < parts; ++part) total += totals[part * channels + c];
    static_cast<S*>(result)[c] = static_cast<S>(static_cast<A>(total));
  }
}

}  // namespace

void sum_over_points(Scalar scalar, const View& v, int64_t batch, int64_t channels, const int64_t extent[kAxes],
                     void* result) {
  switch (scalar) {
    case Scalar::kFloat:
      return sum_in_parts<float, float>(v, batch, channels, extent, result);
    case Scalar::kDouble:
      return sum_in_parts<double, double>(v, batch, channels, extent, result);
    case Scalar::kBFloat16:
      return sum_in_parts<c10::BFloat16, float>(v, batch, channels, extent, result);
    case Scalar::kHalf:
      return sum_in_parts<c10::Half, float>(v, batch, channels, extent, result);
  }
}

}  // namespace lconv_fast
