#include <cuda_runtime.h>

#include "cuda_api.h"

#define CALIBIT_API extern "C" __attribute__((visibility("default")))

CALIBIT_API int calibit_cuda_abi_version(void) { return 1; }

CALIBIT_API int calibit_cuda_device_count(int* count) {
  *count = 0;
  return static_cast<int>(cudaGetDeviceCount(count));
}

CALIBIT_API const char* calibit_cuda_error_string(int status) {
  return cudaGetErrorString(static_cast<cudaError_t>(status));
}
