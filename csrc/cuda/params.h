// The parameters of one launch of the sample loop: plain data, with pointers to device memory.
#pragma once

#include <cstdint>

#include "core/gate_bias.h"
#include "core/network.h"
#include "core/sampling.h"

namespace wavenet::cuda {

// One launch advances every stream by `steps` samples. Either `forced` is set: the samples to feed, with
// results in `logits`; or `uniforms` is set: random numbers to draw samples with, with results in `output`.
struct Params {
  Network network;
  GateBias gate;
  BatchSampling sampling;
  int64_t batch, steps;
  float* queues;          // (batch, queue_steps, residual): one ring per layer
  int64_t* position;      // (batch): number of samples of the stream so far
  int64_t* last_sample;   // (batch): the latest sample, not fed yet
  const int64_t* forced;  // (batch, steps)
  float* logits;          // (batch, steps, classes)
  const float* uniforms;  // (batch, steps), in [0, 1)
  int64_t* output;        // (batch, steps)
  // Initially kNone. The lowest index of an out-of-range position, of a last sample, and of a forced sample
  // or uniform number. If there is one, no stream advances.
  int64_t* invalid;  // (kInputKinds)
  // Initially kNone. The position at which a stream's logits were not finite; the stream stops there.
  int64_t* failed;  // (batch)
  // Initially kNone. The lowest block whose wait for a message timed out; the state is then no longer valid.
  int64_t* stuck;
  // For tests: the step whose samples a pipeline drops, to show that it reports the timeout.
  int64_t dropped_step = -1;
};

constexpr int kInputKinds = 3;
// All bytes are equal, so that cudaMemset can fill memory with it.
constexpr int64_t kNone = 0x7f7f7f7f7f7f7f7f;
// Words of a report: indices of invalid inputs, the block that timed out, and where each stream failed.
constexpr int64_t report_words(int64_t batch) { return kInputKinds + 1 + batch; }

// Sets the pointers to a report.
inline void bind_report(Params& params, int64_t* report) {
  params.invalid = report;
  params.stuck = report + kInputKinds;
  params.failed = params.stuck + 1;
}

// Limit of positions and step counts, so that no sum of them overflows.
constexpr int64_t kMaxPosition = int64_t{1} << 60;

}  // namespace wavenet::cuda
