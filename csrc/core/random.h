#pragma once
// PCG64 (O'Neill, "PCG", 2014; XSL-RR output of a 128-bit congruential generator) with NumPy's
// order of 32-bit halves and its bounded draws (Lemire, "Fast random integer generation", 2019):
// fill_below gives the draws of default_rng(seed).integers(0, bound, size), so that results can be
// checked against NumPy.
#include <cstdint>
#include <span>

namespace calibit {

class Pcg64 {
 public:
  // State and increment as in numpy.random.PCG64(seed).state, high and low words.
  Pcg64(std::uint64_t state_hi, std::uint64_t state_lo, std::uint64_t inc_hi, std::uint64_t inc_lo);
  std::uint64_t next64() {
    state_ = state_ * kMultiplier + increment_;
    const auto x = static_cast<std::uint64_t>(state_ >> 64) ^ static_cast<std::uint64_t>(state_);
    const auto rotate = static_cast<unsigned>(state_ >> 122);
    return x >> rotate | x << (-rotate & 63);
  }
  std::uint32_t next32();
  std::uint32_t below(std::uint32_t bound);  // uniform in [0, bound), bound >= 1
  void skip(std::uint64_t outputs);          // as that many next64(), in O(log outputs)
  bool between_outputs() const { return !has_half_; }

 private:
  using Wide = unsigned __int128;
  static constexpr Wide kMultiplier = Wide{0x2360ed051fc65da4} << 64 | 0x4385df649fccf645;
  Wide state_, increment_;
  std::uint32_t half_ = 0;
  bool has_half_ = false;
};

// out[i] = random.below(bound) for i = 0, 1, ...: the same draws and the same generator afterwards.
void fill_below(Pcg64& random, std::uint32_t bound, std::span<std::uint32_t> out);

}  // namespace calibit
