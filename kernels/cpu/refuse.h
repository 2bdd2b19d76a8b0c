// Errors about what a caller passed.
#pragma once

#include <sstream>
#include <stdexcept>

namespace hag {

// Throws std::invalid_argument with the parts as its text.
template <class... Parts>
[[noreturn]] void refuse(const Parts &...parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

}  // namespace hag
