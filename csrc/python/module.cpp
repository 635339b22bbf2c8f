// calibit._C: the NumPy twins of the operators, the format registry and facts about the build. The
// arrays are checked by the same core functions; every twin takes `kernels` to force a table.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <span>

#include "core/check.h"
#include "core/dispatch.h"
#include "core/error.h"
#include "core/formats.h"
#include "core/gptq.h"
#include "core/linear.h"
#include "core/pack.h"
#include "core/quantize.h"
#include "core/resample.h"
#include "torch/backend.h"

namespace py = pybind11;
static_assert(PYBIND11_VERSION_HEX >= 0x03000000,
              "an older pybind11, as bundled with torch, was found");

namespace calibit {
namespace {

using MaybeArray = std::optional<py::array>;

DType dtype_of(const py::array& a) {
  if (a.dtype().is(py::dtype::of<float>())) return DType::f32;
  if (a.dtype().is(py::dtype::of<std::uint8_t>())) return DType::u8;
  if (a.dtype().is(py::dtype::of<std::int32_t>())) return DType::i32;
  if (a.dtype().is(py::dtype::of<std::int64_t>())) return DType::i64;
  if (a.dtype().is(py::dtype::of<double>())) return DType::f64;
  return a.dtype().kind() == 'f' && a.itemsize() == 2 ? DType::f16 : DType::other;
}

struct Input {
  py::array owned;
  Array array;

  Input(const char* op, const MaybeArray& a) {
    if (!a) return;
    owned = py::array::ensure(*a, py::array::c_style);
    require(owned.ndim() <= 4, op, "expected at most 4 dimensions, got ", owned.ndim());
    array = {owned.data(), dtype_of(owned), static_cast<int>(owned.ndim()), {}};
    for (int i = 0; i < array.dims; ++i) array.shape[static_cast<std::size_t>(i)] = owned.shape(i);
  }
};

template <typename T>
py::array_t<T> empty(std::vector<py::ssize_t> shape) {
  return py::array_t<T>(std::move(shape));
}
py::array empty_scales(const WeightSpec& s) {
  const std::vector<py::ssize_t> shape{s.n, groups(s)};
  if (s.scale == ScaleType::f16) return py::array(py::dtype("float16"), shape);
  if (s.scale == ScaleType::f32) return empty<float>(shape);
  return empty<std::uint8_t>(shape);
}
py::object empty_zeros(const WeightSpec& s) {
  const std::vector<py::ssize_t> shape{s.n, groups(s)};
  if (s.zero == ZeroType::none) return py::none();
  if (s.zero == ZeroType::u8) return empty<std::uint8_t>(shape);
  return empty<float>(shape);
}
void* data(const py::object& a) {
  return a.is_none() ? nullptr : py::reinterpret_borrow<py::array>(a).mutable_data();
}
py::array copied(const Input& i) {
  return py::reinterpret_borrow<py::array>(i.owned.attr("copy")());
}

// Runs core without the interpreter lock.
template <typename F>
void unlocked(F&& f) {
  const py::gil_scoped_release release;
  f();
}

py::tuple quantize_with(const char* op, const Input& w, const Input& codebook, const Input& scales,
                        const Input& zeros, const Input& importance, std::int64_t bits,
                        std::int64_t group, std::int64_t scale_kind, bool clip, auto&& solve) {
  require(w.array.dims == 2, op, "expected w of shape [N, K], got ", w.array.dims, " dimensions");
  const WeightSpec spec = make_spec(op, w.array.shape[0], w.array.shape[1], bits, group, scale_kind,
                                    codebook.array.present());
  QuantizeArgs a = check_quantize(op, spec, w.array, codebook.array, scales.array, zeros.array,
                                  importance.array, clip);
  py::array codes = empty<std::uint8_t>({spec.n, row_bytes(spec)});
  py::array out_scales = a.fixed ? copied(scales) : empty_scales(spec);
  py::object out_zeros = a.fixed && zeros.array.present() ? copied(zeros) : empty_zeros(spec);
  a.codes = static_cast<std::uint8_t*>(codes.mutable_data());
  a.scales = out_scales.mutable_data();
  a.zeros = data(out_zeros);
  unlocked([&] { solve(a); });
  return py::make_tuple(codes, out_scales, out_zeros);
}

py::tuple quantize_np(const py::array& w, std::int64_t bits, std::int64_t group,
                      std::int64_t scale_kind, const MaybeArray& codebook, const MaybeArray& scales,
                      const MaybeArray& zeros, bool clip, const MaybeArray& importance,
                      const std::string& kernels) {
  const char* op = "quantize";
  const Kernels& table = kernels_named(kernels);
  return quantize_with(op, {op, w}, {op, codebook}, {op, scales}, {op, zeros}, {op, importance},
                       bits, group, scale_kind, clip,
                       [&](const QuantizeArgs& a) { quantize(a, table, pool_for); });
}

py::tuple gptq_solve_np(const py::array& w, const py::array& u, std::int64_t bits,
                        std::int64_t group, std::int64_t scale_kind, const MaybeArray& codebook,
                        const MaybeArray& scales, const MaybeArray& zeros, const MaybeArray& order,
                        bool clip, const MaybeArray& importance, const std::string& kernels) {
  const char* op = "gptq_solve";
  const Input ui(op, u), oi(op, order);
  const Kernels& table = kernels_named(kernels);
  auto clipped = empty<std::int32_t>({w.ndim() > 0 ? w.shape(0) : 0});
  std::int32_t* count = clipped.mutable_data();
  const py::tuple solved = quantize_with(
      op, {op, w}, {op, codebook}, {op, scales}, {op, zeros}, {op, importance}, bits, group,
      scale_kind, clip, [&](const QuantizeArgs& a) {
        check_array(op, "u", ui.array, DType::f32, {a.spec.k, a.spec.k});
        if (oi.array.present()) check_array(op, "order", oi.array, DType::i32, {a.spec.k});
        gptq_solve({a, ui.array.floats(), static_cast<const std::int32_t*>(oi.array.data), count},
                   table, pool_for);
      });
  return py::make_tuple(solved[0], solved[1], solved[2], clipped);
}

// The canonical tensors of a weight, as arrays.
struct CanonicalInputs {
  Input codes, scales, zeros, codebook, nested_scales, nested_codebook, nested_offset;
  CanonicalArrays arrays() const {
    return {codes.array,         scales.array,          zeros.array,        codebook.array,
            nested_scales.array, nested_codebook.array, nested_offset.array};
  }
};

py::array dequantize_np(const py::array& codes, const py::array& scales, std::int64_t n,
                        std::int64_t k, std::int64_t bits, std::int64_t group,
                        std::int64_t scale_kind, const MaybeArray& zeros,
                        const MaybeArray& codebook, const MaybeArray& nested_scales,
                        const MaybeArray& nested_codebook, const MaybeArray& nested_offset,
                        const std::string& kernels) {
  const char* op = "dequantize";
  const CanonicalInputs in{{op, codes},        {op, scales},        {op, zeros},
                           {op, codebook},     {op, nested_scales}, {op, nested_codebook},
                           {op, nested_offset}};
  const WeightSpec spec = make_spec(op, n, k, bits, group, scale_kind, codebook.has_value());
  const CanonicalWeight w = check_canonical(op, spec, in.arrays());
  auto out = empty<float>({n, k});
  float* to = out.mutable_data();
  const Kernels& table = kernels_named(kernels);
  unlocked([&] { dequantize({w, to}, table, pool_for); });
  return out;
}

py::tuple double_quantize_np(const py::array& scales) {
  const char* op = "double_quantize";
  const Input s(op, scales);
  require(s.array.dims == 2, op, "expected scales of shape [N, K/group], got ", s.array.dims,
          " dimensions");
  check_array(op, "scales", s.array, DType::f32, {s.array.shape[0], s.array.shape[1]});
  const std::int64_t count = s.array.shape[0] * s.array.shape[1];
  auto codes = empty<std::uint8_t>({s.array.shape[0], s.array.shape[1]});
  auto nested = empty<float>({ceil_div(count, kNestedBlock)}), codebook = empty<float>({256}),
       offset = empty<float>({1});
  double_quantize({s.array.floats(), static_cast<std::size_t>(count)}, codes.mutable_data(),
                  nested.mutable_data(), codebook.mutable_data(), offset.mutable_data());
  return py::make_tuple(codes, nested, codebook, offset);
}

py::array pack_weight_np(const py::array& codes, const py::array& scales, std::int64_t n,
                         std::int64_t k, std::int64_t bits, std::int64_t group,
                         std::int64_t scale_kind, const MaybeArray& zeros,
                         const MaybeArray& nested_scales, const MaybeArray& nested_codebook,
                         const MaybeArray& nested_offset) {
  const char* op = "pack_weight";
  const CanonicalInputs in{{op, codes},        {op, scales},        {op, zeros},
                           {op, MaybeArray()}, {op, nested_scales}, {op, nested_codebook},
                           {op, nested_offset}};
  const WeightSpec spec = make_spec(op, n, k, bits, group, scale_kind, false);
  const CanonicalWeight w = check_canonical(op, spec, in.arrays());
  auto out = empty<std::uint8_t>({packed_bytes(spec)});
  std::uint8_t* to = out.mutable_data();
  unlocked([&] { pack_weight(w, to, pool_for); });
  return out;
}

py::array linear_np(const py::array& x, const py::array& packed, std::int64_t n, std::int64_t k,
                    std::int64_t bits, std::int64_t group, std::int64_t scale_kind,
                    const MaybeArray& codebook, const MaybeArray& bias,
                    const std::string& kernels) {
  const char* op = "linear";
  const Input xi(op, x), p(op, packed), c(op, codebook), b(op, bias);
  const WeightSpec spec = make_spec(op, n, k, bits, group, scale_kind, codebook.has_value());
  check_array(op, "x", xi.array, DType::f32, {-1, k});
  if (bias) check_array(op, "bias", b.array, DType::f32, {n});
  PackedWeight w = check_packed(op, spec, p.array, c.array);
  w.nested = nested_of(spec, w.data);
  const std::int64_t m = xi.array.shape[0];
  auto y = empty<float>({m, n});
  const LinearArgs a{w, xi.array.floats(), b.array.floats(), y.mutable_data(), m};
  const Kernels& table = kernels_named(kernels);
  unlocked([&] { linear(a, table, pool_for); });
  return y;
}

// (high, low) words of state and increment of numpy.random.PCG64.
using Seed = std::array<std::uint64_t, 4>;
using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Ints = py::array_t<std::int32_t, py::array::c_style | py::array::forcecast>;
using Offsets = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;
using Flags = py::array_t<std::uint8_t, py::array::c_style | py::array::forcecast>;

Pcg64 generator(const Seed& s) { return {s[0], s[1], s[2], s[3]}; }

template <typename Array>
auto span_of(const Array& a) {
  return std::span(a.data(), static_cast<std::size_t>(a.size()));
}

py::array resampled_sums_np(const Doubles& units, std::int64_t resamples, const Seed& seed) {
  require(units.ndim() == 2, "resampled_sums", "expected units of shape [N, m], got ", units.ndim(),
          " dimensions");
  const std::int64_t n = units.shape(0), m = units.shape(1);
  auto out = empty<double>({resamples, m});
  double* to = out.mutable_data();
  const auto from = span_of(units);
  unlocked([&] { resampled_sums(generator(seed), from, n, m, resamples, to, pool_for); });
  return out;
}

OrderedItems ordered(const char* op, const Ints& unit, std::int64_t units,
                     std::initializer_list<const py::array*> beside) {
  require(unit.ndim() == 1, op, "expected unit of shape [N], got ", unit.ndim(), " dimensions");
  for (const py::array* a : beside)
    require(a->ndim() == 1 && a->size() == unit.size(), op,
            "expected arrays of one length [N], got ", a->size(), " and ", unit.size());
  return {units, span_of(unit)};
}

// Row m of an array [M, n].
template <typename Array>
auto row_of(const Array& a, std::size_t m) {
  const auto n = static_cast<std::size_t>(a.shape(1));
  return span_of(a).subspan(m * n, n);
}

py::array resampled_bin_sums_np(const Ints& unit, const Doubles& first, const Doubles& second,
                                std::int64_t bins, std::int64_t units, std::int64_t resamples,
                                const Seed& seed, const std::optional<Ints>& end,
                                const std::optional<Flags>& last) {
  const char* op = "resampled_bin_sums";
  const auto like_unit = [&](const py::array& a) {
    return a.ndim() == 2 && a.shape(0) == unit.shape(0) && a.shape(1) == unit.shape(1);
  };
  require(unit.ndim() == 2 && like_unit(first) && like_unit(second), op,
          "expected unit, first and second of one shape [M, N]");
  require(end.has_value() != last.has_value(), op, "expected either end or last");
  require(!last || like_unit(*last), op, "expected last of shape [M, N]");
  require(!end || (end->ndim() == 2 && end->shape(0) == unit.shape(0)), op,
          "expected end of shape [M, bins]");
  std::vector<BinnedItems> models;
  models.reserve(static_cast<std::size_t>(unit.shape(0)));
  for (std::size_t m = 0; m < static_cast<std::size_t>(unit.shape(0)); ++m)
    models.push_back({row_of(unit, m), row_of(first, m), row_of(second, m),
                      end ? row_of(*end, m) : std::span<const std::int32_t>(),
                      last ? row_of(*last, m) : std::span<const std::uint8_t>()});
  auto out = empty<double>({unit.shape(0), resamples, bins, 3});
  double* to = out.mutable_data();
  unlocked(
      [&] { resampled_bin_sums(generator(seed), units, models, bins, resamples, to, pool_for); });
  return out;
}

py::tuple confidence_np(const py::array& logits, const MaybeArray& labels, const MaybeArray& other,
                        std::int64_t top_k, const std::string& kernels) {
  const char* op = "confidence";
  const Kernels& table = kernels_named(kernels);
  const Input x(op, logits), l(op, labels), y(op, other);
  ConfidenceArgs a = check_confidence(op, x.array, l.array, y.array, 0, top_k);
  py::array_t<double> sums = empty<double>({a.rows, kConfidenceSums});
  py::array_t<std::int64_t> argmax = empty<std::int64_t>({a.rows});
  py::array_t<float> top_values = empty<float>({a.rows, top_k});
  py::array_t<std::int64_t> top_indices = empty<std::int64_t>({a.rows, top_k});
  a.sums = static_cast<ConfidenceSums*>(data(sums));
  a.argmax = argmax.mutable_data();
  a.top_values = static_cast<float*>(data(top_values));
  a.top_indices = static_cast<std::int64_t*>(data(top_indices));
  unlocked([&] {
    confidence_start(a);
    confidence_update(a, table, pool_for);
  });
  return py::make_tuple(sums, argmax, top_values, top_indices);
}

std::int64_t packed_bytes_of(std::int64_t n, std::int64_t k, std::int64_t bits, std::int64_t group,
                             std::int64_t scale_kind) {
  return packed_bytes(make_spec("packed_bytes", n, k, bits, group, scale_kind, false));
}

py::array resampled_ranking_np(const Ints& unit, const Doubles& correct, const Flags& last,
                               std::int64_t units, std::int64_t resamples, const Seed& seed) {
  const OrderedItems items = ordered("resampled_ranking", unit, units, {&correct, &last});
  auto out = empty<double>({resamples, 3});
  double* to = out.mutable_data();
  const auto c = span_of(correct);
  const auto l = span_of(last);
  unlocked([&] { resampled_ranking(generator(seed), items, c, l, resamples, to, pool_for); });
  return out;
}

py::array resampled_prefix_sums_np(const Ints& unit, const Doubles& values, double share,
                                   std::int64_t units, std::int64_t resamples, const Seed& seed) {
  const OrderedItems items = ordered("resampled_prefix_sums", unit, units, {&values});
  auto out = empty<double>({resamples, 2});
  double* to = out.mutable_data();
  const auto v = span_of(values);
  unlocked(
      [&] { resampled_prefix_sums(generator(seed), items, v, share, resamples, to, pool_for); });
  return out;
}

py::array counts_np(Pcg64& random, std::int64_t units, std::int64_t rows) {
  auto out = empty<double>({rows, units});
  double* to = out.mutable_data();
  unlocked([&] { resampled_counts(random, units, rows, to, pool_for); });
  return out;
}

// Checks the entries of groups and calls sums(groups, number of groups).
py::array group_sums(const char* op, const Offsets& offsets, const Ints& unit, const Doubles& value,
                     std::int64_t rows, py::ssize_t per_group, auto&& sums) {
  require(
      offsets.ndim() == 1 && offsets.size() >= 1 && unit.ndim() == 1 && value.size() == unit.size(),
      op, "expected offsets [S + 1], unit [E] and value [E]");
  const py::ssize_t groups = offsets.size() - 1;
  auto out =
      per_group == 1 ? empty<double>({rows, groups}) : empty<double>({rows, groups, per_group});
  double* to = out.mutable_data();
  const Groups entries{span_of(offsets), span_of(unit), span_of(value)};
  unlocked([&] { sums(entries, to); });
  return out;
}

py::array resampled_group_sums_np(const Offsets& offsets, const Ints& unit, const Doubles& value,
                                  std::int64_t units, std::int64_t resamples, const Seed& seed) {
  return group_sums("resampled_group_sums", offsets, unit, value, resamples, 3,
                    [&](const Groups& groups, double* to) {
                      resampled_group_sums(generator(seed), units, groups, resamples, to, pool_for);
                    });
}

py::array signed_group_sums_np(const Offsets& offsets, const Ints& unit, const Doubles& value,
                               std::int64_t units, std::int64_t rows, const Seed& seed) {
  return group_sums("signed_group_sums", offsets, unit, value, rows, 1,
                    [&](const Groups& groups, double* to) {
                      signed_group_sums(generator(seed), units, groups, rows, to, pool_for);
                    });
}

py::array permuted_group_sums_np(const Offsets& offsets, const Ints& unit, const Doubles& values,
                                 std::int64_t rows, const Seed& seed) {
  const Doubles none(unit.size());
  const auto from = span_of(values);
  return group_sums("permuted_group_sums", offsets, unit, none, rows, 2,
                    [&](const Groups& groups, double* to) {
                      permuted_group_sums(generator(seed), from, groups, rows, to, pool_for);
                    });
}

py::list formats_list() {
  py::list list;
  for (const Format& f : kFormats) {
    py::dict d;
    d["name"] = std::string(f.name);
    d["bits"] = f.bits;
    d["scale_type"] = static_cast<int>(f.scale);
    d["group"] = f.group;
    d["codebook"] =
        f.entries ? py::object(py::array_t<float>(f.entries, f.codebook.data())) : py::none();
    list.append(d);
  }
  return list;
}

py::list kernels_list() {
  py::list list;
  for (const KernelsInfo& k : list_kernels()) {
    py::dict d;
    d["name"] = k.name;
    d["supported"] = k.supported;
    d["active"] = k.active;
    list.append(d);
  }
  return list;
}

py::dict build_info() {
  const CudaStatus cuda = cuda_status();
  py::dict d;
  d["version"] = CALIBIT_VERSION;
  d["compiler"] = __VERSION__;
  d["torch_version"] = CALIBIT_TORCH_VERSION;
  d["pybind11"] =
      PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
  d["cuda"] = cuda.built ? "built" : "off";
  d["cuda_devices"] = cuda.devices;
  d["cuda_status"] = cuda.message.empty() ? "ready" : cuda.message;
  return d;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Core of calibit: NumPy twins of the operators, formats, kernels, build facts.";
  const auto none = py::none();
  m.def("quantize", &quantize_np, py::arg("w"), py::arg("bits"), py::arg("group"),
        py::arg("scale_kind"), py::kw_only(), py::arg("codebook") = none, py::arg("scales") = none,
        py::arg("zeros") = none, py::arg("clip") = false, py::arg("importance") = none,
        py::arg("kernels") = "", "Nearest rounding: (codes, scales, zeros or None).");
  m.def("gptq_solve", &gptq_solve_np, py::arg("w"), py::arg("u"), py::arg("bits"), py::arg("group"),
        py::arg("scale_kind"), py::kw_only(), py::arg("codebook") = none, py::arg("scales") = none,
        py::arg("zeros") = none, py::arg("order") = none, py::arg("clip") = false,
        py::arg("importance") = none, py::arg("kernels") = "",
        "GPTQ column solver: (codes, scales, zeros or None, weights cut off per row).");
  m.def("dequantize", &dequantize_np, py::arg("codes"), py::arg("scales"), py::arg("n"),
        py::arg("k"), py::arg("bits"), py::arg("group"), py::arg("scale_kind"), py::kw_only(),
        py::arg("zeros") = none, py::arg("codebook") = none, py::arg("nested_scales") = none,
        py::arg("nested_codebook") = none, py::arg("nested_offset") = none, py::arg("kernels") = "",
        "Canonical arrays to float32 [N, K].");
  m.def("double_quantize", &double_quantize_np, py::arg("scales"),
        "float32 scales [N, G] to (codes, nested_scales, nested_codebook, nested_offset).");
  m.def("pack_weight", &pack_weight_np, py::arg("codes"), py::arg("scales"), py::arg("n"),
        py::arg("k"), py::arg("bits"), py::arg("group"), py::arg("scale_kind"), py::kw_only(),
        py::arg("zeros") = none, py::arg("nested_scales") = none, py::arg("nested_codebook") = none,
        py::arg("nested_offset") = none, "Canonical arrays to the kernels' buffer.");
  m.def("linear", &linear_np, py::arg("x"), py::arg("packed"), py::arg("n"), py::arg("k"),
        py::arg("bits"), py::arg("group"), py::arg("scale_kind"), py::kw_only(),
        py::arg("codebook") = none, py::arg("bias") = none, py::arg("kernels") = "",
        "Fused x W^T + bias on a packed weight, float32 [M, K] to [M, N].");
  m.def("confidence", &confidence_np, py::arg("logits"), py::kw_only(), py::arg("labels") = none,
        py::arg("other") = none, py::arg("top_k") = 0, py::arg("kernels") = "",
        "Softmax statistics of rows [M, V]: (sums float64 [M, 8], argmax, top values, indices).");
  m.def("resampled_sums", &resampled_sums_np, py::arg("units"), py::arg("resamples"),
        py::arg("seed"),
        "Sums of columns [N, m] over bootstrap resamples, float64 [resamples, m].");
  m.def("resampled_bin_sums", &resampled_bin_sums_np, py::arg("unit"), py::arg("first"),
        py::arg("second"), py::arg("bins"), py::arg("units"), py::arg("resamples"), py::arg("seed"),
        py::kw_only(), py::arg("end") = none, py::arg("last") = none,
        "Count and sums per bin over bootstrap resamples, float64 [M, resamples, bins, 3].");
  m.def("resampled_ranking", &resampled_ranking_np, py::arg("unit"), py::arg("correct"),
        py::arg("last"), py::arg("units"), py::arg("resamples"), py::arg("seed"),
        "AUROC, AURC and excess AURC over bootstrap resamples, float64 [resamples, 3].");
  m.def("resampled_prefix_sums", &resampled_prefix_sums_np, py::arg("unit"), py::arg("values"),
        py::arg("share"), py::arg("units"), py::arg("resamples"), py::arg("seed"),
        "Sum over the first share of the copies and over all, float64 [resamples, 2].");
  m.def("resampled_group_sums", &resampled_group_sums_np, py::arg("offsets"), py::arg("unit"),
        py::arg("value"), py::arg("units"), py::arg("resamples"), py::arg("seed"),
        "Count, sum and squares per group over bootstrap resamples, float64 [resamples, S, 3].");
  m.def("signed_group_sums", &signed_group_sums_np, py::arg("offsets"), py::arg("unit"),
        py::arg("value"), py::arg("units"), py::arg("rows"), py::arg("seed"),
        "Sums per group under random signs of the units, float64 [rows, S].");
  m.def("permuted_group_sums", &permuted_group_sums_np, py::arg("offsets"), py::arg("unit"),
        py::arg("values"), py::arg("rows"), py::arg("seed"),
        "Sum and squares per group after random permutations, float64 [rows, S, 2].");
  py::class_<Pcg64>(m, "Pcg64", "NumPy's default generator, for draws in bulk.")
      .def(py::init(&generator), py::arg("seed"))
      .def("counts", &counts_np, py::arg("units"), py::arg("rows"),
           "How often each unit occurs in the next resamples, float64 [rows, units].");
  py::dict scale_types, zero_types;
  scale_types["f32"] = static_cast<int>(ScaleType::f32);
  scale_types["f16"] = static_cast<int>(ScaleType::f16);
  scale_types["e8m0"] = static_cast<int>(ScaleType::e8m0);
  scale_types["nested"] = static_cast<int>(ScaleType::nested);
  zero_types["none"] = static_cast<int>(ZeroType::none);
  zero_types["u8"] = static_cast<int>(ZeroType::u8);
  zero_types["f32"] = static_cast<int>(ZeroType::f32);
  m.attr("scale_types") = scale_types;
  m.attr("zero_types") = zero_types;
  m.attr("nested_block") = kNestedBlock;
  m.def("packed_bytes", &packed_bytes_of, py::arg("n"), py::arg("k"), py::arg("bits"),
        py::arg("group"), py::arg("scale_kind"), "Size of the kernels' buffer.");
  m.def("formats", &formats_list, "The built-in formats.");
  m.def("kernels", &kernels_list, "The kernel tables of this build, best first.");
  m.def("build_info", &build_info, "Facts about this build.");
}

}  // namespace calibit
