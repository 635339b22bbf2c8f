#pragma once
// Fused dequantize-GEMM and its input gradient on packed weights, written once for every vector
// width. An ISA file defines a struct V of vector operations and instantiates linear<V>,
// linear_input_grad<V>. A lane is a row of W and its arithmetic is the same at every width, so that
// all tables built from this header agree bit for bit, and a row of y depends on neither M, nor
// threads, nor the split of N.
//
// Two ways through the same sums (kernels.h):
//   few rows of x: codes are decoded in registers and multiplied at once (fused_span);
//   more rows: 64 rows of W x one span are decoded into a panel in cache (decode_span), which a
//   register tile of V::kRows x V::kTiles then multiplies with all rows of x (multiply).
#include "cpu/vector.h"

namespace calibit {
namespace {

constexpr int kBlockRows = int(kBlockTiles * kTileRows);
// One pass over W takes at most kPassRows rows of x and kPassTiles tiles of W, as equal parts. Its
// span of x and its sums (96 and 192 KB) stay in a 512 KB cache; copying x costs 1 / (16
// kPassTiles) and decoding 4 / kPassRows of the multiplications. kPassRows is a multiple of the
// register tiles of 6 and 12 rows.
constexpr int64_t kPassRows = 192, kPassTiles = 16, kPassColumns = kPassTiles * kTileRows;
// How far ahead of the decoder the stream of codes is fetched.
constexpr int64_t kPrefetchBytes = 8192;

// ---- decoding ----

// After `words` words the positions of the codes inside their words repeat.
template <int bits>
struct Period {
  static constexpr int divisor = bits & -bits;  // gcd(bits, 32)
  static constexpr int words = bits / divisor, codes = 32 / divisor;
};

// Codes of the rows of `strip` neighbouring vectors, from one period of words on.
template <class V>
struct CodeStream {
  const uint8_t* words;  // word w, row r at words + w * stride + 4 r
  int64_t stride;        // bytes
  const typename V::Table& table;
  const float* zeros;  // [rows]; used without a table only

  typename V::Int load(int word, int vector) const {
    const uint8_t* at = words + word * stride + vector * V::kWidth * 4;
    if (vector * V::kWidth * 4 % 64 == 0) V::prefetch(at + kPrefetchBytes);
    return V::load_words(at);
  }
};

// Calls emit(j, v, value) for code j of one period and vector v, in the order of j for each v.
// value = table[code], or code - zero without a table.
template <class V, int bits, bool has_table, int strip, class Emit>
[[gnu::always_inline]] inline void decode_period(const CodeStream<V>& s, const Emit& emit) {
  using Float = typename V::Float;
  using Int = typename V::Int;
  if constexpr (has_table && bits == 4 && V::kWordLookup) {
#pragma GCC unroll 4
    for (int v = 0; v < strip; ++v) {
      Float value[8];
      V::lookup_nibbles(s.table, s.load(0, v), value);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) emit(j, v, value[j]);
    }
    return;
  }
  Int word[strip];
  unroll<Period<bits>::codes>([&](auto j) __attribute__((always_inline)) {
    constexpr int at = decltype(j){} * bits, index = at / 32, shift = at % 32;
#pragma GCC unroll 4
    for (int v = 0; v < strip; ++v) {
      if constexpr (shift == 0) word[v] = s.load(index, v);
      Int code = V::template srl<shift>(word[v]);
      if constexpr (shift + bits > 32) {
        word[v] = s.load(index + 1, v);
        code = V::either(code, V::template sll<32 - shift>(word[v]));
      }
      if constexpr (has_table) {  // the lookup ignores higher bits
        emit(j, v, V::template lookup<bits>(s.table, code));
      } else {
        if constexpr (shift + bits != 32) code = V::both(code, V::set1_int((1 << bits) - 1));
        emit(j, v, V::sub(V::to_float(code), V::load(s.zeros + v * V::kWidth)));
      }
    }
  });
}

// panel[j][16] = values of `count` columns of one tile, and past them up to the end of the period.
template <class V, int bits, bool has_table>
void decode_span(CodeStream<V> s, int64_t count, float* panel) {
  constexpr int strip = int(kTileRows) / V::kWidth;
  for (int64_t j0 = 0; j0 < count; j0 += Period<bits>::codes) {
    decode_period<V, bits, has_table, strip>(
        s, [&](int j, int v, typename V::Float value) __attribute__((always_inline)) {
          V::store(panel + j * kTileRows + v * V::kWidth, value);
        });
    s.words += Period<bits>::words * s.stride;
    panel += Period<bits>::codes * kTileRows;
  }
}

template <class V>
using DecodeSpan = void (*)(CodeStream<V>, int64_t, float*);

template <class V>
DecodeSpan<V> choose_decode_span(int bits, bool has_table) {
  if (has_table)
    return with_count<4>(bits, [](auto b) -> DecodeSpan<V> { return decode_span<V, b, true>; });
  return with_count<8>(bits, [](auto b) -> DecodeSpan<V> { return decode_span<V, b, false>; });
}

// Scales and zero points of one group of the tiles [tile, tile + count) of one block, as floats.
template <class V>
struct GroupData {
  TileGroup at;
  alignas(64) float scales[kBlockRows], zeros[kBlockRows];

  GroupData(const PackedWeight& w, int64_t tile, int64_t count, int64_t g)
      : at(locate(w, tile, g)) {
    load_scales(w, tile, count * kTileRows, g);
    load_zeros(w, count * kTileRows);
  }

  CodeStream<V> stream(int bits, int64_t k0, int64_t row, const typename V::Table& table) const {
    const uint8_t* words = at.codes + (k0 / kChunk * bits * at.stride + row) * 4;
    return {words, at.stride * 4, table, zeros + row};
  }

 private:
  void load_scales(const PackedWeight& w, int64_t tile, int64_t rows, int64_t g) {
    const uint8_t* from = at.scales;
    const ScaleType type = w.spec.scale;
    for (int64_t r = 0; r < rows && type != ScaleType::nested; r += V::kWidth)
      V::store(scales + r, type == ScaleType::f32   ? V::load_bytes(from + 4 * r)
                           : type == ScaleType::f16 ? V::from_half(from + 2 * r)
                                                    : V::from_e8m0(from + r));
    for (int64_t r = 0; r < rows && type == ScaleType::nested; ++r) {
      const int64_t n = tile * kTileRows + r, g_count = groups(w.spec);
      scales[r] = n < w.spec.n ? load_scale(type, from, r, w.nested, n * g_count + g) : 0;
    }
  }
  void load_zeros(const PackedWeight& w, int64_t rows) {
    const float middle = w.codebook ? 0.0f : float(1 << (w.spec.bits - 1));
    for (int64_t r = 0; r < rows; r += V::kWidth)
      V::store(zeros + r, w.spec.zero == ZeroType::none ? V::set1(middle)
                          : w.spec.zero == ZeroType::u8 ? V::to_float(V::from_bytes(at.zeros + r))
                                                        : V::load_bytes(at.zeros + 4 * r));
  }
};

// f(tile, count) for the part of each block that lies in [begin, end).
template <class F>
void for_each_block(int64_t begin, int64_t end, const F& f) {
  for (int64_t tile = begin; tile < end;) {
    const int64_t next = min_i64(end, (tile / kBlockTiles + 1) * kBlockTiles);
    f(tile, next - tile);
    tile = next;
  }
}

// f(group, k0, count) for every span of a row; k0 counts from the start of its group.
template <class F>
void for_each_span(const WeightSpec& s, int64_t g, const F& f) {
  for (int64_t k0 = 0, length = group_length(s, g); k0 < length; k0 += kSpan)
    f(k0, min_i64(kSpan, length - k0));
}

// y[m, rows of the tiles] = total + bias. total [m][stride], as many columns as the tiles have
// rows.
void write_outputs(const LinearArgs& a, int64_t m0, int64_t rows, int64_t tile, int64_t tile_count,
                   const float* total, int64_t stride) {
  const int64_t n0 = tile * kTileRows, width = min_i64(tile_count * kTileRows, a.w.spec.n - n0);
  for (int64_t m = 0; m < rows; ++m) {
    const float* from = total + m * stride;
    float* to = a.y + (m0 + m) * a.w.spec.n + n0;
    if (a.bias)
      for (int64_t r = 0; r < width; ++r) to[r] = from[r] + a.bias[n0 + r];
    else
      __builtin_memcpy(to, from, size_t(width) * sizeof(float));
  }
}

// ---- few rows of x ----

// total[m][r] += scale[r] * sum over `count` columns of x[m] * value, for the rows of `strip`
// vectors.
template <class V>
struct FusedSpan {
  CodeStream<V> codes;
  int64_t count;
  const float* scales;
  const float* x;
  int64_t x_stride;
  float* total;  // [rows][kBlockRows]
};

template <class V, int bits, bool has_table, int rows, int strip>
void fused_span(const FusedSpan<V>& a) {
  using Float = typename V::Float;
  constexpr int period = Period<bits>::codes, per_tile = int(kTileRows) / V::kWidth;
  Float sum[rows][strip];
  for (auto& row : sum)
    for (Float& one : row) one = V::set1(0);
  CodeStream<V> s = a.codes;
  const float* x = a.x;
  int64_t left = a.count;
  for (; left >= period; left -= period, x += period, s.words += Period<bits>::words * s.stride)
    decode_period<V, bits, has_table, strip>(
        s, [&](int j, int v, Float value) __attribute__((always_inline)) {
#pragma GCC unroll 4
          for (int m = 0; m < rows; ++m)
            sum[m][v] = V::fma(V::set1(x[m * a.x_stride + j]), value, sum[m][v]);
        });
  if (left > 0) {
    float values[strip / per_tile][period * kTileRows];
    for (auto& tile : values) {
      decode_span<V, bits, has_table>(s, left, tile);
      s.words += kTileRows * 4;
      s.zeros += kTileRows;
    }
    for (int64_t j = 0; j < left; ++j)
#pragma GCC unroll 4
      for (int m = 0; m < rows; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < strip; ++v) {
          const float* value = values[v / per_tile] + j * kTileRows + v % per_tile * V::kWidth;
          sum[m][v] = V::fma(V::set1(x[m * a.x_stride + j]), V::load(value), sum[m][v]);
        }
  }
#pragma GCC unroll 4
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < strip; ++v) {
      float* total = a.total + m * kBlockRows + v * V::kWidth;
      V::store(total, V::fma(sum[m][v], V::load(a.scales + v * V::kWidth), V::load(total)));
    }
}

template <class V>
using FusedSpanFn = void (*)(const FusedSpan<V>&);

template <class V, int rows, int strip>
FusedSpanFn<V> choose_fused_span(int bits, bool has_table) {
  if (has_table)
    return with_count<4>(
        bits, [](auto b) -> FusedSpanFn<V> { return fused_span<V, b, true, rows, strip>; });
  return with_count<8>(
      bits, [](auto b) -> FusedSpanFn<V> { return fused_span<V, b, false, rows, strip>; });
}

template <class V, int m>
void linear_fused(const LinearArgs& a, int64_t tile_begin, int64_t tile_end) {
  constexpr int narrow = int(kTileRows) / V::kWidth, wide = V::strip(m);
  const WeightSpec& s = a.w.spec;
  const bool has_table = a.w.codebook != nullptr;
  const FusedSpanFn<V> run_wide = choose_fused_span<V, m, wide>(s.bits, has_table),
                       run_narrow = choose_fused_span<V, m, narrow>(s.bits, has_table);
  const typename V::Table table = make_table<V>(a.w.codebook, s.bits);
  for_each_block(tile_begin, tile_end, [&](int64_t tile, int64_t count) {
    const int64_t rows = count * kTileRows;
    alignas(64) float total[m * kBlockRows] = {};
    for (int64_t g = 0; g < groups(s); ++g) {
      const GroupData<V> group(a.w, tile, count, g);
      for_each_span(s, g, [&](int64_t k0, int64_t length) {
        for (int64_t r = 0; r < rows;) {
          const bool fits = r + wide * V::kWidth <= rows;
          (fits ? run_wide
                : run_narrow)({group.stream(s.bits, k0, r, table), length, group.scales + r,
                               a.x + g * s.group + k0, s.k, total + r});
          r += (fits ? wide : narrow) * V::kWidth;
        }
      });
    }
    write_outputs(a, 0, m, tile, count, total, kBlockRows);
  });
}

// ---- many rows of x ----

// What one pass keeps in cache: a span of x, and sums.
struct Pass {
  alignas(64) float x[kPassRows][kSpan];
  alignas(64) float total[kPassRows][kPassColumns];
};

// total[m][16 t + r] += scale[16 t + r] * sum over j of x[m][j] * panel[t][j][r], for `rows` rows m
// and `tile_count` tiles t. panel [tile_count][kSpan][16].
template <class V, int rows, int tile_count>
void multiply_rows(const float* x, const float* panel, int64_t count, const float* scales,
                   float* total) {
  using Float = typename V::Float;
  constexpr int per_tile = int(kTileRows) / V::kWidth, vectors = tile_count * per_tile;
  Float sum[rows][vectors];
  for (auto& row : sum)
    for (Float& one : row) one = V::set1(0);
  for (int64_t j = 0; j < count; ++j) {
    Float value[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v)
      value[v] = V::load(panel + v / per_tile * kSpan * kTileRows + v % per_tile * V::kWidth);
#pragma GCC unroll 16
    for (int m = 0; m < rows; ++m) {
      const Float xm = V::set1(x[m * kSpan + j]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[m][v] = V::fma(xm, value[v], sum[m][v]);
    }
    panel += kTileRows;
  }
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      float* to = total + m * kPassColumns + v * V::kWidth;
      V::store(to, V::fma(sum[m][v], V::load(scales + v * V::kWidth), V::load(to)));
    }
}

// The same for all rows of a pass, into its columns [column, column + 16 tile_count).
template <class V, int tile_count>
void multiply(Pass& pass, int64_t rows, const float* panel, int64_t count, const float* scales,
              int64_t column) {
  using Rows = void (*)(const float*, const float*, int64_t, const float*, float*);
  for (int64_t m = 0; m < rows;) {
    const int64_t left = rows - m, block = ceil_div(left, ceil_div(left, V::kRows));
    const Rows run =
        with_count<V::kRows>(block, [](auto r) -> Rows { return multiply_rows<V, r, tile_count>; });
    run(pass.x[m], panel, count, scales, pass.total[m] + column);
    m += block;
  }
}

// Neighbouring rows of x lie on different pages, where no hardware prefetcher follows.
template <class V>
void copy_rows(float (*to)[kSpan], const float* from, int64_t stride, int64_t rows, int64_t count) {
  constexpr int64_t ahead = 8;
  for (int64_t m = 0; m < rows; ++m, from += stride) {
    for (int64_t j = 0; j < count && m + ahead < rows; j += 16)
      V::prefetch(from + ahead * stride + j);
    int64_t j = 0;
    for (; j + V::kWidth <= count; j += V::kWidth) V::store(to[m] + j, V::load(from + j));
    for (; j < count; ++j) to[m][j] = from[j];
  }
}

// Decodes one span of one group of whole tiles; zero points of codebook weights are taken off here.
template <class V>
struct PanelDecoder {
  const PackedWeight& w;
  const typename V::Table table = make_table<V>(w.codebook, w.spec.bits);
  const DecodeSpan<V> decode = choose_decode_span<V>(w.spec.bits, w.codebook != nullptr);

  void operator()(const GroupData<V>& group, int64_t k0, int64_t count, int64_t row,
                  float* panel) const {
    decode(group.stream(w.spec.bits, k0, row, table), count, panel);
    if (!w.codebook || w.spec.zero == ZeroType::none) return;
    for (int64_t j = 0; j < count; ++j)
      for (int64_t r = 0; r < kTileRows; ++r) panel[j * kTileRows + r] -= group.zeros[row + r];
  }
};

// Length of the equal parts, multiples of `step`, that a range of n is cut into to keep below
// `most`.
int64_t part_length(int64_t n, int64_t most, int64_t step) {
  return ceil_div(ceil_div(n, ceil_div(n, most)), step) * step;
}

// pass.total += span [k0, k0 + count) of group g times pass.x, for the tiles [begin, end).
template <class V>
void add_span(Pass& pass, int64_t rows, const PanelDecoder<V>& decode, int64_t begin, int64_t end,
              int64_t g, int64_t k0, int64_t count) {
  alignas(64) float panel[V::kTiles][kSpan * kTileRows];
  for_each_block(begin, end, [&](int64_t tile, int64_t block) {
    const GroupData<V> group(decode.w, tile, block, g);
    for (int64_t t = 0; t < block;) {
      const bool full = block - t >= V::kTiles;
      const int64_t step = full ? V::kTiles : 1, column = (tile - begin + t) * kTileRows;
      for (int64_t i = 0; i < step; ++i) decode(group, k0, count, (t + i) * kTileRows, panel[i]);
      const auto run = full ? multiply<V, V::kTiles> : multiply<V, 1>;
      run(pass, rows, panel[0], count, group.scales + t * kTileRows, column);
      t += step;
    }
  });
}

template <class V>
void linear_panels(const LinearArgs& a, int64_t tile_begin, int64_t tile_end) {
  const WeightSpec& s = a.w.spec;
  const PanelDecoder<V> decode{a.w};
  const int64_t rows_of_pass = part_length(a.m, kPassRows, V::kRows),
                tiles_of_pass = part_length(tile_end - tile_begin, kPassTiles, 1);
  Pass pass;
  for (int64_t m0 = 0; m0 < a.m; m0 += rows_of_pass)
    for (int64_t begin = tile_begin; begin < tile_end; begin += tiles_of_pass) {
      const int64_t rows = min_i64(rows_of_pass, a.m - m0),
                    end = min_i64(begin + tiles_of_pass, tile_end);
      __builtin_memset(pass.total, 0, size_t(rows) * sizeof pass.total[0]);
      for (int64_t g = 0; g < groups(s); ++g)
        for_each_span(s, g, [&](int64_t k0, int64_t count) {
          copy_rows<V>(pass.x, a.x + m0 * s.k + g * s.group + k0, s.k, rows, count);
          add_span(pass, rows, decode, begin, end, g, k0, count);
        });
      write_outputs(a, m0, rows, begin, end - begin, pass.total[0], kPassColumns);
    }
}

// A codebook with zero points is rare enough to have the panel only.
template <class V>
void linear(const LinearArgs& a, int64_t tile_begin, int64_t tile_end) {
  const bool shifted_table = a.w.codebook && a.w.spec.zero != ZeroType::none;
  if (a.m > V::kFusedRows || shifted_table) return linear_panels<V>(a, tile_begin, tile_end);
  with_count<V::kFusedRows>(a.m, [&](auto m) { linear_fused<V, m>(a, tile_begin, tile_end); });
}

// ---- input gradient ----

// One block of W x one span as the right factor of grad [M, rows] W [rows, columns]: panel
// [columns / 16][kSpan][16] holds scale * value of row r at [c][r][column % 16].
template <class V>
void decode_transposed(const PanelDecoder<V>& decode, int64_t tile, int64_t count, int64_t g,
                       int64_t k0, int64_t length, float* panel) {
  alignas(64) float values[kSpan * kTileRows];
  const GroupData<V> group(decode.w, tile, count, g);
  for (int64_t r0 = 0; r0 < count * kTileRows; r0 += kTileRows) {
    decode(group, k0, length, r0, values);
    for (int64_t j = 0; j < length; ++j) {
      float* to = panel + j / kTileRows * kSpan * kTileRows + j % kTileRows;
      for (int64_t r = 0; r < kTileRows; ++r)
        to[(r0 + r) * kTileRows] = values[j * kTileRows + r] * group.scales[r0 + r];
    }
  }
}

template <class V>
void linear_input_grad(const LinearInputGradArgs& a, int64_t group_begin, int64_t group_end) {
  const WeightSpec& s = a.w.spec;
  const PanelDecoder<V> decode{a.w};
  alignas(64) float panel[kSpan / kTileRows][kSpan * kTileRows] = {};
  float ones[kTileRows];
  for (float& one : ones) one = 1;
  const int64_t rows_of_pass = part_length(a.m, kPassRows, V::kRows);
  Pass pass;
  for (int64_t g = group_begin; g < group_end; ++g)
    for_each_span(s, g, [&](int64_t k0, int64_t length) {
      for (int64_t m0 = 0; m0 < a.m; m0 += rows_of_pass) {
        const int64_t rows = min_i64(rows_of_pass, a.m - m0);
        __builtin_memset(pass.total, 0, size_t(rows) * sizeof pass.total[0]);
        for_each_block(0, tiles(s), [&](int64_t tile, int64_t count) {
          const int64_t n0 = tile * kTileRows, depth = min_i64(count * kTileRows, s.n - n0);
          copy_rows<V>(pass.x, a.grad + m0 * s.n + n0, s.n, rows, depth);
          decode_transposed(decode, tile, count, g, k0, length, panel[0]);
          for (int64_t c = 0; c < ceil_div(length, kTileRows); ++c)
            multiply<V, 1>(pass, rows, panel[c], depth, ones, c * kTileRows);
        });
        float* dx = a.dx + m0 * s.k + g * s.group + k0;
        for (int64_t m = 0; m < rows; ++m)
          __builtin_memcpy(dx + m * s.k, pass.total[m], size_t(length) * sizeof(float));
      }
    });
}

}  // namespace
}  // namespace calibit
