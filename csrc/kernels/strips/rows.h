// Makes the panel of a strip: rows of [point][channel], each one pass over arrays that lie as the data do.
#pragma once

#include "../pack/lines.h"
#include "../workspace.h"
#include "product.h"
#include "program.h"

namespace lconv_fast::LCONV_ISA {

template <class S>
class StripRows {
  using A = Accumulate<S>;

 public:
  StripRows(const Problem& p, const Neighbours& near, const View& source, const StripProgram<S>& program,
            int64_t channels, const LineStorePlan& store)
      : p_(p),
        near_(near),
        lines_(p, near, source, store),
        channels_(channels),
        most_(strip_points(std::max<int64_t>(1, program.rows) * channels * sizeof(A))),
        size_(round_up(most_ * channels, kLanes<A>) + 2 * kLanes<A>),
        rows_(program.rows * size_),
        copies_(program.sources * size_),
        zeros_(size_),
        steps_(program.steps),
        base_(p.tap_count() + 1),
        at_(program.sources),
        row_(program.rows) {
    wanted_.resize(p.tap_count() + 1);
    for (const auto& step : steps_) {
      for (const auto& term : step.terms) {
        if (term.source <= p.tap_count()) wanted_[term.source] = true;
      }
    }
    const int64_t sign = near.transposed ? -1 : 1;
    newest_ = wanted_;
    for (int64_t j = 0; j <= p.tap_count(); ++j) {
      for (int64_t k = 0; k <= p.tap_count(); ++k) {
        const int64_t ahead = sign * (near.at(k, 1).tap - near.at(j, 1).tap);
        if (wanted_[k] && near.at(k, 0).tap == near.at(j, 0).tap && (ahead > 0 || (ahead == 0 && k < j)))
          newest_[j] = false;
      }
    }
  }

  int64_t most() const { return most_; }

  // The segment that strips are pieces of.
  void start(int64_t batch, int64_t channel, const Segment& s) {
    lines_.release();
    for (int64_t j = 0; j <= p_.tap_count(); ++j) {
      const int64_t z = near_.at(j, 0).source(s.z), y = near_.at(j, 1).source(s.y);
      base_[j] = z < 0 || y < 0 ? nullptr : lines_.find(batch, z, y) + channel;
    }
    ahead_.clear();
    if (lines_.stores() && channel == 0 && s.y + 1 < near_.target[1]) look_ahead(batch, s);
    for (auto& step : steps_) {
      if (step.axis < 0) continue;
      for (auto& term : step.terms) {
        const AxisTap& axis = near_.at(term.source, step.axis);
        const int64_t here = step.axis == 0 ? s.z : s.y, from = axis.grid_index(here);
        term.factor = from < 0 ? A(0)
                               : static_cast<A>(p_.tap_weights[term.source] *
                                                static_cast<double>(from - axis.position(here)) * p_.inverse_scale);
      }
    }
  }

  // Points [first, first + points) of the segment; `table` at the first of them.
  const A* const* make(const Segment& s, int64_t first, int64_t points, const A* table) {
    for (int64_t j = 0; j <= p_.tap_count(); ++j) {
      if (wanted_[j]) at_[j] = see(j, s.x + first, points);
    }
    int64_t source = p_.tap_count() + 1;
    for (size_t k = 0; k < steps_.size(); ++k) {
      const Step& step = steps_[k];
      if (step.varies()) {
        size_t end = k + 1;
        while (end < steps_.size() && steps_[end].varies()) ++end;
        vary(&step, end - k, points, table);
        k = end - 1;
      } else if (step.row < 0) {
        A* const out = copies_.data() + source * size_;
        combine(step, points * channels_, out);
        at_[source++] = out;
      } else if (step.copies() && points % kStripUnit == 0) {
        // A tap itself is read where it lies, if blocks of points do not reach past the end of the line.
        row_[step.row] = at_[step.terms[0].source];
      } else {
        A* const out = rows_.data() + step.row * size_;
        combine(step, points * channels_, out);
        row_[step.row] = out;
      }
    }
    return row_.data();
  }

  // body(from, bytes) where the next strip's data lie that no strip has read before, if lines are taken in order: of
  // the taps in each plane, the row furthest on. Of lines in a store, pieces of what the next line's are made of.
  template <class Body>
  void for_news(const Segment& s, int64_t first, int64_t points, int64_t piece, Body body) const {
    const int64_t x_first = s.x + first;
    for (const LineAhead& line : ahead_) {
      line.for_pieces(piece, x_first, x_first + points, near_.target[2], [&](uintptr_t from) { body(from, piece); });
    }
    if (lines_.stores()) return;
    const int64_t bytes = points * near_.at(p_.tap_count(), 2).slope() * channels_ * static_cast<int64_t>(sizeof(S));
    for (int64_t j = 0; j <= p_.tap_count(); ++j) {
      if (!newest_[j] || !base_[j]) continue;
      const int64_t x = (x_first + points) * near_.at(p_.tap_count(), 2).slope();
      body(reinterpret_cast<uintptr_t>(base_[j]) +
               static_cast<uintptr_t>(x * lines_.point_stride() * static_cast<int64_t>(sizeof(S))),
           bytes);
    }
  }

 private:
  using Step = StripStep<A>;

  void look_ahead(int64_t batch, const Segment& s) {
    for (int64_t j = 0; j <= p_.tap_count(); ++j) {
      const int64_t z = near_.at(j, 0).source(s.z), y = near_.at(j, 1).source(s.y + 1);
      if (!newest_[j] || z < 0 || y < 0 || lines_.has(batch, z, y)) continue;
      ahead_.push_back(lines_.strip_of(batch, z, y));
    }
  }

  // What tap j sees at the points from x on.
  const A* see(int64_t j, int64_t x, int64_t points) {
    if (!base_[j]) return zeros_.data();
    const AxisTap& axis = near_.at(j, 2);
    const int64_t step = lines_.point_stride();
    const bool dense = step == channels_ && axis.slope() == 1;
    if (dense && axis.regular(x, points)) return base_[j] + (x + axis.shift) * step;
    A* const copy = copies_.data() + j * size_;
    const auto point = [&](int64_t k, int64_t at) {
      A* const to = copy + k * channels_;
      if (at < 0) {
        std::fill_n(to, channels_, A(0));
      } else {
        const A* from = base_[j] + at * step;
        for_flat(channels_, [&](int64_t c, auto read) { store(to + c, read(from + c)); });
      }
    };
    const int64_t begin = std::clamp<int64_t>(axis.begin - x, 0, points), end = std::clamp(axis.end - x, begin, points);
    for (int64_t k = 0; k < begin; ++k) point(k, axis.source(x + k));
    if (dense) {
      const A* from = base_[j] + (x + begin + axis.shift) * step;
      A* to = copy + begin * channels_;
      for_flat((end - begin) * channels_, [&](int64_t k, auto read) { store(to + k, read(from + k)); });
    } else {
      for (int64_t k = begin; k < end; ++k) point(k, (x + k) * axis.slope() + axis.shift);
    }
    for (int64_t k = end; k < points; ++k) point(k, axis.source(x + k));
    return copy;
  }

  // body(k, read) for k, k + kLanes, ...; `read` does not reach past the last number. Rows have room for whole vectors.
  template <class Body>
  static inline void for_flat(int64_t count, Body body) {
    int64_t k = 0;
    for (; k + kLanes<A> <= count; k += kLanes<A>) body(k, [](const auto* p) { return load(p); });
    if (k < count) {
      const int64_t n = count - k;
      body(k, [n](const auto* p) { return load_first(p, n); });
    }
  }

  void combine(const Step& step, int64_t count, A* out) const {
    const auto& t = step.terms;
    const auto from = [&](size_t k) { return at_[t[k].source]; };
    if (t.empty()) {
      std::fill_n(out, count, A(0));
    } else if (step.copies()) {
      const A* a = from(0);
      for_flat(count, [&](int64_t k, auto read) { store(out + k, read(a + k)); });
    } else if (t.size() == 2 && t[0].factor == -t[1].factor) {
      const A *a = from(0), *b = from(1);
      const Vector<A> factor = broadcast(t[1].factor);
      for_flat(count, [&](int64_t k, auto read) { store(out + k, factor * (read(b + k) - read(a + k))); });
    } else {
      const size_t terms = t.size();
      for_flat(count, [&](int64_t k, auto read) {
        Vector<A> sum = broadcast(t[0].factor) * read(from(0) + k);
        for (size_t j = 1; j < terms; ++j) sum += broadcast(t[j].factor) * read(from(j) + k);
        store(out + k, sum);
      });
    }
  }

  // The rows of neighbouring steps that combine the same sources, `count` of them.
  void vary(const Step* steps, int64_t count, int64_t points, const A* table) {
    for (int64_t i = 0; i < count; ++i) row_[steps[i].row] = rows_.data() + steps[i].row * size_;
    A* const out = rows_.data() + steps->row * size_;
    switch (steps->terms.size()) {
      case 1:
        return vary_as<1>(steps, count, points, table, out);
      case 2:
        return vary_as<2>(steps, count, points, table, out);
      case 3:
        return vary_as<3>(steps, count, points, table, out);
      case 4:
        return vary_as<4>(steps, count, points, table, out);
      case 6:
        return vary_as<6>(steps, count, points, table, out);
      default:
        return vary_as<0>(steps, count, points, table, out);
    }
  }

  template <int kTerms>
  void vary_as(const Step* steps, int64_t count, int64_t points, const A* table, A* out) const {
    constexpr int64_t n = kLanes<A>;
    if (channels_ == n / 2) return vary_with<kTerms, HalfVector<A>>(steps, count, points, table, out);
    vary_with<kTerms, Vector<A>>(steps, count, points, table, out);
  }

  // kTerms: 0 for any number. A last vector that is not full reaches into the next point, which is written after it.
  template <int kTerms, class V>
  void vary_with(const Step* steps, int64_t count, int64_t points, const A* table, A* out) const {
    constexpr int64_t n = sizeof(V) / sizeof(A);
    const auto& terms = steps->terms;
    const int64_t number = kTerms ? kTerms : static_cast<int64_t>(terms.size()), channels = channels_, size = size_;
    const A* from[kTerms ? kTerms : 1];
    for (int j = 0; j < kTerms; ++j) from[j] = at_[terms[j].source];
    table += terms[0].table * kTile;
    for (int64_t p = 0; p < points; ++p, ++table) {
      for (int64_t c = 0; c < channels; c += n) {
        const int64_t place = p * channels + c, rest = channels - c;
        const auto value = [&](const A* source) {
          if constexpr (std::is_same_v<V, Vector<A>>) {
            if (rest < n) return load_first(source + place, rest);
          }
          return load_as<V>(source + place);
        };
        V held[kTerms ? kTerms : 1];
        for (int j = 0; j < kTerms; ++j) held[j] = value(from[j]);
        const A* factor = table;
        A* to = out + place;
        for (int64_t i = 0; i < count; ++i, to += size, factor += number * kTile) {
          V sum = (factor[0] - V{}) * (kTerms ? held[0] : value(at_[terms[0].source]));
          for (int64_t j = 1; j < number; ++j) {
            sum += (factor[j * kTile] - V{}) * (kTerms ? held[kTerms ? j : 0] : value(at_[terms[j].source]));
          }
          std::memcpy(to, &sum, sizeof(V));
        }
      }
    }
  }

  const Problem& p_;
  const Neighbours& near_;
  Lines<S, A> lines_;
  const int64_t channels_, most_, size_;  // most: points of a strip; size: of a row
  const Workspace<A> rows_, copies_, zeros_;
  std::vector<Step> steps_;
  std::vector<const A*> base_;  // of each tap: the row it sees, or none
  std::vector<const A*> at_;    // of each source: its values at the strip's points
  std::vector<const A*> row_;
  std::vector<LineAhead> ahead_;
  std::vector<bool> wanted_, newest_;  // of each tap
};

}  // namespace lconv_fast::LCONV_ISA
