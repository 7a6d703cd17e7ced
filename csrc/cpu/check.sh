#!/bin/sh
# Builds csrc/cpu/kernel_check.cpp under the sanitizers and runs it; fails on the first thing they find.
# Usage: csrc/cpu/check.sh [cases]
set -eu
cd "$(dirname "$0")/.."
cxx="${CXX:-c++}"
build="$(mktemp -d)"
trap 'rm -rf "$build"' EXIT
avx2="-mavx2 -mfma"
# GCC 12 takes the undefined operands in its own header of intrinsics for a mistake.
avx512="$avx2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -Wno-uninitialized -Wno-maybe-uninitialized"
for sanitizer in address,undefined thread; do
  flags="-std=c++17 -O1 -g -ffp-contract=off -pthread -Wall -Wextra -Werror -I."
  flags="$flags -fsanitize=$sanitizer -fno-sanitize-recover=all"
  objects=""
  compile() {
    object="$build/$(basename "$1" .cpp).o"
    $cxx $flags $2 -c "$1" -o "$object"
    objects="$objects $object"
  }
  for source in core/network.cpp core/sampling.cpp cpu/run.cpp cpu/kernel_base.cpp cpu/kernel_check.cpp; do
    compile "$source" ""
  done
  if [ "$(uname -m)" = x86_64 ]; then
    compile cpu/kernel_avx2.cpp "$avx2"
    compile cpu/kernel_avx512.cpp "$avx512"
    compile cpu/kernel_avx512vnni.cpp "$avx512 -mavx512vnni"
  fi
  $cxx $flags $objects -o "$build/check"
  echo "sanitizer $sanitizer:"
  "$build/check" "${1:-30}"
done
