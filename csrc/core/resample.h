#pragma once
// Statistics of bootstrap resamples. Every resample draws `units` units with replacement, the draws
// of NumPy's default_rng(seed).integers(0, units, (resamples, units)). No result depends on the
// number of threads.
#include <cstdint>
#include <span>

#include "core/parallel.h"
#include "core/random.h"

namespace calibit {

// N items in an order of their own (by confidence). Item p is drawn as often as its unit: units are
// the items themselves, or clusters of items that are drawn whole.
struct OrderedItems {
  std::int64_t units;
  std::span<const std::int32_t> unit;  // [N], 0..units-1
};

// counts[r, i]: how often unit i occurs in the next `rows` resamples; float64 [rows, units].
void resampled_counts(Pcg64& random, std::int64_t units, std::int64_t rows, double* counts,
                      ParallelFor loop);

// out[r, j] = sum over the N draws i of resample r of units[i, j]. units [N, m], out [resamples,
// m].
void resampled_sums(Pcg64 random, std::span<const double> units, std::int64_t n, std::int64_t m,
                    std::int64_t resamples, double* out, ParallelFor loop);

// The items of one model in order of confidence, to be binned.
struct BinnedItems {
  std::span<const std::int32_t> unit;     // [N]
  std::span<const double> first, second;  // [N], what is summed
  std::span<const std::int32_t> end;      // [bins], bin b ends before position end[b], or
  std::span<const std::uint8_t> last;     // [N], 1 at the last position of a tie
};

// out[m, r, b] = (count, sum of first, sum of second) over the items of bin b of model m, the same
// draws for all models; out [models, resamples, bins, 3]. Bins are those of `end` (ascending, the
// last one N). Where that is empty they have equal mass and are cut anew on every resample: parts
// as equal as possible, the first ones larger, items of one tie together.
void resampled_bin_sums(Pcg64 random, std::int64_t units, std::span<const BinnedItems> models,
                        std::int64_t bins, std::int64_t resamples, double* out, ParallelFor loop);

// Items by falling confidence. out[r] = (AUROC with half ties, AURC, AURC in excess of the best
// order); AUROC is NaN where a resample holds one class only. out [resamples, 3].
void resampled_ranking(Pcg64 random, const OrderedItems& items, std::span<const double> correct,
                       std::span<const std::uint8_t> last, std::int64_t resamples, double* out,
                       ParallelFor loop);

// out[r] = (sum of values over the first ceil(share * n) of the n copies that the resample holds,
// in the order of the items, sum over all); out [resamples, 2].
void resampled_prefix_sums(Pcg64 random, const OrderedItems& items, std::span<const double> values,
                           double share, std::int64_t resamples, double* out, ParallelFor loop);

// S groups of entries, which may overlap: entry e of group s (offsets[s] <= e < offsets[s + 1]) is
// the value of one item in that group.
struct Groups {
  std::span<const std::int64_t> offsets;  // [S + 1]
  std::span<const std::int32_t> unit;     // [E], the unit that the entry's item is drawn with
  std::span<const double> value;          // [E]
};

// out[r, s] = (count, sum, sum of squares) of the group's values; out [resamples, S, 3].
void resampled_group_sums(Pcg64 random, std::int64_t units, const Groups& groups,
                          std::int64_t resamples, double* out, ParallelFor loop);

// out[r, s] = sum of the group's values under random signs, one a unit, the draws of integers(0, 2,
// (rows, units)) * 2 - 1; out [rows, S].
void signed_group_sums(Pcg64 random, std::int64_t units, const Groups& groups, std::int64_t rows,
                       double* out, ParallelFor loop);

// out[r, s] = (sum, sum of squares) of what the places of a group (its `unit`) hold after a random
// permutation of values [n] (Fisher and Yates; one word of 32 bits a place, so that its
// probabilities are off by less than n / 2^32); out [rows, S, 2].
void permuted_group_sums(Pcg64 random, std::span<const double> values, const Groups& groups,
                         std::int64_t rows, double* out, ParallelFor loop);

}  // namespace calibit
