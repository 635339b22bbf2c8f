#pragma once
#include "core/format.h"

namespace calibit {
// OCP Microscaling MXFP4: E2M1 codes in groups of 32 that share one E8M0 power-of-two scale.
// OCP MX specification 1.0, sections 5.3.3 and 6.3: scale = 2^(floor(log2 max|w|) - 2).
inline constexpr Format mxfp4{.name = "mxfp4",
                              .bits = 4,
                              .scale = ScaleType::e8m0,
                              .group = 32,
                              .entries = 16,
                              .codebook = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f,
                                           -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f}};
}  // namespace calibit
