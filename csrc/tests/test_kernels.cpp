// Every table x every format x scale and zero kinds x sizes with tails. The reference is written
// here again, in double, straight from the canonical tensors, so that it shares no code with the
// kernels.
#include <cstring>

#include "check.h"
#include "core/linear.h"
#include "problem.h"

using namespace calibit;
using namespace calibit::test;

namespace {

double half_value(std::uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double v =
      exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return h & 0x8000 ? -v : v;
}

double scale_value(const Problem& p, std::size_t i) {
  switch (p.spec.scale) {
    case ScaleType::f16: {
      std::uint16_t h;
      std::memcpy(&h, p.scales.data() + 2 * i, 2);
      return half_value(h);
    }
    case ScaleType::e8m0:
      return std::ldexp(1.0, p.scales[i] - 127);
    case ScaleType::nested:
      return double{p.nested_codebook[p.scales[i]]} * double{p.nested_scales[i / 256]} +
             double{p.nested_offset};
    default: {
      float s;
      std::memcpy(&s, p.scales.data() + 4 * i, 4);
      return double{s};
    }
  }
}

double zero_value(const Problem& p, std::size_t i) {
  if (p.spec.zero == ZeroType::u8) return p.zeros[i];
  if (p.spec.zero == ZeroType::none) return p.format.entries ? 0 : 1 << (p.format.bits - 1);
  float z;
  std::memcpy(&z, p.zeros.data() + 4 * i, 4);
  return double{z};
}

std::vector<double> reference_weight(const Problem& p) {
  const auto n = static_cast<std::size_t>(p.spec.n), k = static_cast<std::size_t>(p.spec.k);
  const auto group = static_cast<std::size_t>(p.spec.group), g_count = (k + group - 1) / group;
  const auto bits = static_cast<std::size_t>(p.spec.bits), bytes = (k * bits + 7) / 8;
  std::vector<double> w(n * k);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < k; ++j) {
      unsigned code = 0;
      for (std::size_t b = 0; b < bits; ++b) {
        const std::size_t at = j * bits + b;
        code |= (p.codes[i * bytes + at / 8] >> at % 8 & 1u) << b;
      }
      const std::size_t g = i * g_count + j / group;
      const double value = p.format.entries ? double{p.format.codebook[code]} : code;
      w[i * k + j] = scale_value(p, g) * (value - zero_value(p, g));
    }
  return w;
}

void check_quantize(const Problem& p, const Problem& portable) {
  CHECK(p.codes == portable.codes);
  CHECK(p.scales == portable.scales);
  CHECK(p.zeros == portable.zeros);
}

void check_dequantize(const Problem& p, const Kernels& k, const std::vector<double>& w) {
  std::vector<float> out(w.size());
  dequantize({p.canonical(), out.data()}, k, serial_for);
  bool close = true;  // one rounding each for zero, nested scale (two) and product
  for (std::size_t i = 0; i < w.size(); ++i)
    close = close && std::fabs(out[i] - w[i]) <=
                         4 * 6e-8 * std::fabs(w[i]) + 1e-6 * (p.spec.scale == ScaleType::nested);
  CHECK(close);
}

void check_pack(const Problem& p) {
  std::vector<std::uint8_t> codes(p.codes.size(), 0x55), scales(p.scales.size()),
      zeros(p.zeros.size());
  std::vector<float> nested(p.nested_scales.size()), codebook(256);
  float offset = 0;
  unpack_weight({p.packed_view(), codes.data(), scales.data(), zeros.data(), nested.data(),
                 codebook.data(), &offset},
                serial_for);
  CHECK(codes == p.codes);
  CHECK(scales == p.scales);
  CHECK(zeros == p.zeros);
  if (p.spec.scale != ScaleType::nested) return;
  CHECK(nested == p.nested_scales);
  CHECK(codebook == p.nested_codebook);
  CHECK(offset == p.nested_offset);
}

// |error| <= (longest fp32 sum + roundings of total and scale) * 2^-24 * sum |x w|, and a little
// more for zero points and nested scales, which are rounded before the product.
void check_linear(const Problem& p, const Kernels& kernels, const std::vector<double>& w,
                  std::int64_t m) {
  const std::int64_t n = p.spec.n, k = p.spec.k;
  const std::vector<float> x = normal(static_cast<std::size_t>(m * k), 5),
                           bias = normal(static_cast<std::size_t>(n), 6);
  std::vector<float> y(static_cast<std::size_t>(m * n + 1), -77.0f);
  linear({p.packed_view(), x.data(), bias.data(), y.data(), m}, kernels, serial_for);
  bool close = true;
  const double unit = std::ldexp(1.0, -24) * static_cast<double>(kSpan + groups(p.spec) + 8);
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      double want = double{bias[static_cast<std::size_t>(j)]}, magnitude = std::fabs(want);
      for (std::int64_t c = 0; c < k; ++c) {
        const double t =
            double{x[static_cast<std::size_t>(i * k + c)]} * w[static_cast<std::size_t>(j * k + c)];
        want += t;
        magnitude += std::fabs(t);
      }
      close = close && std::fabs(double{y[static_cast<std::size_t>(i * n + j)]} - want) <=
                           unit * magnitude + 1e-6;
    }
  CHECK(close);
  CHECK(y.back() == -77.0f);
}

// Few rows alone, within a batch, and by any split of the tiles: the same bits.
void check_invariance(const Problem& p, const Kernels& kernels) {
  const std::int64_t m = 9, n = p.spec.n, k = p.spec.k;
  const std::vector<float> x = normal(static_cast<std::size_t>(m * k), 7);
  std::vector<float> batch(static_cast<std::size_t>(m * n)), few(batch), split(batch);
  linear({p.packed_view(), x.data(), nullptr, batch.data(), m}, kernels, serial_for);
  for (std::int64_t rows = 1; rows <= 4; ++rows)
    for (std::int64_t i = 0; i + rows <= m; i += rows) {
      linear({p.packed_view(), x.data() + i * k, nullptr, few.data(), rows}, kernels, serial_for);
      CHECK(std::memcmp(few.data(), batch.data() + i * n, static_cast<std::size_t>(rows * n) * 4) ==
            0);
    }
  for (std::int64_t t = 0; t < tiles(p.spec); ++t)
    kernels.linear({p.packed_view(), x.data(), nullptr, split.data(), m}, t, t + 1);
  CHECK(split == batch);
}

// The vector tables do the same arithmetic, a lane per row: the same bits at every width.
void check_agreement(const Problem& p, const std::vector<const Kernels*>& tables) {
  const std::int64_t m = 7, n = p.spec.n, k = p.spec.k;
  const std::vector<float> x = normal(static_cast<std::size_t>(m * k), 9);
  std::vector<float> first, y(static_cast<std::size_t>(m * n));
  for (const Kernels* kernels : tables) {
    if (std::strcmp(kernels->name, "portable") == 0) continue;
    linear({p.packed_view(), x.data(), nullptr, y.data(), m}, *kernels, serial_for);
    if (first.empty()) first = y;
    CHECK(y == first);
  }
}

void check_input_grad(const Problem& p, const Kernels& kernels, const std::vector<double>& w) {
  const std::int64_t m = 3, n = p.spec.n, k = p.spec.k;
  const std::vector<float> grad = normal(static_cast<std::size_t>(m * n), 8);
  std::vector<float> dx(static_cast<std::size_t>(m * k), 9.0f);
  linear_input_grad({p.packed_view(), grad.data(), dx.data(), m}, kernels, serial_for);
  bool close = true;
  const double unit = std::ldexp(1.0, -24) * static_cast<double>(n + 8);
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < k; ++j) {
      double want = 0, magnitude = 0;
      for (std::int64_t r = 0; r < n; ++r) {
        const double t = double{grad[static_cast<std::size_t>(i * n + r)]} *
                         w[static_cast<std::size_t>(r * k + j)];
        want += t;
        magnitude += std::fabs(t);
      }
      close = close && std::fabs(double{dx[static_cast<std::size_t>(i * k + j)]} - want) <=
                           unit * magnitude + 1e-6;
    }
  CHECK(close);
}

void check_all(const Format& f, std::int64_t n, std::int64_t k, std::int64_t group, ZeroType zero,
               bool nest) {
  const int before = failures();
  const auto seed = static_cast<unsigned>(n * 1000 + k);
  const Problem portable(f, n, k, group, zero, nest, portable_kernels, seed);
  const std::vector<double> w = reference_weight(portable);
  check_pack(portable);
  check_agreement(portable, supported_kernels());
  for (const Kernels* kernels : supported_kernels()) {
    check_quantize(Problem(f, n, k, group, zero, nest, *kernels, seed), portable);
    check_dequantize(portable, *kernels, w);
    for (const std::int64_t m : {1, 2, 5, 7, 13}) check_linear(portable, *kernels, w, m);
    check_invariance(portable, *kernels);
    check_input_grad(portable, *kernels, w);
    if (failures() != before)
      std::printf("  %s %s n=%d k=%d group=%d zero=%d nested=%d\n", kernels->name,
                  std::string(f.name).c_str(), int(n), int(k), int(group), int(zero), int(nest));
  }
}

// No built-in format has both, but the layout allows it.
void check_codebook_with_zero_points() {
  Problem p(nf4, 33, 150, 64, ZeroType::f32, false, portable_kernels, 4);
  for (std::size_t i = 0; i + 4 <= p.zeros.size(); i += 4) {
    const float zero = 0.01f * static_cast<float>(i);
    std::memcpy(p.zeros.data() + i, &zero, 4);
  }
  pack_weight(p.canonical(), p.packed.data(), serial_for);
  const std::vector<double> w = reference_weight(p);
  for (const Kernels* kernels : supported_kernels()) {
    check_dequantize(p, *kernels, w);
    for (const std::int64_t m : {1, 3, 8}) check_linear(p, *kernels, w, m);
    check_invariance(p, *kernels);
    check_input_grad(p, *kernels, w);
  }
}

}  // namespace

int main() {
  check_codebook_with_zero_points();
  constexpr std::int64_t sizes[][3] = {
      {1, 1, 32},     {3, 7, 64},      {15, 8, 32},    {16, 9, 128},    {17, 31, 32},
      {31, 32, 64},   {33, 33, 32},    {64, 64, 64},   {65, 65, 64},    {48, 127, 32},
      {80, 128, 128}, {129, 200, 128}, {20, 576, 128}, {18, 300, 4096}, {16, 100, 48},
      {9, 50, 5},     {70, 141, 20}};
  // What a user's codebook and the rarest integers add to the registry: 1 to 3 bits, zero points.
  std::vector<Format> formats(kFormats.begin(), kFormats.end());
  formats.push_back(integers("int1", 1));
  formats.push_back({"codebook1", 1, ScaleType::f32, 64, 2, {-0.5f, 1}});
  formats.push_back({"codebook2", 2, ScaleType::f16, 64, 4, {-1, -0.25f, 0.3f, 0.9f}});
  formats.push_back({"codebook3", 3, ScaleType::f32, 64, 8, {0, 1, -2, 3, 0.5f, -0.5f, 1, 7}});
  for (const Format& f : formats)
    for (const auto& [n, k, group] : sizes) {
      check_all(f, n, k, group, ZeroType::none, false);
      if (f.scale == ScaleType::f32) check_all(f, n, k, group, ZeroType::none, true);
      if (!f.entries) {
        check_all(f, n, k, group, ZeroType::u8, false);
        check_all(f, n, k, group, ZeroType::f32, false);
      }
    }
  return finish("kernels");
}
