#!/bin/sh
# Installs the package with its CUDA kernels, compiled for all supported architectures, and compiles
# benchmarks/latency.cu. Fails if a kernel spills registers or uses more of them than the planner assumes
# (kStreamRegisters in select_kernel.h). Needs nvcc (or the compiler in NVCC), but no GPU.
# Usage: csrc/checks/check_cuda.sh
set -eu
cd "$(dirname "$0")/../.."
nvcc="$(command -v "${NVCC:-nvcc}")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
log="$work/log"
# A wrapper of nvcc that logs the kernels' registers, since pip hides the compiler's output.
cat > "$work/nvcc" <<END
#!/bin/sh
case "\$*" in
  *" -c "*.cu*) "$nvcc" "\$@" -Xptxas -v -Werror all-warnings >> "$log" 2>&1 || { cat "$log" >&2; exit 1; } ;;
  *) exec "$nvcc" "\$@" ;;
esac
END
chmod +x "$work/nvcc"
WAVENET_BUILD=cuda NVCC="$work/nvcc" python -m pip install --quiet --no-build-isolation --no-deps -e .
"$nvcc" -std=c++17 -O3 -fmad=false -Icsrc -arch=sm_90 -Xptxas -v -Werror all-warnings benchmarks/latency.cu \
  -o "$work/latency" > "$work/latency.log" 2>&1 || { cat "$work/latency.log" >&2; exit 1; }
if cat "$log" "$work/latency.log" | grep -E '[1-9][0-9]* bytes (stack frame|spill)' >&2; then
  echo "a kernel spills registers or keeps an array in local memory" >&2
  exit 1
fi
for number in 75 80 86 90; do
  for kernel in stream_cta stage_cluster stage_grid; do
    grep -q "Compiling entry function '[^']*$kernel[^']*' for 'sm_$number'" "$log" || {
      echo "sm_$number: $kernel was not compiled for it" >&2
      exit 1
    }
  done
  kernels="$(grep -c "Compiling entry function .* for 'sm_$number'" "$log")"
  echo "sm_$number: $kernels kernels"
done
most="$(sed -n 's/.*Used \([0-9]*\) registers.*/\1/p' "$log" | sort -n | tail -1)"
budget="$(sed -n 's/.*kStreamRegisters = \([0-9]*\);.*/\1/p' csrc/cuda/select_kernel.h)"
[ "$most" -le "$budget" ] || {
  echo "a kernel uses $most registers, the planner assumes at most $budget" >&2
  exit 1
}
echo "most registers $most of $budget, none spilled"
