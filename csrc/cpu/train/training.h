// One gated layer of the network as training computes it, forwards and backwards, over whole segments; and
// the loss.
//
// Plain data only, as in params.h: included where special instruction sets are switched on.
//
// What reaches memory between layers is little: the residual path in float32, and tanh and sigmoid of every
// layer in `Stored`, float32 or bfloat16. A block of rows goes through everything else in one thread's
// second-level cache.
#pragma once

#include <cstdint>

#include "core/gate_bias.h"

namespace wavenet::cpu {

// Rows of a segment that are worked on together.
constexpr int64_t kBlockRows = 96;

// What a layer's weights are made into before a pass: blocks of 64 outputs (the last may be narrower, all
// are padded to whole vectors), each with its inputs one after the other, in bf16 two to a word. `inputs` and
// `outputs` count the padding.
struct PackedMatrix {
  const int32_t* words;
  int64_t outputs, inputs;
};

// A layer takes segments of `steps + context` rows to `steps`, where context = (taps - 1) * dilation.
struct GatedLayer {
  int64_t batch, steps, kept;  // the last `kept` of a segment's rows reach the skip path
  int64_t residual, channels, taps, dilation;
  bool last;  // without a residual path

  const float* x;  // (batch, steps + context, residual)
  GateBias bias;   // of this layer, (batch, frames, 2 * channels); position 0 is a segment's first row
  int64_t frame_stride;
  const float* dilated_bias;   // (2 * channels)
  const float* residual_bias;  // (residual)
  PackedMatrix dilated;        // outputs: tanh branch, then sigmoid branch, each padded; inputs: tap, channel
  PackedMatrix output;         // from channels to residual

  void* halves;  // (batch, steps, 2 * channels): tanh, then sigmoid
  void* gates;   // (batch, kept, channels), with strides: their product
  int64_t gates_batch_stride, gates_row_stride;
  float* y;  // (batch, steps, residual)

  // Backwards. `gates` is the gradient from the skip path then.
  const float* dy;              // (batch, steps, residual)
  void* dactivation;            // (batch, steps, 2 * channels)
  float* dx;                    // (batch, steps + context, residual)
  PackedMatrix to_gates;        // from residual to channels: the output matrix transposed
  const PackedMatrix* to_taps;  // for each tap from both branches to residual
  // Sums, one after the other for each part of the work: see `sums_of`.
  float* sums;
};

// Parts of the work on a layer: always as many, so that sums do not depend on the number of threads.
constexpr int64_t kParts = 16;

inline int64_t whole_vectors(int64_t count) { return (count + 15) / 16 * 16; }

// Where the gradients of a layer's weights stand in one part's sums, in floats.
struct Sums {
  int64_t dilated;        // (2 * channels padded, taps * residual padded)
  int64_t dilated_bias;   // (2 * channels padded)
  int64_t output;         // (residual padded, channels padded)
  int64_t residual_bias;  // (residual padded)
  int64_t size;
};

inline Sums sums_of(const GatedLayer& layer) {
  const int64_t branches = 2 * whole_vectors(layer.channels), width = whole_vectors(layer.residual);
  Sums sums{};
  sums.dilated_bias = branches * whole_vectors(layer.taps * layer.residual);
  sums.output = sums.dilated_bias + branches;
  sums.residual_bias = sums.output + width * whole_vectors(layer.channels);
  sums.size = sums.residual_bias + width;
  return sums;
}

inline int64_t blocks_of(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }

// Working memory of one thread, in floats: where arrays of a block's rows begin.
struct Room {
  int64_t taps;          // what the dilated product takes
  int64_t activation;    // what comes of it, or its gradient
  int64_t gated;         // what the product with the output matrix takes, or its gradient
  int64_t residual;      // rows of the residual path
  int64_t gates, above;  // backwards: what the output matrix's gradient is a sum of
  int64_t size;
};

inline Room room_of(const GatedLayer& layer) {
  const int64_t channels = whole_vectors(layer.channels), width = whole_vectors(layer.residual);
  Room room{};
  room.activation = room.taps + kBlockRows * whole_vectors(layer.taps * layer.residual);
  room.gated = room.activation + kBlockRows * 2 * channels;
  room.residual = room.gated + kBlockRows * channels;
  room.gates = room.residual + kBlockRows * width;
  room.above = room.gates + kBlockRows * channels;
  room.size = room.above + kBlockRows * width;
  return room;
}

// Each takes a range of blocks: of all segments' rows in order, kBlockRows of one segment at a time. `room`
// is working memory, `part` says which sums to add to.
using LayerPass = void (*)(const GatedLayer& layer, int64_t first, int64_t stop, float* room, int64_t part);

// Cross-entropies in nats of rows of logits, float32 or bfloat16, and their gradient.
struct Losses {
  int64_t rows, classes;
  const void* logits;      // (rows, classes)
  const int64_t* targets;  // (rows): classes, or `ignored`, whose row gives 0
  int64_t ignored;
  float* nats;         // (rows)
  float* normalizers;  // (rows): ln of the sum of exp(logits)
  // Backwards.
  const float* dnats;  // (rows)
  void* dlogits;       // (rows, classes), as the logits
};

// Takes a range of rows.
using LossPass = void (*)(const Losses& losses, int64_t first, int64_t stop);

// What an instruction set provides, in one of two precisions: of the products and of what is stored.
struct Passes {
  LayerPass forward;
  LayerPass backward_gates;   // from dy and the skip path's gradient to dactivation, and all sums
  LayerPass backward_inputs;  // from dactivation to dx; blocks of steps + context rows
  LossPass loss, loss_backward;
};

namespace avx2 {
extern const Passes fp32_passes;
}
namespace avx512 {
extern const Passes fp32_passes;
}
namespace avx512bf16 {
extern const Passes bf16_passes;
}

}  // namespace wavenet::cpu
