// Parameters of the forward and backward passes of one gated layer over whole segments, and of the loss.
//
// Plain data only, as in params.h, since files compiled for special instruction sets include it.
//
// Between layers only two arrays are stored: the residual path in float32, and tanh and sigmoid of every
// layer in float32 or bfloat16. Everything else of a block of rows stays in the L2 cache of one thread.
#pragma once

#include <cstdint>

#include "core/gate_bias.h"

namespace wavenet::cpu {

// Rows of a segment that are processed together.
constexpr int64_t kBlockRows = 96;

// A layer's weights, packed before each pass: blocks of 64 outputs (the last may be narrower; all are padded
// to whole vectors), each stored input by input, in bf16 two inputs to a word. `inputs` and `outputs` include
// the padding.
struct PackedMatrix {
  const int32_t* words;
  int64_t outputs, inputs;
};

// A layer maps segments of `steps + context` rows to `steps` rows, where context = (taps - 1) * dilation.
struct GatedLayer {
  int64_t batch, steps, kept;  // the last `kept` rows of a segment contribute to the skip path
  int64_t residual, channels, taps, dilation;
  bool last;  // the last layer has no residual output

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

  // Backward pass. There, `gates` is the gradient from the skip path.
  const float* dy;              // (batch, steps, residual)
  void* dactivation;            // (batch, steps, 2 * channels)
  float* dx;                    // (batch, steps + context, residual)
  PackedMatrix to_gates;        // from residual to channels: the output matrix transposed
  const PackedMatrix* to_taps;  // for each tap from both branches to residual
  // Sums of all parts of the work, one after the other: see `sums_of`.
  float* sums;
};

// Parts that the work on a layer is divided into. Constant, so that sums do not depend on the number of
// threads.
constexpr int64_t kParts = 16;

inline int64_t whole_vectors(int64_t count) { return (count + 15) / 16 * 16; }

// Offsets of the gradients of a layer's weights in the sums of one part, in floats.
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

// Working memory of one thread: offsets of the arrays of a block's rows, in floats.
struct WorkspaceLayout {
  int64_t taps;          // inputs of the dilated product
  int64_t activation;    // its results, or their gradient
  int64_t gated;         // inputs of the product with the output matrix, or their gradient
  int64_t residual;      // rows of the residual path
  int64_t gates, above;  // backward pass: operands of the output matrix's gradient
  int64_t size;
};

inline WorkspaceLayout workspace_layout(const GatedLayer& layer) {
  const int64_t channels = whole_vectors(layer.channels), width = whole_vectors(layer.residual);
  WorkspaceLayout layout{};
  layout.activation = layout.taps + kBlockRows * whole_vectors(layer.taps * layer.residual);
  layout.gated = layout.activation + kBlockRows * 2 * channels;
  layout.residual = layout.gated + kBlockRows * channels;
  layout.gates = layout.residual + kBlockRows * width;
  layout.above = layout.gates + kBlockRows * channels;
  layout.size = layout.above + kBlockRows * width;
  return layout;
}

// Processes a range of blocks. Blocks are numbered in the order of all segments' rows, kBlockRows of one
// segment each. `workspace` is working memory; `part` selects the sums to add to.
using LayerPass = void (*)(const GatedLayer& layer, int64_t first, int64_t stop, float* workspace,
                           int64_t part);

// Cross-entropy in nats of rows of logits, float32 or bfloat16, and its gradient.
struct Losses {
  int64_t rows, classes;
  const void* logits;      // (rows, classes)
  const int64_t* targets;  // (rows): classes, or `ignored` for rows with loss 0
  int64_t ignored;
  float* nats;         // (rows)
  float* normalizers;  // (rows): ln of the sum of exp(logits)
  // Backward pass.
  const float* dnats;  // (rows)
  void* dlogits;       // (rows, classes), of the logits' type
};

// Processes a range of rows.
using LossPass = void (*)(const Losses& losses, int64_t first, int64_t stop);

// The functions of an instruction set, for one precision of products and storage.
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
