# The CUDA toolkit, and how device sources are built: each .cu twice, by nvcc for five chips and as
# C++ for the SIMT executor (tests only).
#
#   LAPIDARY_CUDA=AUTO  on where a toolkit is found: on PATH, in /usr/local/cuda, or in .venv-cuda
#                       (scripts/setup-cuda puts a pinned one there); ON insists; OFF leaves it out
#
# lapidary_kernels(SRCS a.cu ...)            adds device sources (of the calling folder)
# lapidary_kernel_test(SRCS a_cuda_test.cc)  adds host tests of kernels: they run under emulation
#                                            (plain and checked) and, in gpu_conformance, on a GPU
# lapidary_kernel_bench(SRCS a_cuda_bench.cc) adds a Google Benchmark binary for a machine with a GPU;
#                                            EMULATED: one for the executor, too, to see that it runs
set(LAPIDARY_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO, ON or OFF")
set_property(CACHE LAPIDARY_CUDA PROPERTY STRINGS AUTO ON OFF)
set(LAPIDARY_CUDA_CHIPS "80;89;90a;100a;120a" CACHE STRING "Chips that nvcc compiles for")

set(LAPIDARY_HAVE_CUDA OFF)
if(NOT LAPIDARY_CUDA STREQUAL "OFF")
  find_program(LAPIDARY_NVCC nvcc
    HINTS ${CMAKE_SOURCE_DIR}/.venv-cuda/toolkit/bin /usr/local/cuda/bin)
  if(LAPIDARY_NVCC)
    set(LAPIDARY_HAVE_CUDA ON)
  elseif(LAPIDARY_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LAPIDARY_CUDA is ON and there is no nvcc: run scripts/setup-cuda, or "
                        "put a CUDA 13 toolkit's bin folder on PATH")
  endif()
endif()
if(NOT LAPIDARY_HAVE_CUDA)
  message(STATUS "CUDA backend: not built")
  function(lapidary_kernels)
  endfunction()
  function(lapidary_kernel_test)
  endfunction()
  function(lapidary_kernel_bench)
  endfunction()
  return()
endif()

set(CMAKE_CUDA_COMPILER ${LAPIDARY_NVCC})
list(TRANSFORM LAPIDARY_CUDA_CHIPS APPEND "-real" OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
enable_language(CUDA)
# CMake 3.25 does not know that nvcc 13 speaks C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
if(LAPIDARY_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()
# CMake 3.25 calls nvToolsExt deprecated even where the toolkit, as CUDA 13, has none, and fails.
if(NOT TARGET CUDA::nvToolsExt)
  add_library(CUDA::nvToolsExt INTERFACE IMPORTED)
endif()
find_package(CUDAToolkit 13 REQUIRED)
find_library(LAPIDARY_NCCL nccl HINTS ${CUDAToolkit_LIBRARY_DIR} REQUIRED)
message(STATUS "CUDA backend: ${CUDAToolkit_VERSION}, ${CUDAToolkit_LIBRARY_DIR}")

# Headers of cudart, cuBLASLt and NCCL for host code that links none of them yet.
add_library(lapidary_cuda_headers INTERFACE)
target_include_directories(lapidary_cuda_headers SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
add_library(lapidary::cuda_headers ALIAS lapidary_cuda_headers)

function(lapidary_kernels)
  cmake_parse_arguments(ARG "" "" "SRCS" ${ARGN})
  foreach(source ${ARG_SRCS})
    set_property(GLOBAL APPEND PROPERTY LAPIDARY_KERNEL_SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/${source})
  endforeach()
endfunction()

function(lapidary_kernel_test)
  cmake_parse_arguments(ARG "" "" "SRCS" ${ARGN})
  foreach(source ${ARG_SRCS})
    set_property(GLOBAL APPEND PROPERTY LAPIDARY_KERNEL_TESTS ${CMAKE_CURRENT_SOURCE_DIR}/${source})
  endforeach()
endfunction()

function(lapidary_kernel_bench)
  cmake_parse_arguments(ARG "EMULATED" "" "SRCS" ${ARGN})
  list(GET ARG_SRCS 0 first)
  get_filename_component(name ${first} NAME_WE)
  lapidary_bench(NAME ${name} SRCS ${ARG_SRCS} DEPS lapidary_kernels_cuda)
  if(ARG_EMULATED AND LAPIDARY_BENCH AND LAPIDARY_TESTS AND NOT LAPIDARY_SANITIZE MATCHES "thread")
    lapidary_bench(NAME ${name}_emulated SRCS ${ARG_SRCS} DEPS lapidary_kernels_emulated)
    target_compile_definitions(${name}_emulated PRIVATE LAPIDARY_EMULATION)
  endif()
endfunction()
