// Workbench of the fused linear: check against the portable table, then time beside a plain read of
// the same bytes. Weights are rotated through kColdBytes, so that every call finds them in DRAM.
//   bench_linear [THREADS] [KERNELS] [N K]     one JSON line per row
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "core/linear.h"
#include "problem.h"

using namespace calibit;
using namespace calibit::test;

namespace {

constexpr std::size_t kColdBytes = std::size_t{192} << 20;
constexpr int kRepetitions = 15;

// CPU seconds of the calling thread: what else runs on a shared machine does not count.
double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Sorted CPU seconds of the busiest thread in each of kRepetitions calls of work(thread,
// repetition). All threads start together; the first call is dropped.
std::vector<double> time_threads(int threads, const std::function<void(int, int)>& work) {
  std::vector<double> seconds(kRepetitions + 1);
  std::mutex mutex;
  std::barrier gate(threads);
  const auto run = [&](int t) {
    for (int r = 0; r <= kRepetitions; ++r) {
      gate.arrive_and_wait();
      const double start = cpu_seconds();
      work(t, r);
      const double spent = cpu_seconds() - start;
      const std::lock_guard lock(mutex);
      double& most = seconds[static_cast<std::size_t>(r)];
      most = std::max(most, spent);
    }
  };
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) pool.emplace_back(run, t);
  run(0);
  for (std::thread& t : pool) t.join();
  seconds.erase(seconds.begin());
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

// Touches every byte of a buffer; the sum keeps the loads alive.
std::uint64_t read(const std::uint8_t* p, std::size_t bytes) {
  std::uint64_t sum[8] = {};
  for (std::size_t i = 0; i + 64 <= bytes; i += 64)
    for (std::size_t j = 0; j < 8; ++j) {
      std::uint64_t word;
      std::memcpy(&word, p + i + 8 * j, 8);
      sum[j] ^= word;
    }
  for (std::size_t j = 1; j < 8; ++j) sum[0] ^= sum[j];
  return sum[0];
}

struct Case {
  const Format& format;
  std::int64_t group;
  bool nested;
};

void check(const LinearArgs& a, const Kernels& kernels) {
  const auto count = static_cast<std::size_t>(a.m * a.w.spec.n);
  std::vector<float> want(count), got(count);
  LinearArgs b = a;
  b.y = want.data();
  linear(b, portable_kernels, serial_for);
  b.y = got.data();
  linear(b, kernels, serial_for);
  const double scale = std::sqrt(static_cast<double>(a.w.spec.k));  // |x w| ~ 1 each, random signs
  for (std::size_t i = 0; i < count; ++i)
    if (std::fabs(double{want[i]} - double{got[i]}) > 1e-5 * scale)
      throw std::runtime_error("kernels differ from the portable table");
}

void bench(const Case& c, const Kernels& kernels, int threads, std::int64_t n, std::int64_t k) {
  const Problem p(c.format, n, k, c.group, ZeroType::none, c.nested, kernels, 1);
  const std::size_t bytes = p.packed.size(), copies = std::max<std::size_t>(2, kColdBytes / bytes);
  std::vector<std::uint8_t> weights(bytes * copies);
  for (std::size_t i = 0; i < copies; ++i)
    std::copy(p.packed.begin(), p.packed.end(),
              weights.begin() + static_cast<std::ptrdiff_t>(i * bytes));
  for (const std::int64_t m : {1, 2, 4, 8, 16, 64, 512}) {
    const std::vector<float> x = normal(static_cast<std::size_t>(m * k), 2);
    std::vector<float> y(static_cast<std::size_t>(m * n));
    if (m <= 8) check({p.packed_view(), x.data(), nullptr, y.data(), m}, kernels);
    const auto part = [&](std::int64_t count, int t) { return count * t / threads; };
    volatile std::uint64_t sink = 0;
    const std::vector<double> reads = time_threads(threads, [&](int t, int r) {
      const std::uint8_t* at =
          weights.data() + (static_cast<std::size_t>(r) * 2 + 1) % copies * bytes;
      const auto from = static_cast<std::size_t>(part(static_cast<std::int64_t>(bytes), t));
      sink = sink ^ read(at + from, bytes / static_cast<std::size_t>(threads));
    });
    const std::vector<double> times = time_threads(threads, [&](int t, int r) {
      PackedWeight w = p.packed_view();
      w.data = weights.data() + (static_cast<std::size_t>(r) * 2) % copies * bytes;
      w.nested = nested_of(w.spec, w.data);
      kernels.linear({w, x.data(), nullptr, y.data(), m}, part(tiles(w.spec), t),
                     part(tiles(w.spec), t + 1));
    });
    const double ms = 1e3 * times[times.size() / 2], gb = 1e-9 * static_cast<double>(bytes);
    std::printf(
        "{\"op\": \"linear\", \"kernels\": \"%s\", \"format\": \"%s%s\", \"group\": %d, \"n\": %d, "
        "\"k\": %d, \"m\": %d, \"threads\": %d, \"ms\": %.4f, \"ms_15\": %.4f, \"ms_85\": %.4f, "
        "\"gb_s\": %.2f, \"read_gb_s\": %.2f, \"gflop_s\": %.1f}\n",
        kernels.name, std::string(c.format.name).c_str(), c.nested ? "-dq" : "",
        static_cast<int>(c.group), static_cast<int>(n), static_cast<int>(k), static_cast<int>(m),
        threads, ms, 1e3 * times[times.size() * 15 / 100], 1e3 * times[times.size() * 85 / 100],
        gb / ms * 1e3, gb / reads[reads.size() / 2], 2e-6 * static_cast<double>(m * n * k) / ms);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const Kernels& kernels = kernels_named(argc > 2 ? argv[2] : "");
  const std::int64_t n = argc > 4 ? std::atoll(argv[3]) : 4096,
                     k = argc > 4 ? std::atoll(argv[4]) : 4096;
  const Case cases[] = {{nf4, 64, false},
                        {nf4, 64, true},
                        {kFormats[5], 128, false},   // int4
                        {kFormats[9], 128, false}};  // int8
  for (const Case& c : cases) bench(c, kernels, threads, n, k);
}
