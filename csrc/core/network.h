// A network as the sample loop sees it: channel counts and pointers into one flat block of weights.
//
// The block is laid out by wavenet/packing.py, which documents it; the offsets here must agree with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace wavenet {

// Channels are padded to a multiple of this many floats, one 512-bit vector (twice as many in bf16).
constexpr int64_t kPad = 16;
// Outputs of a matrix are stored in blocks of this many, each block input by input.
constexpr int64_t kBlock = 64;
// Inputs of an int8 matrix that share a word.
constexpr int64_t kPacked = 4;

// What the matrices are stored in; the rest is float32. The values are the layouts that packing.py describes,
// the first entry of a geometry.
enum class Precision : int64_t { kFp32 = 1, kBf16 = 2, kInt8 = 3 };

// Or, for tensor cores, in tiles of 16 outputs and 16 inputs (wavenet/packing_cuda.py), layouts 4 and 5. Only
// the CUDA engine reads these.
enum class Tiles : int64_t { kNone = 0, kFp16 = 4, kBf16 = 5 };
constexpr int64_t kTile = 16;

// Rows of 32-bit words, block after block: a row holds the weights of one input (four in int8), a word those
// of one output (two in bf16).
struct Matrix {
  const int32_t* words;
  // (outputs), int8 only: the weight is scale * integer. The scale's last 16 bits are 2^15 + the sum of the
  // output's integers.
  const float* scale;
  int64_t outputs, inputs;
};

struct Layer {
  Matrix dilated;              // inputs: tap, residual channel; outputs: filter then gate, each padded
  const float* dilated_bias;   // (2 * dilation_padded)
  const float* residual_bias;  // (residual_padded); null in the last layer
  Matrix output;               // outputs: residual (not last), then skip, each padded
  int64_t dilation;
  int64_t depth;     // rows of the layer's ring: (taps - 1) * dilation
  int64_t ring_row;  // first row of the ring in the queues
};

struct Network {
  Precision precision;  // fp32 also where the matrices are in tiles
  Tiles tiles;
  int64_t classes, residual, dilated, skip, head;  // channels as the model has them
  int64_t classes_padded, residual_padded, dilated_padded, skip_padded, head_padded;
  int64_t taps, layers, queue_steps;
  const float* embedding;  // (classes, residual_padded)
  const float* skip_bias;
  Matrix head1;
  const float* head1_bias;
  Matrix head2;
  const float* head2_bias;
  const Layer* layer;
};

// Channel counts and dilations, checked, before they are bound to weights.
struct Geometry {
  Precision precision;
  Tiles tiles;
  int64_t classes, residual, dilated, skip, head, taps;
  std::vector<int64_t> dilations;
};

// Reads [layout, classes, residual, dilation, skip, head, kernel size, layers, dilations...].
// Throws std::runtime_error naming the entry that makes no sense.
Geometry parse_geometry(const int64_t* entries, size_t count);

// Points a network into its weights; `layers` owns the per-layer table and must outlive the result.
// Throws std::runtime_error if the geometry does not ask for exactly `count` bytes. The weights must be
// aligned to 4 bytes, and are read fastest at a multiple of 64.
Network bind_weights(const Geometry& geometry, const void* weights, int64_t count,
                     std::vector<Layer>& layers);

}  // namespace wavenet
