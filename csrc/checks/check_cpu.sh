#!/bin/sh
# Builds and runs kernel_check.cpp, conditioner_check.cpp, block_cache_check.cpp and, on x86-64,
# training_check.cpp under sanitizers; fails on their first error. If an ARM compiler and qemu's user mode are
# installed, also runs the checks without sanitizers on two 64-bit ARM processors, with and without int8 dot
# products, and compares the int8 results with those of this machine.
# Usage: csrc/checks/check_cpu.sh [cases]
set -eu
cd "$(dirname "$0")/.."
build="$(mktemp -d)"
trap 'rm -rf "$build"' EXIT
engine="core/conditioner.cpp core/network.cpp core/sampling.cpp cpu/engine.cpp cpu/generate/kernel_base.cpp"
avx2="-mavx2 -mfma"
# GCC 12 warns about undefined operands in its own header of intrinsics.
avx512="$avx2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -Wno-uninitialized -Wno-maybe-uninitialized"

# build_check FOLDER COMPILER ARCHITECTURE FLAGS: creates a folder with the programs `check`, `conditioner_check`,
# `block_cache_check` and, on x86-64, `training_check`.
build_check() {
  folder="$1"
  shift
  flags="-std=c++17 -g -ffp-contract=off -pthread -Wall -Wextra -Werror -I. $3"
  objects=""
  mkdir "$folder"
  compile() {
    object="$folder/$(basename "$2" .cpp).o"
    $1 $flags $3 -c "$2" -o "$object"
    objects="$objects $object"
  }
  for source in $engine; do compile "$1" "$source" ""; done
  case "$2" in
    x86_64)
      compile "$1" cpu/generate/kernel_avx2.cpp "$avx2"
      compile "$1" cpu/generate/kernel_avx512.cpp "$avx512"
      compile "$1" cpu/generate/kernel_avx512vnni.cpp "$avx512 -mavx512vnni"
      ;;
    aarch64 | arm64)
      compile "$1" cpu/generate/kernel_neon.cpp ""
      compile "$1" cpu/generate/kernel_neondot.cpp "-march=armv8.2-a+dotprod"
      ;;
  esac
  shared="$objects"
  compile "$1" checks/kernel_check.cpp ""
  $1 $flags $objects -o "$folder/check"
  objects="$shared"
  compile "$1" checks/conditioner_check.cpp ""
  $1 $flags $objects -o "$folder/conditioner_check"
  objects=""
  compile "$1" cpu/train/block_cache.cpp ""
  compile "$1" checks/block_cache_check.cpp ""
  $1 $flags $objects -o "$folder/block_cache_check"
  if [ "$2" = x86_64 ]; then
    objects="$shared"
    compile "$1" cpu/train/training.cpp ""
    compile "$1" cpu/train/training_avx2.cpp "$avx2"
    compile "$1" cpu/train/training_avx512.cpp "$avx512"
    compile "$1" cpu/train/training_avx512bf16.cpp "$avx512 -mavx512bf16"
    compile "$1" checks/training_check.cpp ""
    $1 $flags $objects -o "$folder/training_check"
  fi
}

# sanitized SANITIZER CASES: builds and runs all checks; their output goes to a file.
sanitized() {
  build_check "$build/$1" "${CXX:-c++}" "$(uname -m)" "-O1 -fsanitize=$1 -fno-sanitize-recover=all"
  # `check` runs last, since the last line of output is compared below.
  "$build/$1/conditioner_check" "$2" > "$build/$1/output"
  "$build/$1/block_cache_check" >> "$build/$1/output"
  if [ -e "$build/$1/training_check" ]; then "$build/$1/training_check" "$2" >> "$build/$1/output"; fi
  "$build/$1/check" "$2" >> "$build/$1/output"
}

# Both sanitizers at once. The thread sanitizer is slow and network sizes hardly matter for races, so it runs a
# third of the networks.
sanitized address,undefined "${1:-30}" &
first=$!
sanitized thread "$(((${1:-30} + 2) / 3))" &
second=$!
failed=0
wait "$first" || failed=1
wait "$second" || failed=1
for sanitizer in address,undefined thread; do
  echo "sanitizer $sanitizer:"
  cat "$build/$sanitizer/output" || failed=1
done
if [ "$failed" != 0 ]; then exit 1; fi

if ! command -v aarch64-linux-gnu-g++ > /dev/null || ! command -v qemu-aarch64 > /dev/null; then
  echo "64-bit ARM: skipped (needs aarch64-linux-gnu-g++ and qemu-aarch64)"
  exit 0
fi
build_check "$build/arm" aarch64-linux-gnu-g++ aarch64 "-O2 -static"
for processor in cortex-a53 max; do
  echo "64-bit ARM, $processor:"
  # Emulation is slow, so at most the networks of the checksum.
  cases="${1:-2}"
  if [ "$cases" -gt 2 ]; then cases=2; fi
  qemu-aarch64 -cpu "$processor" "$build/arm/conditioner_check" "$cases"
  qemu-aarch64 -cpu "$processor" "$build/arm/check" "$cases" > "$build/arm_output" || { cat "$build/arm_output"; exit 1; }
  cat "$build/arm_output"
  if [ "$(tail -n 1 "$build/address,undefined/output")" != "$(tail -n 1 "$build/arm_output")" ]; then
    echo "int8 results on 64-bit ARM, $processor, differ from those on this machine" >&2
    exit 1
  fi
done
