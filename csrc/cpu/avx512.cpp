#include "core/kernels.h"

namespace calibit {
constinit const Kernels avx512_kernels = {"avx512", nullptr, nullptr, nullptr, nullptr};
}  // namespace calibit
