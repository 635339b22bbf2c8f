#pragma once
// GPTQ's column solver, written once for every vector width: a lane per row of W. The columns are
// halved again and again; when the left half is rounded, its errors reach the right half in one
// product, most of which runs from registers. An ISA file instantiates gptq_solve<V>.
#include "cpu/vector_codes.h"

namespace calibit {
namespace {

constexpr int64_t kLeaf = 16;  // columns that are rounded one by one
constexpr int64_t kDepth = 512;
constexpr int64_t kAhead = 32;  // steps that U is fetched ahead: it comes from memory for each tile

// encode() of scalar.h for a lane per row.
template <class V>
struct LaneCoder {
  using Float = typename V::Float;
  using Int = typename V::Int;
  struct Rounded {
    Int code;       // of a codebook: rank
    Float value;    // what it stands for before the scale
    Float clipped;  // 1 for a weight that was cut off, else 0
  };
  bool codebook, real;
  Float steps, lo, hi;
  GridSearch<V> search;
  typename V::Table table;

  explicit LaneCoder(const QuantizeArgs& a)
      : codebook(a.values),
        real(a.spec.zero == ZeroType::f32),
        steps(V::set1(float((1 << a.spec.bits) - 1))),
        lo(V::set1(bounds_of(a).lo)),
        hi(V::set1(bounds_of(a).hi)),
        search(a.grid),
        table(sorted_table<V>(a)) {}

  Rounded operator()(Float w, Float divisor, Float zero) const {
    if (codebook) {
      const Float x = V::mul(w, divisor);
      const Int rank = search(x);
      return {rank, V::lookup16(table, rank), outside(x)};
    }
    const Float x = V::div(w, divisor), shifted = V::add(x, zero), none = V::set1(0);
    if (real) {
      const Int code = V::round(V::min(V::max(shifted, none), steps));
      return {code, V::sub(V::to_float(code), zero), outside(shifted)};
    }
    const Int offset = V::round(V::min(V::max(x, V::sub(none, zero)), V::sub(steps, zero)));
    return {V::add_int(offset, V::round(zero)), V::to_float(offset), outside(shifted)};
  }

 private:
  Float outside(Float x) const {
    const Int none = V::set1_int(0);
    return V::to_float(V::add_int(V::append(none, x, hi), V::append(none, lo, x)));
  }
};

template <class V>
struct Solver {
  using Float = typename V::Float;
  const SolveArgs& a;
  const QuantizeArgs& q;
  const WeightSpec& s;
  const SolveTile& tile;
  const LaneCoder<V> coder;

  Solver(const SolveArgs& args, const SolveTile& t)
      : a(args), q(args.quantize), s(args.quantize.spec), tile(t), coder(args.quantize) {}

  // Rounds steps [begin, end), whose weights hold the errors of all steps before `begin`.
  void solve(int64_t begin, int64_t end) const {
    const int64_t group = q.fixed ? s.k : s.group, width = end - begin;
    if (!q.fixed && begin % group == 0 && width == group_length(s, begin / group))
      start_group(begin / group);
    if (width <= kLeaf && width <= group) {
      for (int64_t t = begin; t < end; ++t) {
        round(t);
        subtract_one(t, end);
      }
      return;
    }
    // Groups stay whole, so that each is a call of its own when its scale is chosen.
    const int64_t unit = width > group ? group : kPanel;
    const int64_t middle = begin + ceil_div(width, 2 * unit) * unit;
    solve(begin, middle);
    subtract(begin, middle, end);
    solve(middle, end);
  }

 private:
  void start_group(int64_t g) const {
    const int64_t first = g * s.group, length = group_length(s, g);
    const float* from = tile.weights + first * kSolveRows;
    if (q.clip) {
      for (int64_t r = 0; r < tile.rows; ++r) {
        float* w = tile.rows_of_group + r * s.group;
        for (int64_t j = 0; j < length; ++j) w[j] = from[j * kSolveRows + r];
        set_scale(q, tile, g, r, scale_of<V>(q, w, first, length, (tile.row + r) * groups(s) + g));
      }
      return;
    }
    alignas(64) float lo[kSolveRows], hi[kSolveRows];
    for (int64_t r = 0; r < kSolveRows; r += V::kWidth) {
      Float least = V::load(from + r), most = least;
      for (int64_t j = 1; j < length; ++j) {
        const Float w = V::load(from + j * kSolveRows + r);
        least = V::min(least, w);
        most = V::max(most, w);
      }
      V::store(lo + r, least);
      V::store(hi + r, most);
    }
    for (int64_t r = 0; r < tile.rows; ++r)
      set_scale(q, tile, g, r, choose_scale(q, (tile.row + r) * groups(s) + g, lo[r], hi[r]));
  }

  void round(int64_t t) const {
    float* weights = tile.weights + t * kSolveRows;
    uint8_t* codes = tile.codes + t * kSolveRows;
    const int64_t g = tile.groups[t] * kSolveRows;
    const Float diagonal = V::set1(a.diagonal[t]);
    for (int64_t r = 0; r < kSolveRows; r += V::kWidth) {
      const Float w = V::load(weights + r);
      const auto rounded = coder(w, V::load(tile.divisors + g + r), V::load(tile.zeros + g + r));
      V::store_codes(codes + r, rounded.code);
      V::store(tile.clipped + r, V::add(V::load(tile.clipped + r), rounded.clipped));
      const Float error = V::sub(w, V::mul(rounded.value, V::load(tile.scales + g + r)));
      V::store(weights + r, V::div(error, diagonal));
    }
  }

  // Passes the errors of step t on to the weights of the steps up to `end`.
  void subtract_one(int64_t t, int64_t end) const {
    constexpr int vectors = kSolveRows / V::kWidth;
    Float errors[vectors];
#pragma GCC unroll 12
    for (int v = 0; v < vectors; ++v)
      errors[v] = V::load(tile.weights + t * kSolveRows + v * V::kWidth);
    for (int64_t j = t + 1; j < end; ++j) {
      const Float u = V::set1(a.panels[panel_start(j / kPanel) + t * kPanel + j % kPanel]);
      float* to = tile.weights + j * kSolveRows;
#pragma GCC unroll 12
      for (int v = 0; v < vectors; ++v)
        V::store(to + v * V::kWidth, V::fma(errors[v], u, V::load(to + v * V::kWidth)));
    }
  }

  // Passes the errors of steps [begin, middle) on to the weights of steps [middle, end). As many
  // steps at a time as leave a panel of U in the L1 cache for the next rows.
  void subtract(int64_t begin, int64_t middle, int64_t end) const {
    for (int64_t t = begin; t < middle; t += kDepth) {
      const int64_t depth = min_i64(kDepth, middle - t);
      for (int64_t j = middle; j < end;) {
        const int64_t panel = j / kPanel, in_panel = j % kPanel;
        const int64_t room = min_i64(kPanel - in_panel, V::kSolveColumns);
        const int64_t count = min_i64(room, end - j);
        const float* u = a.panels + panel_start(panel) + t * kPanel + in_panel;
        with_count<V::kSolveColumns>(count, [&](auto columns) {
          for (int64_t r = 0; r < kSolveRows; r += V::kSolveVectors * V::kWidth)
            subtract_tile<columns>(tile.weights + j * kSolveRows + r,
                                   tile.weights + t * kSolveRows + r, u, depth);
        });
        j += count;
      }
    }
  }

  // to[columns][rows of the vectors] += sum over t of errors[t] * u[t], in the order of t.
  template <int columns>
  static void subtract_tile(float* to, const float* errors, const float* u, int64_t count) {
    constexpr int vectors = V::kSolveVectors;
    Float sums[columns][vectors];
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c)
#pragma GCC unroll 3
      for (int v = 0; v < vectors; ++v) sums[c][v] = V::load(to + c * kSolveRows + v * V::kWidth);
    for (int64_t t = 0; t < count; ++t, errors += kSolveRows, u += kPanel) {
      V::prefetch(u + kAhead * kPanel);
      Float error[vectors];
#pragma GCC unroll 3
      for (int v = 0; v < vectors; ++v) error[v] = V::load(errors + v * V::kWidth);
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) {
        const Float factor = V::set1(u[c]);
#pragma GCC unroll 3
        for (int v = 0; v < vectors; ++v) sums[c][v] = V::fma(error[v], factor, sums[c][v]);
      }
    }
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c)
#pragma GCC unroll 3
      for (int v = 0; v < vectors; ++v) V::store(to + c * kSolveRows + v * V::kWidth, sums[c][v]);
  }
};

template <class V>
void gptq_solve(const SolveArgs& a, const SolveTile& tile) {
  static_assert(kSolveRows % (V::kSolveVectors * V::kWidth) == 0);
  Solver<V>(a, tile).solve(0, a.quantize.spec.k);
}

}  // namespace
}  // namespace calibit
