#pragma once
// PCG64 (O'Neill, "PCG", 2014; XSL-RR output of a 128-bit congruential generator) with NumPy's
// order of 32-bit halves and its bounded draws (Lemire, "Fast random integer generation", 2019):
// below and fill_below give the draws of default_rng(seed).integers(0, bound, size), so that
// results can be checked against NumPy.
#include <cstddef>
#include <cstdint>
#include <span>

namespace calibit {

class Pcg64 {
 public:
  // State and increment as in numpy.random.PCG64(seed).state, high and low words.
  Pcg64(std::uint64_t state_hi, std::uint64_t state_lo, std::uint64_t inc_hi, std::uint64_t inc_lo);
  std::uint64_t next64() {
    state_ = state_ * kMultiplier + increment_;
    return output(state_);
  }
  std::uint32_t next32();
  std::uint32_t below(std::uint32_t bound);  // uniform in [0, bound), bound >= 1
  void skip(std::uint64_t outputs);          // as that many next64(), in O(log outputs)
  // out[i] = below(bound) for i = 0, 1, ...: the same draws and the same generator afterwards.
  void fill_below(std::uint32_t bound, std::span<std::uint32_t> out);

 private:
  using Wide = unsigned __int128;
  static constexpr Wide kMultiplier = Wide{0x2360ed051fc65da4} << 64 | 0x4385df649fccf645;
  static constexpr std::size_t kLanes = 2;

  static std::uint64_t output(Wide state) {
    const auto x = static_cast<std::uint64_t>(state >> 64) ^ static_cast<std::uint64_t>(state);
    const auto rotate = static_cast<unsigned>(state >> 122);
    return x >> rotate | x << (-rotate & 63);
  }
  // Fills `out` (a multiple of 2 * kLanes) from whole outputs as if no word were rejected; false if
  // one is.
  bool fill_lanes(std::uint32_t bound, std::span<std::uint32_t> out) const;

  Wide state_, increment_;
  std::uint32_t half_ = 0;
  bool has_half_ = false;
};

}  // namespace calibit
