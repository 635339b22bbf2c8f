#include "core/resample.h"

#include <algorithm>
#include <vector>

#include "core/error.h"

namespace calibit {
namespace {

constexpr std::int64_t kChunkDraws = std::int64_t{1} << 19;  // 2 MiB of indices: one L2 cache

// Draws chunks of resamples one after another (the generator is sequential) and sums each in
// parallel: sum(index of the resample, its draws). The result does not depend on the threads.
template <typename Sum>
void for_each_resample(Pcg64& random, std::int64_t n, std::int64_t resamples, ParallelFor loop,
                       Sum&& sum) {
  const std::int64_t rows =
      std::clamp<std::int64_t>(kChunkDraws / std::max<std::int64_t>(n, 1), 1, resamples);
  std::vector<std::uint32_t> draws(static_cast<std::size_t>(rows * n));
  for (std::int64_t start = 0; start < resamples; start += rows) {
    const std::int64_t count = std::min(rows, resamples - start);
    for (std::int64_t i = 0; i < count * n; ++i)
      draws[static_cast<std::size_t>(i)] = random.below(static_cast<std::uint32_t>(n));
    parallel(loop, count, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r)
        sum(start + r,
            std::span(draws).subspan(static_cast<std::size_t>(r * n), static_cast<std::size_t>(n)));
    });
  }
}

void check(const char* op, std::int64_t n, std::int64_t resamples) {
  require(n >= 1 && n < (std::int64_t{1} << 32), op, "expected 1 to 2^32 - 1 items, got ", n);
  require(resamples >= 0, op, "expected resamples >= 0, got ", resamples);
}

}  // namespace

Pcg64::Pcg64(std::uint64_t state_hi, std::uint64_t state_lo, std::uint64_t inc_hi,
             std::uint64_t inc_lo)
    : state_(Wide{state_hi} << 64 | state_lo), increment_(Wide{inc_hi} << 64 | inc_lo) {}

std::uint64_t Pcg64::next64() {
  constexpr Wide kMultiplier = Wide{0x2360ed051fc65da4} << 64 | 0x4385df649fccf645;
  state_ = state_ * kMultiplier + increment_;
  const auto x = static_cast<std::uint64_t>(state_ >> 64) ^ static_cast<std::uint64_t>(state_);
  const auto rotate = static_cast<unsigned>(state_ >> 122);
  return x >> rotate | x << (-rotate & 63);
}

std::uint32_t Pcg64::next32() {
  if (has_half_) {
    has_half_ = false;
    return half_;
  }
  const std::uint64_t x = next64();
  half_ = static_cast<std::uint32_t>(x >> 32);
  has_half_ = true;
  return static_cast<std::uint32_t>(x);
}

std::uint32_t Pcg64::below(std::uint32_t bound) {
  if (bound == 1) return 0;  // NumPy draws nothing here
  std::uint64_t product = std::uint64_t{next32()} * bound;
  if (static_cast<std::uint32_t>(product) < bound) {
    const std::uint32_t threshold = (0xffffffffu - (bound - 1)) % bound;
    while (static_cast<std::uint32_t>(product) < threshold)
      product = std::uint64_t{next32()} * bound;
  }
  return static_cast<std::uint32_t>(product >> 32);
}

void resampled_sums(Pcg64 random, std::span<const double> units, std::int64_t n, std::int64_t m,
                    std::int64_t resamples, double* out, ParallelFor loop) {
  check("resampled_sums", n, resamples);
  for_each_resample(random, n, resamples, loop,
                    [&](std::int64_t r, std::span<const std::uint32_t> draws) {
                      double* sums = out + r * m;
                      std::fill_n(sums, m, 0.0);
                      for (const std::uint32_t i : draws) {
                        const double* unit = units.data() + static_cast<std::int64_t>(i) * m;
                        for (std::int64_t j = 0; j < m; ++j) sums[j] += unit[j];
                      }
                    });
}

void resampled_bin_sums(Pcg64 random, std::span<const std::int32_t> bin,
                        std::span<const double> first, std::span<const double> second,
                        std::int64_t bins, std::int64_t resamples, double* out, ParallelFor loop) {
  const auto n = static_cast<std::int64_t>(bin.size());
  check("resampled_bin_sums", n, resamples);
  for (const std::int32_t b : bin)
    require(b >= 0 && b < bins, "resampled_bin_sums", "expected bins from 0 to ", bins - 1,
            ", got ", b);
  struct Item {
    double first, second;
    std::int64_t offset;
  };
  std::vector<Item> items(bin.size());
  for (std::size_t i = 0; i < items.size(); ++i)
    items[i] = {first[i], second[i], std::int64_t{bin[i]} * 3};
  for_each_resample(random, n, resamples, loop,
                    [&](std::int64_t r, std::span<const std::uint32_t> draws) {
                      double* sums = out + r * bins * 3;
                      std::fill_n(sums, bins * 3, 0.0);
                      for (const std::uint32_t i : draws) {
                        const Item& item = items[i];
                        double* s = sums + item.offset;
                        s[0] += 1;
                        s[1] += item.first;
                        s[2] += item.second;
                      }
                    });
}

}  // namespace calibit
