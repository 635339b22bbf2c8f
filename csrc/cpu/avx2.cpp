#include "core/kernels.h"

namespace calibit {
constinit const Kernels avx2_kernels = {"avx2", nullptr, nullptr, nullptr, nullptr};
}  // namespace calibit
