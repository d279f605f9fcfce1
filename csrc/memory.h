// Fresh memory: its first touch costs more than the arithmetic of a layer with few channels, and about half as much in
// huge pages.
#pragma once

#include <cstdint>
#include <string>

namespace lconv_fast {

// Asks for huge pages for a result that nothing has written yet: of its whole pages, where it is large and where the
// system's policy leaves it to programs (`madvise`). LCONV_FAST_HUGE_PAGES=0 turns this off. Memory that was touched
// before stays as it is.
void advise_huge_pages(void* data, int64_t bytes);

// Who decides about them: "asked for", "always" or "never" by the system's policy, "unknown", or "off" by the variable.
const std::string& huge_page_policy();

}  // namespace lconv_fast
