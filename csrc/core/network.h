// A network as the sample loop sees it: channel counts and pointers into one flat block of weights.
//
// The block is laid out by wavenet/packing.py, which documents it; the offsets here must agree with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace wavenet {

// Channels are padded to a multiple of this many floats, one 512-bit vector.
constexpr int64_t kPad = 16;
// Outputs of a matrix are stored in blocks of this many, each block input by input.
constexpr int64_t kBlock = 64;
// First entry of a geometry: float32 weights in the layout described in packing.py.
constexpr int64_t kLayoutVersion = 1;

struct Layer {
  const float* dilated;  // [block][tap, residual channel][output], outputs: filter then gate, each padded
  const float* dilated_bias;   // (2 * dilation_padded)
  const float* residual_bias;  // (residual_padded); null in the last layer
  const float* output;         // [block][dilation channel][output], outputs: residual (not last), then skip
  int64_t dilation;
  int64_t depth;     // rows of the layer's ring: (taps - 1) * dilation
  int64_t ring_row;  // first row of the ring in the queues
};

struct Network {
  int64_t classes, residual, dilated, skip, head;  // channels as the model has them
  int64_t classes_padded, residual_padded, dilated_padded, skip_padded, head_padded;
  int64_t taps, layers, queue_steps;
  const float* embedding;  // (classes, residual_padded)
  const float* skip_bias;
  const float* head1;
  const float* head1_bias;
  const float* head2;
  const float* head2_bias;
  const Layer* layer;
};

// Channel counts and dilations, checked, before they are bound to weights.
struct Geometry {
  int64_t classes, residual, dilated, skip, head, taps;
  std::vector<int64_t> dilations;
};

inline int64_t padded(int64_t channels) { return (channels + kPad - 1) / kPad * kPad; }

// Reads [version, classes, residual, dilation, skip, head, kernel size, layers, dilations...].
// Throws std::runtime_error naming the entry that makes no sense.
Geometry parse_geometry(const int64_t* entries, size_t count);

// Points a network into its weights; `layers` owns the per-layer table and must outlive the result.
// Throws std::runtime_error if the geometry does not ask for exactly `count` weights.
Network bind_weights(const Geometry& geometry, const float* weights, int64_t count,
                     std::vector<Layer>& layers);

}  // namespace wavenet
