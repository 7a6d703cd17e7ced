// Sampling of a class by one warp: inverse CDF of a softmax with temperature, top-k and top-p.
#pragma once

#include "core/sampling.h"
#include "cuda/activations.h"

namespace wavenet::cuda {

// One stream's logits and the warp's scratch memory. A lane processes `per_lane` consecutive classes; its
// j-th class is stored at j * kWarpSize + lane, so that the lanes read adjacent words.
template <class Warp>
class WarpSampler {
 public:
  WAVENET_DEVICE WarpSampler(const Warp& warp, const float* logits, float* weights, double* sums, int classes,
                             int per_lane)
      : warp_(warp),
        logits_(logits),
        weights_(weights),
        sums_(sums),
        classes_(classes),
        per_lane_(per_lane) {}

  WAVENET_DEVICE bool finite() const {
    return warp_.first([&](int lane) {
      bool bad = false;
      // x * 0 is 0 for finite x and NaN for the rest.
      for_classes(lane, [&](int, int at) { bad = bad || logits_[at] * 0.0f != 0.0f; });
      return bad;
    }) == kWarpSize;
  }

  WAVENET_DEVICE int sample(const Sampling& sampling, float uniform) const {
    const float top = warp_.template max<float>([&](int lane) {
      float found = logits_[0];
      for_classes(lane, [&](int, int at) { found = logits_[at] > found ? logits_[at] : found; });
      return found;
    });
    if (sampling.temperature == 0.0) return first_with(top);
    weigh(sampling.temperature, top);
    if (sampling.top_k > 0 && sampling.top_k < classes_) {
      keep(shortest(static_cast<double>(sampling.top_k), [&](const Cut& cut) { return size(cut); }));
    }
    if (sampling.top_p < 1.0) {
      keep(shortest(sampling.top_p * mass({0, classes_}), [&](const Cut& cut) { return mass(cut); }));
    }
    return invert(uniform);
  }

 private:
  // A prefix of the classes in order of falling probability (by logit, among equals the lower class first):
  // the classes whose key exceeds `key`, and those with that key whose index is below `end`.
  struct Cut {
    uint32_t key;
    int end;
  };

  template <class Work>
  WAVENET_DEVICE void for_classes(int lane, Work work) const {
    for (int j = 0; j < per_lane_; ++j) {
      const int index = lane * per_lane_ + j;
      if (index < classes_) work(index, j * kWarpSize + lane);
    }
  }

  // Maps logits to integers in the same order. Adding zero turns -0 into +0.
  WAVENET_DEVICE static uint32_t key_of(float logit) {
    const auto bits = static_cast<uint32_t>(bits_of(logit + 0.0f));
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  }

  WAVENET_DEVICE bool contains(const Cut& cut, int index, int at) const {
    const uint32_t key = key_of(logits_[at]);
    return key > cut.key || (key == cut.key && index < cut.end);
  }

  // Returns the total weight of the classes in a cut. All sums are in the same order, so that a longer cut
  // never has a smaller sum.
  WAVENET_DEVICE double mass(const Cut& cut) const {
    return warp_.sum([&](int lane) {
      double total = 0.0;
      for_classes(lane, [&](int index, int at) {
        if (contains(cut, index, at)) total += static_cast<double>(weights_[at]);
      });
      return total;
    });
  }

  // Returns the number of classes in a cut.
  WAVENET_DEVICE double size(const Cut& cut) const {
    int total = 0;
    for (int j = 0; j < per_lane_; ++j) {
      total += warp_.count([&](int lane) {
        const int index = lane * per_lane_ + j;
        return index < classes_ && contains(cut, index, j * kWarpSize + lane);
      });
    }
    return total;
  }

  // Returns the shortest cut whose `measure` is at least `goal`; the cut of all classes must reach it.
  template <class Measure>
  WAVENET_DEVICE Cut shortest(double goal, Measure measure) const {
    Cut cut{0, classes_};
    for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
      const Cut higher{cut.key | bit, classes_};
      if (measure(higher) >= goal) cut.key = higher.key;
    }
    int low = 1;
    while (low < cut.end) {
      const int middle = (low + cut.end) / 2;
      if (measure(Cut{cut.key, middle}) >= goal) {
        cut.end = middle;
      } else {
        low = middle + 1;
      }
    }
    return cut;
  }

  WAVENET_DEVICE int first_with(float logit) const {
    const auto find = [&](int lane) {
      int found = classes_;
      for_classes(lane, [&](int index, int at) {
        if (found == classes_ && logits_[at] == logit) found = index;
      });
      return found;
    };
    const int lane = warp_.first([&](int each) { return find(each) < classes_; });
    return warp_.from(lane, find);
  }

  WAVENET_DEVICE void weigh(double temperature, float top) const {
    // The limits are divisors that float represents as normal numbers; at them, sampling is already argmax or
    // uniform.
    const double limited = temperature < 1e-30 ? 1e-30 : (temperature > 1e30 ? 1e30 : temperature);
    const auto divisor = static_cast<float>(limited);
    warp_.each([&](int lane) {
      for_classes(lane, [&](int, int at) { weights_[at] = exp(divided(logits_[at] - top, divisor)); });
    });
  }

  WAVENET_DEVICE void keep(const Cut& cut) const {
    warp_.each([&](int lane) {
      for_classes(lane, [&](int index, int at) {
        if (!contains(cut, index, at)) weights_[at] = 0.0f;
      });
    });
  }

  // Finds the lane whose classes contain the threshold, then the class. A class without weight is never
  // returned: that lane, or the last lane with weight, has another one.
  WAVENET_DEVICE int invert(float uniform) const {
    warp_.each([&](int lane) {
      double total = 0.0;
      for_classes(lane, [&](int, int at) { total += weights_[at]; });
      sums_[lane + 1] = total;
    });
    warp_.each([&](int lane) {
      if (lane != 0) return;
      sums_[0] = 0.0;
      for (int each = 0; each < kWarpSize; ++each) sums_[each + 1] += sums_[each];
    });
    const double threshold = static_cast<double>(uniform) * sums_[kWarpSize];
    int lane = warp_.first([&](int each) { return sums_[each + 1] > threshold; });
    if (lane == kWarpSize) {
      lane = warp_.first([&](int each) { return sums_[each + 1] == sums_[kWarpSize]; });
    }
    return warp_.from(lane, [&](int each) {
      double cumulative = sums_[each];
      int found = 0;
      bool passed = false;
      for_classes(each, [&](int index, int at) {
        cumulative += weights_[at];
        if (!passed && weights_[at] > 0.0f) found = index;
        passed = passed || cumulative > threshold;
      });
      return found;
    });
  }

  Warp warp_;
  const float* logits_;
  float* weights_;
  double* sums_;
  int classes_, per_lane_;
};

}  // namespace wavenet::cuda
