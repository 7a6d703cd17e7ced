// The CPU engine behind a plain interface: picks the instruction set, spreads streams over threads.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/params.h"

namespace wavenet::cpu {

// The logits for the sample at `position` of the task's stream `row` were not finite.
struct NonFinite : std::runtime_error {
  NonFinite(int64_t at_position, int64_t of_row)
      : std::runtime_error("the network produced non-finite logits at sample " + std::to_string(at_position) +
                           " of row " + std::to_string(of_row)),
        position(at_position),
        row(of_row) {}
  int64_t position, row;
};

// Runs every stream of the task through its steps, on up to `threads` threads.
// Throws NonFinite for the first row whose logits are not finite, and std::runtime_error if WAVENET_CPU asks
// for an instruction set that is not there or if a thread cannot be started.
void run(const Task& task, int64_t threads);

// Makes the gate bias (batch, count - lost, outputs) of frames (batch, classes + features, count), of which
// there must be more than the conditioner loses. Throws as `run` does of WAVENET_CPU.
void frame_bias(const Conditioner& conditioner, float limit, const float* frames, int64_t batch,
                int64_t count, float* bias);

// For benchmarks: bytes per second when one thread reads `data` again and again, and multiply-adds per second
// of one thread, in float32 or in int8. Each takes about `seconds`.
double read_rate(const void* data, int64_t bytes, double seconds);
double multiply_add_rate(bool int8, double seconds);

// The instruction sets that this build has and this processor runs, slowest first, separated by spaces.
std::string available_instruction_sets();

// The one in use: the last of the above, or what the environment variable WAVENET_CPU says.
std::string instruction_set();

}  // namespace wavenet::cpu
