#pragma once
// Errors are sentences: "[op] expected <what>, got <value>".
#include <sstream>
#include <stdexcept>
#include <string>

namespace calibit {

template <typename... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << '[' << op << "] ";
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

template <typename... Parts>
void require(bool holds, const char* op, const Parts&... parts) {
  if (!holds) fail(op, parts...);
}

}  // namespace calibit
