// A network as the sample loop uses it: channel counts and pointers into one flat block of weights.
// wavenet/engine/packing.py writes the block and documents its layout; the offsets here must match.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace wavenet {

// Channels are padded to a multiple of this number of floats: one 512-bit vector (in bf16: two).
constexpr int64_t kPad = 16;
// Outputs of a matrix are stored in blocks of this number, each block input by input.
constexpr int64_t kBlock = 64;
// Inputs of an int8 matrix per 32-bit word.
constexpr int64_t kPacked = 4;

// Precision of the stored matrices; everything else is float32. The values are the layouts of
// wavenet/engine/packing.py, the first entry of a geometry.
enum class Precision : int64_t { kFp32 = 1, kBf16 = 2, kInt8 = 3 };

// Layouts 4 and 5, for tensor cores: tiles of 16 outputs and 16 inputs (wavenet/engine/packing_tiles.py).
// Only the CUDA engine supports them.
enum class Tiles : int64_t { kNone = 0, kFp16 = 4, kBf16 = 5 };
constexpr int64_t kTile = 16;

// Rows of 32-bit words, block after block. A row contains the weights of one input (int8: four), a word those
// of one output (bf16: two).
struct Matrix {
  const int32_t* words;
  // (outputs), int8 only: a weight is scale * integer. The low 16 bits of the scale encode the sum of the
  // output's integers, plus 2^15.
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
  Precision precision;  // kFp32 if the matrices are stored in tiles
  Tiles tiles;
  int64_t classes, residual, dilated, skip, head;  // channels of the model, without padding
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

// Validated channel counts and dilations, without weights.
struct Geometry {
  Precision precision;
  Tiles tiles;
  int64_t classes, residual, dilated, skip, head, taps;
  std::vector<int64_t> dilations;
};

// Parses [layout, classes, residual, dilation, skip, head, kernel size, layers, dilations...].
// Throws std::runtime_error if an entry is out of range, naming it.
Geometry parse_geometry(const int64_t* entries, size_t count);

// Creates a network with pointers into its weights; `layers` owns the per-layer table and must outlive the
// result. Throws std::runtime_error if `count` is not the number of bytes that the geometry requires. The
// weights must be aligned to 4 bytes; alignment to 64 bytes is fastest.
Network bind_weights(const Geometry& geometry, const void* weights, int64_t count,
                     std::vector<Layer>& layers);

}  // namespace wavenet
