#pragma once
// What the kernels written once for every vector width share. Only ISA files include this header
// and vector_*.h: all of it is in an anonymous namespace, so that each ISA keeps its own copy.
//
// An ISA file describes its registers by a struct V:
//   Float, Int: kWidth lanes of float or 32-bit integer; kBytes in all
//   load, load_part(p, count, other), load_bytes, store, store_part(p, count, a), set1
//   add, sub, mul, div, min, max, abs, fma, reduce_min, reduce_max, reduce_add
//   as_int, as_float: the same bits
//   load_words, set1_int, add_int, both (and), either (or), srl<n>, sll<n>, srlv, to_float,
//   round (to nearest even)
//   from_half, from_bfloat, from_bytes, from_e8m0: kWidth stored numbers at a byte address
//   scale(a, n): a 2^n for whole n <= 127, about 0 below -126
//   prefetch
//   Table, table(float[16]), lookup<bits>(table, codes), lookup16: higher bits are ignored
//   kWordLookup: lookup_nibbles exists, the 4-bit codes of a word for less than one by one
//   pick(levels, path): entry path < 8 of a vector; append(path, x, t) = 2 path + (x > t)
//   store_codes: the low bytes of the lanes; map_bytes(p, count, map[16]): may go on to kBytes
//   load_window(p, order): 16 bytes, copied to every 16 bytes of a register and shuffled there
//   kRows, kTiles: register tile of multiply_rows
//   kFusedRows: up to so many rows of x a panel would cost more than it saves; strip(m): vectors
//   that fused_span takes at once for m rows, enough sums to hide the latency of an FMA
//   kSolveColumns, kSolveVectors: register tile of the column solver
#include "core/scalar.h"

namespace calibit {
namespace {

template <int N>
struct Const {
  constexpr operator int() const { return N; }
};
template <int... i>
struct Ints {};
template <int N, int... i>
struct Count : Count<N - 1, N - 1, i...> {};
template <int... i>
struct Count<0, i...> {
  using type = Ints<i...>;
};
// f(Const<0>{}), ..., f(Const<N-1>{}), inlined: for indices that must be constants. Loops over
// registers are plain loops with an unroll pragma, which compile much faster.
template <class F, int... i>
[[gnu::always_inline]] inline void unroll_ints(const F& f, Ints<i...>) {
  (f(Const<i>{}), ...);
}
template <int N, class F>
[[gnu::always_inline]] inline void unroll(const F& f) {
  unroll_ints(f, typename Count<N>::type{});
}
// f(Const<n>{}) for n in 1..N.
template <int N, class F>
inline auto with_count(int64_t n, const F& f) {
  if constexpr (N > 1)
    if (n < N) return with_count<N - 1>(n, f);
  return f(Const<N>{});
}

// The lookup table of a codebook of 2^bits values, repeated so that higher bits do not matter.
template <class V>
typename V::Table make_table(const float* codebook, int bits) {
  float entries[16] = {};
  if (codebook)
    for (int i = 0; i < 16; ++i) entries[i] = codebook[i & ((1 << bits) - 1)];
  return V::table(entries);
}

}  // namespace
}  // namespace calibit
