// Interface of the CUDA engine, for files that do not include CUDA headers.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/params.h"
#include "cuda/select_kernel.h"

namespace wavenet::cuda {

// Selects a kernel for a device of this machine; see `select_kernel`. Throws std::runtime_error.
KernelSelection select_kernel_on(int device, const Network& network, int64_t batch, const std::string& name);

// Describes all kernels on that device; see `describe`.
std::string describe_on(int device, const Network& network, int64_t batch);

// Bytes of device memory that `run` needs in addition to the parameters' arrays.
int64_t workspace_bytes(const Params& params, const KernelSelection& choice);

// Advances every stream on a device, in one launch on `stream` (a cudaStream_t), and waits for the result.
// The device stays the current one. Pointers in `params` are device memory, except for the table of layers,
// which is host memory; this function sets the report. Returns for each stream the position at which its
// logits were not finite, or kNone. Throws std::runtime_error if an input is out of range, a pipeline times
// out, or CUDA fails.
std::vector<int64_t> run(Params params, const KernelSelection& choice, int device, void* workspace,
                         void* stream);

// The compute capabilities that the kernels were compiled for, separated by spaces.
std::string architectures();

}  // namespace wavenet::cuda
