#!/bin/sh
# Runs every kernel for a few samples under each tool of compute-sanitizer: out-of-bounds accesses, races in shared
# memory, barriers that not all threads reach, reads of uninitialized memory. Needs a GPU and the package installed
# with its kernels.
# Usage: csrc/checks/sanitize_cuda.sh
set -eu
cd "$(dirname "$0")/../.."
sanitizer="${COMPUTE_SANITIZER:-compute-sanitizer}"
command -v "$sanitizer" > /dev/null || {
  echo "no compute-sanitizer was found: install the CUDA toolkit or set COMPUTE_SANITIZER" >&2
  exit 1
}
for tool in memcheck racecheck synccheck initcheck; do
  echo "+ $tool"
  # torch's caching allocator hides the bounds of tensors.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 1 --kernel-regex kns=wavenet \
    python -m pytest -q -n 0 -m gpu tests/engine/test_cuda_kernels.py -k test_a_short_run
done
