// The conditioner as the engine sees it: what makes the gate bias of frames (wavenet/models/conditioner.py),
// with pointers into one flat block of weights.
//
// The block is laid out by wavenet/packing_conditioner.py, which documents it; the offsets here must agree
// with it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/network.h"

namespace wavenet {

constexpr int64_t kMaxConvolutions = 8;
constexpr int64_t kMaxFrameTaps = 8;

// Over frames: a matrix for each tap, oldest first.
struct FrameConvolution {
  Matrix tap[kMaxFrameTaps];
  const float* bias;  // (width_padded)
  int64_t dilation;
};

struct Conditioner {
  int64_t classes, features;    // rows of the frames: class weights first
  int64_t width, width_padded;  // channels of what is computed per frame
  int64_t outputs;              // layers * 2 * dilation channels of the network
  int64_t taps, convolutions;   // no convolutions without features
  int64_t context_frames;       // frames that the convolutions take away in all, half of them on either side
  const float *centre, *scale;  // (features): features enter as (x - centre) * scale
  FrameConvolution convolution[kMaxConvolutions];
  Matrix mixture;     // inputs: classes; outputs: the width, padded
  Matrix projection;  // inputs: the width; outputs padded
};

// Points a conditioner into its weights, `count` floats, by [classes, features, width, outputs, taps,
// dilations of the convolutions...]. Throws std::runtime_error naming the entry that makes no sense, or if
// there are not exactly so many weights as the entries ask for.
Conditioner bind_conditioner(const int64_t* entries, size_t entry_count, const float* weights, int64_t count);

}  // namespace wavenet
