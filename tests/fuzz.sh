#!/bin/sh
# Fuzzes each parser of what a user or a network sends: tests/fuzz.sh TIME
set -eu
time=${1:-30s}
cd "$(dirname "$0")/.."
grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do
  dir=$(dirname "$file")
  sed -n 's/^func \(Fuzz[A-Za-z0-9]*\).*/\1/p' "$file" | while read -r name; do
    echo "== $dir $name"
    ${GO:-go} test "$dir" -run '^$' -fuzz "^$name\$" -fuzztime "$time"
  done
done
