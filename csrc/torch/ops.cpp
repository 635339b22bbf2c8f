#define TORCH_TARGET_VERSION 0x020b000000000000ULL  // the stable ABI of torch 2.11
// Operators on torch tensors: check, allocate, call core. No arithmetic on data here.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "core/dispatch.h"
#include "core/error.h"
#include "core/gptq.h"
#include "core/linear.h"
#include "core/pack.h"
#include "core/quantize.h"
#include "torch/backend.h"

namespace calibit {

void pool_for(std::int64_t n, std::int64_t grain, LoopBody body, void* context) {
  torch::stable::parallel_for(
      0, n, grain, [&](std::int64_t begin, std::int64_t end) { body(context, begin, end); });
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::Byte:
      return DType::u8;
    case ScalarType::Int:
      return DType::i32;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::Long:
      return DType::i64;
    default:
      return DType::other;
  }
}

// A contiguous tensor of the caller's, and its view. Keeps the copy alive where one was made.
struct Input {
  Tensor tensor;
  Array array;

  Input(const char* op, const Tensor& t)
      : tensor(t.is_contiguous() ? t : torch::stable::contiguous(t)) {
    array = {tensor.const_data_ptr(), dtype_of(tensor), static_cast<int>(tensor.dim()), {}};
    require(array.dims <= 4, op, "expected at most 4 dimensions, got ", array.dims);
    for (int i = 0; i < array.dims; ++i) array.shape[static_cast<std::size_t>(i)] = tensor.size(i);
  }
  Input(const char* op, const MaybeTensor& t) : Input(t ? Input(op, *t) : Input()) {}

 private:
  Input() = default;
};

Tensor empty(std::initializer_list<std::int64_t> shape, ScalarType dtype) {
  std::array<std::int64_t, 4> strides{};
  std::int64_t stride = 1;
  for (auto i = static_cast<std::ptrdiff_t>(shape.size()) - 1; i >= 0; --i) {
    strides[static_cast<std::size_t>(i)] = stride;
    stride *= shape.begin()[i];
  }
  AtenTensorHandle handle = nullptr;  // device 0 is the CPU
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<std::int64_t>(shape.size()), shape.begin(), strides.data(),
      static_cast<std::int32_t>(dtype), aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor empty_like_rows(const Tensor& x, std::int64_t columns) {
  std::array<std::int64_t, 8> shape{}, strides{};
  const auto dims = static_cast<std::size_t>(x.dim());
  for (std::size_t i = 0; i + 1 < dims; ++i) shape[i] = x.size(static_cast<std::int64_t>(i));
  shape[dims - 1] = columns;
  std::int64_t stride = 1;
  for (std::size_t i = dims; i-- > 0; stride *= shape[i]) strides[i] = stride;
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      x.dim(), shape.data(), strides.data(), static_cast<std::int32_t>(ScalarType::Float),
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

ScalarType scalar_type(DType t) {
  return t == DType::f32   ? ScalarType::Float
         : t == DType::f16 ? ScalarType::Half
                           : ScalarType::Byte;
}
Tensor empty_scales(const WeightSpec& s) {
  return empty({s.n, groups(s)}, scalar_type(scale_dtype(s.scale)));
}
Tensor empty_zeros(const WeightSpec& s) {
  return s.zero == ZeroType::none ? empty({0}, ScalarType::Byte)
                                  : empty({s.n, groups(s)}, scalar_type(zero_dtype(s.zero)));
}
void* data(const Tensor& t) { return t.mutable_data_ptr(); }
float* floats(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }
std::uint8_t* bytes(const Tensor& t) { return static_cast<std::uint8_t*>(t.mutable_data_ptr()); }

// x as float32: half precisions are converted, the result is converted back by the caller.
Tensor as_float(const char* op, const Tensor& x) {
  const ScalarType t = x.scalar_type();
  if (t == ScalarType::Float) return x;
  require(t == ScalarType::BFloat16 || t == ScalarType::Half, op,
          "expected x of dtype float32, bfloat16 or float16, got ", torch::headeronly::toString(t));
  return torch::stable::to(x, ScalarType::Float);
}
Tensor as_dtype(const Tensor& y, ScalarType dtype) {
  return dtype == ScalarType::Float ? y : torch::stable::to(y, dtype);
}

using CodesScalesZeros = std::tuple<Tensor, Tensor, Tensor>;

struct QuantizeOutputs {
  Tensor codes, scales, zeros;
  QuantizeOutputs(QuantizeArgs& a, const Input& given_scales, const Input& given_zeros)
      : codes(empty({a.spec.n, row_bytes(a.spec)}, ScalarType::Byte)),
        scales(a.fixed ? torch::stable::clone(given_scales.tensor) : empty_scales(a.spec)),
        zeros(a.fixed && given_zeros.array.present() ? torch::stable::clone(given_zeros.tensor)
                                                     : empty_zeros(a.spec)) {
    a.codes = bytes(codes);
    a.scales = data(scales);
    a.zeros = a.spec.zero == ZeroType::none ? nullptr : data(zeros);
  }
};

CodesScalesZeros quantize_op(const Tensor& w, const MaybeTensor& codebook,
                             const MaybeTensor& scales, const MaybeTensor& zeros,
                             const MaybeTensor& importance, std::int64_t bits, std::int64_t group,
                             std::int64_t scale_kind, bool clip) {
  const char* op = "quantize";
  const Input wi(op, w), ci(op, codebook), si(op, scales), zi(op, zeros), pi(op, importance);
  require(wi.array.dims == 2, op, "expected w of shape [N, K], got ", wi.array.dims, " dimensions");
  const WeightSpec spec = make_spec(op, wi.array.shape[0], wi.array.shape[1], bits, group,
                                    scale_kind, codebook.has_value());
  QuantizeArgs a = check_quantize(op, spec, wi.array, ci.array, si.array, zi.array, pi.array, clip);
  QuantizeOutputs out(a, si, zi);
  quantize(a, active_kernels(), pool_for);
  return {out.codes, out.scales, out.zeros};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gptq_solve_op(
    const Tensor& w, const Tensor& u, const MaybeTensor& codebook, const MaybeTensor& scales,
    const MaybeTensor& zeros, const MaybeTensor& order, const MaybeTensor& importance,
    std::int64_t bits, std::int64_t group, std::int64_t scale_kind, bool clip) {
  const char* op = "gptq_solve";
  const Input wi(op, w), ui(op, u), ci(op, codebook), si(op, scales), zi(op, zeros), oi(op, order),
      pi(op, importance);
  require(wi.array.dims == 2, op, "expected w of shape [N, K], got ", wi.array.dims, " dimensions");
  const WeightSpec spec = make_spec(op, wi.array.shape[0], wi.array.shape[1], bits, group,
                                    scale_kind, codebook.has_value());
  QuantizeArgs a = check_quantize(op, spec, wi.array, ci.array, si.array, zi.array, pi.array, clip);
  check_array(op, "u", ui.array, DType::f32, {spec.k, spec.k});
  if (order) check_array(op, "order", oi.array, DType::i32, {spec.k});
  QuantizeOutputs out(a, si, zi);
  Tensor clipped = empty({spec.n}, ScalarType::Int);
  gptq_solve({a, ui.array.floats(), static_cast<const std::int32_t*>(oi.array.data),
              static_cast<std::int32_t*>(data(clipped))},
             active_kernels(), pool_for);
  return {out.codes, out.scales, out.zeros, clipped};
}

Tensor dequantize_op(const Tensor& codes, const Tensor& scales, const MaybeTensor& zeros,
                     const MaybeTensor& codebook, const MaybeTensor& nested_scales,
                     const MaybeTensor& nested_codebook, const MaybeTensor& nested_offset,
                     std::int64_t n, std::int64_t k, std::int64_t bits, std::int64_t group,
                     std::int64_t scale_kind) {
  const char* op = "dequantize";
  const Input c(op, codes), s(op, scales), z(op, zeros), b(op, codebook), ns(op, nested_scales),
      nc(op, nested_codebook), no(op, nested_offset);
  const WeightSpec spec = make_spec(op, n, k, bits, group, scale_kind, codebook.has_value());
  const CanonicalWeight w =
      check_canonical(op, spec, {c.array, s.array, z.array, b.array, ns.array, nc.array, no.array});
  Tensor out = empty({n, k}, ScalarType::Float);
  dequantize({w, floats(out)}, active_kernels(), pool_for);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> double_quantize_op(const Tensor& scales) {
  const char* op = "double_quantize";
  const Input s(op, scales);
  require(s.array.dims == 2, op, "expected scales of shape [N, K/group], got ", s.array.dims,
          " dimensions");
  check_array(op, "scales", s.array, DType::f32, {s.array.shape[0], s.array.shape[1]});
  const std::int64_t count = s.array.shape[0] * s.array.shape[1];
  Tensor codes = empty({s.array.shape[0], s.array.shape[1]}, ScalarType::Byte);
  Tensor nested_scales = empty({ceil_div(count, kNestedBlock)}, ScalarType::Float);
  Tensor codebook = empty({256}, ScalarType::Float), offset = empty({1}, ScalarType::Float);
  double_quantize({s.array.floats(), static_cast<std::size_t>(count)}, bytes(codes),
                  floats(nested_scales), floats(codebook), floats(offset));
  return {codes, nested_scales, codebook, offset};
}

Tensor pack_weight_op(const Tensor& codes, const Tensor& scales, const MaybeTensor& zeros,
                      const MaybeTensor& nested_scales, const MaybeTensor& nested_codebook,
                      const MaybeTensor& nested_offset, std::int64_t n, std::int64_t k,
                      std::int64_t bits, std::int64_t group, std::int64_t scale_kind) {
  const char* op = "pack_weight";
  const Input c(op, codes), s(op, scales), z(op, zeros), ns(op, nested_scales),
      nc(op, nested_codebook), no(op, nested_offset);
  const WeightSpec spec = make_spec(op, n, k, bits, group, scale_kind, false);
  const CanonicalWeight w =
      check_canonical(op, spec, {c.array, s.array, z.array, {}, ns.array, nc.array, no.array});
  Tensor out = empty({packed_bytes(spec)}, ScalarType::Byte);
  pack_weight(w, bytes(out), pool_for);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> unpack_weight_op(
    const Tensor& packed, std::int64_t n, std::int64_t k, std::int64_t bits, std::int64_t group,
    std::int64_t scale_kind) {
  const char* op = "unpack_weight";
  const Input p(op, packed);
  const WeightSpec spec = make_spec(op, n, k, bits, group, scale_kind, false);
  const PackedWeight w = check_packed(op, spec, p.array, {});
  const bool nested = spec.scale == ScaleType::nested;
  Tensor codes = empty({n, row_bytes(spec)}, ScalarType::Byte);
  Tensor scales = empty_scales(spec), zeros = empty_zeros(spec);
  Tensor nested_scales =
      empty({nested ? ceil_div(n * groups(spec), kNestedBlock) : 0}, ScalarType::Float);
  Tensor nested_codebook = empty({nested ? 256 : 0}, ScalarType::Float);
  Tensor nested_offset = empty({nested ? 1 : 0}, ScalarType::Float);
  unpack_weight({w, bytes(codes), data(scales), data(zeros), floats(nested_scales),
                 floats(nested_codebook), floats(nested_offset)},
                pool_for);
  return {codes, scales, zeros, nested_scales, nested_codebook, nested_offset};
}

// Rows of x, whose last dimension must be `columns`.
std::int64_t check_rows(const char* op, const char* name, const Tensor& x, std::int64_t columns) {
  const std::int64_t dims = x.dim();
  require(dims >= 1 && dims <= 8, op, "expected ", name, " with 1 to 8 dimensions, got ", dims);
  require(x.size(dims - 1) == columns, op, "expected ", name, " with a last dimension of ", columns,
          ", got ", x.size(dims - 1));
  return columns ? x.numel() / columns : 0;
}

Tensor linear_op(const Tensor& x, const Tensor& packed, const MaybeTensor& codebook,
                 const MaybeTensor& bias, std::int64_t n, std::int64_t k, std::int64_t bits,
                 std::int64_t group, std::int64_t scale_kind) {
  const char* op = "linear";
  const WeightSpec spec = make_spec(op, n, k, bits, group, scale_kind, codebook.has_value());
  const std::int64_t m = check_rows(op, "x", x, k);
  const Input p(op, packed), c(op, codebook);
  PackedWeight w = check_packed(op, spec, p.array, c.array);
  w.nested = nested_of(spec, w.data);
  const Tensor xf = as_float(op, x);
  const Tensor xc = xf.is_contiguous() ? xf : torch::stable::contiguous(xf);
  const MaybeTensor bf = bias ? MaybeTensor(as_float(op, *bias)) : std::nullopt;
  const Input b(op, bf);
  if (bias) check_array(op, "bias", b.array, DType::f32, {n});
  Tensor y = empty_like_rows(x, n);
  linear({w, static_cast<const float*>(xc.const_data_ptr()), b.array.floats(), floats(y), m},
         active_kernels(), pool_for);
  return as_dtype(y, x.scalar_type());
}

Tensor linear_input_grad_op(const Tensor& grad, const Tensor& packed, const MaybeTensor& codebook,
                            std::int64_t n, std::int64_t k, std::int64_t bits, std::int64_t group,
                            std::int64_t scale_kind) {
  const char* op = "linear_input_grad";
  const WeightSpec spec = make_spec(op, n, k, bits, group, scale_kind, codebook.has_value());
  const std::int64_t m = check_rows(op, "grad", grad, n);
  const Input p(op, packed), c(op, codebook);
  PackedWeight w = check_packed(op, spec, p.array, c.array);
  w.nested = nested_of(spec, w.data);
  const Tensor gf = as_float(op, grad);
  const Tensor gc = gf.is_contiguous() ? gf : torch::stable::contiguous(gf);
  Tensor dx = empty_like_rows(grad, k);
  linear_input_grad({w, static_cast<const float*>(gc.const_data_ptr()), floats(dx), m},
                    active_kernels(), pool_for);
  return as_dtype(dx, grad.scalar_type());
}

void confidence_update_op(const Tensor& sums, const Tensor& argmax, const Tensor& top_values,
                          const Tensor& top_indices, const Tensor& logits,
                          const MaybeTensor& labels, const MaybeTensor& other, std::int64_t first) {
  const char* op = "confidence";
  const Input x(op, logits), l(op, labels), y(op, other);
  const Input s(op, sums), m(op, argmax), v(op, top_values), i(op, top_indices);
  require(v.array.dims == 2, op, "expected top_values of shape [M, top_k], got ", v.array.dims,
          " dimensions");
  const std::int64_t top_k = v.array.shape[1];
  ConfidenceArgs a = check_confidence(op, x.array, l.array, y.array, first, top_k);
  check_array(op, "sums", s.array, DType::f64, {a.rows, kConfidenceSums});
  check_array(op, "argmax", m.array, DType::i64, {a.rows});
  check_array(op, "top_values", v.array, DType::f32, {a.rows, top_k});
  check_array(op, "top_indices", i.array, DType::i64, {a.rows, top_k});
  for (const Tensor* state : {&sums, &argmax, &top_values, &top_indices})
    require(state->is_contiguous(), op, "expected a contiguous state, got strides");
  a.sums = static_cast<ConfidenceSums*>(data(sums));
  a.argmax = static_cast<std::int64_t*>(data(argmax));
  a.top_values = floats(top_values);
  a.top_indices = static_cast<std::int64_t*>(data(top_indices));
  if (first == 0) confidence_start(a);
  confidence_update(a, active_kernels(), pool_for);
}

}  // namespace

// scale_kind = ScaleType + 16 * ZeroType (core/weight.h). Absent zeros come back as an empty
// tensor.
STABLE_TORCH_LIBRARY(calibit, m) {
  m.def(
      "quantize(Tensor w, Tensor? codebook, Tensor? scales, Tensor? zeros, Tensor? importance, "
      "int bits, int group, int scale_kind, bool clip) -> (Tensor, Tensor, Tensor)");
  m.def(
      "gptq_solve(Tensor w, Tensor u, Tensor? codebook, Tensor? scales, Tensor? zeros, "
      "Tensor? order, Tensor? importance, int bits, int group, int scale_kind, bool clip) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "dequantize(Tensor codes, Tensor scales, Tensor? zeros, Tensor? codebook, "
      "Tensor? nested_scales, Tensor? nested_codebook, Tensor? nested_offset, int n, int k, "
      "int bits, int group, int scale_kind) -> Tensor");
  m.def("double_quantize(Tensor scales) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "pack_weight(Tensor codes, Tensor scales, Tensor? zeros, Tensor? nested_scales, "
      "Tensor? nested_codebook, Tensor? nested_offset, int n, int k, int bits, int group, "
      "int scale_kind) -> Tensor");
  m.def(
      "unpack_weight(Tensor packed, int n, int k, int bits, int group, int scale_kind) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "linear(Tensor x, Tensor packed, Tensor? codebook, Tensor? bias, int n, int k, int bits, "
      "int group, int scale_kind) -> Tensor");
  m.def(
      "linear_input_grad(Tensor grad, Tensor packed, Tensor? codebook, int n, int k, int bits, "
      "int group, int scale_kind) -> Tensor");
  m.def(
      "confidence_update(Tensor(a!) sums, Tensor(b!) argmax, Tensor(c!) top_values, "
      "Tensor(d!) top_indices, Tensor logits, Tensor? labels, Tensor? other, int first) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(calibit, CPU, m) {
  m.impl("quantize", TORCH_BOX(&quantize_op));
  m.impl("gptq_solve", TORCH_BOX(&gptq_solve_op));
  m.impl("dequantize", TORCH_BOX(&dequantize_op));
  m.impl("double_quantize", TORCH_BOX(&double_quantize_op));
  m.impl("pack_weight", TORCH_BOX(&pack_weight_op));
  m.impl("unpack_weight", TORCH_BOX(&unpack_weight_op));
  m.impl("linear", TORCH_BOX(&linear_op));
  m.impl("linear_input_grad", TORCH_BOX(&linear_input_grad_op));
  m.impl("confidence_update", TORCH_BOX(&confidence_update_op));
}

}  // namespace calibit
