// What one call asks of the sample loop, and the one function that every instruction set provides.
//
// Included where special instruction sets are switched on, so there is nothing here but plain data: an inline
// function or template instantiated there could be the copy the linker keeps for every machine.
#pragma once

#include <cstdint>

#include "core/conditioner.h"
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

// Most rows that share a reading of the weights, a step of a stream each: enough for the weights to be read
// rarely, few enough for what is worked on to stay in the second-level cache.
constexpr int64_t kGroup = 36;

// Rows of inputs to a product in int8, four a word, and what one step of each row's inputs is worth.
struct Bytes {
  int32_t* words;
  float* scale;
  int64_t stride;
};

// The sums of all layers' biases and the frame of conditioning `of`; `values` is null unless all rows hold it
// at this step, and it is that of no interpolation.
struct Begun {
  const float* of;
  const float* values;
};

// One thread's working memory: a row of every array for each that shares a reading of the weights. Rows and
// arrays are padded and aligned to 64 bytes.
struct Scratch {
  float* hidden;      // (residual_padded + skip_padded): residual path, then the skip sum
  float* taps;        // (taps * residual), oldest first; zeros behind
  float* activation;  // (2 * dilation_padded): filter, then gate
  float* gated;       // (dilation_padded)
  float* head;        // (head_padded)
  float* logits;      // (classes_padded)
  int64_t* slot;      // (layers): where in its ring each layer's next input goes
  int64_t taps_stride;
  Bytes taps_bytes, gated_bytes, head_bytes;  // int8
  // Not by stream.
  float* weights;    // (classes_padded)
  int32_t* order;    // (classes)
  GateFrame* frame;  // (kGroup)
  float* sums;       // (layers * 2 * dilation_padded)
  Begun* begun;      // (1)
};

constexpr int64_t kFinite = -1;

// Takes `count` streams, at most kGroup, from row `first` on through all steps, together. `failed` has an
// entry for each, kFinite before: it becomes the position at which logits were not finite, where that stream
// stops.
using RunGroup = void (*)(const Task& task, int64_t first, int64_t count, const Scratch& scratch,
                          int64_t* failed);

// What one call asks of the conditioner: the gate bias of all frames but those that it loses at either end.
struct FrameTask {
  Conditioner conditioner;
  float limit;          // no bias leaves [-limit, limit]
  const float* frames;  // (classes + features, count)
  int64_t count;
  float* bias;  // (count - lost, outputs)
  // Working memory, rows of frames.
  float* features;        // (count, the larger of features and classes)
  float *hidden, *other;  // (count, width_padded)
  float* block;           // (count, kBlock)
};
using FrameBias = void (*)(const FrameTask& task);

// For benchmarks. Reads all words but a rest smaller than 1 KiB.
using ReadWords = int32_t (*)(const int32_t* words, int64_t count);
// For benchmarks. Does as many multiply-adds as it returns, in registers.
constexpr int64_t kTable = 26 * kPad;
using MultiplyAdds = int64_t (*)(bool int8, const int32_t* table, int64_t steps, float* sink);

#define WAVENET_INSTRUCTION_SET(name)                                                                      \
  namespace name {                                                                                         \
  void run_group(const Task& task, int64_t first, int64_t count, const Scratch& scratch, int64_t* failed); \
  void frame_bias(const FrameTask& task);                                                                  \
  int32_t read_words(const int32_t* words, int64_t count);                                                 \
  int64_t multiply_adds(bool int8, const int32_t* table, int64_t steps, float* sink);                      \
  }
WAVENET_INSTRUCTION_SET(base)
WAVENET_INSTRUCTION_SET(avx2)
WAVENET_INSTRUCTION_SET(avx512)
WAVENET_INSTRUCTION_SET(avx512vnni)
WAVENET_INSTRUCTION_SET(neon)
WAVENET_INSTRUCTION_SET(neondot)
#undef WAVENET_INSTRUCTION_SET

}  // namespace wavenet::cpu
