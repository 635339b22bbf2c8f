#pragma once
// Views of a quantized weight W[N, K] on plain pointers, and the index arithmetic of its two
// layouts. C headers only and everything `static`: ISA files include this, and nothing they compile
// may leak.
#include <stdint.h>

namespace calibit {

// How one scale or zero point is stored: float32, IEEE half, OCP E8M0 power of two, 8-bit code of a
// second quantization level; no zero point (symmetric or codebook), integer, or real.
enum class ScaleType : int32_t { f32 = 0, f16 = 1, e8m0 = 2, nested = 3 };
enum class ZeroType : int32_t { none = 0, u8 = 1, f32 = 2 };

// G = groups() = ceil(K / group); the last group of a row may be short. 1 <= group <= K.
struct WeightSpec {
  int64_t n, k, group;
  int bits;
  ScaleType scale;
  ZeroType zero;
};

// Second level of double quantization: scale i (row-major over [N, G]) is
// codebook[code_i] * scales[i / 256] + offset. bitsandbytes' scheme, blocks of 256.
struct Nested {
  const float* scales;    // [ceil(N*G/256)]
  const float* codebook;  // [256]
  float offset;
};

// Canonical tensors, as stored on disk.
struct CanonicalWeight {
  WeightSpec spec;
  const uint8_t* codes;   // [N, ceil(K*bits/8)], LSB-first bit stream per row
  const void* scales;     // [N, G] f32, f16 bits, e8m0 or nested code
  const void* zeros;      // [N, G] u8 or f32; null when spec.zero is none
  const float* codebook;  // [2^bits]; null: integers
  Nested nested;
};

// The kernels' layout: rows in tiles of 16, tiles in blocks of 4, one sequential stream per block:
//   for each group: ceil(len/32) chunks of [bits words][tiles][16 rows] u32, then
//                   [tiles][16] scales, then [tiles][16] zeros.
// The 32 codes of a row and chunk form an LSB-first stream of 32*bits bits in its `bits` words.
// Rows past N and columns past a group's end hold code 0, scale 0. With nested scales the buffer
// ends (at a multiple of 64) with f32 nested scales, the f32 [256] codebook and the f32 offset.
struct PackedWeight {
  WeightSpec spec;
  const uint8_t* data;
  const float* codebook;
  Nested nested;
};

constexpr int64_t kTileRows = 16, kBlockTiles = 4, kChunk = 32, kNestedBlock = 256;
// Longest run of columns that one fp32 accumulator sums before the scale is applied. Every kernel
// uses it, so a row's result depends on neither M, nor threads, nor the vector width.
constexpr int64_t kSpan = 128;

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t groups(const WeightSpec& s) { return ceil_div(s.k, s.group); }
static inline int64_t row_bytes(const WeightSpec& s) { return ceil_div(s.k * s.bits, 8); }
static inline int64_t group_length(const WeightSpec& s, int64_t g) {
  return min_i64(s.group, s.k - g * s.group);
}
static inline int64_t scale_bytes(ScaleType t) {
  return t == ScaleType::f32 ? 4 : t == ScaleType::f16 ? 2 : 1;
}
static inline int64_t zero_bytes(ZeroType t) {
  return t == ZeroType::none ? 0 : t == ZeroType::u8 ? 1 : 4;
}
// Bytes of one chunk of one tile, and of one group of one tile (scales and zeros included).
static inline int64_t chunk_bytes(const WeightSpec& s) { return s.bits * kTileRows * 4; }
static inline int64_t group_bytes(const WeightSpec& s, int64_t length) {
  return chunk_bytes(s) * ceil_div(length, kChunk) +
         kTileRows * (scale_bytes(s.scale) + zero_bytes(s.zero));
}
static inline int64_t tiles(const WeightSpec& s) { return ceil_div(s.n, kTileRows); }
static inline int64_t tile_bytes(const WeightSpec& s) {
  const int64_t full = s.k / s.group, rest = s.k % s.group;
  return full * group_bytes(s, s.group) + (rest ? group_bytes(s, rest) : 0);
}
static inline int64_t block_tiles(const WeightSpec& s, int64_t block) {
  return min_i64(kBlockTiles, tiles(s) - block * kBlockTiles);
}
static inline int64_t nested_offset_in(const WeightSpec& s) {
  return ceil_div(tiles(s) * tile_bytes(s), 64) * 64;
}
static inline int64_t packed_bytes(const WeightSpec& s) {
  if (s.scale != ScaleType::nested) return tiles(s) * tile_bytes(s);
  return nested_offset_in(s) + 4 * (ceil_div(s.n * groups(s), kNestedBlock) + 256 + 1);
}

}  // namespace calibit
