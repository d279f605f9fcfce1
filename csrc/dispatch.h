// Which instruction set's kernels run.
#pragma once

#include <string>
#include <vector>

#include "problem.h"

namespace lconv_fast {

// The widest set that was built and that this processor has; LCONV_FAST_CPU_CAPABILITY names a narrower one.
const Kernels& active_kernels();

// The names of all sets that were built and that this processor has, narrowest first.
std::vector<std::string> available_kernels();

}  // namespace lconv_fast
