#pragma once
// Sums of exponentials over a run of logits, for every vector width: one pass that reads each logit
// once. See vector.h.
#include "cpu/vector.h"

namespace calibit {
namespace {

// exp_of of every lane, in two operations less: adding kRounder leaves no bits for a fraction, and
// the fused product with ln 2 as one float is off by 2e-9 n, under 6e-8 wherever e^d > 1e-9.
template <class V>
[[gnu::always_inline]] inline typename V::Float exp_lanes(typename V::Float d) {
  using Float = typename V::Float;
  constexpr float kRounder = 0x1.8p23f, kLn2 = 0.693147182f;
  const Float n = V::sub(V::fma(d, V::set1(kInvLn2), V::set1(kRounder)), V::set1(kRounder));
  const Float r = V::fma(n, V::set1(-kLn2), d);
  Float p = V::set1(kExpTerms[4]);
  for (int i = 3; i >= 0; --i) p = V::fma(p, r, V::set1(kExpTerms[i]));
  p = V::fma(V::fma(p, r, V::set1(1)), r, V::set1(1));
  return V::scale(p, n);
}

// kWidth logits as float.
template <class V, LogitType type>
[[gnu::always_inline]] inline typename V::Float load_logits(const uint8_t* p) {
  if constexpr (type == LogitType::f32) return V::load_bytes(p);
  if constexpr (type == LogitType::f16) return V::from_half(p);
  return V::from_bfloat(p);
}

// Four independent sums per statistic hide the latency of an addition and keep each of them short.
template <class V, LogitType type, bool kOther>
void softmax_sums_of(const SoftmaxArgs& a, SoftmaxSums* out) {
  using Float = typename V::Float;
  constexpr int kParts = kOther ? 2 : 4;
  constexpr int64_t kBytes = type == LogitType::f32 ? 4 : 2, kStep = V::kWidth * kBytes;
  constexpr int64_t kAhead = 8192;  // bytes that memory is asked for in advance
  const Float zero = V::set1(0), lowest = V::set1(kLowest);
  const Float shift = V::set1(a.shift), other_shift = V::set1(a.other_shift);
  Float max[kParts], sum[kParts], weighted[kParts], other_max[kParts], other_sum[kParts],
      gap[kParts];
  for (int i = 0; i < kParts; ++i) {
    max[i] = other_max[i] = lowest;
    sum[i] = weighted[i] = other_sum[i] = gap[i] = zero;
  }
  // Of two operands max takes the second when either is NaN: a NaN reaches the sums.
  const Float floor = V::set1(kExpFloor);
  const auto add = [&](int i, const uint8_t* at_x, const uint8_t* at_y) {
    const Float x = load_logits<V, type>(at_x), d = V::max(floor, V::sub(x, shift));
    const Float e = exp_lanes<V>(d);
    max[i] = V::max(max[i], x);
    sum[i] = V::add(sum[i], e);
    weighted[i] = V::fma(e, d, weighted[i]);
    if constexpr (kOther) {
      const Float y = load_logits<V, type>(at_y);
      other_max[i] = V::max(other_max[i], y);
      other_sum[i] = V::add(other_sum[i], exp_lanes<V>(V::max(floor, V::sub(y, other_shift))));
      gap[i] = V::fma(e, V::sub(V::max(lowest, x), V::max(lowest, y)), gap[i]);
    }
  };
  const auto *x = static_cast<const uint8_t*>(a.x), *y = static_cast<const uint8_t*>(a.y);
  const int64_t vectors = a.n / V::kWidth, rest = a.n % V::kWidth;
  int64_t v = 0;
  for (; v + kParts <= vectors; v += kParts) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      const int64_t at = (v + i) * kStep;
      V::prefetch(x + at + kAhead);
      if constexpr (kOther) V::prefetch(y + at + kAhead);
      add(i, x + at, y + at);
    }
  }
  for (; v < vectors; ++v) add(0, x + v * kStep, y + v * kStep);
  if (rest) {  // logits that are missing count as -infinity
    alignas(64) uint8_t last_x[64], last_y[64];
    const float filler = float_of(0xff800000);
    for (int64_t i = 0; i < V::kWidth; ++i) {
      const uint32_t bits = bits_of(filler) >> (type == LogitType::bf16 ? 16 : 0);
      const uint32_t half = type == LogitType::f16 ? 0xfc00 : bits;
      __builtin_memcpy(last_x + i * kBytes, &half, kBytes);
      __builtin_memcpy(last_y + i * kBytes, &half, kBytes);
    }
    __builtin_memcpy(last_x, x + vectors * kStep, size_t(rest * kBytes));
    if constexpr (kOther) __builtin_memcpy(last_y, y + vectors * kStep, size_t(rest * kBytes));
    add(0, last_x, last_y);
  }
  for (int i = 1; i < kParts; ++i) {
    max[0] = V::max(max[0], max[i]);
    sum[0] = V::add(sum[0], sum[i]);
    weighted[0] = V::add(weighted[0], weighted[i]);
    if constexpr (kOther) {
      other_max[0] = V::max(other_max[0], other_max[i]);
      other_sum[0] = V::add(other_sum[0], other_sum[i]);
      gap[0] = V::add(gap[0], gap[i]);
    }
  }
  *out = {V::reduce_max(max[0]), kLowest, V::reduce_add(sum[0]), V::reduce_add(weighted[0]), 0, 0};
  if constexpr (kOther) {
    out->other_max = V::reduce_max(other_max[0]);
    out->gap = V::reduce_add(gap[0]);
    out->other_sum = V::reduce_add(other_sum[0]);
  }
}

template <class V, LogitType type>
void softmax_sums_typed(const SoftmaxArgs& a, SoftmaxSums* out) {
  if (a.y)
    softmax_sums_of<V, type, true>(a, out);
  else
    softmax_sums_of<V, type, false>(a, out);
}

template <class V>
void softmax_sums(const SoftmaxArgs& a, SoftmaxSums* out) {
  if (a.type == LogitType::f32)
    softmax_sums_typed<V, LogitType::f32>(a, out);
  else if (a.type == LogitType::f16)
    softmax_sums_typed<V, LogitType::f16>(a, out);
  else
    softmax_sums_typed<V, LogitType::bf16>(a, out);
}

}  // namespace
}  // namespace calibit
