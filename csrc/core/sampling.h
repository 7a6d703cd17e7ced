// Sampling of a class by inverse CDF from a softmax with temperature, top-k and top-p.
#pragma once

#include <cstdint>

#include "core/gate_bias.h"

namespace wavenet {

struct Sampling {
  double temperature;  // 0: argmax
  int64_t top_k;       // 0: all classes
  double top_p;        // 1: all classes
};

// The settings of all streams of a batch.
struct BatchSampling {
  const double* temperature;  // (batch)
  const int64_t* top_k;       // (batch)
  const double* top_p;        // (batch)
};

// The settings of one stream. Internal linkage: see gate_frame.
WAVENET_HOST_DEVICE static inline Sampling sampling_of(const BatchSampling& batch, int64_t stream) {
  return {batch.temperature[stream], batch.top_k[stream], batch.top_p[stream]};
}

// Returns the class with the largest logit; of several, the lowest.
int64_t argmax(const float* logits, int64_t classes);

// Draws a class. `weights` contains exp((logit - max logit) / temperature); weights that top_k and top_p
// remove are set to zero. `order` is scratch memory for `classes` numbers. Allocates nothing.
int64_t draw(const float* logits, float* weights, int64_t classes, const Sampling& sampling, double uniform,
             int32_t* order);

}  // namespace wavenet
