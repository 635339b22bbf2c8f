#include "core/gptq.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "core/error.h"
#include "core/quantize.h"
#include "core/scalar.h"

namespace calibit {
namespace {

constexpr const char* kOp = "gptq_solve";
constexpr std::int64_t kOctet = 8;     // codes packed at a time
constexpr std::int64_t kColumns = 64;  // of W, turned at a time

// Uninitialised floats on a cache line.
struct Free {
  void operator()(float* p) const { ::operator delete(p, kLine); }
  static constexpr std::align_val_t kLine{64};
};
using Floats = std::unique_ptr<float[], Free>;
Floats make_floats(std::int64_t count) {
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
  return Floats(static_cast<float*>(::operator new(bytes, Free::kLine)));
}

void check_diagonal(const GptqArgs& a) {
  const std::int64_t k = a.quantize.spec.k;
  for (std::int64_t t = 0; t < k; ++t)
    require(a.u[t * k + t] > 0 && std::isfinite(a.u[t * k + t]), kOp,
            "expected an upper factor with a positive diagonal, got ", a.u[t * k + t], " at ", t);
}

// The step at which each column is processed.
std::vector<std::int64_t> steps_of(const GptqArgs& a) {
  const std::int64_t k = a.quantize.spec.k;
  std::vector<std::int64_t> steps(static_cast<std::size_t>(k), -1);
  require(!a.order || a.quantize.fixed, kOp,
          "expected scales together with an order: groups are reached out of order");
  for (std::int64_t t = 0; t < k; ++t) {
    const std::int64_t c = a.order ? a.order[t] : t;
    require(c >= 0 && c < k && steps[static_cast<std::size_t>(c)] < 0, kOp,
            "expected order to be a permutation of 0..", k - 1, ", got ", c, " at ", t);
    steps[static_cast<std::size_t>(c)] = t;
  }
  return steps;
}

// -U above the diagonal in panels (core/kernels.h).
Floats make_panels(const GptqArgs& a, ParallelFor loop) {
  const std::int64_t k = a.quantize.spec.k, count = ceil_div(k, kPanel);
  Floats panels = make_floats(panel_start(count));
  parallel(loop, count, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      float* to = panels.get() + panel_start(p);
      for (std::int64_t t = 0; t < kPanel * (p + 1); ++t) {
        float total = 0;
        for (std::int64_t j = p * kPanel; j < (p + 1) * kPanel; ++j) {
          *to = t < j && j < k ? -a.u[t * k + j] : 0;
          total += *to++;
        }
        require(std::isfinite(total), kOp, "expected a finite upper factor, got NaN, infinity or ",
                "an overflow in row ", t, ": raise the damping");
      }
    }
  });
  return panels;
}

// What the rows of one tile need while they are solved; used again for the next tile.
class Tile {
 public:
  Tile(const GptqArgs& a, const SolveArgs& solve, const std::vector<std::int64_t>& steps)
      : a_(a),
        solve_(solve),
        spec_(a.quantize.spec),
        steps_(steps.data()),
        weights_(make_floats(spec_.k * kSolveRows)),
        scales_(make_floats(3 * groups(spec_) * kSolveRows)),
        codes_(static_cast<std::size_t>(spec_.k * kSolveRows)),
        groups_(steps.size()) {
    std::fill_n(scales_.get(), 3 * groups(spec_) * kSolveRows, 0.0f);
    if (!a.quantize.fixed) rows_of_group_ = make_floats(spec_.group * kSolveRows);
    for (std::int64_t c = 0; c < spec_.k; ++c)
      groups_[static_cast<std::size_t>(steps_[c])] = static_cast<std::int32_t>(c / spec_.group);
  }

  void solve(std::int64_t row, std::int64_t rows, const Kernels& kernels) {
    const std::int64_t lanes = groups(spec_) * kSolveRows;
    tile_ = {.row = row,
             .rows = rows,
             .weights = weights_.get(),
             .codes = codes_.data(),
             .clipped = clipped_,
             .groups = groups_.data(),
             .scales = scales_.get(),
             .divisors = scales_.get() + lanes,
             .zeros = scales_.get() + 2 * lanes,
             .rows_of_group = rows_of_group_.get()};
    load_weights();
    if (a_.quantize.fixed) load_scales();
    kernels.gptq_solve(solve_, tile_);
    check_errors();
    store_codes();
  }

 private:
  void load_weights() {
    std::fill_n(tile_.weights, spec_.k * kSolveRows, 0.0f);
    std::fill(std::begin(clipped_), std::end(clipped_), 0.0f);
    for (std::int64_t c = 0; c < spec_.k; c += kColumns)
      for (std::int64_t r = 0; r < tile_.rows; ++r) {
        const float* from = a_.quantize.w + (tile_.row + r) * spec_.k;
        for (std::int64_t j = c; j < std::min(c + kColumns, spec_.k); ++j)
          tile_.weights[steps_[j] * kSolveRows + r] = from[j];
      }
  }

  void load_scales() {
    const QuantizeArgs& q = a_.quantize;
    for (std::int64_t r = 0; r < tile_.rows; ++r)
      for (std::int64_t g = 0; g < groups(spec_); ++g) {
        const std::int64_t i = (tile_.row + r) * groups(spec_) + g;
        set_scale(q, tile_, g, r,
                  {load_scale(spec_.scale, q.scales, i, {}, i), load_zero(spec_.zero, q.zeros, i)});
      }
  }

  void check_errors() const {
    float sum[kSolveRows] = {};  // of zeros, unless an error is infinite or NaN
    for (std::int64_t t = 0; t < spec_.k; ++t)
      for (std::int64_t r = 0; r < kSolveRows; ++r) sum[r] += 0 * tile_.weights[t * kSolveRows + r];
    for (std::int64_t r = 0; r < tile_.rows; ++r)
      require(sum[r] == 0, kOp, "expected updated weights that stay finite, got an ",
              "overflow in row ", tile_.row + r, ": raise the damping");
  }

  void store_codes() const {
    const std::int64_t bytes = row_bytes(spec_);
    const QuantizeArgs& q = solve_.quantize;
    std::uint8_t code_of[256];  // of a rank, or of itself
    for (int i = 0; i < 256; ++i)
      code_of[i] = q.values ? q.grid.codes[i & 15] : static_cast<std::uint8_t>(i);
    for (std::int64_t c = 0; c < spec_.k; c += kOctet) {
      const std::int64_t count = std::min(kOctet, spec_.k - c);
      const std::int64_t size = ceil_div(count * spec_.bits, 8);
      for (std::int64_t r = 0; r < tile_.rows; ++r) {
        std::uint64_t octet = 0;
        for (std::int64_t j = 0; j < count; ++j)
          octet |= std::uint64_t{code_of[tile_.codes[steps_[c + j] * kSolveRows + r]]}
                   << (j * spec_.bits);
        std::uint8_t* to = q.codes + (tile_.row + r) * bytes + c * spec_.bits / 8;
        for (std::int64_t b = 0; b < size; ++b) to[b] = static_cast<std::uint8_t>(octet >> (8 * b));
      }
    }
    for (std::int64_t r = 0; r < tile_.rows; ++r)
      a_.clipped[tile_.row + r] = static_cast<std::int32_t>(clipped_[r]);
  }

  const GptqArgs& a_;
  const SolveArgs& solve_;
  const WeightSpec& spec_;
  const std::int64_t* steps_;
  Floats weights_, scales_, rows_of_group_;  // scales_: scales, divisors, zeros
  float clipped_[kSolveRows] = {};
  std::vector<std::uint8_t> codes_;
  std::vector<std::int32_t> groups_;
  SolveTile tile_{};
};

}  // namespace

void gptq_solve(GptqArgs a, const Kernels& kernels, ParallelFor loop) {
  QuantizeArgs& q = a.quantize;
  const WeightSpec& s = q.spec;
  check_diagonal(a);
  const std::vector<std::int64_t> steps = steps_of(a);
  if (q.values) q.grid = make_grid(kOp, {q.values, std::size_t{1} << s.bits});
  check_finite(q, loop);
  const Floats panels = make_panels(a, loop);
  std::vector<float> diagonal(static_cast<std::size_t>(s.k));
  for (std::int64_t t = 0; t < s.k; ++t) diagonal[static_cast<std::size_t>(t)] = a.u[t * s.k + t];
  const SolveArgs solve{q, panels.get(), diagonal.data()};
  parallel(loop, ceil_div(s.n, kSolveRows), 1, [&](std::int64_t begin, std::int64_t end) {
    Tile tile(a, solve, steps);
    for (std::int64_t b = begin; b < end; ++b)
      tile.solve(b * kSolveRows, std::min(kSolveRows, s.n - b * kSolveRows), kernels);
  });
  check_scales(q);
}

}  // namespace calibit
