#include "core/check.h"

#include <cmath>

#include "core/error.h"

namespace calibit {
namespace {

const char* name_of(DType t) {
  switch (t) {
    case DType::f32:
      return "float32";
    case DType::f16:
      return "float16";
    case DType::bf16:
      return "bfloat16";
    case DType::f64:
      return "float64";
    case DType::u8:
      return "uint8";
    case DType::i32:
      return "int32";
    case DType::i64:
      return "int64";
    default:
      return "another dtype";
  }
}

template <typename Lengths>
std::string text_of(const Lengths& shape, int dims) {
  std::string text = "[";
  int i = 0;
  for (const std::int64_t length : shape) {
    if (i == dims) break;
    text += (i++ ? ", " : "") + (length < 0 ? std::string("any") : std::to_string(length));
  }
  return text + "]";
}

bool matches(const Array& a, std::initializer_list<std::int64_t> shape) {
  if (a.dims != static_cast<int>(shape.size())) return false;
  std::size_t i = 0;
  for (const std::int64_t length : shape)
    if (const std::int64_t got = a.shape[i++]; length != -1 && got != length) return false;
  return true;
}

}  // namespace

void check_array(const char* op, const char* name, const Array& a, DType dtype,
                 std::initializer_list<std::int64_t> shape) {
  const int dims = static_cast<int>(shape.size());
  require(a.present(), op, "expected ", name, " ", name_of(dtype), " ", text_of(shape, dims),
          ", got none");
  require(a.dtype == dtype, op, "expected ", name, " of dtype ", name_of(dtype), ", got ",
          name_of(a.dtype));
  require(matches(a, shape), op, "expected ", name, " of shape ", text_of(shape, dims), ", got ",
          text_of(a.shape, a.dims));
}

WeightSpec make_spec(const char* op, std::int64_t n, std::int64_t k, std::int64_t bits,
                     std::int64_t group, std::int64_t scale_kind, bool has_codebook) {
  require(n >= 1 && k >= 1, op, "expected a weight with at least one row and column, got [", n,
          ", ", k, "]");
  require(n < (std::int64_t{1} << 31) && k < (std::int64_t{1} << 31), op,
          "expected fewer than 2^31 rows and columns, got [", n, ", ", k, "]");
  require(bits >= 1 && bits <= 8, op, "expected bits from 1 to 8, got ", bits);
  require(!has_codebook || bits <= 4, op, "expected a codebook of at most 16 values (4 bits), got ",
          bits, " bits");
  require(group >= 0, op, "expected group >= 0 (0 = one group per row), got ", group);
  const std::int64_t scale = scale_kind % 16, zero = scale_kind / 16;
  require(scale_kind >= 0 && scale <= 3 && zero <= 2, op, "expected a known scale kind, got ",
          scale_kind);
  require(!has_codebook || zero == 0, op, "expected no zero point with a codebook, got scale kind ",
          scale_kind);
  return {n,
          k,
          group == 0 || group > k ? k : group,
          static_cast<int>(bits),
          static_cast<ScaleType>(scale),
          static_cast<ZeroType>(zero)};
}

DType scale_dtype(ScaleType t) {
  return t == ScaleType::f32 ? DType::f32 : t == ScaleType::f16 ? DType::f16 : DType::u8;
}
DType zero_dtype(ZeroType t) { return t == ZeroType::u8 ? DType::u8 : DType::f32; }

const float* check_codebook(const char* op, const WeightSpec& spec, const Array& codebook) {
  if (!codebook.present()) return nullptr;
  check_array(op, "codebook", codebook, DType::f32, {std::int64_t{1} << spec.bits});
  return codebook.floats();
}

namespace {

void check_zeros(const char* op, const WeightSpec& spec, const Array& zeros) {
  if (spec.zero == ZeroType::none)
    require(!zeros.present(), op,
            "expected no zeros for a symmetric or codebook format, got an array");
  else
    check_array(op, "zeros", zeros, zero_dtype(spec.zero), {spec.n, groups(spec)});
}

void check_importance(const char* op, const Array& importance, std::int64_t k, bool clip) {
  check_array(op, "importance", importance, DType::f32, {k});
  require(clip, op, "expected importance together with clip, got importance alone");
  const float* values = importance.floats();
  for (std::int64_t i = 0; i < k; ++i)
    require(values[i] >= 0 && std::isfinite(values[i]), op,
            "expected importance >= 0 and finite, got ", values[i], " at ", i);
}

}  // namespace

CanonicalWeight check_canonical(const char* op, const WeightSpec& spec, const CanonicalArrays& a) {
  check_array(op, "codes", a.codes, DType::u8, {spec.n, row_bytes(spec)});
  check_array(op, "scales", a.scales, scale_dtype(spec.scale), {spec.n, groups(spec)});
  check_zeros(op, spec, a.zeros);
  CanonicalWeight w{spec,
                    a.codes.bytes(),
                    a.scales.data,
                    a.zeros.data,
                    check_codebook(op, spec, a.codebook),
                    {nullptr, nullptr, 0}};
  if (spec.scale != ScaleType::nested) return w;
  check_array(op, "nested_scales", a.nested_scales, DType::f32,
              {ceil_div(spec.n * groups(spec), kNestedBlock)});
  check_array(op, "nested_codebook", a.nested_codebook, DType::f32, {256});
  check_array(op, "nested_offset", a.nested_offset, DType::f32, {1});
  w.nested = {a.nested_scales.floats(), a.nested_codebook.floats(), *a.nested_offset.floats()};
  return w;
}

PackedWeight check_packed(const char* op, const WeightSpec& spec, const Array& packed,
                          const Array& codebook) {
  check_array(op, "packed", packed, DType::u8, {packed_bytes(spec)});
  return {spec, packed.bytes(), check_codebook(op, spec, codebook), {nullptr, nullptr, 0}};
}

QuantizeArgs check_quantize(const char* op, const WeightSpec& spec, const Array& w,
                            const Array& codebook, const Array& scales, const Array& zeros,
                            const Array& importance, bool clip) {
  check_array(op, "w", w, DType::f32, {spec.n, spec.k});
  require(spec.scale != ScaleType::nested, op,
          "expected plain scales: quantize them first, then call double_quantize");
  const bool fixed = scales.present();
  if (fixed) {
    check_array(op, "scales", scales, scale_dtype(spec.scale), {spec.n, groups(spec)});
    check_zeros(op, spec, zeros);
  } else {
    require(!zeros.present(), op, "expected zeros together with scales, got zeros alone");
  }
  require(!fixed || !clip, op, "expected no clip search with given scales, got both");
  if (importance.present()) check_importance(op, importance, spec.k, clip);
  return {spec,
          w.floats(),
          check_codebook(op, spec, codebook),
          {},
          fixed,
          nullptr,
          nullptr,
          nullptr,
          clip,
          importance.floats()};
}

ConfidenceArgs check_confidence(const char* op, const Array& logits, const Array& labels,
                                const Array& other, std::int64_t first, std::int64_t top_k) {
  require(logits.dtype == DType::f32 || logits.dtype == DType::f16 || logits.dtype == DType::bf16,
          op, "expected logits of dtype float32, bfloat16 or float16, got ", name_of(logits.dtype));
  require(logits.dims == 2 && logits.shape[1] > 0, op,
          "expected logits of shape [M, V] with V >= 1, got ", text_of(logits.shape, logits.dims));
  const std::int64_t rows = logits.shape[0], columns = logits.shape[1];
  if (labels.present()) check_array(op, "labels", labels, DType::i64, {rows});
  if (other.present()) check_array(op, "other", other, logits.dtype, {rows, columns});
  require(top_k >= 0, op, "expected top_k >= 0, got ", top_k);
  require(first >= 0, op, "expected first >= 0, got ", first);
  const LogitType type = logits.dtype == DType::f32   ? LogitType::f32
                         : logits.dtype == DType::f16 ? LogitType::f16
                                                      : LogitType::bf16;
  ConfidenceArgs a{};
  a.type = type;
  a.rows = rows;
  a.columns = columns;
  a.logits = logits.data;
  a.other = other.data;
  a.labels = static_cast<const std::int64_t*>(labels.data);
  a.first = first;
  a.top_k = top_k;
  return a;
}

}  // namespace calibit
