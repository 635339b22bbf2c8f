// AVX2 + FMA + F16C: 8 rows of W per vector.
#include <immintrin.h>

#include "cpu/vector_codes.h"
#include "cpu/vector_linear.h"
#include "cpu/vector_softmax.h"
#include "cpu/vector_solve.h"

namespace calibit {
namespace {

struct Avx2 {
  using Float = __m256;
  using Int = __m256i;
  static constexpr int kWidth = 8, kBytes = 32;
  static constexpr int kRows = 6, kTiles = 1;  // 12 sums, 2 values, 1 x: 15 of 16 registers
  static constexpr int kFusedRows = 2;
  static constexpr int kSolveColumns = 4, kSolveVectors = 3;  // 12 sums, 3 errors, 1 value of U
  static constexpr int strip(int rows) { return rows == 1 ? 4 : 2; }

  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Float load_bytes(const uint8_t* p) { return _mm256_castsi256_ps(load_words(p)); }
  static void store(float* p, Float a) { _mm256_storeu_ps(p, a); }
  static Float set1(float a) { return _mm256_set1_ps(a); }
  // Lanes >= count take `other`, or are not stored.
  static Float load_part(const float* p, int64_t count, Float other) {
    const Int first = first_lanes(count);
    return _mm256_blendv_ps(other, _mm256_maskload_ps(p, first), _mm256_castsi256_ps(first));
  }
  static void store_part(float* p, int64_t count, Float a) {
    _mm256_maskstore_ps(p, first_lanes(count), a);
  }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float abs(Float a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static float reduce_min(Float a) { return -reduce_max(_mm256_xor_ps(a, _mm256_set1_ps(-0.0f))); }
  static float reduce_max(Float a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
  }
  static float reduce_add(Float a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }

  static Int load_words(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Int as_int(Float a) { return _mm256_castps_si256(a); }
  static Float as_float(Int a) { return _mm256_castsi256_ps(a); }
  static Int set1_int(int a) { return _mm256_set1_epi32(a); }
  static Int add_int(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int srlv(Int a, Int n) { return _mm256_srlv_epi32(a, n); }
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
  static Int round(Float a) { return _mm256_cvtps_epi32(a); }
  static Int from_bytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static Float from_half(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Float from_bfloat(const uint8_t* p) {
    const Int words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  }
  static Float scale(Float a, Float n) {
    const Int exponent = _mm256_max_epi32(add_int(round(n), set1_int(127)), set1_int(0));
    return mul(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }
  static Float from_e8m0(const uint8_t* p) {  // code 0 is the subnormal 2^-127
    const Int scaled = _mm256_slli_epi32(from_bytes(p), 23);
    return _mm256_castsi256_ps(_mm256_max_epi32(scaled, _mm256_set1_epi32(0x400000)));
  }
  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

  // vpermps takes 8 entries and runs once a clock (Zen 3). For 16 it costs less to look up the four
  // bytes of the floats with vpshufb, 32 codes at a time, and to interleave them: 1.6 clocks per
  // vector.
  struct Table {
    Float entries, others;  // 0..7, 8..15
    Int bytes[4];           // byte b of each of 16 entries, the same in both halves
  };
  static Table table(const float (&entries)[16]) {
    alignas(32) uint8_t bytes[4][32];
    for (int i = 0; i < 32; ++i)
      for (int b = 0; b < 4; ++b) bytes[b][i] = uint8_t(bits_of(entries[i & 15]) >> (8 * b));
    Table t{load(entries), load(entries + 8), {}};
    for (int b = 0; b < 4; ++b) t.bytes[b] = load_words(bytes[b]);
    return t;
  }
  template <int bits>
  static Float lookup(const Table& t, Int code) {
    if constexpr (bits <= 2) return _mm256_permutevar_ps(t.entries, code);
    return _mm256_permutevar8x32_ps(t.entries, code);
  }
  static Float lookup16(const Table& t, Int code) {
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.entries, code),
                            _mm256_permutevar8x32_ps(t.others, code),
                            _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
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

  static Float pick(Float levels, Int path) { return _mm256_permutevar8x32_ps(levels, path); }
  static Int append(Int path, Float x, Float threshold) {
    const Int above = _mm256_castps_si256(_mm256_cmp_ps(x, threshold, _CMP_GT_OQ));  // -1 or 0
    return _mm256_sub_epi32(_mm256_add_epi32(path, path), above);
  }
  static void store_codes(uint8_t* p, Int a) {
    const __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }
  static void map_bytes(uint8_t* p, int64_t count, const uint8_t* map) {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(map));
    const Int table = _mm256_broadcastsi128_si256(entries);
    for (int64_t i = 0; i < count; i += kBytes)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + i),
                          _mm256_shuffle_epi8(table, load_words(p + i)));
  }
  static Int load_window(const uint8_t* p, Int order) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), order);
  }

 private:
  static Int first_lanes(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

}  // namespace

constinit const Kernels avx2_kernels = {
    "avx2",          quantize<Avx2>,          dequantize<Avx2>,
    linear<Avx2>,    linear_input_grad<Avx2>, softmax_sums<Avx2>,
    gptq_solve<Avx2>};
}  // namespace calibit
