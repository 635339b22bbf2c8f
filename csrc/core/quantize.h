#pragma once
// Nearest rounding and its inverse on the canonical form, and double quantization of the scales.
#include <cstdint>
#include <span>

#include "core/kernels.h"
#include "core/parallel.h"

namespace calibit {

// Rounding table of a codebook of 2^bits values. Of equal values (+0, -0) the lower code is used.
// Throws std::invalid_argument for a value that is not finite or a codebook of zeros alone.
Grid make_grid(const char* op, std::span<const float> codebook);

// Fills a.codes and, unless a.fixed, a.scales and a.zeros; sets a.grid. Deterministic, independent
// of threads. Throws std::invalid_argument when W holds NaN or infinity or a scale overflows its
// type.
void quantize(QuantizeArgs a, const Kernels& kernels, ParallelFor loop);

// The two checks of quantize(), for other solvers: finite weights before, finite scales after.
void check_finite(const QuantizeArgs& a, ParallelFor loop);
void check_scales(const QuantizeArgs& a);

void dequantize(const DequantizeArgs& a, const Kernels& kernels, ParallelFor loop);

// bitsandbytes' double quantization (QLoRA, section 3): offset = mean(scales); per block of 256 the
// differences, divided by their largest magnitude, take the nearest value of the signed dynamic
// map. codes [count] u8, nested_scales [ceil(count/256)], codebook [256]. Sums in float64.
void double_quantize(std::span<const float> scales, std::uint8_t* codes, float* nested_scales,
                     float* codebook, float* offset);

// The signed 8-bit dynamic map: for e = 0..6 the midpoints of linspace(0.1, 1, 2^e + 1) times
// 10^(e-6), both signs, and 0 and 1; sorted. Dettmers, "8-bit approximations", arXiv 1511.04561.
std::span<const float> dynamic_map();

}  // namespace calibit
