#!/bin/sh
# Compiles the CUDA kernels for every architecture that is shipped, and fails if one keeps values in memory for
# want of registers. Needs nvcc (NVCC names another), but no GPU.
# Usage: csrc/cuda/check.sh
set -eu
cd "$(dirname "$0")/.."
nvcc="${NVCC:-nvcc}"
build="$(mktemp -d)"
trap 'rm -rf "$build"' EXIT
for number in 75 80 86 90; do
  flags="-std=c++17 -O3 -fmad=false -DNDEBUG -I. -arch=sm_$number -Xptxas -v -Werror all-warnings"
  if ! "$nvcc" $flags -c cuda/run.cu -o "$build/run.o" > "$build/log" 2>&1; then
    cat "$build/log" >&2
    exit 1
  fi
  if grep -E '[1-9][0-9]* bytes (stack frame|spill)' "$build/log" >&2; then
    echo "sm_$number: a kernel spills registers, or keeps an array in memory" >&2
    exit 1
  fi
  echo "sm_$number: $(grep -c 'Used .* registers' "$build/log") kernels, most registers $(
    sed -n 's/.*Used \([0-9]*\) registers.*/\1/p' "$build/log" | sort -n | tail -1
  ), none spilled"
done
