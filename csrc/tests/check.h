#pragma once
// A test program is a main() that calls CHECK... and returns failures(). No framework.
#include <cmath>
#include <cstdio>

namespace calibit::test {

inline int& failures() {
  static int count = 0;
  return count;
}

inline void report(bool ok, const char* what, const char* file, int line) {
  if (ok) return;
  std::printf("%s:%d: failed: %s\n", file, line, what);
  ++failures();
}

inline int finish(const char* name) {
  std::printf("%s: %s\n", name, failures() ? "FAILED" : "ok");
  return failures() ? 1 : 0;
}

}  // namespace calibit::test

#define CHECK(condition) ::calibit::test::report((condition), #condition, __FILE__, __LINE__)
