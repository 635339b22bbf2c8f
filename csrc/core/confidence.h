#pragma once
// Statistics of softmax(logits) per row in one pass, fed with the whole vocabulary or with one tile
// of it after another: log-sum-exp, maximum, entropy, label, top k, divergence from a second row.
#include <cstdint>

#include "core/kernels.h"
#include "core/parallel.h"

namespace calibit {

// What is known of one row so far, for e = exp(x - shift) over the logits x seen:
struct ConfidenceSums {
  double shift;        // within about 20 of the largest logit
  double sum;          // of e
  double weighted;     // of e (x - shift)
  double gap;          // of e (x - y)
  double max;          // of x; -infinity before the first
  double label;        // the label's logit; NaN until its column has been seen
  double other_shift;  // the same of the second row, y
  double other_sum;
};
constexpr std::int64_t kConfidenceSums = 8;
static_assert(sizeof(ConfidenceSums) == kConfidenceSums * sizeof(double));

struct ConfidenceArgs {
  LogitType type;
  std::int64_t rows, columns;  // of this tile
  const void* logits;          // [rows, columns]
  const void* other;           // [rows, columns] or null
  const std::int64_t* labels;  // [rows] columns of the whole vocabulary, or null; negative: none
  std::int64_t first;          // column of the whole vocabulary at which the tile begins
  std::int64_t top_k;
  ConfidenceSums* sums;       // [rows]
  std::int64_t* argmax;       // [rows] first of equal logits
  float* top_values;          // [rows, top_k] falling; of equal ones the first column first
  std::int64_t* top_indices;  // [rows, top_k]; -1 where fewer than top_k were seen
};

// The state before the first tile.
void confidence_start(const ConfidenceArgs& a);

// Adds a tile. Tiles come in the order of their columns; tiles whose width is a multiple of kRun
// give the same bits as the whole vocabulary at once. A row depends on no other, and not on
// threads.
void confidence_update(const ConfidenceArgs& a, const Kernels& kernels, ParallelFor loop);

}  // namespace calibit
