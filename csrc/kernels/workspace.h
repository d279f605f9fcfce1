// The memory that a tile works in.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "microkernel.h"

namespace lconv_fast::LCONV_ISA {

// Workspace aligned to a cache line: zero, or as it comes where all that counts is written before it is read (padding
// is computed with and thrown away).
enum class Contents { kZero, kAny };

template <class A>
class Workspace {
 public:
  explicit Workspace(int64_t count, Contents contents = Contents::kZero) {
    const size_t bytes = static_cast<size_t>(round_up(std::max<int64_t>(count, 1) * sizeof(A), 64));
    data_.reset(static_cast<A*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    if (contents == Contents::kZero) std::memset(static_cast<void*>(data_.get()), 0, bytes);
  }
  A* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(A* p) const { std::free(p); }
  };
  std::unique_ptr<A, Free> data_;
};

}  // namespace lconv_fast::LCONV_ISA
