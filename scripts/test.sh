#!/usr/bin/env bash
# Installs what is missing, builds, runs every test that needs no GPU, and compiles the CUDA engine.
# scripts/test.sh [CTEST ARGUMENTS ...]
#
# The CUDA part needs no GPU, but a toolkit or a network (scripts/install_cuda.sh); where the
# machine has a GPU, the kernels' tests run on it. HYSERVE_SKIP_CUDA=1 leaves the part out.
set -euo pipefail
cd "$(dirname "$0")/.."

notice() {
  printf '%s\n' "----------------------------------------------------------------" "test.sh: $1" \
    "----------------------------------------------------------------" >&2
}

scripts/install_deps.sh
scripts/build.sh release
ctest --preset release -LE gpu "$@"

if [ "${HYSERVE_SKIP_CUDA:-0}" = 1 ]; then
  notice "the CUDA engine was NOT compiled: HYSERVE_SKIP_CUDA=1"
elif ! scripts/install_cuda.sh >/dev/null; then
  notice "the CUDA engine was NOT compiled: its toolkit could not be installed (see above)"
else
  scripts/build.sh cuda-release hyserve_cuda
  ctest --preset cuda-release -LE gpu -R '^(tensor_device_test|kernels_ops_checks_test)$'
  if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    ctest --preset cuda-release -L gpu -R '^(tensor|kernels)_'
  fi
fi
