// What a device can do at most, measured, for benchmarks.
#pragma once

#include <cstdint>
#include <string>

namespace wavenet::cuda {

// Blocks of threads on each multiprocessor that measure together.
constexpr int kRateBlocks = 4;

// The workspace that `rate` needs.
int64_t rate_workspace_floats(int device);

// "reads": bytes per second when all multiprocessors read `data` over and over, from the second-level cache
// as far as that holds it. "fp16", "fp32": multiply-adds per second of all, by the instructions of the
// kernels, with their numbers in registers. "layer_16", "layer_32", "layer_64", "layer_128": seconds that a
// layer of so many channels takes one block in fp16, with its weights in shared memory, from the newest tap
// to the residual sum. Waits for the device. Throws std::runtime_error.
double rate(const std::string& what, int device, const void* data, int64_t bytes, float* workspace,
            void* stream);

}  // namespace wavenet::cuda
