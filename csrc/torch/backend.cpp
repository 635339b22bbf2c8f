#include "torch/backend.h"

#include <dlfcn.h>

#ifndef CALIBIT_CUDA_BUILT
#define CALIBIT_CUDA_BUILT 0
#endif

namespace calibit {
namespace {

constexpr int kAbiVersion = 1;  // of csrc/cuda/cuda_api.h
constexpr int kNoDriver = 35;   // cudaErrorInsufficientDriver

std::string beside_this_module(const char* file) {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<const void*>(&cuda_status), &info)) return file;
  const std::string path = info.dli_fname;
  return path.substr(0, path.rfind('/') + 1) + file;
}

template <typename Function>
Function* symbol(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

CudaStatus probe() {
  CudaStatus status{CALIBIT_CUDA_BUILT != 0, false, 0, ""};
  if (!status.built) {
    status.message =
        "this build has no CUDA library: rebuild with nvcc on PATH and CALIBIT_CUDA=ON";
    return status;
  }
  void* library = dlopen(beside_this_module("libcalibit_cuda.so").c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* reason = dlerror();
    status.message = std::string("the CUDA library could not be opened: ") + (reason ? reason : "");
    return status;
  }
  auto* version = symbol<int()>(library, "calibit_cuda_abi_version");
  auto* count = symbol<int(int*)>(library, "calibit_cuda_device_count");
  auto* text = symbol<const char*(int)>(library, "calibit_cuda_error_string");
  if (!version || !count || !text || version() != kAbiVersion) {
    status.message = "the CUDA library does not belong to this module: reinstall calibit";
    return status;
  }
  status.loaded = true;
  const int code = count(&status.devices);
  if (code == kNoDriver)
    status.message = "no NVIDIA driver, or one too old for this build";
  else if (code != 0)
    status.message = text(code);
  else if (status.devices == 0)
    status.message = "no NVIDIA GPU found";
  return status;
}

}  // namespace

CudaStatus cuda_status() {
  static const CudaStatus status = probe();
  return status;
}

}  // namespace calibit
