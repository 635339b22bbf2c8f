#include "core/gptq.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "core/quantize.h"
#include "core/scalar.h"

namespace calibit {
namespace {

// Rows that share one pass over a row of U.
constexpr std::int64_t kRows = 8;

void check(const GptqArgs& a) {
  const std::int64_t k = a.quantize.spec.k;
  for (std::int64_t t = 0; t < k; ++t)
    require(a.u[t * k + t] > 0 && std::isfinite(a.u[t * k + t]), "gptq_solve",
            "expected an upper factor with a positive diagonal, got ", a.u[t * k + t], " at ", t);
  if (!a.order) return;
  require(a.quantize.fixed, "gptq_solve",
          "expected scales together with an order: groups are reached out of order");
  std::vector<bool> seen(static_cast<std::size_t>(k));
  for (std::int64_t t = 0; t < k; ++t) {
    const std::int32_t c = a.order[t];
    require(c >= 0 && c < k && !seen[static_cast<std::size_t>(c)], "gptq_solve",
            "expected order to be a permutation of 0..", k - 1, ", got ", c, " at ", t);
    seen[static_cast<std::size_t>(c)] = true;
  }
}

// The state of up to kRows rows: w[t * kRows + r] is row r, column order[t], already updated.
class Rows {
 public:
  Rows(const GptqArgs& a, std::int64_t first, std::int64_t count)
      : a_(a),
        q_(a.quantize),
        first_(first),
        count_(count),
        w_(static_cast<std::size_t>(q_.spec.k * kRows)) {
    for (std::int64_t t = 0; t < q_.spec.k; ++t)
      for (std::int64_t r = 0; r < count_; ++r)
        w_[t * kRows + r] = q_.w[(first_ + r) * q_.spec.k + column(t)];
    const std::int64_t bytes = row_bytes(q_.spec);
    std::memset(q_.codes + first_ * bytes, 0, static_cast<std::size_t>(count_ * bytes));
  }

  void solve() {
    const std::int64_t k = q_.spec.k;
    for (std::int64_t t = 0; t < k; ++t) {
      const float* u = a_.u + t * k;
      float err[kRows] = {};
      for (std::int64_t r = 0; r < count_; ++r) err[r] = (w_[t * kRows + r] - round(t, r)) / u[t];
      for (std::int64_t j = t + 1; j < k; ++j)
        for (std::int64_t r = 0; r < kRows; ++r) w_[j * kRows + r] -= err[r] * u[j];
    }
  }

 private:
  std::int64_t column(std::int64_t t) const { return a_.order ? a_.order[t] : t; }

  // Rounds step t of row r, writes its code and returns the value it stands for.
  float round(std::int64_t t, std::int64_t r) {
    const WeightSpec& s = q_.spec;
    const std::int64_t c = column(t), n = first_ + r, i = n * groups(s) + c / s.group;
    if (!q_.fixed && c % s.group == 0) start_group(t, r, i);
    const ScaleZero sz{load_scale(s.scale, q_.scales, i, {}, i), load_zero(s.zero, q_.zeros, i)};
    const std::uint32_t code = encode(q_, w_[t * kRows + r], sz);
    put_code(q_.codes + n * row_bytes(s), c, s.bits, code);
    return (value_of(s, q_.values, code) - sz.zero) * sz.scale;
  }

  void start_group(std::int64_t t, std::int64_t r, std::int64_t i) {
    float lo = w_[t * kRows + r], hi = lo;
    for (std::int64_t j = 1; j < group_length(q_.spec, t / q_.spec.group); ++j) {
      lo = std::min(lo, w_[(t + j) * kRows + r]);
      hi = std::max(hi, w_[(t + j) * kRows + r]);
    }
    choose_scale(q_, i, lo, hi);
  }

  const GptqArgs& a_;
  const QuantizeArgs& q_;
  std::int64_t first_, count_;
  std::vector<float> w_;
};

}  // namespace

void gptq_solve(GptqArgs a, ParallelFor loop) {
  const WeightSpec& s = a.quantize.spec;
  check(a);
  if (a.quantize.values)
    a.quantize.grid = make_grid("gptq_solve", {a.quantize.values, std::size_t{1} << s.bits});
  check_finite(a.quantize, loop);
  parallel(loop, ceil_div(s.n, kRows), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b)
      Rows(a, b * kRows, std::min(kRows, s.n - b * kRows)).solve();
  });
  check_scales(a.quantize);
}

}  // namespace calibit
