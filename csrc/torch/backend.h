#pragma once
// The CUDA library, opened when first asked for.
#include <string>

#include "core/parallel.h"

namespace calibit {

struct CudaStatus {
  bool built;           // this build made libcalibit_cuda.so
  bool loaded;          // it could be opened
  int devices;          // usable GPUs
  std::string message;  // why there are none, else empty
};
CudaStatus cuda_status();

// torch's own thread pool (honours torch.set_num_threads); defined in ops.cpp.
void pool_for(std::int64_t n, std::int64_t grain, LoopBody body, void* context);

}  // namespace calibit
