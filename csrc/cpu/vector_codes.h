#pragma once
// Nearest rounding and dequantization of rows in canonical form, written once for every vector
// width: the rules of scalar.h, bit for bit, with a lane per column. An ISA file defines a struct V
// of vector operations and instantiates quantize<V>, dequantize<V>.
#include "cpu/vector.h"

namespace calibit {
namespace {

// ---- quantize ----

// Smallest and largest weight of a group; of the magnitudes alone where the zero point is fixed.
struct Range {
  float lo, hi;
};

template <class V>
Range range_of(const float* w, int64_t length, bool magnitudes) {
  using Float = typename V::Float;
  Float lo = V::set1(w[0]), hi = lo;
  if (magnitudes) lo = hi = V::abs(lo);
  for (int64_t j = 0; j < length; j += V::kWidth) {
    Float x =
        j + V::kWidth <= length ? V::load(w + j) : V::load_part(w + j, length - j, V::set1(w[0]));
    if (magnitudes) {
      hi = V::max(hi, V::abs(x));
    } else {
      lo = V::min(lo, x);
      hi = V::max(hi, x);
    }
  }
  const float most = V::reduce_max(hi);
  return {magnitudes ? -most : V::reduce_min(lo), most};
}

// Codes of a row, one byte each, packed into the row's bit stream kCodes at a time.
template <class V>
struct CodeWriter {
  static constexpr int64_t kCodes = 512;
  uint8_t* to;
  int bits;
  const uint8_t* map;  // null, or what to replace codes 0..15 by
  int64_t fill = 0;
  alignas(64) uint8_t codes[kCodes + V::kBytes] = {};

  int64_t space() const { return kCodes - fill; }
  void flush() {
    if (map) V::map_bytes(codes, fill, map);
    const int64_t bytes = ceil_div(fill * bits, 8);
    for (; fill % 8 != 0; ++fill) codes[fill] = 0;  // the stream ends with zero bits
    uint64_t octets[kCodes / 8];
    __builtin_memcpy(octets, codes, sizeof octets);
    for (int64_t i = 0; i < kCodes / 8; ++i) octets[i] = pack(octets[i]);
    uint8_t stream[kCodes + 8];
    for (int64_t i = 0; i < fill / 8; ++i) __builtin_memcpy(stream + i * bits, &octets[i], 8);
    __builtin_memcpy(to, stream, size_t(bytes));
    to += bytes;
    fill = 0;
  }

 private:
  // 8 bytes -> 8 codes of `bits` bits in the low end: neighbours join, then pairs, then quadruples.
  uint64_t pack(uint64_t x) const {
    constexpr uint64_t b8 = 0x00ff00ff00ff00ff, b16 = 0x0000ffff0000ffff, b32 = 0xffffffff;
    x = (x & b8) | (x >> 8 & b8) << bits;
    x = (x & b16) | (x >> 16 & b16) << (2 * bits);
    return (x & b32) | (x >> 32 & b32) << (4 * bits);
  }
};

// encode() of scalar.h for a vector of weights of one group.
template <class V>
struct IntegerEncoder {
  typename V::Float scale, before, lo, hi;
  typename V::Int after;
  bool positive;

  IntegerEncoder(const WeightSpec& s, ScaleZero sz) : scale(V::set1(sz.scale)) {
    const float steps = float((1 << s.bits) - 1);
    const bool real = s.zero == ZeroType::f32;
    const float zero = s.zero == ZeroType::none ? float(1 << (s.bits - 1)) : sz.zero;
    before = V::set1(real ? zero : 0);
    lo = V::set1(real ? 0 : -zero);
    hi = V::set1(real ? steps : steps - zero);
    after = V::set1_int(real ? 0 : int(zero));
    positive = sz.scale > 0;
  }
  typename V::Int operator()(typename V::Float w) const {
    const typename V::Float x = V::add(positive ? V::div(w, scale) : V::set1(0), before);
    return V::add_int(V::round(V::min(V::max(x, lo), hi)), after);
  }
};

// Number of thresholds below w / scale, by binary search: level l keeps its 2^l thresholds in one
// vector.
template <class V>
struct GridSearch {
  typename V::Float levels[4];

  explicit GridSearch(const Grid& grid) {
    for (int l = 0; l < 4; ++l) {
      float level[16] = {};
      for (int p = 0; p < 1 << l; ++p) level[p] = grid.thresholds[((2 * p + 1) << (3 - l)) - 1];
      levels[l] = V::load(level);
    }
  }
  typename V::Int operator()(typename V::Float x) const {
    typename V::Int path = V::set1_int(0);
    for (const typename V::Float& level : levels) path = V::append(path, x, V::pick(level, path));
    return path;
  }
};

template <class V, class Encode>
void encode_group(const float* w, int64_t length, CodeWriter<V>& out, const Encode& encode) {
  while (length > 0) {
    const int64_t count = min_i64(length, out.space());
    uint8_t* to = out.codes + out.fill;
    for (int64_t j = 0; j < count; j += V::kWidth) {
      const typename V::Float x =
          j + V::kWidth <= count ? V::load(w + j) : V::load_part(w + j, count - j, V::set1(0));
      V::store_codes(to + j, encode(x));
    }
    out.fill += count;
    if (out.space() == 0) out.flush();
    w += count;
    length -= count;
  }
}

// power_of_square() of scalar.h.
template <class V>
typename V::Float power_of_square(typename V::Float y) {
  const typename V::Float guess = V::mul(V::set1(0.2f), V::to_float(V::as_int(y)));
  typename V::Float z = V::as_float(V::round(V::sub(V::set1(kGuess), guess)));
  for (int i = 0; i < 3; ++i) {
    const typename V::Float z2 = V::mul(z, z), z4 = V::mul(z2, z2);
    const typename V::Float change = V::mul(V::set1(0.2f), V::mul(V::mul(y, z4), z));
    z = V::mul(z, V::sub(V::set1(1.2f), change));
  }
  const typename V::Float z2 = V::mul(z, z), z4 = V::mul(z2, z2);
  return V::mul(y, V::mul(y, z4));
}

// Sum of a group's errors, |error|^2.4 or importance * error^2; `value` gives what a vector of
// weights is rounded to, `importance` is null or that of the group's columns.
template <class V, class Value>
float sum_of_errors(const float* w, const float* importance, int64_t length, const Value& value) {
  using Float = typename V::Float;
  constexpr int kParts = kPartialSums / V::kWidth;
  Float sums[kParts];
  for (int i = 0; i < kParts; ++i) sums[i] = V::set1(0);
  for (int64_t j = 0; j < length; j += kPartialSums)
    for (int i = 0; i < kParts; ++i) {
      const int64_t at = j + i * V::kWidth, left = length - at;
      if (left <= 0) break;
      const Float x = left >= V::kWidth ? V::load(w + at) : V::load_part(w + at, left, V::set1(0));
      const Float error = V::sub(value(x), x);
      const Float square = V::mul(error, error);
      if (importance) {  // 0 for a lane past the end
        const Float share = left >= V::kWidth ? V::load(importance + at)
                                              : V::load_part(importance + at, left, V::set1(0));
        sums[i] = V::add(sums[i], V::mul(share, square));
        continue;
      }
      Float power = power_of_square<V>(square);
      if (left < V::kWidth) {  // a lane past the end may have an error of its own
        alignas(64) float lanes[V::kWidth];
        V::store(lanes, power);
        power = V::load_part(lanes, left, V::set1(0));
      }
      sums[i] = V::add(sums[i], power);
    }
  alignas(64) float lanes[kPartialSums];
  for (int i = 0; i < kParts; ++i) V::store(lanes + i * V::kWidth, sums[i]);
  return total_of(lanes);
}

// Values of a codebook by rank, for `lookup16`.
template <class V>
typename V::Table sorted_table(const QuantizeArgs& a) {
  float entries[16] = {};
  if (a.values)
    for (int i = 0; i < 16; ++i) entries[i] = a.values[a.grid.codes[i]];
  return V::table(entries);
}

// Scale and zero point of one group of a row, stored at index i; `first` is its first column.
template <class V>
ScaleZero scale_of(const QuantizeArgs& a, const float* w, int64_t first, int64_t length,
                   int64_t i) {
  using Float = typename V::Float;
  const float* importance = a.importance ? a.importance + first : nullptr;
  const Range r = range_of<V>(w, length, a.values || a.spec.zero == ZeroType::none);
  if (!a.clip) return choose_scale(a, i, r.lo, r.hi);
  if (a.values) {
    const GridSearch<V> search(a.grid);
    const typename V::Table table = sorted_table<V>(a);
    return search_scale(a, i, r.lo, r.hi, [&](ScaleZero sz) {
      const Float inverse = V::set1(inverse_scale(sz.scale)), scale = V::set1(sz.scale);
      return sum_of_errors<V>(w, importance, length, [&](Float x) {
        return V::mul(V::lookup16(table, search(V::mul(x, inverse))), scale);
      });
    });
  }
  const float middle = a.spec.zero == ZeroType::none ? float(1 << (a.spec.bits - 1)) : 0;
  return search_scale(a, i, r.lo, r.hi, [&](ScaleZero sz) {
    const IntegerEncoder<V> encode(a.spec, sz);
    const Float zero = V::set1(middle + sz.zero), scale = V::set1(sz.scale);
    return sum_of_errors<V>(w, importance, length, [&](Float x) {
      return V::mul(V::sub(V::to_float(encode(x)), zero), scale);
    });
  });
}

template <class V>
void quantize(const QuantizeArgs& a, int64_t row_begin, int64_t row_end) {
  const WeightSpec& s = a.spec;
  const int64_t g_count = groups(s);
  const GridSearch<V> search(a.grid);
  for (int64_t n = row_begin; n < row_end; ++n) {
    CodeWriter<V> out{a.codes + n * row_bytes(s), s.bits, a.values ? a.grid.codes : nullptr};
    for (int64_t g = 0; g < g_count; ++g) {
      const float* w = a.w + n * s.k + g * s.group;
      const int64_t length = group_length(s, g), i = n * g_count + g;
      const ScaleZero sz = a.fixed ? ScaleZero{load_scale(s.scale, a.scales, i, {}, i),
                                               load_zero(s.zero, a.zeros, i)}
                                   : scale_of<V>(a, w, g * s.group, length, i);
      if (a.values) {
        const typename V::Float inverse = V::set1(inverse_scale(sz.scale));
        encode_group(w, length, out,
                     [&](typename V::Float x) { return search(V::mul(x, inverse)); });
      } else {
        encode_group(w, length, out, IntegerEncoder<V>(s, sz));
      }
    }
    out.flush();
  }
}

// ---- dequantize ----

// How the next kWidth codes come out of 16 bytes of a stream that starts `phase` bits into the
// first byte: each lane takes its two bytes, then shifts.
template <class V>
struct Window {
  typename V::Int order, shift;

  Window(int phase, int bits) {
    alignas(64) uint8_t bytes[V::kBytes];
    alignas(64) int32_t shifts[V::kWidth];
    constexpr uint8_t none = 0x80;
    for (int i = 0; i < V::kWidth; ++i) {
      const int at = phase + i * bits, byte = at / 8;
      bytes[4 * i] = uint8_t(byte);
      bytes[4 * i + 1] = byte < 15 ? uint8_t(byte + 1) : none;
      bytes[4 * i + 2] = bytes[4 * i + 3] = none;
      shifts[i] = at % 8;
    }
    order = V::load_words(bytes);
    shift = V::load_words(reinterpret_cast<const uint8_t*>(shifts));
  }
  typename V::Int operator()(const uint8_t* from, const uint8_t* end) const {
    if (end - from >= 16) return V::srlv(V::load_window(from, order), shift);
    uint8_t last[16] = {};
    __builtin_memcpy(last, from, size_t(end - from));
    return V::srlv(V::load_window(last, order), shift);
  }
};

template <class V>
void dequantize(const DequantizeArgs& a, int64_t row_begin, int64_t row_end) {
  using Float = typename V::Float;
  const WeightSpec& s = a.w.spec;
  const int64_t g_count = groups(s), bytes = row_bytes(s);
  const uint8_t* end = a.w.codes + s.n * bytes;
  const float middle = a.w.codebook ? 0.0f : float(1 << (s.bits - 1));
  const typename V::Table table = make_table<V>(a.w.codebook, s.bits);
  const typename V::Int mask = V::set1_int((1 << s.bits) - 1);
  int phase = 0;
  Window<V> window(phase, s.bits);
  for (int64_t n = row_begin; n < row_end; ++n)
    for (int64_t g = 0; g < g_count; ++g) {
      const int64_t i = n * g_count + g, at = g * s.group * s.bits, length = group_length(s, g);
      if (int(at & 7) != phase) {
        phase = int(at & 7);
        window = Window<V>(phase, s.bits);
      }
      const Float scale = V::set1(load_scale(s.scale, a.w.scales, i, a.w.nested, i));
      const Float zero =
          V::set1(s.zero == ZeroType::none ? middle : load_zero(s.zero, a.w.zeros, i));
      const uint8_t* from = a.w.codes + n * bytes + (at >> 3);
      float* out = a.out + n * s.k + g * s.group;
      for (int64_t j = 0; j < length; j += V::kWidth, from += V::kWidth * s.bits / 8) {
        const typename V::Int code = V::both(window(from, end), mask);
        const Float value = a.w.codebook ? V::lookup16(table, code) : V::to_float(code);
        const Float y = V::mul(V::sub(value, zero), scale);
        if (j + V::kWidth <= length)
          V::store(out + j, y);
        else
          V::store_part(out + j, length - j, y);
      }
    }
}

}  // namespace
}  // namespace calibit
