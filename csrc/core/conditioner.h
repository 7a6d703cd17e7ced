// The conditioner, which computes the gate bias of frames (wavenet/models/conditioner.py): sizes and pointers
// into one flat block of weights. wavenet/engine/packing_conditioner.py writes the block and documents its
// layout; the offsets here must match.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/network.h"

namespace wavenet {

constexpr int64_t kMaxConvolutions = 8;
constexpr int64_t kMaxFrameTaps = 8;

// A dilated convolution over frames: a matrix for each tap, oldest first.
struct FrameConvolution {
  Matrix tap[kMaxFrameTaps];
  const float* bias;  // (width_padded)
  int64_t dilation;
};

struct Conditioner {
  int64_t classes, features;    // rows of the frames: class weights, then features
  int64_t width, width_padded;  // hidden channels per frame
  int64_t outputs;              // layers * 2 * dilation channels of the network
  int64_t taps, convolutions;   // without features there are no convolutions
  int64_t context_frames;       // total context of the convolutions, half of it on either side
  const float *centre, *scale;  // (features): inputs are (x - centre) * scale
  FrameConvolution convolution[kMaxConvolutions];
  Matrix mixture;     // inputs: classes; outputs: the width, padded
  Matrix projection;  // inputs: the width; outputs padded
};

// Creates a conditioner from [classes, features, width, outputs, taps, dilations of the convolutions...],
// with pointers into `weights`. Throws std::runtime_error if an entry is out of range, naming it, or if
// `count` is not the number of floats that the entries require.
Conditioner bind_conditioner(const int64_t* entries, size_t entry_count, const float* weights, int64_t count);

}  // namespace wavenet
