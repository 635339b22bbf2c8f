#pragma once
// Fused dequantize-GEMM on packed weights: the loops over tiles that both bindings share.
#include "core/kernels.h"
#include "core/parallel.h"

namespace calibit {

void linear(const LinearArgs& a, const Kernels& kernels, ParallelFor loop);
void linear_input_grad(const LinearInputGradArgs& a, const Kernels& kernels, ParallelFor loop);

}  // namespace calibit
