#pragma once
// Canonical tensors <-> the kernels' packed buffer: a permutation, exact in both directions.
#include "core/parallel.h"
#include "core/weight.h"

namespace calibit {

// out [packed_bytes(w.spec)]
void pack_weight(const CanonicalWeight& w, std::uint8_t* out, ParallelFor loop);

struct UnpackArgs {
  PackedWeight w;
  std::uint8_t* codes;     // [N, row_bytes]
  void* scales;            // [N, G]
  void* zeros;             // [N, G] or null
  float* nested_scales;    // [ceil(N*G/256)] or null
  float* nested_codebook;  // [256] or null
  float* nested_offset;    // or null
};
void unpack_weight(const UnpackArgs& a, ParallelFor loop);

// The second quantization level at the end of a packed buffer (empty unless scales are nested).
Nested nested_of(const WeightSpec& spec, const std::uint8_t* packed);

}  // namespace calibit
