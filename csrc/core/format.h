#pragma once
// What a weight format is: plain data. Kernels take the codebook as an argument; nothing below
// this struct knows a format by name.
#include <array>
#include <cstdint>
#include <string_view>

#include "core/weight.h"

namespace calibit {

struct Format {
  std::string_view name;
  int bits;            // of one code, 1..8
  ScaleType scale;     // how one scale is stored
  std::int64_t group;  // weights that share a scale by default
  int entries;         // codebook entries in use, 2^bits; 0 = integers, value = code - 2^(bits-1)
  std::array<float, 16> codebook;
};

// Uniform integers: value = scale * (code - zero), zero = 2^(bits-1) when symmetric.
constexpr Format integers(std::string_view name, int bits) {
  return {name, bits, ScaleType::f16, 128, 0, {}};
}

}  // namespace calibit
