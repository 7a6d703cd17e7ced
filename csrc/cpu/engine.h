// Interface of the CPU engine, which selects the instruction set and distributes streams among threads.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/params.h"

namespace wavenet::cpu {

// The logits for the sample at `position` of stream `row` were not finite.
struct NonFinite : std::runtime_error {
  NonFinite(int64_t at_position, int64_t of_row)
      : std::runtime_error("the network produced non-finite logits at sample " + std::to_string(at_position) +
                           " of row " + std::to_string(of_row)),
        position(at_position),
        row(of_row) {}
  int64_t position, row;
};

// Advances every stream, on up to `threads` threads.
// Throws NonFinite for the first row whose logits are not finite, and std::runtime_error if WAVENET_CPU names
// an instruction set that is not available or if a thread cannot be started.
void run(const Params& params, int64_t threads);

// Computes the gate bias (batch, count - context_frames, outputs) of frames (batch, classes + features,
// count); `count` must exceed the conditioner's context_frames. Throws std::runtime_error for WAVENET_CPU as
// `run` does.
void frame_bias(const Conditioner& conditioner, float limit, const float* frames, int64_t batch,
                int64_t count, float* bias);

// For benchmarks: bytes per second that one thread reads from `data`, and multiply-adds per second of one
// thread, in float32 or int8. Each measures for about `seconds`.
double read_rate(const void* data, int64_t bytes, double seconds);
double multiply_add_rate(bool int8, double seconds);

// Returns the instruction sets of this build that this processor supports, slowest first, separated by
// spaces.
std::string available_instruction_sets();

// Returns the one in use: the last available one, or that of the environment variable WAVENET_CPU.
std::string instruction_set();

}  // namespace wavenet::cpu
