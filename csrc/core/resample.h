#pragma once
// Bootstrap resamples of weighted sums. The draws are those of NumPy's
// default_rng(seed).integers(0, N, (resamples, N)), so that results can be checked against NumPy.
#include <cstdint>
#include <span>

#include "core/parallel.h"

namespace calibit {

// PCG64 (O'Neill, "PCG", 2014; XSL-RR output of a 128-bit congruential generator) with NumPy's
// order of 32-bit halves and its bounded draws (Lemire, "Fast random integer generation", 2019).
class Pcg64 {
 public:
  // State and increment as in numpy.random.PCG64(seed).state, high and low words.
  Pcg64(std::uint64_t state_hi, std::uint64_t state_lo, std::uint64_t inc_hi, std::uint64_t inc_lo);
  std::uint64_t next64();
  std::uint32_t next32();
  std::uint32_t below(std::uint32_t bound);  // uniform in [0, bound), bound >= 1

 private:
  using Wide = unsigned __int128;
  Wide state_, increment_;
  std::uint32_t half_ = 0;
  bool has_half_ = false;
};

// out[r, j] = sum over the N draws i of resample r of units[i, j]. units [N, m], out [resamples,
// m].
void resampled_sums(Pcg64 random, std::span<const double> units, std::int64_t n, std::int64_t m,
                    std::int64_t resamples, double* out, ParallelFor loop);

// out[r, b] = (count, sum of first, sum of second) of the drawn items in bin b; out [resamples,
// bins, 3].
void resampled_bin_sums(Pcg64 random, std::span<const std::int32_t> bin,
                        std::span<const double> first, std::span<const double> second,
                        std::int64_t bins, std::int64_t resamples, double* out, ParallelFor loop);

}  // namespace calibit
