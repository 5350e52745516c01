# The install tree: bin/ and, with -DHYSERVE_BUNDLE_LIBS=ON, lib/ with every shared library that is
# not part of a base system (glibc, libgcc, libstdc++ and the NVIDIA driver stay out), so that the
# tree runs on another x86-64 Linux with a glibc as new as this one's.
#
# Components: "bin" (programs), "lib" (their libraries), "cublas" (libcublasLt alone: 0.5 GB, for a
# machine that has none). cmake --install BUILD --prefix DIR [--component NAME] [--strip]

option(HYSERVE_BUNDLE_LIBS "Install the shared libraries that the programs need" OFF)

# The old tag, DT_RPATH: it also serves the libraries' own dependencies, which DT_RUNPATH does not.
set(HYSERVE_INSTALL_RPATH "$ORIGIN/../lib/libucx/lib" "$ORIGIN/../lib")

function(hyserve_install target)
  set_target_properties(${target} PROPERTIES INSTALL_RPATH "${HYSERVE_INSTALL_RPATH}")
  target_link_options(${target} PRIVATE -Wl,--disable-new-dtags)
  if(HYSERVE_BUNDLE_LIBS)
    install(TARGETS ${target} RUNTIME_DEPENDENCY_SET hyserve_libraries
            RUNTIME DESTINATION bin COMPONENT bin)
  else()
    install(TARGETS ${target} RUNTIME DESTINATION bin COMPONENT bin)
  endif()
endfunction()

# Called once, after every hyserve_install().
function(hyserve_install_libraries)
  if(NOT HYSERVE_BUNDLE_LIBS)
    return()
  endif()
  install(RUNTIME_DEPENDENCY_SET hyserve_libraries
    DESTINATION lib COMPONENT lib
    PRE_EXCLUDE_REGEXES
      "^lib(c|m|dl|rt|pthread|resolv|util|gcc_s|stdc\\+\\+|atomic)\\.so" "^ld-linux" "^linux-vdso"
      "^libcuda\\.so" "^libnvidia" "^libcublasLt" "^libuc[mpst]\\.so")
  # UCX finds its modules, and they the runtime they came with, relative to its own libraries.
  if(ucx_root)
    get_filename_component(library_dir ${ucx_root}/lib REALPATH)
    file(GLOB bundled_runtime ${library_dir}/../../libucx*.libs)
    install(DIRECTORY ${bundled_runtime} DESTINATION lib COMPONENT lib)
  else()
    pkg_get_variable(library_dir ucx libdir)
  endif()
  file(GLOB libraries RELATIVE ${library_dir}
       ${library_dir}/libuc[mps].so.0 ${library_dir}/libuct.so.0 ${library_dir}/ucx/libuc*.so.0)
  list(FILTER libraries EXCLUDE REGEX perftest)
  foreach(library ${libraries})
    get_filename_component(file ${library_dir}/${library} REALPATH)
    get_filename_component(folder libucx/lib/${library} DIRECTORY)
    get_filename_component(name ${library} NAME)
    install(FILES ${file} DESTINATION lib/${folder} RENAME ${name} COMPONENT lib)
  endforeach()
  if(HYSERVE_CUDA)
    get_filename_component(file ${HYSERVE_cublas_lt_LIBRARY}.13 REALPATH)
    install(FILES ${file} DESTINATION lib RENAME libcublasLt.so.13 COMPONENT cublas)
  endif()
endfunction()
