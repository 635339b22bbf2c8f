// AVX2 + FMA + F16C: 8 rows of W per vector.
#include <immintrin.h>

#include "cpu/vector_linear.h"

namespace calibit {
namespace {

struct Avx2 {
  using Float = __m256;
  using Int = __m256i;
  static constexpr int kWidth = 8;
  static constexpr int kRows = 6, kTiles = 1;  // 12 sums, 2 values, 1 x: 15 of 16 registers
  // Vectors that share one pass over x: enough sums to hide the latency of an FMA, 4 clocks.
  static constexpr int strip(int rows) { return rows == 1 ? 4 : 2; }
  static constexpr int kPrefetch = 4096;

  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Float load_bytes(const uint8_t* p) { return _mm256_castsi256_ps(load_words(p)); }
  static void store(float* p, Float a) { _mm256_storeu_ps(p, a); }
  static Float set1(float a) { return _mm256_set1_ps(a); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }

  static Int load_words(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Int set1_int(int a) { return _mm256_set1_epi32(a); }
  static Int both(Int a, Int b) { return _mm256_and_si256(a, b); }
  static Int either(Int a, Int b) { return _mm256_or_si256(a, b); }
  template <int n>
  static Int srl(Int a) {
    return n ? _mm256_srli_epi32(a, n) : a;
  }
  template <int n>
  static Int sll(Int a) {
    return _mm256_slli_epi32(a, n);
  }
  static Float to_float(Int a) { return _mm256_cvtepi32_ps(a); }
  static Int from_bytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static Float from_half(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Float from_e8m0(const uint8_t* p) {  // code 0 is the subnormal 2^-127
    const Int scaled = _mm256_slli_epi32(from_bytes(p), 23);
    return _mm256_castsi256_ps(_mm256_max_epi32(scaled, _mm256_set1_epi32(0x400000)));
  }
  static void prefetch(const uint8_t* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p) + kPrefetch, _MM_HINT_T0);
  }

  // vpermps takes 8 entries and runs once a clock (Zen 3). For 16 it costs less to look up the four
  // bytes of the floats with vpshufb, 32 codes at a time, and to interleave them: 1.6 clocks per
  // vector.
  struct Table {
    Float entries;  // the first 8; they repeat when there are fewer
    Int bytes[4];   // byte b of each of 16 entries, the same in both halves
  };
  static Table table(const float (&entries)[16]) {
    alignas(32) uint8_t bytes[4][32];
    for (int i = 0; i < 32; ++i)
      for (int b = 0; b < 4; ++b) bytes[b][i] = uint8_t(bits_of(entries[i & 15]) >> (8 * b));
    Table t{load(entries), {}};
    for (int b = 0; b < 4; ++b) t.bytes[b] = load_words(bytes[b]);
    return t;
  }
  template <int bits>
  static Float lookup(const Table& t, Int code) {
    if constexpr (bits <= 2) return _mm256_permutevar_ps(t.entries, code);
    return _mm256_permutevar8x32_ps(t.entries, code);
  }
  static constexpr bool kWordLookup = true;
  // value[k] = entry of nibble k of each 32-bit word.
  static void lookup_nibbles(const Table& t, Int words, Float (&value)[8]) {
    // 4 x 4 bytes transposed in each half: byte q of words 0..3 side by side.
    const Int order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const Int bytes = _mm256_shuffle_epi8(words, order), low = _mm256_set1_epi8(15);
    for (int half = 0; half < 2; ++half) {
      const Int code = both(half ? _mm256_srli_epi32(bytes, 4) : bytes, low);
      const Int b0 = _mm256_shuffle_epi8(t.bytes[0], code),
                b1 = _mm256_shuffle_epi8(t.bytes[1], code);
      const Int b2 = _mm256_shuffle_epi8(t.bytes[2], code),
                b3 = _mm256_shuffle_epi8(t.bytes[3], code);
      const Int lo01 = _mm256_unpacklo_epi8(b0, b1), hi01 = _mm256_unpackhi_epi8(b0, b1);
      const Int lo23 = _mm256_unpacklo_epi8(b2, b3), hi23 = _mm256_unpackhi_epi8(b2, b3);
      value[0 + half] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(lo01, lo23));
      value[2 + half] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(lo01, lo23));
      value[4 + half] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(hi01, hi23));
      value[6 + half] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(hi01, hi23));
    }
  }
};

}  // namespace

constinit const Kernels avx2_kernels = {"avx2", nullptr, nullptr, linear<Avx2>,
                                        linear_input_grad<Avx2>};
}  // namespace calibit
