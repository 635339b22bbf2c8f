#include "core/confidence.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/scalar.h"

namespace calibit {
namespace {

// exp(20) is far from the end of float32, so a run is repeated only when its largest logit lies
// further above the shift. The first run gets a shift near its own largest logit: sums relative to
// it lose the fewest digits.
constexpr float kReach = 20, kNear = 1;

std::int64_t logit_bytes(LogitType type) { return type == LogitType::f32 ? 4 : 2; }

const void* at(const ConfidenceArgs& a, const void* logits, std::int64_t row, std::int64_t column) {
  if (!logits) return nullptr;
  return static_cast<const std::uint8_t*>(logits) +
         (row * a.columns + column) * logit_bytes(a.type);
}

// The sums of a run, with shifts that suit its largest logits; the shifts are updated.
SoftmaxSums sums_of(const Kernels& kernels, SoftmaxArgs& run, bool begun) {
  SoftmaxSums s;
  kernels.softmax_sums(run, &s);
  const auto suits = [&](float max, float shift) {
    if (max <= kLowest) return true;
    return begun ? max <= shift + kReach : max <= shift + kNear && max >= shift - kNear;
  };
  if (suits(s.max, run.shift) && (!run.y || suits(s.other_max, run.other_shift))) return s;
  if (!suits(s.max, run.shift)) run.shift = s.max;
  if (run.y && !suits(s.other_max, run.other_shift)) run.other_shift = s.other_max;
  kernels.softmax_sums(run, &s);
  return s;
}

// The same sums relative to other shifts. The first run's sums are 0, and its shift arbitrary.
void reshift(ConfidenceSums& s, double shift, double other_shift) {
  if (shift == s.shift && other_shift == s.other_shift) return;
  if (s.sum > 0) {
    const double by = shift - s.shift, factor = std::exp(-by);
    s.weighted = factor * (s.weighted - by * s.sum);
    s.sum *= factor;
    s.gap *= factor;
  }
  if (s.other_sum > 0) s.other_sum *= std::exp(s.other_shift - other_shift);
  s.shift = shift;
  s.other_shift = other_shift;
}

// Adds the run of logits from `column` on; true where it holds the row's largest so far.
bool add_run(const ConfidenceArgs& a, const Kernels& kernels, std::int64_t row, std::int64_t column,
             ConfidenceSums& s, bool begun) {
  SoftmaxArgs run{a.type,
                  at(a, a.logits, row, column),
                  at(a, a.other, row, column),
                  std::min(kRun, a.columns - column),
                  static_cast<float>(s.shift),
                  static_cast<float>(s.other_shift)};
  const SoftmaxSums r = sums_of(kernels, run, begun);
  reshift(s, run.shift, run.other_shift);
  s.sum += r.sum;
  s.weighted += r.weighted;
  s.gap += r.gap;
  s.other_sum += r.other_sum;
  const bool largest = r.max > s.max && r.max > kLowest;
  if (largest) s.max = r.max;
  if (a.top_k == 0) return largest;
  float* values = a.top_values + row * a.top_k;
  std::int64_t* indices = a.top_indices + row * a.top_k;
  if (!(r.max > values[a.top_k - 1])) return largest;
  for (std::int64_t i = 0; i < run.n; ++i) {
    const float x = load_logit(a.type, run.x, i);
    if (!(x > values[a.top_k - 1])) continue;
    std::int64_t place = a.top_k - 1;
    for (; place > 0 && x > values[place - 1]; --place) {
      values[place] = values[place - 1];
      indices[place] = indices[place - 1];
    }
    values[place] = x;
    indices[place] = a.first + column + i;
  }
  return largest;
}

// Distance from `column` to the first logit that equals `value`.
std::int64_t first_equal(const ConfidenceArgs& a, std::int64_t row, std::int64_t column,
                         float value) {
  const void* x = at(a, a.logits, row, column);
  const std::int64_t n = a.columns - column;
  std::int64_t i = 0;
  if (a.type == LogitType::f32) {
    constexpr std::int64_t kBlock = 64;  // compared without branches
    const auto* values = static_cast<const float*>(x);
    for (; i + kBlock <= n; i += kBlock) {
      int any = 0;
      for (std::int64_t j = 0; j < kBlock; ++j) any |= values[i + j] == value;
      if (any) break;
    }
  }
  while (i < n && load_logit(a.type, x, i) != value) ++i;
  return i;
}

void add_row(const ConfidenceArgs& a, const Kernels& kernels, std::int64_t row) {
  ConfidenceSums& s = a.sums[row];
  if (a.labels) {
    const std::int64_t column = a.labels[row] - a.first;
    if (a.labels[row] >= 0 && column >= 0 && column < a.columns)
      s.label = load_logit(a.type, at(a, a.logits, row, column), 0);
  }
  std::int64_t found = -1;  // where the run with the largest logit begins
  for (std::int64_t column = 0; column < a.columns; column += kRun)
    if (add_run(a, kernels, row, column, s, a.first + column > 0)) found = column;
  if (found < 0) return;
  a.argmax[row] = a.first + found + first_equal(a, row, found, static_cast<float>(s.max));
}

}  // namespace

void confidence_start(const ConfidenceArgs& a) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  constexpr double kNothing = -std::numeric_limits<double>::infinity();
  std::fill_n(a.sums, a.rows, ConfidenceSums{0, 0, 0, 0, kNothing, kNone, 0, 0});
  std::fill_n(a.argmax, a.rows, std::int64_t{-1});
  std::fill_n(a.top_values, a.rows * a.top_k, -std::numeric_limits<float>::infinity());
  std::fill_n(a.top_indices, a.rows * a.top_k, std::int64_t{-1});
}

void confidence_update(const ConfidenceArgs& a, const Kernels& kernels, ParallelFor loop) {
  parallel(loop, a.rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) add_row(a, kernels, row);
  });
}

}  // namespace calibit
