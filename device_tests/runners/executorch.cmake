# The runner of .pte files, with this project's operators inside. Everything that only registers itself is linked whole.
set(EXECUTORCH "" CACHE PATH "Folder with ExecuTorch's include/ and lib/, such as that of its Python package")
set(EXECUTORCH_PARTS
    "executorch;executorch_threadpool;executorch_kernels_optimized;executorch_kernels_quantized;executorch_backend_xnnpack"
    CACHE STRING "Names in EXECUTORCH/lib, or files, of the runtime, its operators and backends"
)
option(EXECUTORCH_EVENT_TRACER "ExecuTorch was built with its event tracer, as its Python package is" ON)
set(QNN_LIBRARIES "" CACHE STRING "Files: ExecuTorch's QNN backend and Qualcomm's libraries, for programs that run on the NPU")

if(NOT EXECUTORCH)
  return()
endif()

set(SLM_STATIC ON CACHE BOOL "" FORCE)
set(EXECUTORCH_INCLUDE "${EXECUTORCH}/include" CACHE PATH "" FORCE)
add_subdirectory(../../exporter/targets/executorch/kernels kernels)

add_executable(executorch_runner executorch_runner.cpp)
target_include_directories(
  executorch_runner SYSTEM PRIVATE "${EXECUTORCH_INCLUDE}" "${EXECUTORCH_INCLUDE}/executorch/runtime/core/portable_type/c10"
)
# Headers do not say the version; the package's own CMake file does.
include("${EXECUTORCH}/lib/cmake/executorch/executorch-config-version.cmake" OPTIONAL)
target_compile_definitions(
  executorch_runner PRIVATE C10_USING_CUSTOM_GENERATED_MACROS ET_USE_THREADPOOL EXECUTORCH_VERSION="${PACKAGE_VERSION}"
)
if(EXECUTORCH_EVENT_TRACER)
  target_compile_definitions(executorch_runner PRIVATE ET_EVENT_TRACER_ENABLED)
  target_compile_definitions(slm_operators PRIVATE ET_EVENT_TRACER_ENABLED)
endif()
target_compile_options(executorch_runner PRIVATE -Wall -Wextra)

set(shipped "")
foreach(library IN LISTS EXECUTORCH_PARTS QNN_LIBRARIES)
  if(NOT IS_ABSOLUTE "${library}")
    find_library(found_${library} "${library}" PATHS "${EXECUTORCH}/lib" REQUIRED NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
    set(library "${found_${library}}")
  endif()
  list(APPEND shipped "${library}")
endforeach()
set(linked ${shipped})
list(FILTER linked EXCLUDE REGEX "libQnn[^/]*$") # the backend opens these itself
target_link_libraries(
  executorch_runner PRIVATE -Wl,--whole-archive slm_operators -Wl,--no-as-needed ${linked} -Wl,--as-needed -Wl,--no-whole-archive
                            Threads::Threads ${CMAKE_DL_LIBS}
)
install(TARGETS executorch_runner DESTINATION .)
list(FILTER shipped INCLUDE REGEX "\\.so[^/]*$")
install(FILES ${shipped} DESTINATION .)
