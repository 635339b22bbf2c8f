# calibit::torch: headers and libtorch_cpu.so of the torch that this Python imports. Not find_package(Torch):
# that demands a CUDA toolkit with a CUDA torch and injects its flags.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
"import os, torch, torch.utils.cpp_extension as e
print(torch.__version__.split('+')[0], os.path.dirname(torch.__file__), *e.include_paths(), sep=';')"
  OUTPUT_VARIABLE torch_facts OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed ERROR_VARIABLE reason)
if(failed)
  message(FATAL_ERROR "torch is not importable by ${Python_EXECUTABLE}: install torch first and build "
    "with --no-build-isolation\n${reason}")
endif()
list(POP_FRONT torch_facts CALIBIT_TORCH_VERSION CALIBIT_TORCH_DIR)
if(CALIBIT_TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "calibit needs torch >= 2.11, found ${CALIBIT_TORCH_VERSION}: upgrade torch")
endif()
add_library(calibit_torch INTERFACE)
add_library(calibit::torch ALIAS calibit_torch)
target_include_directories(calibit_torch SYSTEM INTERFACE ${torch_facts})
target_link_libraries(calibit_torch INTERFACE ${CALIBIT_TORCH_DIR}/lib/libtorch_cpu.so)
message(STATUS "torch ${CALIBIT_TORCH_VERSION} in ${CALIBIT_TORCH_DIR}")
