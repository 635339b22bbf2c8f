// Scalar rules: number conversions, grids, double quantization, the column solver, refusals.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "check.h"
#include "core/gptq.h"
#include "core/scalar.h"
#include "problem.h"

using namespace calibit;
using namespace calibit::test;

namespace {

template <typename F>
bool refuses(F&& f, const char* text) {
  try {
    f();
  } catch (const std::invalid_argument& e) {
    return std::strstr(e.what(), text) != nullptr;
  }
  return false;
}

void test_half_round_trips_every_value() {
  for (unsigned h = 0; h < 0x10000; ++h) {
    const float f = from_half(static_cast<std::uint16_t>(h));
    if (!std::isnan(f)) CHECK(to_half(f) == h);
  }
}

void test_half_rounds_to_nearest_even() {
  for (unsigned h = 0; h < 0x7bff; ++h) {
    const float lo = from_half(static_cast<std::uint16_t>(h)),
                hi = from_half(static_cast<std::uint16_t>(h + 1));
    const float middle = (lo + hi) / 2;  // exact in float32
    CHECK(to_half(middle) == (h & 1 ? h + 1 : h));
    CHECK(to_half(std::nextafterf(middle, 0)) == h);
    CHECK(to_half(std::nextafterf(middle, 1e9f)) == h + 1);
  }
  CHECK(to_half(65519.9f) == 0x7bff);
  CHECK(to_half(65520.0f) == 0x7c00);
  CHECK(to_half(-1e30f) == 0xfc00);
}

void test_grid_of_fp4_maps_zero_to_code_0() {
  const Grid g = make_grid("test", fp4.codebook);
  CHECK(g.largest == 1);
  CHECK(std::count_if(std::begin(g.thresholds), std::end(g.thresholds),
                      [](float t) { return std::isfinite(t); }) == 14);  // 15 distinct values
  CHECK(g.codes[7] == 0);
}

void test_grid_refuses_bad_codebooks() {
  const float zeros[4] = {}, nan[4] = {0, 1, std::numeric_limits<float>::quiet_NaN(), 2};
  CHECK(refuses([&] { make_grid("op", zeros); }, "[op] expected a codebook with a value"));
  CHECK(refuses([&] { make_grid("op", nan); }, "finite"));
}

void test_dynamic_map() {
  const auto map = dynamic_map();
  CHECK(std::is_sorted(map.begin(), map.end()));
  CHECK(std::adjacent_find(map.begin(), map.end()) == map.end());
  CHECK(map.back() == 1 && std::find(map.begin(), map.end(), 0.0f) != map.end());
  CHECK(std::fabs(map.front() + 0.99296875f) < 1e-7f);
}

void test_quantize_refuses_nan_and_large_scales() {
  std::vector<float> w(64, 1);
  std::vector<std::uint8_t> codes(32), scales(4);
  QuantizeArgs a{{2, 32, 32, 4, ScaleType::f16, ZeroType::none},
                 w.data(),
                 nullptr,
                 {},
                 false,
                 codes.data(),
                 scales.data(),
                 nullptr};
  w[40] = std::numeric_limits<float>::quiet_NaN();
  CHECK(refuses([&] { quantize(a, portable_kernels, serial_for); }, "row 1 of 2"));
  w[40] = 1e7f;
  CHECK(refuses([&] { quantize(a, portable_kernels, serial_for); }, "float16"));
}

// The definition of algorithm 1 in double, one row, natural order, scales given.
void test_gptq_solves_as_defined() {
  const std::int64_t n = 11, k = 70;
  Problem p(nf4, n, k, 32, ZeroType::none, false, portable_kernels, 3);
  std::vector<float> u(static_cast<std::size_t>(k * k));
  const std::vector<float> noise = normal(u.size(), 4);
  for (std::int64_t i = 0; i < k; ++i)
    for (std::int64_t j = i; j < k; ++j)
      u[static_cast<std::size_t>(i * k + j)] =
          i == j ? 1.0f : 0.05f * noise[static_cast<std::size_t>(i * k + j)];
  const std::vector<float> original = p.w;
  const QuantizeArgs q{p.spec, original.data(), p.codebook(),    {},
                       true,   p.codes.data(),  p.scales.data(), nullptr};
  std::vector<std::int32_t> clipped(static_cast<std::size_t>(n));
  gptq_solve({q, u.data(), nullptr, clipped.data()}, portable_kernels, serial_for);
  std::vector<float> out(original.size());
  dequantize({p.canonical(), out.data()}, portable_kernels, serial_for);
  int different = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    std::vector<double> w(original.begin() + i * k, original.begin() + (i + 1) * k);
    for (std::int64_t t = 0; t < k; ++t) {
      float scale;
      std::memcpy(&scale, p.scales.data() + 4 * (i * 3 + t / 32), 4);
      double best = 1e9, value = 0;
      for (const float c : nf4.codebook)
        if (std::fabs(w[static_cast<std::size_t>(t)] - double{c} * double{scale}) < best) {
          best = std::fabs(w[static_cast<std::size_t>(t)] - double{c} * double{scale});
          value = double{c} * double{scale};
        }
      different += std::fabs(value - double{out[static_cast<std::size_t>(i * k + t)]}) > 1e-6;
      const double err =
          (w[static_cast<std::size_t>(t)] - value) / double{u[static_cast<std::size_t>(t * k + t)]};
      for (std::int64_t j = t + 1; j < k; ++j)
        w[static_cast<std::size_t>(j)] -= err * double{u[static_cast<std::size_t>(t * k + j)]};
    }
  }
  CHECK(different == 0);
}

void test_gptq_refuses_bad_factor_and_order() {
  Problem p(nf4, 2, 32, 32, ZeroType::none, false, portable_kernels, 3);
  std::vector<float> u(32 * 32, 0);
  QuantizeArgs q{p.spec, p.w.data(),     p.codebook(),    {},
                 true,   p.codes.data(), p.scales.data(), nullptr};
  std::int32_t clipped[2];
  const auto solve = [&](const std::int32_t* order) {
    gptq_solve({q, u.data(), order, clipped}, portable_kernels, serial_for);
  };
  CHECK(refuses([&] { solve(nullptr); }, "positive diagonal"));
  for (std::size_t i = 0; i < 32; ++i) u[i * 33] = 1;
  std::vector<std::int32_t> order(32, 0);
  CHECK(refuses([&] { solve(order.data()); }, "permutation"));
  q.fixed = false;
  CHECK(refuses([&] { solve(order.data()); }, "scales together"));
}

}  // namespace

int main() {
  test_half_round_trips_every_value();
  test_half_rounds_to_nearest_even();
  test_grid_of_fp4_maps_zero_to_code_0();
  test_grid_refuses_bad_codebooks();
  test_dynamic_map();
  test_quantize_refuses_nan_and_large_scales();
  test_gptq_solves_as_defined();
  test_gptq_refuses_bad_factor_and_order();
  return finish("quantize");
}
