#pragma once
// C ABI of libcalibit_cuda.so. Every function returns a cudaError_t as int, 0 = success.
#ifdef __cplusplus
extern "C" {
#endif

int calibit_cuda_abi_version(void);                 // changes when a signature below changes
int calibit_cuda_device_count(int* count);          // 35: no driver, or one older than the runtime
const char* calibit_cuda_error_string(int status);  // static text

#ifdef __cplusplus
}
#endif
