// Draws against NumPy's printed states, bulk draws against single ones, resampled statistics
// against their definitions, one thread against several.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "core/resample.h"

using namespace calibit;

namespace {

// default_rng(20261121): the generator of golden vector V1 and its first logits x 1e4.
Pcg64 v1() {
  return {0xd96f88b667ff1a22, 0x93d4edf908674f02, 0xbcb63441b56f8735, 0xc158d79478c77ef3};
}

// default_rng(0).
Pcg64 seed0() {
  return {0x1aa1b5345996452d, 0x09585eb7a69561e3, 0x418ddadb3af71a82, 0x588133bc447873a9};
}

double real(Pcg64& g) { return static_cast<double>(g.next64() >> 11) * 0x1p-53; }

// Ranges of a loop on threads of their own.
void threads_for(std::int64_t n, std::int64_t, LoopBody body, void* context) {
  std::vector<std::thread> threads;
  for (std::int64_t t = 0; t < 3; ++t)
    threads.emplace_back([=] { body(context, n * t / 3, n * (t + 1) / 3); });
  for (std::thread& thread : threads) thread.join();
}

void test_reals_are_those_of_numpy() {
  Pcg64 g = v1();
  const int expected[] = {38224, 57952, 46654, 57718};
  for (const int e : expected) CHECK(static_cast<int>(std::floor(60000 * real(g))) == e);
}

void test_skip_equals_single_steps() {
  for (const std::uint64_t steps : {0u, 1u, 2u, 3u, 7u, 64u, 1000u, 12345u}) {
    Pcg64 one = v1(), many = v1();
    for (std::uint64_t i = 0; i < steps; ++i) one.next64();
    many.skip(steps);
    CHECK(one.next64() == many.next64());
  }
}

// Bounds with few and with many rejected words; sizes around the lanes; an odd word left over.
void test_bulk_draws_equal_single_draws() {
  for (const std::uint32_t bound : {1u, 2u, 3u, 800u, 10000u, 1u << 31, 3000000000u})
    for (const std::size_t size : {0u, 1u, 7u, 8u, 9u, 15u, 16u, 17u, 33u, 1000u})
      for (const int before : {0, 1, 2}) {
        Pcg64 single = v1(), bulk = v1();
        for (int i = 0; i < before; ++i) {
          single.below(1000);
          bulk.below(1000);
        }
        std::vector<std::uint32_t> wanted(size), got(size);
        for (auto& x : wanted) x = single.below(bound);
        bulk.fill_below(bound, got);
        CHECK(got == wanted);
        CHECK(single.next32() == bulk.next32());
      }
}

struct Problem {
  std::int64_t n = 37, resamples = 50;
  std::vector<double> c, r;
  std::vector<std::uint8_t> last;
  std::vector<std::int32_t> unit;
  std::vector<std::vector<std::uint32_t>> counts;  // of every resample, by unit

  explicit Problem(std::int64_t units) : unit(37) {
    Pcg64 g = v1();
    for (std::int64_t i = 0; i < n; ++i) {
      c.push_back(std::round(real(g) * 12) / 12);  // with ties
      r.push_back(real(g) < 0.6 ? 1 : 0);
      unit[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i % units);
    }
    std::sort(c.begin(), c.end());
    for (std::size_t i = 0; i < c.size(); ++i)
      last.push_back(i + 1 == c.size() || c[i] != c[i + 1]);
    Pcg64 draws = seed0();
    for (std::int64_t b = 0; b < resamples; ++b) {
      counts.emplace_back(static_cast<std::size_t>(units));
      for (std::int64_t i = 0; i < units; ++i)
        ++counts.back()[draws.below(static_cast<std::uint32_t>(units))];
    }
  }
  OrderedItems items() const { return {static_cast<std::int64_t>(counts[0].size()), unit}; }
  double times(std::size_t b, std::size_t p) const {
    return counts[b][static_cast<std::size_t>(unit[p])];
  }
};

bool close(double a, double b) { return std::abs(a - b) <= 1e-12 * (1 + std::abs(b)); }

void test_sums_are_sums_of_drawn_items() {
  const Problem p(37);
  const std::int64_t m = 2;
  std::vector<double> units, out(static_cast<std::size_t>(p.resamples * m));
  for (std::size_t i = 0; i < p.c.size(); ++i) units.insert(units.end(), {p.c[i], p.r[i]});
  resampled_sums(seed0(), units, p.n, m, p.resamples, out.data(), serial_for);
  for (std::size_t b = 0; b < p.counts.size(); ++b) {
    double c = 0, r = 0;
    for (std::size_t i = 0; i < p.c.size(); ++i) {
      c += p.counts[b][i] * p.c[i];
      r += p.counts[b][i] * p.r[i];
    }
    CHECK(close(out[b * 2], c) && out[b * 2 + 1] == r);
  }
}

// Definition of the mass rule on the drawn values themselves: the parts of the sorted values, edges
// half way between them, each value in the first part whose edge it does not exceed.
std::vector<double> mass_bins(std::vector<double> values, std::int64_t bins) {
  const auto n = static_cast<std::int64_t>(values.size());
  const std::int64_t parts = std::min(bins, n);
  std::vector<double> edges;
  std::int64_t at = 0;
  for (std::int64_t i = 0; i + 1 < parts; ++i) {
    at += n / parts + (i < n % parts ? 1 : 0);
    edges.push_back(
        (values[static_cast<std::size_t>(at - 1)] + values[static_cast<std::size_t>(at)]) / 2);
  }
  std::vector<double> counts(static_cast<std::size_t>(bins));
  for (const double v : values)
    counts[static_cast<std::size_t>(std::lower_bound(edges.begin(), edges.end(), v) -
                                    edges.begin())] += 1;
  return counts;
}

void test_fixed_bins_hold_the_copies_of_their_items() {
  const Problem p(37);
  const std::vector<std::int32_t> end{0, 9, 9, 30, 37};
  std::vector<double> out(static_cast<std::size_t>(p.resamples) * end.size() * 3);
  const BinnedItems model{p.unit, p.c, p.r, end, {}};
  resampled_bin_sums(seed0(), 37, {&model, 1}, 5, p.resamples, out.data(), serial_for);
  for (std::size_t b = 0; b < p.counts.size(); ++b)
    for (std::size_t i = 0; i < end.size(); ++i) {
      double n = 0, c = 0, r = 0;
      for (std::int32_t at = i ? end[i - 1] : 0; at < end[i]; ++at) {
        const auto q = static_cast<std::size_t>(at);
        n += p.times(b, q);
        c += p.times(b, q) * p.c[q];
        r += p.times(b, q) * p.r[q];
      }
      const double* bin = &out[(b * end.size() + i) * 3];
      CHECK(bin[0] == n && close(bin[1], c) && bin[2] == r);
    }
}

void test_bins_of_equal_mass_move_with_every_resample(std::int64_t units, std::int64_t bins) {
  const Problem p(units);
  std::vector<double> out(static_cast<std::size_t>(p.resamples * bins * 3));
  const BinnedItems model{p.unit, p.c, p.r, {}, p.last};
  resampled_bin_sums(seed0(), units, {&model, 1}, bins, p.resamples, out.data(), serial_for);
  for (std::size_t b = 0; b < p.counts.size(); ++b) {
    std::vector<double> values;
    double c = 0, r = 0;
    for (std::size_t i = 0; i < p.c.size(); ++i) {
      values.insert(values.end(), static_cast<std::size_t>(p.times(b, i)), p.c[i]);
      c += p.times(b, i) * p.c[i];
      r += p.times(b, i) * p.r[i];
    }
    std::vector<double> wanted = mass_bins(values, bins), got;
    double c_sum = 0, r_sum = 0;
    for (std::int64_t i = 0; i < bins; ++i) {
      const double* bin =
          &out[(b * static_cast<std::size_t>(bins) + static_cast<std::size_t>(i)) * 3];
      got.push_back(bin[0]);
      c_sum += bin[1];
      r_sum += bin[2];
    }
    std::sort(got.begin(),
              got.end());  // where a tie fills two parts, which of them is empty is free
    std::sort(wanted.begin(), wanted.end());
    CHECK(got == wanted);
    CHECK(close(c_sum, c) && close(r_sum, r));
  }
}

void test_ranking_is_that_of_all_pairs_and_prefixes(std::int64_t units) {
  Problem p(units);
  std::reverse(p.c.begin(), p.c.end());
  for (std::size_t i = 0; i < p.c.size(); ++i)
    p.last[i] = i + 1 == p.c.size() || p.c[i] != p.c[i + 1];
  std::vector<double> out(static_cast<std::size_t>(p.resamples * 3));
  resampled_ranking(seed0(), p.items(), p.r, p.last, p.resamples, out.data(), serial_for);
  for (std::size_t b = 0; b < p.counts.size(); ++b) {
    std::vector<double> c, r;
    for (std::size_t i = 0; i < p.c.size(); ++i)
      for (double t = 0; t < p.times(b, i); ++t) {
        c.push_back(p.c[i]);
        r.push_back(p.r[i]);
      }
    double won = 0, pairs = 0, area = 0, best = 0, wrong = 0;
    const double right = std::accumulate(r.begin(), r.end(), 0.0);
    for (std::size_t i = 0; i < c.size(); ++i) {
      for (std::size_t j = 0; j < c.size(); ++j)
        if (r[i] == 1 && r[j] == 0) {
          won += c[i] > c[j] ? 1 : c[i] == c[j] ? 0.5 : 0;
          pairs += 1;
        }
      const auto prefix = static_cast<double>(i + 1);
      wrong += 1 - r[i];
      area += wrong / prefix;
      best += std::max(0.0, prefix - right) / prefix;
    }
    const auto n = static_cast<double>(c.size());
    CHECK(close(out[b * 3], won / pairs) && close(out[b * 3 + 1], area / n));
    CHECK(close(out[b * 3 + 2], (area - best) / n));
  }
}

void test_prefixes_end_between_copies(std::int64_t units) {
  const Problem p(units);
  std::vector<double> out(static_cast<std::size_t>(p.resamples * 2));
  resampled_prefix_sums(seed0(), p.items(), p.c, 0.2, p.resamples, out.data(), serial_for);
  for (std::size_t b = 0; b < p.counts.size(); ++b) {
    std::vector<double> values;
    for (std::size_t i = 0; i < p.c.size(); ++i)
      values.insert(values.end(), static_cast<std::size_t>(p.times(b, i)), p.c[i]);
    const auto kept = (values.size() + 4) / 5;  // ceil(n / 5)
    const auto end = values.begin() + static_cast<std::ptrdiff_t>(kept);
    CHECK(close(out[b * 2], std::accumulate(values.begin(), end, 0.0)));
    CHECK(close(out[b * 2 + 1], std::accumulate(values.begin(), values.end(), 0.0)));
  }
}

void test_one_class_has_no_auroc() {
  const std::int32_t unit[] = {0, 1};
  const double right[] = {1, 1};
  const std::uint8_t last[] = {1, 1};
  double out[3];
  resampled_ranking(seed0(), {2, unit}, right, last, 1, out, serial_for);
  CHECK(std::isnan(out[0]) && out[1] == 0 && out[2] == 0);
}

struct GroupProblem {
  std::vector<std::int64_t> offsets{0, 3, 3, 8};  // the second group is empty
  std::vector<std::int32_t> unit{0, 4, 7, 1, 2, 3, 4, 9};
  std::vector<double> value{0.5, -1, 2, 3, 0.25, -4, 1, 8};
  Groups groups() const { return {offsets, unit, value}; }
};

void test_group_sums_under_counts_signs_and_permutations() {
  const GroupProblem p;
  const std::int64_t n = 10, rows = 40;
  std::vector<double> sums(rows * 9), signs(rows * 3), moved(rows * 6);
  resampled_group_sums(seed0(), n, p.groups(), rows, sums.data(), serial_for);
  signed_group_sums(seed0(), n, p.groups(), rows, signs.data(), serial_for);
  Pcg64 draws = seed0(), bits = seed0();
  for (std::size_t b = 0; b < rows; ++b) {
    std::vector<double> count(n), sign(n);
    for (int i = 0; i < n; ++i) count[draws.below(n)] += 1;
    for (double& s : sign) s = bits.below(2) ? 1 : -1;
    for (std::size_t s = 0; s < 3; ++s) {
      double c = 0, sum = 0, square = 0, flipped = 0;
      for (auto e = p.offsets[s]; e < p.offsets[s + 1]; ++e) {
        const auto at = static_cast<std::size_t>(e), u = static_cast<std::size_t>(p.unit[at]);
        c += count[u];
        sum += count[u] * p.value[at];
        square += count[u] * p.value[at] * p.value[at];
        flipped += sign[u] * p.value[at];
      }
      const double* row = &sums[(b * 3 + s) * 3];
      CHECK(row[0] == c && close(row[1], sum) && close(row[2], square));
      CHECK(close(signs[b * 3 + s], flipped));
    }
  }
  std::vector<double> values(n);
  std::iota(values.begin(), values.end(), 1.0);
  permuted_group_sums(seed0(), values, p.groups(), rows, moved.data(), serial_for);
  double total = 0;
  for (std::size_t b = 0; b < rows; ++b) {
    // Three different values of 1..10.
    CHECK(moved[b * 6] >= 6 && moved[b * 6] <= 27 && moved[b * 6 + 2] == 0);
    total += moved[b * 6];
  }
  // Mean 3 * 5.5, sd of one sum 3 sqrt(8.25 * 7 / 9 / 3): 4 standard errors of 40 are 2.8.
  CHECK(std::abs(total / rows - 16.5) < 2.8);
}

void test_permutations_are_uniform() {
  // 24,000 permutations of 3 values: each of the 6 orders 4,000 times, sd 58.
  const std::vector<std::int64_t> offsets{0, 1, 2, 3};
  const std::vector<std::int32_t> unit{0, 1, 2};
  const std::vector<double> none(3), values{0, 1, 2};
  const std::int64_t rows = 24000;
  std::vector<double> out(rows * 6);
  permuted_group_sums(seed0(), values, {offsets, unit, none}, rows, out.data(), serial_for);
  std::vector<int> seen(27);
  for (std::size_t b = 0; b < rows; ++b)
    ++seen[static_cast<std::size_t>(9 * out[b * 6] + 3 * out[b * 6 + 2] + out[b * 6 + 4])];
  int orders = 0;
  for (const int count : seen) {
    if (count == 0) continue;
    ++orders;
    CHECK(std::abs(count - 4000) < 5 * 58);
  }
  CHECK(orders == 6);
}

void test_threads_change_no_bit() {
  const Problem p(37);
  const std::int64_t many = 9000;  // several chunks
  const std::vector<std::int32_t> end{5, 5, 20, 37};
  const GroupProblem g;
  const auto both = [&](std::size_t width, auto&& run) {
    std::vector<double> one(static_cast<std::size_t>(many) * width), three(one);
    run(one.data(), &serial_for);
    run(three.data(), &threads_for);
    CHECK(std::memcmp(one.data(), three.data(), one.size() * sizeof(double)) == 0);
  };
  both(1,
       [&](double* to, ParallelFor loop) { resampled_sums(seed0(), p.c, p.n, 1, many, to, loop); });
  const BinnedItems models[] = {{p.unit, p.c, p.r, end, {}}, {p.unit, p.c, p.r, {}, p.last}};
  both(24, [&](double* to, ParallelFor loop) {
    resampled_bin_sums(seed0(), 37, models, 4, many, to, loop);
  });
  both(9, [&](double* to, ParallelFor loop) {
    resampled_group_sums(seed0(), 10, g.groups(), many, to, loop);
  });
  both(3, [&](double* to, ParallelFor loop) {
    signed_group_sums(seed0(), 10, g.groups(), many, to, loop);
  });
  both(6, [&](double* to, ParallelFor loop) {
    permuted_group_sums(seed0(), p.c, g.groups(), many, to, loop);
  });
}

template <typename F>
bool refuses(F&& f, const char* text) {
  try {
    f();
  } catch (const std::invalid_argument& e) {
    return std::strstr(e.what(), text) != nullptr;
  }
  return false;
}

void test_bad_arguments_are_refused() {
  const std::int32_t unit[] = {0, 5};
  const double values[] = {1, 1};
  const std::int32_t ends[] = {1, 3};
  double out[12];
  CHECK(refuses([&] { resampled_sums(seed0(), {}, 0, 1, 1, out, serial_for); },
                "[resampled_sums] expected 1 to 2^32 - 1 items, got 0"));
  const std::int32_t fine[] = {0, 1};
  const BinnedItems outside{unit, values, values, fine, {}}, open{fine, values, values, ends, {}};
  CHECK(refuses([&] { resampled_bin_sums(seed0(), 2, {&outside, 1}, 2, 1, out, serial_for); },
                "[resampled_bin_sums] expected units from 0 to 1, got 5"));
  CHECK(refuses([&] { resampled_bin_sums(seed0(), 2, {&open, 1}, 2, 1, out, serial_for); },
                "[resampled_bin_sums] expected ascending ends of 2 bins from 0 to 2"));
  const std::int64_t offsets[] = {0, 3};
  CHECK(refuses([&] { signed_group_sums(seed0(), 2, {offsets, fine, values}, 1, out, serial_for); },
                "[signed_group_sums] expected ascending offsets from 0 to 2"));
}

}  // namespace

int main() {
  test_reals_are_those_of_numpy();
  test_skip_equals_single_steps();
  test_bulk_draws_equal_single_draws();
  test_sums_are_sums_of_drawn_items();
  test_fixed_bins_hold_the_copies_of_their_items();
  for (const std::int64_t units : {37, 5})
    for (const std::int64_t bins : {1, 4, 15, 60})
      test_bins_of_equal_mass_move_with_every_resample(units, bins);
  test_ranking_is_that_of_all_pairs_and_prefixes(37);
  test_ranking_is_that_of_all_pairs_and_prefixes(5);
  test_prefixes_end_between_copies(37);
  test_prefixes_end_between_copies(5);
  test_one_class_has_no_auroc();
  test_group_sums_under_counts_signs_and_permutations();
  test_permutations_are_uniform();
  test_threads_change_no_bit();
  test_bad_arguments_are_refused();
  return test::finish("resample");
}
