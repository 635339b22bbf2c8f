// Sums of exponentials: every table x dtype x length with tails against double; special values; the
// exact end of a buffer (under AddressSanitizer a read beyond it fails).
#include <limits>

#include "check.h"
#include "core/confidence.h"
#include "core/scalar.h"
#include "problem.h"

using namespace calibit;
using namespace calibit::test;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<std::uint8_t> stored(const std::vector<float>& values, LogitType type) {
  std::vector<std::uint8_t> bytes;
  for (const float v : values) {
    const std::uint32_t word = type == LogitType::f32   ? bits_of(v)
                               : type == LogitType::f16 ? to_half(v)
                                                        : bits_of(v) >> 16;
    for (int b = 0; b < (type == LogitType::f32 ? 4 : 2); ++b)
      bytes.push_back(static_cast<std::uint8_t>(word >> (8 * b)));
  }
  return bytes;
}

void check_sums(const Kernels& kernels, LogitType type, std::int64_t n, bool compared) {
  const auto count = static_cast<std::size_t>(n);
  const std::vector<std::uint8_t> x = stored(normal(count, 1), type),
                                  y = stored(normal(count, 2), type);
  const float shift = 0.5f, other_shift = -0.25f;
  SoftmaxSums got;
  kernels.softmax_sums({type, x.data(), compared ? y.data() : nullptr, n, shift, other_shift},
                       &got);
  double sum = 0, weighted = 0, gap = 0, other_sum = 0, size = 0;
  float max = kLowest, other_max = kLowest;
  for (std::int64_t i = 0; i < n; ++i) {
    const float a = load_logit(type, x.data(), i), b = load_logit(type, y.data(), i);
    const double d = double{a} - double{shift}, e = std::exp(d);
    sum += e;
    weighted += e * d;
    size += e * std::fabs(d);
    max = std::max(max, a);
    if (!compared) continue;
    other_max = std::max(other_max, b);
    other_sum += std::exp(double{b} - double{other_shift});
    gap += e * (double{a} - double{b});
    size += e * std::fabs(double{a} - double{b});
  }
  // An exponential is right to 2e-7; the portable table adds up to 1,024 terms one after another.
  const double relative = 2e-7 + 1024 * 0x1p-24;
  CHECK(got.max == max);
  CHECK(std::fabs(double{got.sum} - sum) <= relative * sum);
  CHECK(std::fabs(double{got.weighted} - weighted) <= relative * size);
  if (!compared) return;
  CHECK(got.other_max == other_max);
  CHECK(std::fabs(double{got.other_sum} - other_sum) <= relative * other_sum);
  CHECK(std::fabs(double{got.gap} - gap) <= relative * size);
}

void check_special_values(const Kernels& kernels) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto sums = [&](std::vector<float> x, std::vector<float> y) {
    SoftmaxSums s;
    kernels.softmax_sums(
        {LogitType::f32, x.data(), y.data(), static_cast<std::int64_t>(x.size()), 0, 0}, &s);
    return s;
  };
  for (const std::size_t place : {std::size_t{0}, std::size_t{5}, std::size_t{40}}) {
    std::vector<float> zeros(41), x(41);
    x[place] = -kInfinity;
    CHECK(sums(x, zeros).sum == 40 && sums(x, zeros).gap == 0 && sums(x, zeros).weighted == 0);
    CHECK(sums(x, x).gap == 0 && sums(x, x).other_sum == 40);
    CHECK(sums(zeros, x).gap > 1e38f);
    x[place] = nan;
    CHECK(std::isnan(sums(x, zeros).sum) && std::isnan(sums(zeros, x).other_sum));
    x[place] = kInfinity;
    CHECK(!std::isfinite(sums(x, zeros).sum) && !std::isfinite(sums(zeros, x).other_sum));
  }
  for (const float d : {-1e30f, -200.0f, -104.0f, -87.0f, -1.0f, 0.0f, 20.0f}) {
    const double want = std::exp(double{d});
    CHECK(std::fabs(double{sums({d}, {0}).sum} - want) <= 2e-7 * want + 1.2e-38);
  }
}

}  // namespace

int main() {
  for (const Kernels* kernels : supported_kernels()) {
    for (const LogitType type : {LogitType::f32, LogitType::f16, LogitType::bf16})
      for (const std::int64_t n : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 1023, 1024})
        for (const bool compared : {false, true}) check_sums(*kernels, type, n, compared);
    check_special_values(*kernels);
    if (failures()) std::printf("  %s\n", kernels->name);
  }
  return finish("confidence");
}
