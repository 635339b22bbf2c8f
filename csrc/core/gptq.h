#pragma once
// GPTQ's column solver. Frantar et al., "GPTQ", arXiv 2210.17323, algorithm 1.
#include <cstdint>

#include "core/kernels.h"
#include "core/parallel.h"

namespace calibit {

// Rounds the columns of W one after another and pushes each column's rounding error into those not
// yet rounded: w[j] -= err * U[t, j] with err = (w - q) / U[t, t].
// `quantize` describes the weight and receives codes, scales and zeros; its scales are inputs when
// `quantize.fixed`, else a group's scale is taken from the updated weights when its first column is
// reached, which needs the natural order.
struct GptqArgs {
  QuantizeArgs quantize;
  const float* u;             // [K, K] upper factor, inv(H) = U^T U, in processing order
  const std::int32_t* order;  // [K] column processed at each step; null = natural order
  std::int32_t* clipped;      // [N] out: weights of a row that were cut off (bounds_of)
};
// Deterministic for any number of threads: rows are independent. Tables with fused multiply-adds
// give equal bits; the portable one differs from them once in about 2^29 sums.
// Throws std::invalid_argument as quantize() does, for an order that is no permutation, for an
// order with scales that are not fixed, for a factor that is not finite or whose diagonal is not
// positive, and when the updated weights overflow.
void gptq_solve(GptqArgs a, const Kernels& kernels, ParallelFor loop);

}  // namespace calibit
