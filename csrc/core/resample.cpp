#include "core/resample.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>
#include <vector>

#include "core/error.h"

namespace calibit {
namespace {

constexpr std::int64_t kChunkDraws = std::int64_t{1} << 16;  // 256 KiB of indices per thread
constexpr std::int64_t kWorkers = 1024;                      // more than there are threads

using Draws = std::span<const std::uint32_t>;
using Counts = std::span<const std::uint32_t>;

// work(first row, number of rows, their n draws below `bound` each). The generator is sequential: a
// thread draws a chunk while the others work on theirs. No thread waits for another at the end of a
// chunk, and no result depends on who did it.
template <typename Work>
void for_each_chunk(Pcg64& random, std::int64_t n, std::int64_t bound, std::int64_t resamples,
                    ParallelFor loop, Work&& work) {
  const std::int64_t rows = std::clamp<std::int64_t>(kChunkDraws / std::max<std::int64_t>(n, 1), 1,
                                                     std::max<std::int64_t>(resamples, 1));
  std::mutex drawing;
  std::int64_t next = 0;
  parallel(loop, kWorkers, 1, [&](std::int64_t, std::int64_t) {
    std::vector<std::uint32_t> buffer;
    for (;;) {
      std::int64_t start = 0, count = 0;
      {
        const std::lock_guard lock(drawing);
        start = next;
        count = std::min(rows, resamples - start);
        if (count <= 0) return;
        next += count;
        buffer.resize(static_cast<std::size_t>(count * n));
        random.fill_below(static_cast<std::uint32_t>(bound), buffer);
      }
      work(start, count, Draws(buffer));
    }
  });
}

// sum(index of the resample, how often each unit was drawn).
template <typename Sum>
void for_each_count(Pcg64& random, std::int64_t units, std::int64_t resamples, ParallelFor loop,
                    Sum&& sum) {
  for_each_chunk(random, units, units, resamples, loop,
                 [&](std::int64_t start, std::int64_t rows, Draws draws) {
                   std::vector<std::uint32_t> counts(static_cast<std::size_t>(units));
                   for (std::int64_t r = 0; r < rows; ++r) {
                     std::fill(counts.begin(), counts.end(), 0u);
                     const auto row = static_cast<std::size_t>(r * units);
                     for (const std::uint32_t i : draws.subspan(row, counts.size())) ++counts[i];
                     sum(start + r, Counts(counts));
                   }
                 });
}

// Resamples summed at once: each column is read once for all of them.
constexpr std::size_t kRows = 4;

// sums[r] = sum over i of counts[r][i] * column[i], in two partial sums (even and odd i).
void dots(const std::array<std::vector<double>, kRows>& counts, const double* column,
          std::array<double, kRows>& sums) {
  const std::size_t n = counts[0].size();
  std::array<double, kRows> even{}, odd{};
  for (std::size_t i = 0; i + 1 < n; i += 2)
    for (std::size_t r = 0; r < kRows; ++r) {
      even[r] += counts[r][i] * column[i];
      odd[r] += counts[r][i + 1] * column[i + 1];
    }
  for (std::size_t r = 0; r < kRows; ++r) {
    if (n % 2) even[r] += counts[r][n - 1] * column[n - 1];
    sums[r] = even[r] + odd[r];
  }
}

void check(const char* op, std::int64_t n, std::int64_t resamples) {
  require(n >= 1 && n < (std::int64_t{1} << 32), op, "expected 1 to 2^32 - 1 items, got ", n);
  require(resamples >= 0, op, "expected resamples >= 0, got ", resamples);
}

void check_items(const char* op, const OrderedItems& items, std::int64_t resamples) {
  check(op, items.units, resamples);
  for (const std::int32_t u : items.unit)
    require(u >= 0 && u < items.units, op, "expected units from 0 to ", items.units - 1, ", got ",
            u);
}

void check_groups(const char* op, std::int64_t units, const Groups& groups, std::int64_t rows) {
  check(op, units, rows);
  const auto entries = static_cast<std::int64_t>(groups.unit.size());
  require(!groups.offsets.empty() && groups.offsets.front() == 0 &&
              groups.offsets.back() == entries &&
              std::is_sorted(groups.offsets.begin(), groups.offsets.end()),
          op, "expected ascending offsets from 0 to ", entries);
  for (const std::int32_t u : groups.unit)
    require(u >= 0 && u < units, op, "expected units from 0 to ", units - 1, ", got ", u);
}

// Exchanges a place with one of those from it on, chosen by a word of 32 bits.
void exchange(std::vector<double>& values, std::int64_t place, std::uint64_t word) {
  const auto at = static_cast<std::size_t>(place);
  const std::uint64_t left = values.size() - at;
  std::swap(values[at], values[at + static_cast<std::size_t>(word * left >> 32)]);
}

// Most items that a resample can hold: every draw the largest unit.
std::int64_t most_items(const OrderedItems& items) {
  std::vector<std::int64_t> size(static_cast<std::size_t>(items.units));
  for (const std::int32_t u : items.unit) ++size[static_cast<std::size_t>(u)];
  return items.units * *std::max_element(size.begin(), size.end());
}

// Count and sums of a bin while its items pass by.
struct BinSums {
  double count = 0, first = 0, second = 0;
  void add(double times, double a, double b) {
    count += times;
    first += times * a;
    second += times * b;
  }
  void add(const BinSums& other) {
    count += other.count;
    first += other.first;
    second += other.second;
  }
  void write(double* out) const {
    out[0] = count;
    out[1] = first;
    out[2] = second;
  }
};

void fixed_bins(const BinnedItems& model, Counts counts, double* row) {
  std::size_t p = 0;
  for (const std::int32_t stop : model.end) {
    // Four partial sums: an addition need not wait for the one before.
    std::array<BinSums, 4> parts{};
    const auto last = static_cast<std::size_t>(stop);
    const auto add = [&](BinSums& part, std::size_t at) {
      part.add(counts[static_cast<std::size_t>(model.unit[at])], model.first[at], model.second[at]);
    };
    for (; p + parts.size() <= last; p += parts.size())
      for (std::size_t k = 0; k < parts.size(); ++k) add(parts[k], p + k);
    for (; p < last; ++p) add(parts[0], p);
    for (std::size_t k = 1; k < parts.size(); ++k) parts[0].add(parts[k]);
    parts[0].write(row);
    row += 3;
  }
}

void mass_bins(const BinnedItems& model, Counts counts, std::int64_t bins, double* row) {
  std::fill_n(row, bins * 3, 0.0);
  std::int64_t total = 0;
  for (const std::int32_t u : model.unit) total += counts[static_cast<std::size_t>(u)];
  const std::int64_t parts = std::min(bins, total);
  if (parts == 0) return;
  std::int64_t part = 0, seen = 0, wanted = 0;
  const auto next = [&] { wanted += total / parts + (part < total % parts ? 1 : 0); };
  next();
  BinSums bin;
  for (std::size_t p = 0; p < model.unit.size(); ++p) {
    const std::uint32_t times = counts[static_cast<std::size_t>(model.unit[p])];
    bin.add(times, model.first[p], model.second[p]);
    seen += times;
    if (!model.last[p] || seen < wanted) continue;
    bin.write(row + part * 3);
    bin = {};
    while (seen >= wanted && ++part < parts) next();
    if (part == parts) break;
  }
}

struct Ranking {
  double auroc, aurc, excess;
};

// harmonic[j] = 1 + 1/2 + ... + 1/j.
Ranking ranking_of(const OrderedItems& items, Counts counts, std::span<const double> correct,
                   std::span<const std::uint8_t> last, const std::vector<double>& harmonic) {
  const auto h = [&](double j) { return harmonic[static_cast<std::size_t>(j)]; };
  double seen = 0, wrong = 0, right = 0, area = 0;
  double right_above = 0, wrong_tied = 0, won = 0;
  for (std::size_t p = 0; p < items.unit.size(); ++p) {
    const double times = counts[static_cast<std::size_t>(items.unit[p])];
    if (times != 0) {
      // Prefixes seen+1 .. seen+times end inside the copies of this item: the sum of their risks.
      const double miss = 1 - correct[p];
      area += (wrong - miss * seen) * (h(seen + times) - h(seen)) + miss * times;
      seen += times;
      wrong += miss * times;
      right += correct[p] * times;
      wrong_tied += miss * times;
    }
    if (last[p]) {
      won += wrong_tied * (right_above + right) / 2;  // mean of right above with and without ties
      right_above = right;
      wrong_tied = 0;
    }
  }
  // Best order: mean over j of max(0, j - right) / j.
  const double best = (seen - right - right * (h(seen) - h(right))) / seen;
  const double pairs = right * wrong;
  return {pairs > 0 ? won / pairs : std::numeric_limits<double>::quiet_NaN(), area / seen,
          area / seen - best};
}

}  // namespace

void resampled_counts(Pcg64& random, std::int64_t units, std::int64_t rows, double* counts,
                      ParallelFor loop) {
  check("resampled_counts", units, rows);
  for_each_chunk(random, units, units, rows, loop,
                 [&](std::int64_t start, std::int64_t chunk, Draws draws) {
                   std::fill_n(counts + start * units, chunk * units, 0.0);
                   const std::uint32_t* draw = draws.data();
                   for (std::int64_t r = start; r < start + chunk; ++r)
                     for (std::int64_t i = 0; i < units; ++i) counts[r * units + *draw++] += 1;
                 });
}

void resampled_sums(Pcg64 random, std::span<const double> units, std::int64_t n, std::int64_t m,
                    std::int64_t resamples, double* out, ParallelFor loop) {
  check("resampled_sums", n, resamples);
  std::vector<double> columns(units.size());
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < m; ++j)
      columns[static_cast<std::size_t>(j * n + i)] = units[static_cast<std::size_t>(i * m + j)];
  for_each_chunk(
      random, n, n, resamples, loop, [&](std::int64_t start, std::int64_t rows, Draws draws) {
        std::array<std::vector<double>, kRows> counts;
        for (std::int64_t r = 0; r < rows; r += std::int64_t{kRows}) {
          const std::int64_t used = std::min<std::int64_t>(kRows, rows - r);
          for (std::size_t k = 0; k < kRows; ++k) {
            counts[k].assign(static_cast<std::size_t>(n), 0.0);
            if (static_cast<std::int64_t>(k) >= used) continue;
            const auto row = static_cast<std::size_t>((r + static_cast<std::int64_t>(k)) * n);
            for (const std::uint32_t i : draws.subspan(row, counts[k].size())) counts[k][i] += 1;
          }
          std::array<double, kRows> sums{};
          for (std::int64_t j = 0; j < m; ++j) {
            dots(counts, columns.data() + j * n, sums);
            for (std::int64_t k = 0; k < used; ++k)
              out[(start + r + k) * m + j] = sums[static_cast<std::size_t>(k)];
          }
        }
      });
}

void resampled_bin_sums(Pcg64 random, std::int64_t units, std::span<const BinnedItems> models,
                        std::int64_t bins, std::int64_t resamples, double* out, ParallelFor loop) {
  const char* op = "resampled_bin_sums";
  require(bins >= 1, op, "expected bins >= 1, got ", bins);
  for (const BinnedItems& model : models) {
    check_items(op, {units, model.unit}, resamples);
    const auto n = static_cast<std::int64_t>(model.unit.size());
    const auto& end = model.end;
    require(end.empty() || (static_cast<std::int64_t>(end.size()) == bins && end.back() == n &&
                            end.front() >= 0 && std::is_sorted(end.begin(), end.end())),
            op, "expected ascending ends of ", bins, " bins from 0 to ", n);
  }
  for_each_count(random, units, resamples, loop, [&](std::int64_t r, Counts counts) {
    for (std::size_t m = 0; m < models.size(); ++m) {
      double* row = out + (static_cast<std::int64_t>(m) * resamples + r) * bins * 3;
      if (models[m].end.empty())
        mass_bins(models[m], counts, bins, row);
      else
        fixed_bins(models[m], counts, row);
    }
  });
}

void resampled_ranking(Pcg64 random, const OrderedItems& items, std::span<const double> correct,
                       std::span<const std::uint8_t> last, std::int64_t resamples, double* out,
                       ParallelFor loop) {
  check_items("resampled_ranking", items, resamples);
  std::vector<double> harmonic(static_cast<std::size_t>(most_items(items)) + 1);
  for (std::size_t j = 1; j < harmonic.size(); ++j)
    harmonic[j] = harmonic[j - 1] + 1.0 / static_cast<double>(j);
  for_each_count(random, items.units, resamples, loop, [&](std::int64_t r, Counts counts) {
    const Ranking found = ranking_of(items, counts, correct, last, harmonic);
    out[r * 3] = found.auroc;
    out[r * 3 + 1] = found.aurc;
    out[r * 3 + 2] = found.excess;
  });
}

void resampled_prefix_sums(Pcg64 random, const OrderedItems& items, std::span<const double> values,
                           double share, std::int64_t resamples, double* out, ParallelFor loop) {
  check_items("resampled_prefix_sums", items, resamples);
  for_each_count(random, items.units, resamples, loop, [&](std::int64_t r, Counts counts) {
    double total = 0, held = 0;
    for (const std::int32_t u : items.unit) held += counts[static_cast<std::size_t>(u)];
    double left = std::ceil(share * held - 1e-9), prefix = 0;
    for (std::size_t p = 0; p < items.unit.size(); ++p) {
      const double times = counts[static_cast<std::size_t>(items.unit[p])];
      const double taken = std::min(times, left);
      left -= taken;
      prefix += taken * values[p];
      total += times * values[p];
    }
    out[r * 2] = prefix;
    out[r * 2 + 1] = total;
  });
}

void resampled_group_sums(Pcg64 random, std::int64_t units, const Groups& groups,
                          std::int64_t resamples, double* out, ParallelFor loop) {
  check_groups("resampled_group_sums", units, groups, resamples);
  const std::size_t size = groups.offsets.size() - 1;
  for_each_count(random, units, resamples, loop, [&](std::int64_t r, Counts counts) {
    double* row = out + r * static_cast<std::int64_t>(size) * 3;
    for (std::size_t s = 0; s < size; ++s) {
      double count = 0, sum = 0, square = 0;
      for (auto e = groups.offsets[s]; e < groups.offsets[s + 1]; ++e) {
        const auto at = static_cast<std::size_t>(e);
        const double times = counts[static_cast<std::size_t>(groups.unit[at])];
        const double part = times * groups.value[at];
        count += times;
        sum += part;
        square += part * groups.value[at];
      }
      row[s * 3] = count;
      row[s * 3 + 1] = sum;
      row[s * 3 + 2] = square;
    }
  });
}

void signed_group_sums(Pcg64 random, std::int64_t units, const Groups& groups, std::int64_t rows,
                       double* out, ParallelFor loop) {
  check_groups("signed_group_sums", units, groups, rows);
  const std::size_t size = groups.offsets.size() - 1;
  // A chunk holds `units` draws below 2 per row, as a resample holds `units` draws below `units`.
  for_each_chunk(
      random, units, 2, rows, loop, [&](std::int64_t start, std::int64_t chunk, Draws draws) {
        std::vector<double> signs(static_cast<std::size_t>(units));
        for (std::int64_t r = 0; r < chunk; ++r) {
          const Draws bits = draws.subspan(static_cast<std::size_t>(r * units), signs.size());
          for (std::size_t i = 0; i < signs.size(); ++i) signs[i] = bits[i] ? 1.0 : -1.0;
          double* row = out + (start + r) * static_cast<std::int64_t>(size);
          for (std::size_t s = 0; s < size; ++s) {
            double sum = 0;
            for (auto e = groups.offsets[s]; e < groups.offsets[s + 1]; ++e) {
              const auto at = static_cast<std::size_t>(e);
              sum += signs[static_cast<std::size_t>(groups.unit[at])] * groups.value[at];
            }
            row[s] = sum;
          }
        }
      });
}

void permuted_group_sums(Pcg64 random, std::span<const double> values, const Groups& groups,
                         std::int64_t rows, double* out, ParallelFor loop) {
  const auto n = static_cast<std::int64_t>(values.size());
  check_groups("permuted_group_sums", n, groups, rows);
  const std::size_t size = groups.offsets.size() - 1;
  const auto outputs = static_cast<std::uint64_t>((n + 1) / 2);  // 64-bit outputs per row
  parallel(loop, rows, 1, [&](std::int64_t begin, std::int64_t end) {
    Pcg64 own = random;
    own.skip(static_cast<std::uint64_t>(begin) * outputs);
    std::vector<double> shuffled(values.size());
    for (std::int64_t r = begin; r < end; ++r) {
      std::copy(values.begin(), values.end(), shuffled.begin());
      for (std::int64_t place = 0; place < n; place += 2) {
        const std::uint64_t x = own.next64();
        exchange(shuffled, place, x & 0xffffffffu);
        if (place + 1 < n) exchange(shuffled, place + 1, x >> 32);
      }
      double* row = out + r * static_cast<std::int64_t>(size) * 2;
      for (std::size_t s = 0; s < size; ++s) {
        double sum = 0, square = 0;
        for (auto e = groups.offsets[s]; e < groups.offsets[s + 1]; ++e) {
          const double value =
              shuffled[static_cast<std::size_t>(groups.unit[static_cast<std::size_t>(e)])];
          sum += value;
          square += value * value;
        }
        row[s * 2] = sum;
        row[s * 2 + 1] = square;
      }
    }
  });
}

}  // namespace calibit
