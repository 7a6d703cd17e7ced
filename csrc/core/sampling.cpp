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

// Weights are summed in runs of this many, so that additions do not wait for one another.
constexpr int64_t kRun = 16;

// The sum of a run, in the same order on every machine.
double run_sum(const float* weights, int64_t count) {
  double sums[4] = {};
  for (int64_t index = 0; index < count; ++index) sums[index % 4] += weights[index];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

double run_sum(const float* weights) { return run_sum(weights, kRun); }

// Calls `take(first, count, sum)` for run after run, until it returns false.
template <typename Take>
void each_run(const float* weights, int64_t classes, Take take) {
  int64_t first = 0;
  for (; first + kRun <= classes; first += kRun) {
    if (!take(first, kRun, run_sum(weights + first))) return;
  }
  if (first < classes) take(first, classes - first, run_sum(weights + first, classes - first));
}

// The first of `count` classes at which the cumulative weight, `below` before them, exceeds a threshold; the
// last that has a weight where rounding lets none.
int64_t find(const float* weights, int64_t count, double below, double threshold) {
  int64_t last_kept = 0;
  for (int64_t index = 0; index < count; ++index) {
    below += weights[index];
    if (below > threshold) return index;
    if (weights[index] > 0.0f) last_kept = index;
  }
  return last_kept;
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
  each_run(weights, classes, [&](int64_t, int64_t, double sum) {
    total += sum;
    return true;
  });
  const double threshold = uniform * total;
  double below = 0.0;
  int64_t first_left = 0, left = 0;
  each_run(weights, classes, [&](int64_t first, int64_t count, double sum) {
    // Runs without a weight, at the end, are not to be drawn from whatever rounding does.
    if (sum > 0.0) {
      first_left = first;
      left = count;
      if (below + sum > threshold) return false;
    }
    below += sum;
    return true;
  });
  return first_left + find(weights + first_left, left, below, threshold);
}

}  // namespace wavenet
