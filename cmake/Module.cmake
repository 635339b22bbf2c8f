# calibit._C: pybind11 module and torch operators in one shared object.
if(NOT Python_Development.Module_FOUND)
  message(FATAL_ERROR "Python headers not found for ${Python_EXECUTABLE}: install python3-dev")
endif()
set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 CONFIG REQUIRED)
include(cmake/TorchFromPython.cmake)

pybind11_add_module(_C MODULE NO_EXTRAS
  csrc/python/module.cpp csrc/torch/ops.cpp csrc/torch/backend.cpp)
# pybind11 is linked first (above), so that its headers win over the copy bundled with torch.
target_link_libraries(_C PRIVATE calibit_kernels calibit::torch ${CMAKE_DL_LIBS})
target_compile_features(_C PRIVATE cxx_std_20)
target_compile_definitions(_C PRIVATE
  CALIBIT_VERSION="${PROJECT_VERSION}" CALIBIT_TORCH_VERSION="${CALIBIT_TORCH_VERSION}")
target_compile_options(_C PRIVATE ${CALIBIT_WARNINGS}
  -ffile-prefix-map=${CMAKE_SOURCE_DIR}/= -ffile-prefix-map=${CALIBIT_TORCH_DIR}/=torch/)
target_link_options(_C PRIVATE
  -Wl,--version-script=${CMAKE_SOURCE_DIR}/csrc/python/exports.map -Wl,--no-undefined-version)
set_target_properties(_C PROPERTIES INSTALL_RPATH "$ORIGIN" BUILD_WITH_INSTALL_RPATH ON
  LINK_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/python/exports.map)
if(NOT CALIBIT_SANITIZE)
  add_custom_command(TARGET _C POST_BUILD
    COMMAND ${Python_EXECUTABLE} ${CMAKE_SOURCE_DIR}/scripts/check_module.py ${CMAKE_NM} $<TARGET_FILE:_C>
    VERBATIM)
endif()
install(TARGETS _C LIBRARY DESTINATION calibit COMPONENT calibit)
