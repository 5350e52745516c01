#!/usr/bin/env bash
# Installs what is missing, builds, runs every test. scripts/test.sh [CTEST ARGUMENTS ...]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install_deps.sh
scripts/build.sh release
ctest --preset release "$@"
