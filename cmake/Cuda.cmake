# The CUDA 13 toolkit, with -DHYSERVE_CUDA=ON: the CUDA language for sm_90a and the two libraries
# that the engine links, shared: hyserve::cudart, hyserve::cublas_lt. Needs no GPU and no driver.
#
# The toolkit's root is HYSERVE_CUDA_ROOT (cache or environment), else what scripts/install_cuda.sh
# left in .cache/cuda. FindCUDAToolkit is not used: before CMake 3.26 it stops at CUDA 13, which has
# no libnvToolsExt.

option(HYSERVE_CUDA "Build the CUDA engine (sm_90a)" OFF)
set(HYSERVE_CUDA_ROOT "$ENV{HYSERVE_CUDA_ROOT}" CACHE PATH "Root of a CUDA 13 toolkit")
if(NOT HYSERVE_CUDA)
  return()
endif()

set(cuda_root "${HYSERVE_CUDA_ROOT}")
if(NOT cuda_root)
  set(cuda_root ${CMAKE_SOURCE_DIR}/.cache/cuda/toolkit)
endif()
if(NOT EXISTS ${cuda_root}/bin/nvcc)
  message(FATAL_ERROR "HYSERVE_CUDA: no nvcc in ${cuda_root}/bin. Run scripts/install_cuda.sh, or "
                      "set HYSERVE_CUDA_ROOT to the root of a CUDA 13 toolkit.")
endif()

set(CMAKE_CUDA_COMPILER ${cuda_root}/bin/nvcc)
set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
set(CMAKE_CUDA_ARCHITECTURES 90a-real)
set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # linked by name, below
set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # CMake 3.25 does not know that nvcc has it
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_EXTENSIONS OFF)
if(NOT CMAKE_CUDA_COMPILER_VERSION MATCHES "^13\\.")
  message(FATAL_ERROR "HYSERVE_CUDA: needs CUDA 13, ${cuda_root} is ${CMAKE_CUDA_COMPILER_VERSION}")
endif()

set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
set(CMAKE_CUDA_FLAGS_DEBUG "-g -O2")  # device code stays optimised: -G changes what is tested
set(cuda_options -lineinfo -Werror=cross-execution-space-call,reorder
    -Xcompiler=-Wall,-Wextra,-Werror,-Wno-unused-parameter)
add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:${cuda_options}>")

# What scripts/test.sh compiles on machines without a GPU: everything that CUDA changes.
add_custom_target(hyserve_cuda)

foreach(library cudart:cudart cublas_lt:cublasLt)
  string(REPLACE ":" ";" library ${library})
  list(GET library 0 target)
  list(GET library 1 name)
  find_library(HYSERVE_${target}_LIBRARY NAMES ${name} PATHS ${cuda_root}/lib64 ${cuda_root}/lib
               NO_DEFAULT_PATH REQUIRED)
  find_path(HYSERVE_${target}_INCLUDE NAMES cuda_runtime_api.h PATHS ${cuda_root}/include
            NO_DEFAULT_PATH REQUIRED)
  add_library(hyserve::${target} SHARED IMPORTED)
  set_target_properties(hyserve::${target} PROPERTIES
    IMPORTED_LOCATION ${HYSERVE_${target}_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${HYSERVE_${target}_INCLUDE})
endforeach()
