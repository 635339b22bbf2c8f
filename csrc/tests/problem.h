#pragma once
// A random weight of any format, held as vectors, with the views that core works on.
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "core/dispatch.h"
#include "core/formats.h"
#include "core/pack.h"
#include "core/quantize.h"

namespace calibit::test {

inline std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> list;
  for (const KernelsInfo& k : list_kernels())
    if (k.supported) list.push_back(&kernels_named(k.name));
  return list;
}

inline std::vector<float> normal(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw;
  std::vector<float> v(count);
  for (float& x : v) x = draw(random);
  return v;
}

struct Problem {
  const Format& format;
  WeightSpec spec;
  std::vector<float> w;
  std::vector<std::uint8_t> codes, scales, zeros, packed;
  std::vector<float> nested_scales, nested_codebook;
  float nested_offset = 0;

  const float* codebook() const { return format.entries ? format.codebook.data() : nullptr; }
  Nested nested() const { return {nested_scales.data(), nested_codebook.data(), nested_offset}; }

  Problem(const Format& f, std::int64_t n, std::int64_t k, std::int64_t group, ZeroType zero,
          bool nest, const Kernels& kernels, unsigned seed)
      : format(f),
        spec{n, k, min_i64(group, k), f.bits, f.scale, zero},
        w(normal(static_cast<std::size_t>(n * k), seed)) {
    // A group of zeros of both signs, in the last row of several.
    for (std::int64_t j = 0; n > 1 && j < spec.group; ++j)
      w[static_cast<std::size_t>((n - 1) * k + j)] = j % 2 ? -0.0f : 0.0f;
    const auto count = static_cast<std::size_t>(n * groups(spec));
    codes.assign(static_cast<std::size_t>(n * row_bytes(spec)), 0xee);
    scales.assign(count * static_cast<std::size_t>(scale_bytes(spec.scale)), 0);
    zeros.assign(count * static_cast<std::size_t>(zero_bytes(zero)), 0);
    const QuantizeArgs a{
        spec,  w.data(),     codebook(),    {},
        false, codes.data(), scales.data(), zeros.empty() ? nullptr : zeros.data()};
    quantize(a, kernels, serial_for);
    if (nest) double_quantize_scales(count);
    packed.assign(static_cast<std::size_t>(packed_bytes(spec)), 0xcc);
    pack_weight(canonical(), packed.data(), serial_for);
  }

  CanonicalWeight canonical() const {
    return {spec,       codes.data(), scales.data(), zeros.empty() ? nullptr : zeros.data(),
            codebook(), nested()};
  }
  PackedWeight packed_view() const {
    return {spec, packed.data(), codebook(), nested_of(spec, packed.data())};
  }

 private:
  void double_quantize_scales(std::size_t count) {
    const std::span absmax(reinterpret_cast<const float*>(scales.data()), count);
    std::vector<std::uint8_t> scale_codes(count);
    nested_scales.resize((count + 255) / 256);
    nested_codebook.resize(256);
    double_quantize(absmax, scale_codes.data(), nested_scales.data(), nested_codebook.data(),
                    &nested_offset);
    scales = scale_codes;
    spec.scale = ScaleType::nested;
  }
};

}  // namespace calibit::test
