# Third-party packages, all from Debian 12 (scripts/install_deps.sh). Targets that folders link:
#   absl::..., gRPC::grpc++, gRPC::grpc++_reflection, protobuf::libprotobuf, yaml-cpp,
#   spdlog::spdlog, nlohmann_json::nlohmann_json, GTest::gtest_main, benchmark::benchmark,
#   prometheus-cpp::core, PkgConfig::HTTPLIB, PkgConfig::PCRE2,
#   PkgConfig::UTF8PROC, hyserve::ucx (Cuda.cmake has what comes with CUDA)

find_package(Threads REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(absl REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED COMPONENTS core)
pkg_check_modules(HTTPLIB REQUIRED IMPORTED_TARGET cpp-httplib)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)

# UCX: in a build with CUDA the one that knows GPU memory (scripts/install_cuda.sh), else the
# system's, with which GPU memory travels through staging buffers. Its modules are found beside its
# libraries.
set(HYSERVE_UCX_ROOT ""
    CACHE PATH "Root of a UCX with CUDA; empty: .cache/cuda/ucx, else the system's")
set(ucx_root "${HYSERVE_UCX_ROOT}")
if(NOT ucx_root AND HYSERVE_CUDA AND EXISTS ${CMAKE_SOURCE_DIR}/.cache/cuda/ucx/lib/libucp.so)
  set(ucx_root ${CMAKE_SOURCE_DIR}/.cache/cuda/ucx)
endif()
add_library(hyserve_ucx INTERFACE)
add_library(hyserve::ucx ALIAS hyserve_ucx)
if(ucx_root)
  message(STATUS "UCX: ${ucx_root}")
  target_include_directories(hyserve_ucx SYSTEM INTERFACE ${ucx_root}/include)
  foreach(library ucp uct ucs ucm)
    add_library(hyserve_ucx_${library} SHARED IMPORTED)
    set_target_properties(hyserve_ucx_${library} PROPERTIES
      IMPORTED_LOCATION ${ucx_root}/lib/lib${library}.so)
    target_link_libraries(hyserve_ucx INTERFACE hyserve_ucx_${library})
  endforeach()
else()
  pkg_check_modules(UCX REQUIRED IMPORTED_TARGET ucx)
  target_link_libraries(hyserve_ucx INTERFACE PkgConfig::UCX)
endif()
if(HYSERVE_TESTS)
  find_package(GTest REQUIRED)
endif()
if(HYSERVE_BENCHMARKS)
  find_package(benchmark REQUIRED)
endif()
