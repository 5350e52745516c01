#!/usr/bin/env bash
# Provides what -DHYSERVE_CUDA=ON builds with, without a GPU, and prints the toolkit's root:
#   .cache/cuda/toolkit  a CUDA 13 toolkit: the installed one (CUDA_HOME, or nvcc on PATH), else wheels
#   .cache/cuda/ucx      UCX with CUDA, from a wheel
# Does nothing when all is there. Versions and hashes: scripts/cuda_requirements.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$PWD/.cache/cuda
requirements=scripts/cuda_requirements.txt

# The release of the toolkit in $1 ("13.0"), or nothing.
toolkit_release() {
  [ -x "$1/bin/nvcc" ] && "$1/bin/nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p'
}

installed_toolkit() {
  local candidate
  for candidate in "${CUDA_HOME:-}" "$(dirname "$(dirname "$(command -v nvcc || true)")")"; do
    case "$candidate" in "" | .) continue ;; esac
    case "$(toolkit_release "$candidate")" in
      13.*) if [ -f "$candidate/include/cublasLt.h" ]; then realpath "$candidate" && return; fi ;;
    esac
  done
}

system_toolkit=$(installed_toolkit)
if [ -n "$system_toolkit" ]; then
  wanted=$(grep '^libucx' "$requirements")
else
  wanted=$(grep -v '^#' "$requirements")
fi
stamp=$(printf '%s\n%s\n%s\n' "$system_toolkit" "$wanted" "$(sha256sum <scripts/install_cuda.sh)" |
  sha256sum | cut -d' ' -f1)
if [ "$(cat "$cache/stamp" 2>/dev/null)" = "$stamp" ] && [ -x "$cache/toolkit/bin/nvcc" ]; then
  echo "$cache/toolkit"
  exit 0
fi

if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "install_cuda.sh: the wheels are for x86-64 Linux; set HYSERVE_CUDA_ROOT yourself" >&2
  exit 1
fi
mkdir -p "$cache"
rm -f "$cache/stamp" "$cache/toolkit" "$cache/ucx"

install_wheels() {
  [ -x "$cache/venv/bin/pip" ] || python3 -m venv --clear "$cache/venv" || return
  printf '%s\n' "$wanted" >"$cache/wanted.txt"
  "$cache/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --require-hashes --no-cache-dir -r "$cache/wanted.txt"
}

if ! install_wheels >&2; then
  [ -n "$system_toolkit" ] || exit 1
  # The toolkit alone will do: GPU memory then travels through staging buffers.
  echo "install_cuda.sh: no UCX with CUDA; the build takes the system's UCX" >&2
  ln -sfn "$system_toolkit" "$cache/toolkit"
  echo "$cache/toolkit"
  exit 0
fi
packages=$(cd "$cache" && echo venv/lib/python3*/site-packages)

if [ -n "$system_toolkit" ]; then
  ln -sfn "$system_toolkit" "$cache/toolkit"
else
  root=$cache/$packages/nvidia/cu13
  # The wheels hold no development links, and nvcc looks for libraries in lib64.
  ln -sfn lib "$root/lib64"
  for library in "$root"/lib/lib*.so.*; do
    ln -sf "$(basename "$library")" "${library%%.so.*}.so"
  done
  ln -sfn "$packages/nvidia/cu13" "$cache/toolkit"
fi
ln -sfn "$packages/libucx" "$cache/ucx"
case "$(toolkit_release "$cache/toolkit")" in
  13.*) ;;
  *) echo "install_cuda.sh: $cache/toolkit/bin/nvcc does not run" >&2 && exit 1 ;;
esac
echo "$stamp" >"$cache/stamp"
echo "$cache/toolkit"
