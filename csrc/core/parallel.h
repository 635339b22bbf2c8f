#pragma once
// How core runs loops: a function pointer, so that torch's pool, std::thread or a plain loop fit.
#include <cstdint>
#include <exception>
#include <mutex>

namespace calibit {

using LoopBody = void (*)(void* context, std::int64_t begin, std::int64_t end);
// Calls body on ranges that cover [0, n) once, each at least `grain` long except the last.
using ParallelFor = void (*)(std::int64_t n, std::int64_t grain, LoopBody body, void* context);

inline void serial_for(std::int64_t n, std::int64_t, LoopBody body, void* context) {
  if (n > 0) body(context, 0, n);
}

// Runs f(begin, end); the first exception of any range is rethrown in the caller, with its text.
template <typename F>
void parallel(ParallelFor loop, std::int64_t n, std::int64_t grain, F&& f) {
  struct Context {
    F* f;
    std::mutex mutex;
    std::exception_ptr error;
  } context{&f, {}, nullptr};
  loop(
      n, grain,
      [](void* p, std::int64_t begin, std::int64_t end) {
        auto& c = *static_cast<Context*>(p);
        try {
          (*c.f)(begin, end);
        } catch (...) {
          const std::lock_guard lock(c.mutex);
          if (!c.error) c.error = std::current_exception();
        }
      },
      &context);
  if (context.error) std::rethrow_exception(context.error);
}

}  // namespace calibit
