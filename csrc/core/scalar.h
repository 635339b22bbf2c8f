#pragma once
// One value at a time: number conversions, the scale and rounding rules, access to packed bits. The
// definition that every vector kernel must reproduce. C headers only, everything `static`
// (weight.h).
#include <stddef.h>
#include <stdint.h>

#include "core/kernels.h"

namespace calibit {

static inline uint32_t bits_of(float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  return u;
}
static inline float float_of(uint32_t u) {
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}

// IEEE binary16, round to nearest even; overflow gives infinity.
static inline uint16_t to_half(float f) {
  const uint32_t sign = bits_of(f) >> 16 & 0x8000, magnitude = bits_of(f) & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (magnitude < 0x38800000)  // subnormal: 0.5 has the unit in the last place 2^-24
    return uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000));
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return uint16_t(sign | ((rounded - 0x38000000) >> 13));
}
static inline float from_half(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
  if (exponent == 0) return float_of(sign | bits_of(float(mantissa) * 0x1p-24f));
  if (exponent == 31) return float_of(sign | 0x7f800000 | mantissa << 13);
  return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

// E8M0: 2^(code - 127), code 0..254.
static inline float from_e8m0(uint8_t code) {
  return float_of(code ? uint32_t(code) << 23 : 0x400000);
}
static inline int exponent_of(float positive) { return int(bits_of(positive) >> 23) - 127; }

// To the nearest integer, ties to even, |x| <= 2^22.
static inline float round_even(float x) {
  const float shift = 0x1.8p23f;
  return (x + shift) - shift;
}
static inline float clamp(float x, float lo, float hi) { return x < lo ? lo : x > hi ? hi : x; }

// ---- codes
// ----------------------------------------------------------------------------------------

// The k-th code of an LSB-first stream of `bits`-bit codes.
static inline uint32_t get_code(const uint8_t* row, int64_t k, int bits) {
  const int64_t at = k * bits;
  const int shift = int(at & 7);
  uint32_t word = row[at >> 3];
  if (shift + bits > 8) word |= uint32_t(row[(at >> 3) + 1]) << 8;
  return word >> shift & ((1u << bits) - 1);
}
// The stream must have been zeroed.
static inline void put_code(uint8_t* row, int64_t k, int bits, uint32_t code) {
  const int64_t at = k * bits;
  const int shift = int(at & 7);
  row[at >> 3] = uint8_t(row[at >> 3] | code << shift);
  if (shift + bits > 8) row[(at >> 3) + 1] = uint8_t(row[(at >> 3) + 1] | code >> (8 - shift));
}

// One group of one tile inside a packed buffer.
struct TileGroup {
  const uint8_t* codes;  // chunk c, word w, row r at codes + ((c * bits + w) * stride + r) * 4
  int64_t stride;        // rows of the block: 16 * its tiles
  const uint8_t *scales, *zeros;
};

static inline TileGroup locate(const PackedWeight& w, int64_t tile, int64_t g) {
  const WeightSpec& s = w.spec;
  const int64_t block = tile / kBlockTiles, count = block_tiles(s, block), t = tile % kBlockTiles;
  const int64_t chunks = ceil_div(group_length(s, g), kChunk);
  const uint8_t* at =
      w.data + block * kBlockTiles * tile_bytes(s) + g * count * group_bytes(s, s.group);
  const uint8_t* scales = at + chunks * count * chunk_bytes(s);
  const uint8_t* zeros = scales + count * kTileRows * scale_bytes(s.scale);
  return {at + t * kTileRows * 4, count * kTileRows, scales + t * kTileRows * scale_bytes(s.scale),
          zeros + t * kTileRows * zero_bytes(s.zero)};
}

// What a code stands for before scale and zero point: symmetric integers are centred here.
static inline float value_of(const WeightSpec& s, const float* codebook, uint32_t code) {
  if (codebook) return codebook[code];
  return float(int(code) - (s.zero == ZeroType::none ? 1 << (s.bits - 1) : 0));
}

// ---- scales and zero points
// -----------------------------------------------------------------------

// Scale i of an array of stored scales; `nested_index` is its row-major index over [N, G].
static inline float load_scale(ScaleType type, const void* scales, int64_t i, const Nested& nested,
                               int64_t nested_index) {
  switch (type) {
    case ScaleType::f32: {
      float s;
      __builtin_memcpy(&s, static_cast<const uint8_t*>(scales) + 4 * i, 4);
      return s;
    }
    case ScaleType::f16: {
      uint16_t s;
      __builtin_memcpy(&s, static_cast<const uint8_t*>(scales) + 2 * i, 2);
      return from_half(s);
    }
    case ScaleType::e8m0:
      return from_e8m0(static_cast<const uint8_t*>(scales)[i]);
    default: {
      const float code = nested.codebook[static_cast<const uint8_t*>(scales)[i]];
      return code * nested.scales[nested_index / kNestedBlock] + nested.offset;
    }
  }
}
static inline float load_zero(ZeroType type, const void* zeros, int64_t i) {
  if (type == ZeroType::none) return 0;
  if (type == ZeroType::u8) return float(static_cast<const uint8_t*>(zeros)[i]);
  float z;
  __builtin_memcpy(&z, static_cast<const uint8_t*>(zeros) + 4 * i, 4);
  return z;
}
// Stores a scale in its type and returns the value that was stored.
static inline float store_scale(ScaleType type, void* scales, int64_t i, float scale) {
  if (type == ScaleType::f16) {
    const uint16_t h = to_half(scale);
    __builtin_memcpy(static_cast<uint8_t*>(scales) + 2 * i, &h, 2);
    return from_half(h);
  }
  if (type == ScaleType::e8m0) {
    const uint8_t code = uint8_t(bits_of(scale) >> 23);
    static_cast<uint8_t*>(scales)[i] = code;
    return from_e8m0(code);
  }
  __builtin_memcpy(static_cast<uint8_t*>(scales) + 4 * i, &scale, 4);
  return scale;
}

struct ScaleZero {
  float scale, zero;
};

// Scale and zero point of a group with smallest and largest weight lo, hi; both are stored at index
// i and returned as stored. Codebooks: max|w| / max|value|, as a power of two for E8M0. Symmetric:
// 2 max|w| / (2^bits - 1). Integer zero point: range includes 0. Real zero point: exact range.
static inline ScaleZero choose_scale(const QuantizeArgs& a, int64_t i, float lo, float hi) {
  const WeightSpec& s = a.spec;
  lo += 0.0f;  // -0 becomes +0: which zero a minimum returns depends on the order of the weights
  hi += 0.0f;
  const float largest = hi >= -lo ? hi : -lo, steps = float((1 << s.bits) - 1);
  if (a.values) {
    if (s.scale != ScaleType::e8m0) {
      const float scale = a.grid.largest == 1 ? largest : largest / a.grid.largest;
      return {store_scale(s.scale, a.scales, i, scale), 0};
    }
    const int e = largest > 0 ? exponent_of(largest) - exponent_of(a.grid.largest) + 127 : 0;
    return {store_scale(s.scale, a.scales, i,
                        from_e8m0(uint8_t(e < 0     ? 0
                                          : e > 254 ? 254
                                                    : e))),
            0};
  }
  if (s.zero == ZeroType::none) return {store_scale(s.scale, a.scales, i, 2 * largest / steps), 0};
  if (s.zero == ZeroType::u8) {
    lo = lo < 0 ? lo : 0;
    hi = hi > 0 ? hi : 0;
  }
  float scale = store_scale(s.scale, a.scales, i, (hi - lo) / steps);
  if (scale == 0 && s.zero == ZeroType::f32) scale = store_scale(s.scale, a.scales, i, 1);
  if (s.zero == ZeroType::f32) {
    const float zero = -lo / scale;
    __builtin_memcpy(static_cast<uint8_t*>(a.zeros) + 4 * i, &zero, 4);
    return {scale, zero};
  }
  const float zero = scale > 0 ? round_even(clamp(-lo / scale, 0, steps)) : 0;
  static_cast<uint8_t*>(a.zeros)[i] = uint8_t(zero);
  return {scale, zero};
}

// 1/scale for codebooks (they normalise by multiplication), 0 where it would overflow.
static inline float inverse_scale(float scale) { return scale >= 0x1p-126f ? 1 / scale : 0; }

// What weights are divided by (integers) or multiplied with (codebooks) before rounding; a scale of
// 0 takes every weight to 0.
static inline float divisor_of(const QuantizeArgs& a, float scale) {
  if (a.values) return inverse_scale(scale);
  return scale > 0 ? scale : __builtin_inff();
}

// Enters the scale of row r and group g into a tile of the column solver.
static inline void set_scale(const QuantizeArgs& a, const SolveTile& tile, int64_t g, int64_t r,
                             ScaleZero sz) {
  const int64_t i = g * kSolveRows + r;
  tile.scales[i] = sz.scale;
  tile.divisors[i] = divisor_of(a, sz.scale);
  const bool middle = !a.values && a.spec.zero == ZeroType::none;
  tile.zeros[i] = middle ? float(1 << (a.spec.bits - 1)) : sz.zero;
}

// Rank of the nearest value among the sorted values of a codebook, for a normalised weight.
static inline int rank_of(const Grid& grid, float x) {
  int below = 0;
  for (int t = 0; t < 15; ++t) below += x > grid.thresholds[t];
  return below;
}

// `divisor` = divisor_of(a, scale).
static inline uint32_t encode(const QuantizeArgs& a, float w, float divisor, float zero) {
  if (a.values) return a.grid.codes[rank_of(a.grid, w * divisor)];
  const float steps = float((1 << a.spec.bits) - 1), x = w / divisor;
  if (a.spec.zero == ZeroType::f32) return uint32_t(round_even(clamp(x + zero, 0, steps)));
  if (a.spec.zero == ZeroType::none) zero = float(1 << (a.spec.bits - 1));
  return uint32_t(round_even(clamp(x, -zero, steps - zero)) + zero);
}
static inline uint32_t encode(const QuantizeArgs& a, float w, ScaleZero sz) {
  return encode(a, w, divisor_of(a, sz.scale), sz.zero);
}

// A weight is cut off when it lies beyond the outermost value by more than half the distance from
// there to the next: outside [lo, hi], in units of the scale. Add the zero point for integers.
struct Bounds {
  float lo, hi;
};
static inline Bounds bounds_of(const QuantizeArgs& a) {
  if (!a.values) return {-0.5f, float((1 << a.spec.bits) - 1) + 0.5f};
  int last = 0;
  while (last < 15 && a.grid.thresholds[last] < __builtin_inff()) ++last;
  const float least = a.values[a.grid.codes[0]], most = a.values[a.grid.codes[last]];
  const float first_step = last ? a.values[a.grid.codes[1]] - least : 0;
  const float last_step = last ? most - a.values[a.grid.codes[last - 1]] : 0;
  return {least - first_step / 2, most + last_step / 2};
}

// ---- clip search
// -----------------------------------------------------------------------------------
// The rule of GPTQ's code (Frantar et al., arXiv 2210.17323): of the ranges shrunk to 100 %, 99 %,
// ... 21 %, the first with the smallest sum of |error|^2.4; or, where the columns' importance is
// known, with the smallest sum of importance * error^2.

constexpr int kShrinkSteps = 80;
static inline float shrink(int step) { return 1 - 0.01f * float(step); }

// |d|^2.4 of y = d^2: y * y^0.2, with y^-0.2 by Newton's method from a guess of the exponent.
constexpr float kGuess = 1.27792e9f;  // bits of y^-0.2 = kGuess - 0.2 * bits of y, within 4 %
static inline float power_of_square(float y) {
  float z = float_of(uint32_t(int32_t(kGuess - 0.2f * float(int32_t(bits_of(y))))));
  for (int i = 0; i < 3; ++i) {
    const float z2 = z * z, z4 = z2 * z2;
    z = z * (1.2f - 0.2f * (y * z4 * z));
  }
  const float z2 = z * z, z4 = z2 * z2;
  return y * (y * z4);
}
// Partial sum i takes columns i, i + 16, ...; then halves are added, so that every vector width
// gives the same bits.
constexpr int kPartialSums = 16;
static inline float total_of(float (&sums)[kPartialSums]) {
  for (int half = kPartialSums / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

// Stores the best scale of a group with smallest and largest weight lo, hi at index i; `loss` gives
// the sum of errors of a scale.
template <class Loss>
static inline ScaleZero search_scale(const QuantizeArgs& a, int64_t i, float lo, float hi,
                                     const Loss& loss) {
  float best = __builtin_inff();
  int chosen = 0;
  ScaleZero last{-1, 0};
  for (int step = 0; step < kShrinkSteps; ++step) {
    const ScaleZero sz = choose_scale(a, i, shrink(step) * lo, shrink(step) * hi);
    if (sz.scale == last.scale && sz.zero == last.zero) continue;
    last = sz;
    const float sum = loss(sz);
    if (sum < best) {
      best = sum;
      chosen = step;
    }
  }
  return choose_scale(a, i, shrink(chosen) * lo, shrink(chosen) * hi);
}

// ---- exponential
// ----------------------------------------------------------------------------------------

// e^d = 2^n (1 + r + r^2 q(r)) with n = round(d / ln 2) and r = d - n ln 2, |r| <= ln(2) / 2; q has
// degree 4 and was fitted for the least largest relative error of e^r, 3.1e-9. ln 2 is split so
// that n kLn2High is exact.
constexpr float kInvLn2 = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
constexpr float kExpTerms[] = {0.4999999403953552f, 0.1666652113199234f, 0.04166838899254799f,
                               0.00836874544620514f, 0.0013814540579915047f};
constexpr float kLowest = -3.402823466e38f;  // stands for -infinity, which would make 0 x inf
constexpr float kExpFloor = -104;            // e^d is 0 from here down in float32

// e^d for d <= 88; 0 below -87.3; NaN of NaN and of infinity.
static inline float exp_of(float d) {
  if (d < kExpFloor) d = kExpFloor;
  const float n = round_even(d * kInvLn2);
  const float r = (d - n * kLn2High) - n * kLn2Low;
  float p = kExpTerms[4];
  for (int i = 3; i >= 0; --i) p = p * r + kExpTerms[i];
  const int exponent = d < 89 ? int(n) + 127 : 0;  // NaN and infinity: p is NaN
  return ((p * r + 1) * r + 1) * float_of(exponent > 0 ? uint32_t(exponent) << 23 : 0);
}

static inline float load_logit(LogitType type, const void* p, int64_t i) {
  uint16_t half;
  float value;
  if (type == LogitType::f32) {
    __builtin_memcpy(&value, static_cast<const uint8_t*>(p) + 4 * i, 4);
    return value;
  }
  __builtin_memcpy(&half, static_cast<const uint8_t*>(p) + 2 * i, 2);
  return type == LogitType::f16 ? from_half(half) : float_of(uint32_t(half) << 16);
}

}  // namespace calibit
