#include "core/sampling.h"

#include <algorithm>
#include <numeric>

namespace wavenet {
namespace {

// Orders classes by falling probability. Compares logits, since distinct logits can round to equal weights;
// among equal logits the lower class comes first.
struct MoreProbable {
  const float* logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  }
};

// Moves the classes that top_k keeps to the front of `order`, unsorted, and returns their number.
int64_t keep_top_k(const float* logits, float* weights, int64_t classes, int64_t top_k, int32_t* order) {
  std::iota(order, order + classes, 0);
  if (top_k == 0 || top_k >= classes) return classes;
  std::nth_element(order, order + top_k, order + classes, MoreProbable{logits});
  for (int64_t rank = top_k; rank < classes; ++rank) weights[order[rank]] = 0.0f;
  return top_k;
}

// Sets the weights that top_p removes to zero, among the first `kept` classes in `order`.
void keep_top_p(const float* logits, float* weights, int64_t kept, double top_p, int32_t* order) {
  // Few classes have most of the probability, so popping those from a heap is faster than sorting all
  // classes.
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

// Weights are summed in runs of this length; within a run, partial sums are independent of each other.
constexpr int64_t kRun = 16;

// Returns the sum of a run, added in the same order on every machine.
double run_sum(const float* weights, int64_t count) {
  double sums[4] = {};
  for (int64_t index = 0; index < count; ++index) sums[index % 4] += weights[index];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

double run_sum(const float* weights) { return run_sum(weights, kRun); }

// Calls `take(first, count, sum)` for each run in order, until it returns false.
template <typename Take>
void each_run(const float* weights, int64_t classes, Take take) {
  int64_t first = 0;
  for (; first + kRun <= classes; first += kRun) {
    if (!take(first, kRun, run_sum(weights + first))) return;
  }
  if (first < classes) take(first, classes - first, run_sum(weights + first, classes - first));
}

// Returns the first of `count` classes at which the cumulative weight exceeds a threshold; `below` is the
// cumulative weight of all earlier classes. If rounding leaves no such class, returns the last one with
// weight.
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

int64_t argmax(const float* logits, int64_t classes) {
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
    // Rounding must not select a run without weight at the end.
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
