# Third-party packages, all from Debian 12 (scripts/install_deps.sh). Targets that folders link:
#   absl::..., gRPC::grpc++, gRPC::grpc++_reflection, protobuf::libprotobuf, yaml-cpp,
#   spdlog::spdlog, nlohmann_json::nlohmann_json, GTest::gtest_main, benchmark::benchmark,
#   prometheus-cpp::core, PkgConfig::HTTPLIB, PkgConfig::PCRE2,
#   PkgConfig::UTF8PROC, PkgConfig::UCX

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
pkg_check_modules(UCX REQUIRED IMPORTED_TARGET ucx)
if(HYSERVE_TESTS)
  find_package(GTest REQUIRED)
endif()
if(HYSERVE_BENCHMARKS)
  find_package(benchmark REQUIRED)
endif()
