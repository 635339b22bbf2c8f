// The readable definition of every kernel, in plain C++. Correct for all formats; other tables are
// compared with it, and it runs where nothing faster exists.
#include "core/scalar.h"

namespace calibit {
namespace {

// Scale and zero point of one group of a row, stored at index i; `first` is its first column.
ScaleZero scale_of(const QuantizeArgs& a, const float* w, int64_t first, int64_t length,
                   int64_t i) {
  float lo = w[0], hi = w[0];
  for (int64_t j = 1; j < length; ++j) {
    lo = w[j] < lo ? w[j] : lo;
    hi = w[j] > hi ? w[j] : hi;
  }
  if (!a.clip) return choose_scale(a, i, lo, hi);
  return search_scale(a, i, lo, hi, [&](ScaleZero sz) {
    float sums[kPartialSums] = {};
    for (int64_t j = 0; j < length; ++j) {
      const float value = value_of(a.spec, a.values, encode(a, w[j], sz)) - sz.zero;
      const float error = value * sz.scale - w[j];
      sums[j % kPartialSums] +=
          a.importance ? a.importance[first + j] * (error * error) : power_of_square(error * error);
    }
    return total_of(sums);
  });
}

void quantize(const QuantizeArgs& a, int64_t row_begin, int64_t row_end) {
  const WeightSpec& s = a.spec;
  const int64_t g_count = groups(s), bytes = row_bytes(s);
  for (int64_t n = row_begin; n < row_end; ++n) {
    uint8_t* codes = a.codes + n * bytes;
    __builtin_memset(codes, 0, size_t(bytes));
    for (int64_t g = 0; g < g_count; ++g) {
      const float* w = a.w + n * s.k + g * s.group;
      const int64_t length = group_length(s, g), i = n * g_count + g;
      const ScaleZero sz = a.fixed ? ScaleZero{load_scale(s.scale, a.scales, i, {}, i),
                                               load_zero(s.zero, a.zeros, i)}
                                   : scale_of(a, w, g * s.group, length, i);
      for (int64_t j = 0; j < length; ++j)
        put_code(codes, g * s.group + j, s.bits, encode(a, w[j], sz));
    }
  }
}

void dequantize(const DequantizeArgs& a, int64_t row_begin, int64_t row_end) {
  const WeightSpec& s = a.w.spec;
  const int64_t g_count = groups(s);
  for (int64_t n = row_begin; n < row_end; ++n) {
    const uint8_t* codes = a.w.codes + n * row_bytes(s);
    for (int64_t g = 0; g < g_count; ++g) {
      const int64_t i = n * g_count + g;
      const float scale = load_scale(s.scale, a.w.scales, i, a.w.nested, i);
      const float zero = load_zero(s.zero, a.w.zeros, i);
      for (int64_t k = g * s.group, end = k + group_length(s, g); k < end; ++k)
        a.out[n * s.k + k] = (value_of(s, a.w.codebook, get_code(codes, k, s.bits)) - zero) * scale;
    }
  }
}

uint32_t packed_code(const TileGroup& t, int bits, int64_t k, int64_t row) {
  const int64_t chunk = k / kChunk, at = k % kChunk * bits, word = at / 32;
  uint32_t lo, hi = 0;
  const uint8_t* p = t.codes + ((chunk * bits + word) * t.stride + row) * 4;
  __builtin_memcpy(&lo, p, 4);
  if (at % 32 + bits > 32) __builtin_memcpy(&hi, p + t.stride * 4, 4);
  const uint64_t both = uint64_t(hi) << 32 | lo;
  return uint32_t(both >> at % 32) & ((1u << bits) - 1);
}

// value - zero of columns [k0, k0 + count) of one group and 16 rows into panel[count][16].
void decode(const PackedWeight& w, const TileGroup& t, int64_t k0, int64_t count, float* panel) {
  for (int64_t j = 0; j < count; ++j)
    for (int64_t r = 0; r < kTileRows; ++r)
      panel[j * kTileRows + r] =
          value_of(w.spec, w.codebook, packed_code(t, w.spec.bits, k0 + j, r)) -
          load_zero(w.spec.zero, t.zeros, r);
}

void load_scales(const PackedWeight& w, const TileGroup& t, int64_t tile, int64_t g, float* out) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    const int64_t n = tile * kTileRows + r;
    out[r] =
        n < w.spec.n ? load_scale(w.spec.scale, t.scales, r, w.nested, n * groups(w.spec) + g) : 0;
  }
}

void linear(const LinearArgs& a, int64_t tile_begin, int64_t tile_end) {
  const WeightSpec& s = a.w.spec;
  float panel[kSpan * kTileRows], scales[kTileRows];
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const int64_t n0 = tile * kTileRows, rows = min_i64(kTileRows, s.n - n0);
    for (int64_t m = 0; m < a.m; ++m)
      for (int64_t r = 0; r < rows; ++r) a.y[m * s.n + n0 + r] = 0;
    for (int64_t g = 0; g < groups(s); ++g) {
      const TileGroup t = locate(a.w, tile, g);
      load_scales(a.w, t, tile, g, scales);
      for (int64_t k0 = 0, length = group_length(s, g); k0 < length; k0 += kSpan) {
        const int64_t count = min_i64(kSpan, length - k0);
        decode(a.w, t, k0, count, panel);
        for (int64_t m = 0; m < a.m; ++m) {
          const float* x = a.x + m * s.k + g * s.group + k0;
          float sum[kTileRows] = {};
          for (int64_t j = 0; j < count; ++j)
            for (int64_t r = 0; r < kTileRows; ++r) sum[r] += x[j] * panel[j * kTileRows + r];
          for (int64_t r = 0; r < rows; ++r) a.y[m * s.n + n0 + r] += sum[r] * scales[r];
        }
      }
    }
    if (a.bias)
      for (int64_t m = 0; m < a.m; ++m)
        for (int64_t r = 0; r < rows; ++r) a.y[m * s.n + n0 + r] += a.bias[n0 + r];
  }
}

void linear_input_grad(const LinearInputGradArgs& a, int64_t group_begin, int64_t group_end) {
  const WeightSpec& s = a.w.spec;
  float panel[kSpan * kTileRows], scales[kTileRows];
  for (int64_t g = group_begin; g < group_end; ++g) {
    const int64_t length = group_length(s, g);
    for (int64_t m = 0; m < a.m; ++m)
      __builtin_memset(a.dx + m * s.k + g * s.group, 0, size_t(length) * sizeof(float));
    for (int64_t tile = 0; tile < tiles(s); ++tile) {
      const int64_t n0 = tile * kTileRows, rows = min_i64(kTileRows, s.n - n0);
      const TileGroup t = locate(a.w, tile, g);
      load_scales(a.w, t, tile, g, scales);
      for (int64_t k0 = 0; k0 < length; k0 += kSpan) {
        const int64_t count = min_i64(kSpan, length - k0);
        decode(a.w, t, k0, count, panel);
        for (int64_t m = 0; m < a.m; ++m) {
          float* dx = a.dx + m * s.k + g * s.group + k0;
          float scaled[kTileRows] = {};
          for (int64_t r = 0; r < rows; ++r) scaled[r] = a.grad[m * s.n + n0 + r] * scales[r];
          for (int64_t j = 0; j < count; ++j)
            for (int64_t r = 0; r < kTileRows; ++r) dx[j] += scaled[r] * panel[j * kTileRows + r];
        }
      }
    }
  }
}

void softmax_sums(const SoftmaxArgs& a, SoftmaxSums* out) {
  SoftmaxSums s = {kLowest, kLowest, 0, 0, 0, 0};
  for (int64_t i = 0; i < a.n; ++i) {
    const float given = load_logit(a.type, a.x, i), x = given < kLowest ? kLowest : given;
    const float e = exp_of(x - a.shift);
    s.max = x > s.max ? x : s.max;
    s.sum += e;
    s.weighted += e * (x - a.shift);
    if (!a.y) continue;
    const float other = load_logit(a.type, a.y, i), y = other < kLowest ? kLowest : other;
    s.other_max = y > s.other_max ? y : s.other_max;
    s.other_sum += exp_of(y - a.other_shift);
    s.gap += e * (x - y);
  }
  *out = s;
}

// ---- GPTQ ----

void start_group(const SolveArgs& a, const SolveTile& tile, int64_t t) {
  const WeightSpec& s = a.quantize.spec;
  const int64_t g = t / s.group, length = group_length(s, g);
  for (int64_t r = 0; r < tile.rows; ++r) {
    float* w = tile.rows_of_group + r * s.group;
    for (int64_t j = 0; j < length; ++j) w[j] = tile.weights[(t + j) * kSolveRows + r];
    set_scale(a.quantize, tile, g, r,
              scale_of(a.quantize, w, t, length, (tile.row + r) * groups(s) + g));
  }
}

// Rounds one weight, already updated, at one step and returns its error.
float round_step(const SolveArgs& a, const SolveTile& tile, Bounds bounds, int64_t t, int64_t r) {
  const QuantizeArgs& q = a.quantize;
  const int64_t i = tile.groups[t] * kSolveRows + r;
  const float w = tile.weights[t * kSolveRows + r], divisor = tile.divisors[i];
  const float zero = tile.zeros[i], x = q.values ? w * divisor : w / divisor + zero;
  tile.clipped[r] += x > bounds.hi || x < bounds.lo ? 1.0f : 0.0f;
  float value;
  if (q.values) {
    const int rank = rank_of(q.grid, x);
    tile.codes[t * kSolveRows + r] = uint8_t(rank);
    value = q.values[q.grid.codes[rank]];
  } else {
    const uint32_t code = encode(q, w, divisor, zero);
    tile.codes[t * kSolveRows + r] = uint8_t(code);
    value = float(code) - zero;
  }
  return (w - value * tile.scales[i]) / a.diagonal[t];
}

void gptq_solve(const SolveArgs& a, const SolveTile& tile) {
  const WeightSpec& s = a.quantize.spec;
  const Bounds bounds = bounds_of(a.quantize);
  for (int64_t t = 0; t < s.k; ++t) {
    if (!a.quantize.fixed && t % s.group == 0) start_group(a, tile, t);
    float* errors = tile.weights + t * kSolveRows;
    for (int64_t r = 0; r < kSolveRows; ++r) errors[r] = round_step(a, tile, bounds, t, r);
    for (int64_t j = t + 1; j < s.k; ++j) {
      const double u = a.panels[panel_start(j / kPanel) + t * kPanel + j % kPanel];
      float* later = tile.weights + j * kSolveRows;
      // One rounding, as a fused multiply-add has (the product is exact in double).
      for (int64_t r = 0; r < kSolveRows; ++r)
        later[r] = float(double(later[r]) + double(errors[r]) * u);
    }
  }
}

}  // namespace

constinit const Kernels portable_kernels = {"portable",        quantize,     dequantize, linear,
                                            linear_input_grad, softmax_sums, gptq_solve};

}  // namespace calibit
