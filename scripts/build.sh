#!/usr/bin/env bash
# Builds HyServe: scripts/build.sh [PRESET] [TARGET ...]; presets are in CMakePresets.json.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
shift || true
cmake --preset "$preset" >"${TMPDIR:-/tmp}/hyserve-configure.$$" 2>&1 || {
  cat "${TMPDIR:-/tmp}/hyserve-configure.$$" >&2
  rm -f "${TMPDIR:-/tmp}/hyserve-configure.$$"
  exit 1
}
rm -f "${TMPDIR:-/tmp}/hyserve-configure.$$"
cmake --build --preset "$preset" ${1:+--target "$@"}
