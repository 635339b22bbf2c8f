#include "core/quantize.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/error.h"
#include "core/scalar.h"

namespace calibit {
namespace {

constexpr std::int64_t kGrainWeights = 1 << 15;  // about 50 us of portable rounding

std::int64_t row_grain(std::int64_t k) {
  return std::max<std::int64_t>(1, kGrainWeights / std::max<std::int64_t>(k, 1));
}

}  // namespace

void check_finite(const QuantizeArgs& a, ParallelFor loop) {
  parallel(loop, a.spec.n, row_grain(a.spec.k), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      const float* w = a.w + n * a.spec.k;
      std::uint32_t any = 0;  // one more in the exponent: the sign bit, if its bits were all ones
      for (std::int64_t k = 0; k < a.spec.k; ++k) any |= (bits_of(w[k]) & 0x7f800000u) + 0x800000u;
      require(any < 0x80000000u, "quantize", "expected finite weights, got NaN or infinity in row ",
              n, " of ", a.spec.n);
    }
  });
}

void check_scales(const QuantizeArgs& a) {
  if (a.spec.scale != ScaleType::f16 || a.fixed) return;
  const auto* s = static_cast<const std::uint16_t*>(a.scales);
  const std::int64_t count = a.spec.n * groups(a.spec);
  const auto* bad =
      std::find_if(s, s + count, [](std::uint16_t h) { return (h & 0x7c00) == 0x7c00; });
  require(bad == s + count, "quantize",
          "expected weights whose scale fits float16 (at most 65504), got a larger one in row ",
          (bad - s) / groups(a.spec),
          "; rescale the weight or use a codebook format (float32 scales)");
}

Grid make_grid(const char* op, std::span<const float> codebook) {
  std::vector<int> order(codebook.size());
  std::iota(order.begin(), order.end(), 0);
  for (const float v : codebook)
    require(std::isfinite(v), op, "expected a codebook of finite values, got ", v);
  std::sort(order.begin(), order.end(), [&](int i, int j) {
    return codebook[i] < codebook[j] || (codebook[i] == codebook[j] && i < j);
  });
  const auto last = std::unique(order.begin(), order.end(),
                                [&](int i, int j) { return codebook[i] == codebook[j]; });
  order.erase(last, order.end());
  Grid grid{};
  std::fill(std::begin(grid.thresholds), std::end(grid.thresholds),
            std::numeric_limits<float>::infinity());
  for (std::size_t i = 0; i < order.size(); ++i) {
    const float v = codebook[order[i]];
    grid.codes[i] = static_cast<std::uint8_t>(order[i]);
    grid.largest = std::max(grid.largest, std::fabs(v));
    if (i > 0)
      grid.thresholds[i - 1] = static_cast<float>((double{codebook[order[i - 1]]} + double{v}) / 2);
  }
  require(grid.largest > 0, op, "expected a codebook with a value other than zero");
  return grid;
}

void quantize(QuantizeArgs a, const Kernels& kernels, ParallelFor loop) {
  if (a.values) a.grid = make_grid("quantize", {a.values, std::size_t{1} << a.spec.bits});
  check_finite(a, loop);
  parallel(loop, a.spec.n, row_grain(a.spec.k),
           [&](std::int64_t begin, std::int64_t end) { kernels.quantize(a, begin, end); });
  check_scales(a);
}

void dequantize(const DequantizeArgs& a, const Kernels& kernels, ParallelFor loop) {
  parallel(loop, a.w.spec.n, row_grain(a.w.spec.k),
           [&](std::int64_t begin, std::int64_t end) { kernels.dequantize(a, begin, end); });
}

std::span<const float> dynamic_map() {
  static const std::array<float, 256> map = [] {
    std::array<float, 256> m{};
    std::size_t at = 0;
    for (int e = 0; e < 7; ++e) {
      const int steps = 1 << e;
      for (int i = 0; i < steps; ++i) {
        const double middle = 0.1 + 0.9 * (i + 0.5) / steps;
        const auto value = static_cast<float>(middle * std::pow(10.0, e - 6));
        m[at++] = value;
        m[at++] = -value;
      }
    }
    m[at++] = 0;
    m[at] = 1;
    std::sort(m.begin(), m.end());
    return m;
  }();
  return map;
}

void double_quantize(std::span<const float> scales, std::uint8_t* codes, float* nested_scales,
                     float* codebook, float* offset) {
  const std::span<const float> map = dynamic_map();
  std::copy(map.begin(), map.end(), codebook);
  double total = 0;
  for (const float s : scales) total += s;
  *offset = scales.empty() ? 0 : static_cast<float>(total / static_cast<double>(scales.size()));
  for (std::size_t b = 0; b < scales.size(); b += kNestedBlock) {
    const auto block = scales.subspan(b, std::min<std::size_t>(kNestedBlock, scales.size() - b));
    float largest = 0;
    for (const float s : block) largest = std::max(largest, std::fabs(s - *offset));
    nested_scales[b / kNestedBlock] = largest;
    const float inverse = inverse_scale(largest);
    for (std::size_t i = 0; i < block.size(); ++i) {
      const float x = (block[i] - *offset) * inverse;
      auto above = std::lower_bound(map.begin(), map.end(), x) - map.begin();
      above = std::clamp<std::ptrdiff_t>(above, 1, 255);
      const float midpoint = (map[above - 1] + map[above]) / 2;
      codes[b + i] = static_cast<std::uint8_t>(x > midpoint ? above : above - 1);
    }
  }
}

}  // namespace calibit
