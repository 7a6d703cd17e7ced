#!/bin/sh
# Builds kernel_check.cpp, conditioner_check.cpp and block_cache_check.cpp, and on x86-64 training_check.cpp,
# under the sanitizers and runs them; fails on the first thing they find. Where an ARM compiler and qemu's user
# mode are installed, does the same without sanitizers on two 64-bit ARM processors, with and without products of
# bytes, and compares what int8 gives there with what it gives here.
# Usage: csrc/checks/check_cpu.sh [cases]
set -eu
cd "$(dirname "$0")/.."
build="$(mktemp -d)"
trap 'rm -rf "$build"' EXIT
engine="core/conditioner.cpp core/network.cpp core/sampling.cpp cpu/engine.cpp cpu/generate/kernel_base.cpp"
avx2="-mavx2 -mfma"
# GCC 12 takes the undefined operands in its own header of intrinsics for a mistake.
avx512="$avx2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -Wno-uninitialized -Wno-maybe-uninitialized"

# build_check FOLDER COMPILER ARCHITECTURE FLAGS: makes the folder, and in it the programs `check`,
# `conditioner_check`, `block_cache_check` and, on x86-64, `training_check`.
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

# sanitized SANITIZER CASES: builds and runs; what it says goes into a file.
sanitized() {
  build_check "$build/$1" "${CXX:-c++}" "$(uname -m)" "-O1 -fsanitize=$1 -fno-sanitize-recover=all"
  # The engine last, as the last line said is compared below.
  "$build/$1/conditioner_check" "$2" > "$build/$1/said"
  "$build/$1/block_cache_check" >> "$build/$1/said"
  if [ -e "$build/$1/training_check" ]; then "$build/$1/training_check" "$2" >> "$build/$1/said"; fi
  "$build/$1/check" "$2" >> "$build/$1/said"
}

# Both at once. Races do not hide in sizes, and looking for them is slow: a third of the networks.
sanitized address,undefined "${1:-30}" &
first=$!
sanitized thread "$(((${1:-30} + 2) / 3))" &
second=$!
failed=0
wait "$first" || failed=1
wait "$second" || failed=1
for sanitizer in address,undefined thread; do
  echo "sanitizer $sanitizer:"
  cat "$build/$sanitizer/said" || failed=1
done
if [ "$failed" != 0 ]; then exit 1; fi

if ! command -v aarch64-linux-gnu-g++ > /dev/null || ! command -v qemu-aarch64 > /dev/null; then
  echo "64-bit ARM: skipped (needs aarch64-linux-gnu-g++ and qemu-aarch64)"
  exit 0
fi
build_check "$build/arm" aarch64-linux-gnu-g++ aarch64 "-O2 -static"
for processor in cortex-a53 max; do
  echo "64-bit ARM, $processor:"
  # As many networks as the checksum is of, or as few as were asked for: every instruction is emulated.
  cases="${1:-2}"
  if [ "$cases" -gt 2 ]; then cases=2; fi
  qemu-aarch64 -cpu "$processor" "$build/arm/conditioner_check" "$cases"
  qemu-aarch64 -cpu "$processor" "$build/arm/check" "$cases" > "$build/there" || { cat "$build/there"; exit 1; }
  cat "$build/there"
  if [ "$(tail -n 1 "$build/address,undefined/said")" != "$(tail -n 1 "$build/there")" ]; then
    echo "int8 gives other bits on 64-bit ARM, $processor, than here" >&2
    exit 1
  fi
done
