// Drawing a class from a tempered, truncated softmax by inverting its cumulative distribution.
#pragma once

#include <cstdint>

namespace wavenet {

struct Sampling {
  double temperature;  // 0: always the class with the largest logit
  int64_t top_k;       // 0: all classes
  double top_p;        // 1: all classes
};

// The lowest class among those with the largest logit.
int64_t largest(const float* logits, int64_t classes);

// Draws a class. `weights` holds exp((logit - largest logit) / temperature) and is cut to the classes that
// top_k and top_p keep; `order` is room for `classes` numbers. Nothing is allocated.
int64_t draw(const float* logits, float* weights, int64_t classes, const Sampling& sampling, double uniform,
             int32_t* order);

}  // namespace wavenet
