#pragma once
// The one seam between operations and hardware: a table of functions on plain pointers. Each ISA
// file in csrc/cpu exports exactly one constant table. A null entry falls back to the portable one.
#include <stdint.h>

#include "core/weight.h"

namespace calibit {

enum class LogitType : int32_t { f32, f16, bf16 };

// How a value becomes a code of a codebook: code[number of thresholds below the value].
// thresholds are midpoints of neighbouring sorted values in float32, padded with +infinity; a value
// equal to a midpoint takes the lower neighbour (bitsandbytes' rule).
struct Grid {
  float thresholds[15];
  uint8_t codes[16];
  float largest;  // max |value|
};

// codes, scales, zeros of rows [begin, end) from float weights. Every code byte of the rows is
// written.
struct QuantizeArgs {
  WeightSpec spec;      // scale is f32, f16 or e8m0
  const float* w;       // [N, K]
  const float* values;  // [2^bits] codebook; null: integers
  Grid grid;            // of the codebook
  bool fixed;           // scales and zeros are inputs
  uint8_t* codes;       // [N, row_bytes]
  void* scales;         // [N, G]
  void* zeros;          // [N, G] or null
};

// out[N, K] = dequantized weight: scale * codebook[code], or scale * (code - zero).
struct DequantizeArgs {
  CanonicalWeight w;
  float* out;
};

// y[M, N] = x[M, K] W^T + bias. Per output: for each span of at most kSpan columns within a group,
// a fp32 sum in column order of x * value, then total = total + sum * scale; bias last.
struct LinearArgs {
  PackedWeight w;
  const float* x;
  const float* bias;  // [N] or null
  float* y;
  int64_t m;
};

// dx[M, K] = grad[M, N] W, for columns of groups [begin, end). Sums over n in row order, fp32.
struct LinearInputGradArgs {
  PackedWeight w;
  const float* grad;
  float* dx;
  int64_t m;
};

// Sums over a run of n <= kRun logits of one row, for e = exp(x - shift):
struct SoftmaxSums {
  float max, other_max;
  float sum;        // of e
  float weighted;   // of e (x - shift)
  float gap;        // of e (x - y)
  float other_sum;  // of exp(y - other_shift)
};
// x and y at -infinity have e = 0 and count as nothing, y under a positive e gives a huge gap.
// A NaN or +infinity makes a sum of its side NaN or infinite.
struct SoftmaxArgs {
  LogitType type;
  const void* x;  // [n]
  const void* y;  // [n] or null: gap and the other's fields are 0
  int64_t n;
  float shift, other_shift;  // finite, at most about 20 below the largest value
};
constexpr int64_t kRun = 1024;

struct Kernels {
  const char* name;
  void (*quantize)(const QuantizeArgs&, int64_t row_begin, int64_t row_end);
  void (*dequantize)(const DequantizeArgs&, int64_t row_begin, int64_t row_end);
  void (*linear)(const LinearArgs&, int64_t tile_begin, int64_t tile_end);
  void (*linear_input_grad)(const LinearInputGradArgs&, int64_t group_begin, int64_t group_end);
  void (*softmax_sums)(const SoftmaxArgs&, SoftmaxSums*);
};

extern const Kernels portable_kernels, avx2_kernels, avx512_kernels;

}  // namespace calibit
