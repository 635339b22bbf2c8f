#include "core/random.h"

#include <algorithm>

namespace calibit {
namespace {

// Draws below `bound` are accepted words of 32 bits; those with a remainder under this are not.
std::uint32_t rejection_threshold(std::uint32_t bound) {
  return (0xffffffffu - (bound - 1)) % bound;
}

}  // namespace

Pcg64::Pcg64(std::uint64_t state_hi, std::uint64_t state_lo, std::uint64_t inc_hi,
             std::uint64_t inc_lo)
    : state_(Wide{state_hi} << 64 | state_lo), increment_(Wide{inc_hi} << 64 | inc_lo) {}

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
    const std::uint32_t threshold = rejection_threshold(bound);
    while (static_cast<std::uint32_t>(product) < threshold)
      product = std::uint64_t{next32()} * bound;
  }
  return static_cast<std::uint32_t>(product >> 32);
}

void Pcg64::skip(std::uint64_t outputs) {
  // Repeated squaring of the step s -> a s + c (Brown, "Random number generation with arbitrary
  // strides", 1994).
  Wide factor = 1, term = 0, a = kMultiplier, c = increment_;
  for (; outputs != 0; outputs >>= 1) {
    if (outputs & 1) {
      factor *= a;
      term = term * a + c;
    }
    c *= a + 1;
    a *= a;
  }
  state_ = state_ * factor + term;
}

bool Pcg64::fill_lanes(std::uint32_t bound, std::span<std::uint32_t> out) const {
  // Each step waits for the one before: two runs side by side.
  const std::size_t lane = out.size() / kLanes;
  Pcg64 second = *this;
  second.skip(lane / 2);
  Wide a = state_, b = second.state_;
  const std::uint32_t threshold = rejection_threshold(bound);
  std::uint32_t rejected = 0;
  const auto draw = [&](Wide& state, std::uint32_t* to) {
    state = state * kMultiplier + increment_;
    const std::uint64_t x = output(state);
    const std::uint64_t low = (x & 0xffffffffu) * bound, high = (x >> 32) * bound;
    to[0] = static_cast<std::uint32_t>(low >> 32);
    to[1] = static_cast<std::uint32_t>(high >> 32);
    rejected |= static_cast<std::uint32_t>(static_cast<std::uint32_t>(low) < threshold) |
                static_cast<std::uint32_t>(static_cast<std::uint32_t>(high) < threshold);
  };
  for (std::size_t i = 0; i < lane; i += 2) {
    draw(a, &out[i]);
    draw(b, &out[lane + i]);
  }
  return rejected == 0;
}

void Pcg64::fill_below(std::uint32_t bound, std::span<std::uint32_t> out) {
  if (bound == 1) {
    std::fill(out.begin(), out.end(), 0u);
    return;
  }
  std::size_t done = 0;
  if (!out.empty() && has_half_) out[done++] = below(bound);
  const std::size_t words = (out.size() - done) / (2 * kLanes) * (2 * kLanes);
  if (!has_half_ && words != 0 && fill_lanes(bound, out.subspan(done, words))) {
    skip(words / 2);
    done += words;
  }
  for (; done < out.size(); ++done) out[done] = below(bound);
}

}  // namespace calibit
