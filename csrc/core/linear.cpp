#include "core/linear.h"

#include <algorithm>

namespace calibit {
namespace {
// Below this many multiply-adds a second thread costs more than it saves (1 us of the pool).
constexpr std::int64_t kGrainProducts = 1 << 16;

std::int64_t grain(std::int64_t products) {
  return std::max<std::int64_t>(1, kGrainProducts / std::max<std::int64_t>(products, 1));
}
}  // namespace

void linear(const LinearArgs& a, const Kernels& kernels, ParallelFor loop) {
  if (a.m == 0) return;
  parallel(loop, tiles(a.w.spec), grain(a.m * a.w.spec.k * kTileRows),
           [&](std::int64_t begin, std::int64_t end) { kernels.linear(a, begin, end); });
}

void linear_input_grad(const LinearInputGradArgs& a, const Kernels& kernels, ParallelFor loop) {
  if (a.m == 0) return;
  parallel(loop, groups(a.w.spec), grain(a.m * a.w.spec.n * a.w.spec.group),
           [&](std::int64_t begin, std::int64_t end) { kernels.linear_input_grad(a, begin, end); });
}

}  // namespace calibit
