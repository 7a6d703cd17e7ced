// Peak rates of a device, measured for benchmarks.
#pragma once

#include <cstdint>
#include <string>

namespace wavenet::cuda {

// Thread blocks per multiprocessor in a measurement.
constexpr int kRateBlocks = 4;

// Returns the size of the workspace that `rate` needs.
int64_t rate_workspace_floats(int device);

// Measures a rate and waits for the device. `what` is one of
// - "reads": bytes per second when all multiprocessors repeatedly read `data`, from the L2 cache if it fits
// there;
// - "fp16", "fp32": multiply-adds per second of all multiprocessors, with the kernels' instructions on
// registers;
// - "layer_16", "layer_32", "layer_64", "layer_128": seconds of one block for a layer of that many channels
// in fp16,
//   with weights in shared memory, from the newest tap to the residual sum.
// Throws std::runtime_error.
double rate(const std::string& what, int device, const void* data, int64_t bytes, float* workspace,
            void* stream);

}  // namespace wavenet::cuda
