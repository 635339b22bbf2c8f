#include "core/random.h"

#include <algorithm>
#include <array>

namespace calibit {
namespace {

// Draws below `bound` are accepted words of 32 bits; those with a remainder under this are not.
std::uint32_t rejection_threshold(std::uint32_t bound) {
  return (0xffffffffu - (bound - 1)) % bound;
}

// Each step of the generator waits for the one before, so long runs are drawn in lanes.
constexpr std::size_t kLanes = 4;

// Fills `out` (a multiple of 2 * kLanes) from whole outputs of `random` as if no word were
// rejected; false if one is.
bool fill_lanes(const Pcg64& random, std::uint32_t bound, std::span<std::uint32_t> out) {
  const std::size_t lane = out.size() / kLanes;
  std::array<Pcg64, kLanes> generators{random, random, random, random};
  for (std::size_t j = 0; j < kLanes; ++j) generators[j].skip(j * lane / 2);
  const std::uint32_t threshold = rejection_threshold(bound);
  std::uint32_t rejected = 0;
  for (std::size_t i = 0; i < lane; i += 2)
    for (std::size_t j = 0; j < kLanes; ++j) {
      const std::uint64_t x = generators[j].next64();
      const std::uint64_t low = (x & 0xffffffffu) * bound, high = (x >> 32) * bound;
      out[j * lane + i] = static_cast<std::uint32_t>(low >> 32);
      out[j * lane + i + 1] = static_cast<std::uint32_t>(high >> 32);
      rejected |= static_cast<std::uint32_t>(static_cast<std::uint32_t>(low) < threshold) |
                  static_cast<std::uint32_t>(static_cast<std::uint32_t>(high) < threshold);
    }
  return rejected == 0;
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

void fill_below(Pcg64& random, std::uint32_t bound, std::span<std::uint32_t> out) {
  if (bound == 1) {
    std::fill(out.begin(), out.end(), 0u);
    return;
  }
  std::size_t done = 0;
  if (!out.empty() && !random.between_outputs()) out[done++] = random.below(bound);
  const std::size_t words = (out.size() - done) / (2 * kLanes) * (2 * kLanes);
  if (random.between_outputs() && fill_lanes(random, bound, out.subspan(done, words))) {
    random.skip(words / 2);
    done += words;
  }
  for (; done < out.size(); ++done) out[done] = random.below(bound);
}

}  // namespace calibit
