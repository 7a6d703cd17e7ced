// The gated layers and the loss of training, for any way of running work on several threads.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "cpu/train/training.h"

namespace wavenet::cpu {

// Calls a function with the numbers 0 to count - 1, possibly on several threads.
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t)>& work)>;

// Weights of the model, float32.
struct LayerWeights {
  const float* dilated;  // (2 * channels, taps * residual)
  const float* output;   // (residual, channels); null in the last layer
};

// Gradients to write, in the shapes of the weights.
struct LayerGradients {
  float *dilated, *dilated_bias, *output, *residual_bias;
  float* bias;  // (batch, frames, 2 * channels); null without frames
};

// Returns whether this processor supports these passes, with products in float32 or bfloat16.
// Throws std::runtime_error if WAVENET_CPU names an instruction set that is not available.
bool can_train(bool bf16);

// Computes halves, gates and y from x; see GatedLayer. Sets the packed matrices itself.
// Both passes throw std::runtime_error if `can_train` returns false.
void forward(GatedLayer layer, const LayerWeights& weights, bool bf16, const ParallelFor& parallel_for);

// Computes dactivation (the caller's working memory), dx and the gradients from dy and the gradient of the
// gates.
void backward(GatedLayer layer, const LayerWeights& weights, const LayerGradients& gradients, bool bf16,
              const ParallelFor& parallel_for);

// Computes nats and normalizers from logits; the backward pass computes dlogits from these and dnats. Logits
// are bfloat16 or float32. Both throw std::runtime_error if `can_train` returns false.
void cross_entropy(const Losses& losses, bool bf16, const ParallelFor& parallel_for);
void cross_entropy_backward(const Losses& losses, bool bf16, const ParallelFor& parallel_for);

}  // namespace wavenet::cpu
