// AVX-512 F, BW, VL, DQ: 16 rows of W per vector.
#include <immintrin.h>

#include "cpu/vector_codes.h"
#include "cpu/vector_linear.h"
#include "cpu/vector_softmax.h"
#include "cpu/vector_solve.h"

namespace calibit {
namespace {

struct Avx512 {
  using Float = __m512;
  using Int = __m512i;
  static constexpr int kWidth = 16, kBytes = 64;
  static constexpr int kRows = 12, kTiles = 2;  // 24 sums, 2 values, 1 x: 27 of 32 registers
  static constexpr int kFusedRows = 4;
  static constexpr int kSolveColumns = 8, kSolveVectors = 3;  // 24 sums, 3 errors, 1 value of U
  static constexpr int strip(int) { return 4; }

  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static Float load_bytes(const uint8_t* p) { return _mm512_castsi512_ps(load_words(p)); }
  static void store(float* p, Float a) { _mm512_storeu_ps(p, a); }
  static Float set1(float a) { return _mm512_set1_ps(a); }
  // Lanes >= count take `other`, or are not stored.
  static Float load_part(const float* p, int64_t count, Float other) {
    return _mm512_mask_loadu_ps(other, first_lanes(count), p);
  }
  static void store_part(float* p, int64_t count, Float a) {
    _mm512_mask_storeu_ps(p, first_lanes(count), a);
  }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float abs(Float a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
  static float reduce_min(Float a) { return _mm512_reduce_min_ps(a); }
  static float reduce_max(Float a) { return _mm512_reduce_max_ps(a); }
  static float reduce_add(Float a) { return _mm512_reduce_add_ps(a); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }

  static Int load_words(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Int as_int(Float a) { return _mm512_castps_si512(a); }
  static Float as_float(Int a) { return _mm512_castsi512_ps(a); }
  static Int set1_int(int a) { return _mm512_set1_epi32(a); }
  static Int add_int(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int srlv(Int a, Int n) { return _mm512_srlv_epi32(a, n); }
  static Int both(Int a, Int b) { return _mm512_and_si512(a, b); }
  static Int either(Int a, Int b) { return _mm512_or_si512(a, b); }
  template <int n>
  static Int srl(Int a) {
    return n ? _mm512_srli_epi32(a, n) : a;
  }
  template <int n>
  static Int sll(Int a) {
    return _mm512_slli_epi32(a, n);
  }
  static Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
  static Int round(Float a) { return _mm512_cvtps_epi32(a); }
  static Int from_bytes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Float from_half(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Float from_bfloat(const uint8_t* p) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static Float scale(Float a, Float n) { return _mm512_scalef_ps(a, n); }
  static Float from_e8m0(const uint8_t* p) {  // code 0 is the subnormal 2^-127
    const Int scaled = _mm512_slli_epi32(from_bytes(p), 23);
    return _mm512_castsi512_ps(_mm512_max_epi32(scaled, _mm512_set1_epi32(0x400000)));
  }
  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

  // One vpermps looks up all 16 entries and ignores the higher bits of an index.
  using Table = Float;
  static Table table(const float (&entries)[16]) { return load(entries); }
  template <int bits>
  static Float lookup(const Table& t, Int code) {
    return _mm512_permutexvar_ps(code, t);
  }
  static Float lookup16(const Table& t, Int code) { return _mm512_permutexvar_ps(code, t); }
  static constexpr bool kWordLookup = false;

  static Float pick(Float levels, Int path) { return _mm512_permutexvar_ps(path, levels); }
  static Int append(Int path, Float x, Float threshold) {
    const Int doubled = _mm512_add_epi32(path, path);
    return _mm512_mask_add_epi32(doubled, _mm512_cmp_ps_mask(x, threshold, _CMP_GT_OQ), doubled,
                                 _mm512_set1_epi32(1));
  }
  static void store_codes(uint8_t* p, Int a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
  }
  static void map_bytes(uint8_t* p, int64_t count, const uint8_t* map) {
    const Int table =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(map)));
    for (int64_t i = 0; i < count; i += kBytes)
      _mm512_storeu_si512(p + i, _mm512_shuffle_epi8(table, load_words(p + i)));
  }
  static Int load_window(const uint8_t* p, Int order) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), order);
  }

 private:
  static __mmask16 first_lanes(int64_t count) {
    return count >= kWidth ? __mmask16(0xffff) : __mmask16((1u << count) - 1);
  }
};

}  // namespace

constinit const Kernels avx512_kernels = {
    "avx512",          quantize<Avx512>,          dequantize<Avx512>,
    linear<Avx512>,    linear_input_grad<Avx512>, softmax_sums<Avx512>,
    gptq_solve<Avx512>};
}  // namespace calibit
