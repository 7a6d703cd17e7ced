// The CUDA engine behind a plain interface, for files that do not see CUDA.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/params.h"
#include "cuda/select_kernel.h"

namespace wavenet::cuda {

// Chooses a kernel as `choose` does, for a device of this machine. Throws std::runtime_error.
Choice choose_on(int device, const Network& network, int64_t batch, const std::string& name);

// What all kernels would do there; see `describe`.
std::string describe_on(int device, const Network& network, int64_t batch);

// Bytes of the device's memory that `run` needs beside the task's.
int64_t workspace_bytes(const Task& task, const Choice& choice);

// Takes every stream of the task through its steps on a device, in one launch on `stream` (a cudaStream_t),
// and waits for it. Leaves the device the current one. The task's pointers are the device's, but for the
// table of layers, which is the host's; the report is set here. Returns, by stream, the position at which its
// logits were not finite, or kNone. Throws std::runtime_error if an input is out of range, a block waited in
// vain for another, or CUDA fails.
std::vector<int64_t> run(Task task, const Choice& choice, int device, void* workspace, void* stream);

// The architectures that the kernels were compiled for: compute capabilities, separated by spaces.
std::string architectures();

}  // namespace wavenet::cuda
