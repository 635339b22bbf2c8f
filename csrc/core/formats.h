#pragma once
// The registry of built-in formats: one include and one entry each.
#include <array>

#include "core/formats/fp4.h"
#include "core/formats/mxfp4.h"
#include "core/formats/nf4.h"

namespace calibit {

inline constexpr std::array kFormats{
    nf4,
    fp4,
    mxfp4,
    integers("int2", 2),
    integers("int3", 3),
    integers("int4", 4),
    integers("int5", 5),
    integers("int6", 6),
    integers("int7", 7),
    integers("int8", 8),
};

}  // namespace calibit
