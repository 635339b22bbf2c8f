#pragma once
// The checks that both bindings share: arrays of either library become `Array`, and arrays become
// views. Every failure is std::invalid_argument "[op] expected <argument> ..., got ...".
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/confidence.h"
#include "core/kernels.h"

namespace calibit {

enum class DType : std::int32_t { f32, f16, bf16, f64, u8, i32, i64, other };

// A contiguous array, or an absent optional one (data null and dims -1).
struct Array {
  const void* data = nullptr;
  DType dtype = DType::other;
  int dims = -1;
  std::array<std::int64_t, 4> shape{};

  bool present() const { return dims >= 0; }
  const float* floats() const { return static_cast<const float*>(data); }
  const std::uint8_t* bytes() const { return static_cast<const std::uint8_t*>(data); }
};

// Fails unless the array has this type and shape; -1 in `shape` stands for any length.
void check_array(const char* op, const char* name, const Array& a, DType dtype,
                 std::initializer_list<std::int64_t> shape);

// scale_kind = ScaleType + 16 * ZeroType, as in the operators' schemas. group 0 or > k: one per
// row.
WeightSpec make_spec(const char* op, std::int64_t n, std::int64_t k, std::int64_t bits,
                     std::int64_t group, std::int64_t scale_kind, bool has_codebook);

// Codebook pointer of an optional [2^bits] float32 array, null when absent.
const float* check_codebook(const char* op, const WeightSpec& spec, const Array& codebook);

struct CanonicalArrays {
  Array codes, scales, zeros, codebook, nested_scales, nested_codebook, nested_offset;
};
CanonicalWeight check_canonical(const char* op, const WeightSpec& spec, const CanonicalArrays& a);

PackedWeight check_packed(const char* op, const WeightSpec& spec, const Array& packed,
                          const Array& codebook);

// Inputs of quantize and gptq_solve. codes, scales, zeros of the result are left null.
QuantizeArgs check_quantize(const char* op, const WeightSpec& spec, const Array& w,
                            const Array& codebook, const Array& scales, const Array& zeros,
                            const Array& importance, bool clip);

// Inputs of confidence_update. The state is left null.
ConfidenceArgs check_confidence(const char* op, const Array& logits, const Array& labels,
                                const Array& other, std::int64_t first, std::int64_t top_k);

DType scale_dtype(ScaleType t);
DType zero_dtype(ZeroType t);

}  // namespace calibit
