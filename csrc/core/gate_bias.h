// The gate bias: conditioning that is added to each layer's filter and gate activations, given per frame.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define WAVENET_HOST_DEVICE __host__ __device__
#else
#define WAVENET_HOST_DEVICE
#endif

namespace wavenet {

struct GateBias {
  const float* values;   // (batch, frames, layers, 2 * dilation channels), or null for none
  int64_t batch_stride;  // floats from one stream to the next; 0 if all streams share one row
  int64_t frames;
  int64_t hop;    // samples per frame
  int64_t start;  // position of the first sample of frame 0
  bool linear;    // interpolate between frames instead of repeating them
  const int64_t* starts = nullptr;  // (batch): `start` of each stream; null if all have the same
};

// The frame at one position of one stream, and the next frame with its weight for interpolation.
struct GateFrame {
  const float* here;
  const float* next;
  float weight;
};

// Internal linkage, since this header is compiled for several instruction sets and the linker must not use
// one copy for all of them.
WAVENET_HOST_DEVICE static inline GateFrame gate_frame(const GateBias& bias, int64_t row, int64_t position,
                                                       int64_t frame_size) {
  const int64_t offset = position - (bias.starts == nullptr ? bias.start : bias.starts[row]);
  int64_t frame = offset / bias.hop;
  if (frame * bias.hop > offset) --frame;
  const int64_t last = bias.frames - 1;
  const int64_t here = frame < 0 ? 0 : (frame > last ? last : frame);
  const int64_t next = frame + 1 < 0 ? 0 : (frame + 1 > last ? last : frame + 1);
  const float* values = bias.values + row * bias.batch_stride;
  const float weight = static_cast<float>(offset - frame * bias.hop) / static_cast<float>(bias.hop);
  return {values + here * frame_size, values + next * frame_size, weight};
}

}  // namespace wavenet
