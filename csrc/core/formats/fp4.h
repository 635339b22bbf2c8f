#pragma once
#include "core/format.h"

namespace calibit {
// bitsandbytes' FP4 in bit-pattern order (bit 3 = sign), values divided by 12. Not OCP E2M1.
inline constexpr Format fp4{.name = "fp4",
                            .bits = 4,
                            .scale = ScaleType::f32,
                            .group = 64,
                            .entries = 16,
                            .codebook = {0.0f, 0.0625f / 12, 8.0f / 12, 1.0f, 4.0f / 12, 6.0f / 12,
                                         2.0f / 12, 3.0f / 12, -0.0f, -0.0625f / 12, -8.0f / 12,
                                         -1.0f, -4.0f / 12, -6.0f / 12, -2.0f / 12, -3.0f / 12}};
}  // namespace calibit
