// The parameters of the sample loop, and the functions that every instruction set implements.
//
// Files compiled for special instruction sets include this header, so it contains plain data only: the linker
// could keep their copy of an inline function or template for every machine.
#pragma once

#include <cstdint>

#include "core/conditioner.h"
#include "core/gate_bias.h"
#include "core/network.h"
#include "core/sampling.h"

namespace wavenet::cpu {

// One call advances every stream by `steps` samples. Either `forced` is set: the samples to feed, with
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
};

// Maximum number of rows (a step of a stream each) that are multiplied with the weights per pass over them.
// More rows read the weights less often; this number still keeps the working memory in the L2 cache.
constexpr int64_t kGroup = 36;

// Rows of int8 inputs to a matrix product, four to a word, with a scale for each row.
struct QuantizedRows {
  int32_t* words;
  float* scale;
  int64_t stride;
};

// Cached sums of all layers' biases and the gate bias of one frame. `values` is null unless all rows use
// frame `of` at this step, without interpolation.
struct CachedFrameBias {
  const float* frame;
  const float* values;
};

// Working memory of one thread. Arrays have one row for each row of the group unless noted; rows and arrays
// are padded and aligned to 64 bytes.
struct Scratch {
  float* hidden;      // (residual_padded + skip_padded): residual path, then the skip sum
  float* taps;        // (taps * residual), oldest first, padded with zeros
  float* activation;  // (2 * dilation_padded): filter, then gate
  float* gated;       // (dilation_padded)
  float* head;        // (head_padded)
  float* logits;      // (classes_padded)
  int64_t* slot;      // (layers): ring position of each layer's next input
  int64_t taps_stride;
  QuantizedRows taps_int8, gated_int8, head_int8;  // int8
  // One for the whole group.
  float* weights;                // (classes_padded)
  int32_t* order;                // (classes)
  GateFrame* frame;              // (kGroup)
  float* sums;                   // (layers * 2 * dilation_padded)
  CachedFrameBias* cached_bias;  // (1)
};

constexpr int64_t kFinite = -1;

// Runs all steps of `count` streams, at most kGroup, from row `first` on. `failed` has an entry for each
// stream, initially kFinite. If logits are not finite, the stream stops and its entry is set to the position.
using RunGroup = void (*)(const Params& params, int64_t first, int64_t count, const Scratch& scratch,
                          int64_t* failed);

// The parameters of the conditioner: computes the gate bias of all frames except the context frames at both
// ends.
struct FrameParams {
  Conditioner conditioner;
  float limit;          // biases are clamped to [-limit, limit]
  const float* frames;  // (classes + features, count)
  int64_t count;
  float* bias;  // (count - context_frames, outputs)
  // Working memory, one row per frame.
  float* features;        // (count, max(features, classes))
  float *hidden, *other;  // (count, width_padded)
  float* block;           // (count, kBlock)
};
using FrameBias = void (*)(const FrameParams& params);

// For benchmarks. Reads all words except for a remainder of less than 1 KiB.
using ReadWords = int32_t (*)(const int32_t* words, int64_t count);
// For benchmarks. Computes multiply-adds in registers and returns their number.
constexpr int64_t kTable = 26 * kPad;
using MultiplyAdds = int64_t (*)(bool int8, const int32_t* table, int64_t steps, float* sink);

#define WAVENET_INSTRUCTION_SET(name)                                                        \
  namespace name {                                                                           \
  void run_group(const Params& params, int64_t first, int64_t count, const Scratch& scratch, \
                 int64_t* failed);                                                           \
  void frame_bias(const FrameParams& params);                                                \
  int32_t read_words(const int32_t* words, int64_t count);                                   \
  int64_t multiply_adds(bool int8, const int32_t* table, int64_t steps, float* sink);        \
  }
WAVENET_INSTRUCTION_SET(base)
WAVENET_INSTRUCTION_SET(avx2)
WAVENET_INSTRUCTION_SET(avx512)
WAVENET_INSTRUCTION_SET(avx512vnni)
WAVENET_INSTRUCTION_SET(neon)
WAVENET_INSTRUCTION_SET(neondot)
#undef WAVENET_INSTRUCTION_SET

}  // namespace wavenet::cpu
