// The gated layers and the loss of training, run by whatever spreads work over threads.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "cpu/train/training.h"

namespace wavenet::cpu {

// Calls a function with the numbers 0 to count - 1, on several threads or not.
using Spread = std::function<void(int64_t count, const std::function<void(int64_t)>& work)>;

// Weights as the model has them, float32.
struct LayerWeights {
  const float* dilated;  // (2 * channels, taps * residual)
  const float* output;   // (residual, channels); null in the last layer
};

// Gradients to be written, shaped as what they are of.
struct LayerGradients {
  float *dilated, *dilated_bias, *output, *residual_bias;
  float* bias;  // (batch, frames, 2 * channels); null without frames
};

// Whether this processor has what these passes need, with products in float32 or in bfloat16.
// Throws std::runtime_error if WAVENET_CPU names an instruction set that is not there.
bool can_train(bool bf16);

// From x to halves, gates and y; see GatedLayer. What is packed is added here.
// Both throw std::runtime_error where `can_train` is false.
void forward(GatedLayer layer, const LayerWeights& weights, bool bf16, const Spread& spread);

// From dy and the gates' gradient to dactivation (working memory of the caller), dx and the gradients.
void backward(GatedLayer layer, const LayerWeights& weights, const LayerGradients& gradients, bool bf16,
              const Spread& spread);

// From logits to nats and normalizers; and from all these and dnats to dlogits. In bfloat16 or in float32, as
// the logits are. Both throw as the above.
void cross_entropy(const Losses& losses, bool bf16, const Spread& spread);
void cross_entropy_backward(const Losses& losses, bool bf16, const Spread& spread);

}  // namespace wavenet::cpu
