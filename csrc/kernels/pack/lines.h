// The lines of a source as points-major packers read them: a point's channels side by side, in the type that they work
// in. Channels-last data of that type are read where they lie. Others are transposed in registers, or converted, strip
// by strip, into a store of a few strips, which neighbouring tiles share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../../plan.h"
#include "../neighbours.h"
#include "../workspace.h"
#include "ahead.h"
#include "transpose.h"

namespace lconv_fast::LCONV_ISA {

// How a store is cut; without one, `capacity` is 0.
struct LineStorePlan {
  int64_t lines = 1;     // of a strip: neighbours in a plane
  int64_t capacity = 0;  // strips
  int64_t slab = 0;      // lines of the target which tiles walk through all planes before they go on to the next ones
};

inline bool is_channels_first(const View& v) { return v.channel_stride != 1 && v.stride[2] == 1; }

// For numbers of type T in the store.
template <class T>
LineStorePlan plan_line_store(const Problem& p, const Neighbours& near, const View& source, int64_t ins) {
  constexpr int64_t kMostBytes = int64_t{4} << 20;  // for each thread
  constexpr int64_t kLeastPoints = 64;              // of a strip, where the plane has them
  LineStorePlan plan;
  const int64_t* extent = near.transposed ? p.out : p.array;
  int64_t low[2] = {0, 0}, high[2] = {0, 0};
  std::vector<std::pair<int64_t, int64_t>> seen;  // lines that one point needs
  for (int64_t j = 0; j <= p.tap_count(); ++j) {
    const int64_t at[2] = {near.at(j, 0).shift, near.at(j, 1).shift};
    for (int a = 0; a < 2; ++a) low[a] = std::min(low[a], at[a]), high[a] = std::max(high[a], at[a]);
    if (std::find(seen.begin(), seen.end(), std::pair(at[0], at[1])) == seen.end()) seen.emplace_back(at[0], at[1]);
  }
  if (source.stride[1] == extent[2] * source.stride[2])
    plan.lines = std::clamp<int64_t>(kLeastPoints / extent[2], 1, extent[1]);
  const int64_t bytes = plan.lines * extent[2] * p.groups * ins * static_cast<int64_t>(sizeof(T));
  const int64_t least = static_cast<int64_t>(seen.size()) + 1;
  if (least * bytes > kMostBytes) return plan;

  const int64_t planes = high[0] - low[0] + 1, affordable = std::max(least, second_level_cache_bytes() / bytes);
  const auto needed = [&](int64_t slab) {
    const int64_t rows = (slab - 1) * near.at(0, 1).slope() + high[1] - low[1] + 1;
    return planes * (divide_up(rows, plan.lines) + 1);
  };
  plan.slab = near.target[1];
  while (near.target[0] > 1 && plan.slab > 1 && needed(plan.slab) > affordable) plan.slab = divide_up(plan.slab, 2);
  const int64_t all = p.batch * extent[0] * divide_up(extent[1], plan.lines);
  plan.capacity = std::min(all, near.target[0] > 1 ? std::max(least, needed(plan.slab)) : least + planes);
  return plan;
}

// Tiles turn channels-first data if their channels fill a vector on either side.
template <class S>
LineStorePlan plan_tile_store(const Problem& p, const Neighbours& near, const View& source, int64_t ins, int64_t outs) {
  if (!is_channels_first(source) || std::min(ins, outs) < kLanes<Accumulate<S>>) return {};
  return plan_line_store<S>(p, near, source, ins);
}

// T: the type that is worked in. Without a store it is that of the data.
template <class S, class T = S>
class Lines {
 public:
  Lines(const Problem& p, const Neighbours& near, const View& source, const LineStorePlan& plan)
      : source_(source),
        plan_(plan),
        extent_(near.transposed ? p.out : p.array),
        channels_(p.groups * (near.transposed ? p.out_channels : p.in_channels)),
        strips_(divide_up(extent_[1], plan.lines)),
        strip_size_(plan.lines * extent_[2] * channels_),
        store_(plan.capacity * strip_size_, Contents::kAny),
        slots_(plan.capacity ? p.batch * extent_[0] * strips_ : 0, -1),
        owners_(plan.capacity, -1),
        used_(plan.capacity, 0) {}

  bool stores() const { return plan_.capacity > 0; }
  int64_t point_stride() const { return plan_.capacity ? channels_ : source_.stride[2]; }

  // Lines found since then stay until the next call.
  void release() { ++now_; }

  // Line (z, y) of a sample, from its first channel on.
  const T* find(int64_t batch, int64_t z, int64_t y) {
    if (!plan_.capacity) {
      return static_cast<const T*>(source_.data) + batch * source_.batch_stride + z * source_.stride[0] +
             y * source_.stride[1];
    }
    const int64_t strip = y / plan_.lines, place = key(batch, z, strip);
    if (slots_[place] < 0) fill(batch, z, strip, place);
    const int64_t slot = slots_[place];
    used_[slot] = now_;
    return store_.data() + slot * strip_size_ + (y - strip * plan_.lines) * extent_[2] * channels_;
  }

  bool has(int64_t batch, int64_t z, int64_t y) const { return slots_[key(batch, z, y / plan_.lines)] >= 0; }
  // What filling the strip of line (z, y) reads: a run of points of each channel, or all together.
  LineAhead strip_of(int64_t batch, int64_t z, int64_t y) const {
    constexpr int64_t kBytes = sizeof(S);
    const S* from = begin(batch, z, y / plan_.lines * plan_.lines);
    const int64_t bytes = plan_.lines * extent_[2] * source_.stride[2] * kBytes;
    return turns() ? LineAhead(from, channels_, source_.channel_stride * kBytes, bytes) : LineAhead(from, 1, 0, bytes);
  }

 private:
  bool turns() const { return source_.channel_stride != 1; }
  const S* begin(int64_t batch, int64_t z, int64_t y) const {
    return static_cast<const S*>(source_.data) + batch * source_.batch_stride + z * source_.stride[0] +
           y * source_.stride[1];
  }
  int64_t key(int64_t batch, int64_t z, int64_t strip) const { return (batch * extent_[0] + z) * strips_ + strip; }

  // In the place of the strip that has been here longest.
  void fill(int64_t batch, int64_t z, int64_t strip, int64_t place) {
    do next_ = next_ + 1 < plan_.capacity ? next_ + 1 : 0;
    while (used_[next_] == now_);
    if (owners_[next_] >= 0) slots_[owners_[next_]] = -1;
    owners_[next_] = place;
    slots_[place] = next_;
    const int64_t first = strip * plan_.lines, lines = std::min(plan_.lines, extent_[1] - first);
    const S* from = begin(batch, z, first);
    T* to = store_.data() + next_ * strip_size_;
    if (turns()) {
      lines_to_points(from, source_.channel_stride, channels_, lines * extent_[2], to, channels_);
    } else {
      copy_points(from, source_.stride[2], channels_, lines * extent_[2], to, channels_);
    }
  }

  const View& source_;
  const LineStorePlan plan_;
  const int64_t* extent_;
  const int64_t channels_, strips_, strip_size_;
  const Workspace<T> store_;
  std::vector<int64_t> slots_;   // of each strip of the source; -1: it is not here
  std::vector<int64_t> owners_;  // of each slot
  std::vector<int64_t> used_;    // when each slot was asked for last
  int64_t now_ = 1, next_ = -1;
};

}  // namespace lconv_fast::LCONV_ISA
