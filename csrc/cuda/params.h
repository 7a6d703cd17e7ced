// What one launch of the sample loop is given: plain data, pointers into the device's memory.
#pragma once

#include <cstdint>

#include "core/gate_bias.h"
#include "core/network.h"
#include "core/sampling.h"

namespace wavenet::cuda {

// Takes every stream through `steps` samples. Either `given` or `uniforms` is set: samples fed as they are,
// with `logits` out, or samples drawn into `drawn`.
struct Task {
  Network network;
  GateBias gate;
  Sampling sampling;
  int64_t batch, steps;
  float* queues;          // (batch, queue_steps, residual): one ring per layer
  int64_t* position;      // (batch): samples of the stream so far
  int64_t* last_sample;   // (batch): the latest of them, not fed yet
  const int64_t* given;   // (batch, steps)
  float* logits;          // (batch, steps, classes)
  const float* uniforms;  // (batch, steps), in [0, 1)
  int64_t* drawn;         // (batch, steps)
  // Filled with kNone before: the lowest index at which a position, a last sample and a sample given or a
  // uniform number are out of range; where one is, no stream moves.
  int64_t* refused;  // (kRefusals)
  // Filled with kNone before: the position at which a stream's logits were not finite, where it stops.
  int64_t* failed;  // (batch)
  // Is kNone before: a block that waited in vain for another. The streams are then of no more use.
  int64_t* stuck;
  // For tests: the step whose samples never come back in a pipeline, to show that this is told.
  int64_t lost = -1;
};

constexpr int kRefusals = 3;
// Every byte of it is the same, so that a device can fill memory with it.
constexpr int64_t kNone = 0x7f7f7f7f7f7f7f7f;
// Words of a report: what was refused, who was stuck, and where each stream failed.
constexpr int64_t report_words(int64_t batch) { return kRefusals + 1 + batch; }

// Points a task to its report.
inline void bind_report(Task& task, int64_t* report) {
  task.refused = report;
  task.stuck = report + kRefusals;
  task.failed = task.stuck + 1;
}

// Position and step counts stay below this, so that no sum of them overflows.
constexpr int64_t kMostPosition = int64_t{1} << 60;

}  // namespace wavenet::cuda
