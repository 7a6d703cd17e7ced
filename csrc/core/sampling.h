// Sampling of a class by inverse CDF from a softmax with temperature, top-k and top-p.
#pragma once

#include <cstdint>

namespace wavenet {

struct Sampling {
  double temperature;  // 0: argmax
  int64_t top_k;       // 0: all classes
  double top_p;        // 1: all classes
};

// Returns the class with the largest logit; of several, the lowest.
int64_t argmax(const float* logits, int64_t classes);

// Draws a class. `weights` contains exp((logit - max logit) / temperature); weights that top_k and top_p
// remove are set to zero. `order` is scratch memory for `classes` numbers. Allocates nothing.
int64_t draw(const float* logits, float* weights, int64_t classes, const Sampling& sampling, double uniform,
             int32_t* order);

}  // namespace wavenet
