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
  // Choose the share of a group's range by the smallest error (shrink() in scalar.h) instead of
  // taking the whole range; the error is a sum of |error|^2.4, or of importance * error^2.
  bool clip = false;
  const float* importance = nullptr;  // [K] of the columns, or null
};

// GPTQ's column solver on tiles of up to kSolveRows rows of W, one row per lane. Column order[t] is
// rounded at step t; then every later column j loses err[t] * U[t, j], err[t] = (w - q) / U[t, t].
// Per weight: fused multiply-adds in the order of t, so that blocking changes no bit.
constexpr int64_t kSolveRows = 96, kPanel = 8;
struct SolveArgs {
  QuantizeArgs quantize;  // fixed: scales and zeros are inputs; `codes` is not written
  const float* panels;    // -U above the diagonal, kPanel columns at a time, see panel_start()
  const float* diagonal;  // [K] of U
};
struct SolveTile {
  int64_t row, rows;      // rows [row, row + rows)
  float* weights;         // [K][kSolveRows] in processing order: weights in, err out
  uint8_t* codes;         // [K][kSolveRows] out; of a codebook: ranks among its sorted values
  float* clipped;         // [kSolveRows] out: weights beyond their group's bounds_of()
  const int32_t* groups;  // [K] group of the column of each step
  float* scales;          // [G][kSolveRows] as stored, in if fixed, else out; likewise:
  float* divisors;        // divisor_of(scale)
  float* zeros;           // what is subtracted from a code; 0 for codebooks
  float* rows_of_group;   // [kSolveRows][group] scratch; null if fixed
};
// Panel p holds columns [8p, 8p + 8) of rows [0, 8p + 8), row by row.
static inline int64_t panel_start(int64_t panel) {
  return kPanel * kPanel / 2 * panel * (panel + 1);
}

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
  void (*gptq_solve)(const SolveArgs&, const SolveTile&);
};

extern const Kernels portable_kernels, avx2_kernels, avx512_kernels;

}  // namespace calibit
