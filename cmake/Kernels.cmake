# calibit_kernels: the core and one object per instruction set. Each object exports exactly one table
# (scripts/check_isa.py), so that nothing compiled with an ISA flag runs before the CPU was asked.
add_library(calibit_kernels STATIC
  csrc/core/check.cpp
  csrc/core/confidence.cpp
  csrc/core/gptq.cpp
  csrc/core/linear.cpp
  csrc/core/pack.cpp
  csrc/core/quantize.cpp
  csrc/core/random.cpp
  csrc/core/resample.cpp
  csrc/cpu/dispatch.cpp)
target_include_directories(calibit_kernels PUBLIC csrc)
target_compile_features(calibit_kernels PUBLIC cxx_std_20)
target_compile_options(calibit_kernels PRIVATE ${CALIBIT_WARNINGS} -ffile-prefix-map=${CMAKE_SOURCE_DIR}/=)

function(calibit_add_isa name)
  add_library(calibit_${name} OBJECT csrc/cpu/${name}.cpp)
  target_include_directories(calibit_${name} PRIVATE csrc)
  target_compile_features(calibit_${name} PRIVATE cxx_std_20)
  # Instrumented intrinsics take minutes to optimise fully: 217 s at -O3, 75 s at -O1 (avx2, g++ 12).
  target_compile_options(calibit_${name} PRIVATE $<IF:$<BOOL:${CALIBIT_SANITIZE}>,-O1,-O3> -fno-math-errno -ffp-contract=off
    ${CALIBIT_WARNINGS} -ffile-prefix-map=${CMAKE_SOURCE_DIR}/= ${ARGN})
  target_link_libraries(calibit_kernels PUBLIC $<TARGET_OBJECTS:calibit_${name}>)
  if(CALIBIT_SANITIZE)
    return()  # sanitizers add symbols of their own
  endif()
  add_custom_target(check_isa_${name} ALL
    COMMAND ${Python_EXECUTABLE} ${CMAKE_SOURCE_DIR}/scripts/check_isa.py ${CMAKE_NM}
            calibit::${name}_kernels $<TARGET_OBJECTS:calibit_${name}>
    DEPENDS calibit_${name} COMMAND_EXPAND_LISTS VERBATIM)
endfunction()

calibit_add_isa(portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|i[3-6]86")
  calibit_add_isa(avx2 -mavx2 -mfma -mf16c)
  # g++ 12 warns falsely inside its own AVX-512 headers.
  calibit_add_isa(avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
    -Wno-uninitialized -Wno-maybe-uninitialized)
endif()
