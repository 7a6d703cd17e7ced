#include "core/sampling.h"

#include <algorithm>
#include <numeric>

namespace wavenet {
namespace {

// Most probable first. By logits, because distinct logits can round to equal weights; among equals the lower
// class first.
struct MoreProbable {
  const float* logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  }
};

// Puts the classes that top_k keeps first in `order`, unsorted, and returns how many there are.
int64_t keep_top_k(const float* logits, float* weights, int64_t classes, int64_t top_k, int32_t* order) {
  std::iota(order, order + classes, 0);
  if (top_k == 0 || top_k >= classes) return classes;
  std::nth_element(order, order + top_k, order + classes, MoreProbable{logits});
  for (int64_t rank = top_k; rank < classes; ++rank) weights[order[rank]] = 0.0f;
  return top_k;
}

// Of the first `kept` classes in `order`, zeroes the weights of those that top_p drops.
void keep_top_p(const float* logits, float* weights, int64_t kept, double top_p, int32_t* order) {
  // Few classes hold most of the probability, so a heap that is emptied that far beats sorting them all.
  const auto less_probable = [logits](int32_t a, int32_t b) { return MoreProbable{logits}(b, a); };
  double total = 0.0;
  for (int64_t rank = 0; rank < kept; ++rank) total += weights[order[rank]];
  std::make_heap(order, order + kept, less_probable);
  double mass = 0.0;
  int64_t left = kept;
  do {
    std::pop_heap(order, order + left, less_probable);
    --left;
    mass += weights[order[left]];
  } while (left > 0 && mass < top_p * total);
  for (int64_t rank = 0; rank < left; ++rank) weights[order[rank]] = 0.0f;
}

}  // namespace

int64_t largest(const float* logits, int64_t classes) {
  return std::max_element(logits, logits + classes) - logits;
}

int64_t draw(const float* logits, float* weights, int64_t classes, const Sampling& sampling, double uniform,
             int32_t* order) {
  const bool truncate_k = sampling.top_k > 0 && sampling.top_k < classes;
  if (truncate_k || sampling.top_p < 1.0) {
    const int64_t kept = keep_top_k(logits, weights, classes, sampling.top_k, order);
    if (sampling.top_p < 1.0) keep_top_p(logits, weights, kept, sampling.top_p, order);
  }
  double total = 0.0;
  for (int64_t index = 0; index < classes; ++index) total += weights[index];
  const double threshold = uniform * total;
  double cumulative = 0.0;
  int64_t last_kept = 0;
  for (int64_t index = 0; index < classes; ++index) {
    cumulative += weights[index];
    if (cumulative > threshold) return index;
    if (weights[index] > 0.0f) last_kept = index;
  }
  return last_kept;
}

}  // namespace wavenet
