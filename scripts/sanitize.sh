#!/usr/bin/env bash
# Builds with sanitizers and runs the tests under them; needs no GPU.
#   scripts/sanitize.sh address [CTEST ARGUMENTS ...]  memory, undefined behaviour: all tests
#   scripts/sanitize.sh thread [CTEST ARGUMENTS ...]   races, deadlocks: the tests with threads
#
# Debian's Abseil is not compiled for the thread sanitizer, which then cannot see what absl::Mutex
# orders. `thread` therefore compiles the synchronization part of Debian's own source of the
# installed Abseil once, into .cache/tsan, and runs the tests, and gRPC within them, on that. CXX
# chooses the compiler of a new build folder. What gRPC orders, and what is suppressed:
# tests/sanitizers.
set -euo pipefail
cd "$(dirname "$0")/.."

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

# The instrumented Abseil in .cache/tsan/abseil, made by compiler $1.
provide_abseil() {
  local compiler=$1 cache=$PWD/.cache/tsan version stamp apt=()
  version=$(dpkg-query -W -f '${source:Version}' libabsl-dev)
  stamp="$version, $("$compiler" --version | head -n 1)"
  [ "$(cat "$cache/stamp" 2>/dev/null)" = "$stamp" ] && return
  command -v dpkg-source >/dev/null ||
    as_root apt-get install -y -qq --no-install-recommends dpkg-dev >/dev/null

  rm -rf "$cache"
  mkdir -p "$cache"/{sources.d,lists/partial,archives/partial,source}
  # The system's own package lists, of sources instead of binaries.
  local list
  for list in /etc/apt/sources.list.d/*.sources; do
    [ -f "$list" ] && sed 's/^Types:.*/Types: deb-src/' "$list" >"$cache/sources.d/${list##*/}"
  done
  for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ -f "$list" ] && sed -n 's/^deb /deb-src /p' "$list" >"$cache/sources.d/${list##*/}.list"
  done
  apt=(apt-get -qq -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$cache/sources.d"
    -o "Dir::State::Lists=$cache/lists" -o "Dir::Cache=$cache"
    -o APT::Sandbox::User=)
  "${apt[@]}" update || true  # one without sources among the lists does no harm
  (cd "$cache/source" && "${apt[@]}" source "abseil=$version" >/dev/null)

  cmake -S "$cache"/source/abseil-*/ -B "$cache/build" -G Ninja -DCMAKE_CXX_COMPILER="$compiler" \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O2 -g1 -DNDEBUG" \
    -DCMAKE_CXX_STANDARD=17 -DBUILD_SHARED_LIBS=ON -DCMAKE_SKIP_RPATH=ON \
    -DCMAKE_CXX_FLAGS="-fsanitize=thread -fno-omit-frame-pointer" \
    -DCMAKE_SHARED_LINKER_FLAGS=-fsanitize=thread >"$cache/log" 2>&1 &&
    cmake --build "$cache/build" --target synchronization >>"$cache/log" 2>&1 ||
    { tail -n 30 "$cache/log" >&2; return 1; }
  mkdir "$cache/abseil"
  # Not the others: gRPC orders the memory of its strings and statuses by its own means, and the
  # spin lock in libabsl_base is in part inline in libraries that stay as they are.
  find "$cache/build" -regextype posix-extended \
    -regex '.*/libabsl_(synchronization|graphcycles_internal|malloc_internal)\.so\.[0-9.]+' \
    -exec cp -a {} "$cache/abseil" \;
  rm -rf "$cache"/{build,source,lists,archives,sources.d}
  echo "$stamp" >"$cache/stamp"
}

kind=${1:-}
shift || true
case "$kind" in
  address)
    scripts/install_deps.sh
    scripts/build.sh asan
    ctest --preset asan -LE gpu "$@"
    ;;
  thread)
    scripts/install_deps.sh
    folders=$(grep -l 'LABELS threads' -r tests --include=CMakeLists.txt)  # ctest's label, too
    # shellcheck disable=SC2086
    scripts/build.sh tsan hyserve_grpc_order ${folders//CMakeLists.txt/all}
    provide_abseil "$(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' build/tsan/CMakeCache.txt)"
    # The sanitizer's map of addresses does not fit every kernel's randomisation.
    fixed=(setarch -R)
    "${fixed[@]}" true 2>/dev/null || fixed=()
    "${fixed[@]}" ctest --preset tsan "$@"
    ;;
  *)
    sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
