# Options, compiler flags and the two functions that every folder uses.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

option(HYSERVE_TESTS "Build the tests" ON)
option(HYSERVE_BENCHMARKS "Build the benchmarks" OFF)
option(HYSERVE_FUZZ "Build the fuzz targets (clang only)" OFF)
set(HYSERVE_SANITIZE "" CACHE STRING "Sanitizers: empty, 'address,undefined' or 'thread'")
set(HYSERVE_TEST_TIMEOUT_FACTOR 1 CACHE STRING "Every test's time limit, times this")

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}
      CCACHE_NOHASHDIR=1 ${CCACHE_PROGRAM})
endif()

set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1 -DNDEBUG")
# Of C++ only: nvcc has its own spelling (Cuda.cmake).
function(hyserve_cxx_options)
  foreach(option ${ARGN})
    add_compile_options($<$<COMPILE_LANGUAGE:CXX>:${option}>)
  endforeach()
endfunction()
hyserve_cxx_options(-Wall -Wextra -Werror -Wno-unused-parameter -fno-math-errno)
if(HYSERVE_FUZZ)
  hyserve_cxx_options(-fsanitize=fuzzer-no-link)  # so that the fuzzers see the libraries' branches
endif()
if(HYSERVE_SANITIZE)
  hyserve_cxx_options(-fsanitize=${HYSERVE_SANITIZE} -fno-omit-frame-pointer
                      -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${HYSERVE_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # gcc 12 reports false positives of these under the sanitizers' instrumentation.
    hyserve_cxx_options(-Wno-maybe-uninitialized -Wno-restrict -Wno-stringop-overflow
                        -Wno-array-bounds)
  endif()
endif()

# hyserve_library(NAME tensor HDRS a.h SRCS a.cc DEPS x y)
# One static library, linked by its plain name (target hyserve_<NAME>, alias hyserve::<NAME>).
function(hyserve_library)
  cmake_parse_arguments(LIB "" "NAME" "HDRS;SRCS;DEPS" ${ARGN})
  foreach(header ${LIB_HDRS})
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${header})
      message(FATAL_ERROR "${LIB_NAME}: header ${header} does not exist")
    endif()
  endforeach()
  if(LIB_SRCS)
    add_library(hyserve_${LIB_NAME} STATIC ${LIB_SRCS} ${LIB_HDRS})
    set(scope PUBLIC)
  else()
    add_library(hyserve_${LIB_NAME} INTERFACE)
    set(scope INTERFACE)
  endif()
  add_library(hyserve::${LIB_NAME} ALIAS hyserve_${LIB_NAME})
  target_include_directories(hyserve_${LIB_NAME} ${scope} ${CMAKE_SOURCE_DIR})
  target_link_libraries(hyserve_${LIB_NAME} ${scope} ${LIB_DEPS})
endfunction()

# hyserve_executable(NAME hyserve-router SRCS main.cc DEPS hyserve::router): goes to <build>/bin,
# and with INSTALL into the install tree (Install.cmake).
function(hyserve_executable)
  cmake_parse_arguments(EXE "INSTALL" "NAME" "SRCS;DEPS" ${ARGN})
  add_executable(${EXE_NAME} ${EXE_SRCS})
  target_include_directories(${EXE_NAME} PRIVATE ${CMAKE_SOURCE_DIR})
  target_link_libraries(${EXE_NAME} PRIVATE ${EXE_DEPS})
  set_target_properties(${EXE_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
  if(EXE_INSTALL)
    hyserve_install(${EXE_NAME})
  endif()
endfunction()

# hyserve_test(NAME tensor_test SRCS a_test.cc DEPS hyserve::tensor LABELS unit)
# One GoogleTest executable, run by ctest as one test per executable.
function(hyserve_test)
  cmake_parse_arguments(TEST "" "NAME;TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  if(NOT TEST_TIMEOUT)
    set(TEST_TIMEOUT 120)
  endif()
  math(EXPR TEST_TIMEOUT "${TEST_TIMEOUT} * ${HYSERVE_TEST_TIMEOUT_FACTOR}")
  add_executable(${TEST_NAME} ${TEST_SRCS})
  target_include_directories(${TEST_NAME} PRIVATE ${CMAKE_SOURCE_DIR})
  target_link_libraries(${TEST_NAME} PRIVATE ${TEST_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${TEST_NAME} PRIVATE HYSERVE_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
                             HYSERVE_BINARY_DIR="${CMAKE_BINARY_DIR}")
  add_test(NAME ${TEST_NAME} COMMAND ${TEST_NAME})
  set_tests_properties(${TEST_NAME} PROPERTIES TIMEOUT ${TEST_TIMEOUT} LABELS "${TEST_LABELS}")
endfunction()

# hyserve_gpu_test(tensor_test): the test once more as tensor_test_gpu, label gpu, with
# HYSERVE_TEST_DEVICES=cuda, by which it knows to use the GPU and nothing else.
function(hyserve_gpu_test name)
  add_test(NAME ${name}_gpu COMMAND ${name})
  set_tests_properties(${name}_gpu PROPERTIES TIMEOUT 300 LABELS gpu RESOURCE_LOCK gpu
                       ENVIRONMENT HYSERVE_TEST_DEVICES=cuda)
endfunction()
