// What one call asks of the sample loop, and the one function that every instruction set provides.
//
// Included where special instruction sets are switched on, so there is nothing here but plain data: an inline
// function or template instantiated there could be the copy the linker keeps for every machine.
#pragma once

#include <cstdint>

#include "core/gate_bias.h"
#include "core/network.h"
#include "core/sampling.h"

namespace wavenet::cpu {

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
};

// One thread's working memory. Every array is padded and aligned to 64 bytes.
struct Scratch {
  float* hidden;      // (residual_padded + skip_padded): residual path, then the skip sum
  float* taps;        // (taps * residual), oldest first
  float* activation;  // (2 * dilation_padded): filter, then gate
  float* gated;       // (dilation_padded)
  float* head;        // (head_padded)
  float* logits;      // (classes_padded)
  float* weights;     // (classes_padded)
  int32_t* order;     // (classes)
  int64_t* slot;      // (layers): where in its ring each layer's next input goes
};

constexpr int64_t kFinite = -1;

// Takes one stream through all steps. Returns kFinite, or the position at which logits were not finite; the
// stream then stops there.
using RunStream = int64_t (*)(const Task& task, int64_t row, const Scratch& scratch);

namespace base {
int64_t run_stream(const Task& task, int64_t row, const Scratch& scratch);
}
namespace avx2 {
int64_t run_stream(const Task& task, int64_t row, const Scratch& scratch);
}
namespace avx512 {
int64_t run_stream(const Task& task, int64_t row, const Scratch& scratch);
}

}  // namespace wavenet::cpu
