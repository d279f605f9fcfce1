#include "memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <fstream>

namespace lconv_fast {

namespace {

// Below, allocators recycle memory that was touched before, and a huge page or two gain nothing.
constexpr int64_t kLeast = int64_t{4} << 20;

std::string find_policy() {
  const char* wanted = std::getenv("LCONV_FAST_HUGE_PAGES");
  if (wanted && std::string(wanted) == "0") return "off";
#if defined(MADV_HUGEPAGE)
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  std::getline(file, line);  // the policy in force stands in brackets
  if (line.find("[madvise]") != std::string::npos) return "asked for";
  if (line.find("[always]") != std::string::npos) return "always";
  if (line.find("[never]") != std::string::npos) return "never";
#endif
  return "unknown";
}

}  // namespace

const std::string& huge_page_policy() {
  static const std::string policy = find_policy();
  return policy;
}

void advise_huge_pages(void* data, int64_t bytes) {
  static const bool ask = huge_page_policy() == "asked for";
  if (!ask || bytes < kLeast) return;
#if defined(MADV_HUGEPAGE)
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t start = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (start + page - 1) / page * page, end = (start + static_cast<uintptr_t>(bytes)) / page * page;
  // Advice: a refusal changes nothing.
  if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

}  // namespace lconv_fast
