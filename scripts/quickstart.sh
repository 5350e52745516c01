#!/usr/bin/env bash
# From a fresh Debian 12 to an answered question: installs packages, builds, starts router, prefill
# and decode, asks something that stands deep inside a long prompt, prints the answer and the
# figures, stops.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "== packages"
scripts/install_deps.sh
echo "== build"
scripts/build.sh release hyserve hyserve-router hyserve-prefill hyserve-decode

work=$(mktemp -d)
up_pid=
cleanup() {
  if [ -n "$up_pid" ]; then
    kill -TERM "$up_pid" 2>/dev/null || true
    wait "$up_pid" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap cleanup EXIT

echo "== start"
build/release/bin/hyserve up --config deploy/local.yaml >"$work/up.log" 2>&1 &
up_pid=$!
for _ in $(seq 600); do
  grep -q '^ready' "$work/up.log" && break
  kill -0 "$up_pid" 2>/dev/null || break
  sleep 0.1
done
grep '^ready' "$work/up.log" || { cat "$work/up.log" >&2; exit 1; }

echo "== ask"
expected=$(python3 scripts/needle_prompt.py --sentences 1100 "$work/prompt.txt")
question=$(tail -n 2 "$work/prompt.txt" | head -n 1)
echo "$(wc -c <"$work/prompt.txt") bytes of text, then: $question"
build/release/bin/hyserve generate --file "$work/prompt.txt" --max-tokens 48 --stats \
  >"$work/answer.txt"
echo "answer:$(cat "$work/answer.txt")"
if grep -q "$expected" "$work/answer.txt"; then
  echo "== right: the prompt says $expected"
else
  echo "== wrong: the prompt says $expected" >&2
  exit 1
fi
