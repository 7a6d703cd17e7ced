// Matrices times the values of a block's streams.
#pragma once

#include "core/network.h"
#include "cuda/platform.h"

namespace wavenet::cuda {

// Four outputs of `kEach` streams, in registers.
template <int kEach>
struct Sums {
  float value[4][kEach];
};

// Streams side by side, read at once as far as a thread can.
template <int kEach>
WAVENET_DEVICE void read_streams(const float* from, float* to) {
  constexpr int kWide = kEach < 4 ? kEach : 4;
  WAVENET_UNROLL
  for (int first = 0; first < kEach; first += kWide) {
    const auto part = *reinterpret_cast<const Pack<kWide>*>(from + first);
    WAVENET_UNROLL
    for (int s = 0; s < kWide; ++s) to[first + s] = part.value[s];
  }
}

// Adds the products of `inputs` rows of weights, `row` floats apart, with as many channels, `stride` apart.
// In their stored order, whatever the tile: that makes a stream's values its own.
template <int kEach>
WAVENET_DEVICE void accumulate(const float* weights, int row, const float* x, int stride, int inputs,
                               Sums<kEach>& sums) {
  WAVENET_UNROLL_8
  for (int i = 0; i < inputs; ++i) {
    const Pack<4> w = read_weights<4>(weights + static_cast<int64_t>(i) * row);
    float values[kEach];
    read_streams<kEach>(x + i * stride, values);
    WAVENET_UNROLL
    for (int output = 0; output < 4; ++output) {
      WAVENET_UNROLL
      for (int s = 0; s < kEach; ++s) {
        sums.value[output][s] = fused(w.value[output], values[s], sums.value[output][s]);
      }
    }
  }
}

// The inputs of a matrix: channels in two places, one after the other.
struct Inputs {
  const float* first;
  int first_count;
  const float* second;
  int second_count;
};

// A block's threads in `kGroups` groups: each has the same `kEach` streams, and takes the outputs four at a
// time in turn. The threads of a warp are of one group, so that they read the same values and consecutive
// weights.
template <int kEach, int kGroups>
struct Share {
  static constexpr int kStreams = kEach * kGroups;
  static constexpr int kMembers = kThreads / kGroups;
  static_assert(kMembers % kWarpSize == 0, "a warp has one group only");
  int member, stream;

  WAVENET_DEVICE explicit Share(int thread) : member(thread % kMembers), stream(thread / kMembers * kEach) {}

  // For every output and stream: finish(output, stream, begin(output, stream) + W x).
  template <class Begin, class Finish>
  WAVENET_DEVICE void multiply(const Matrix& matrix, const Inputs& x, int stride, Begin begin,
                               Finish finish) const {
    const auto* words = reinterpret_cast<const float*>(matrix.words);
    const int outputs = static_cast<int>(matrix.outputs);
    for (int output = 4 * member; output < outputs; output += 4 * kMembers) {
      const int block = output / static_cast<int>(kBlock) * static_cast<int>(kBlock);
      const int row = outputs - block < kBlock ? outputs - block : static_cast<int>(kBlock);
      const float* weights = words + block * matrix.inputs + (output - block);
      Sums<kEach> sums;
      for_each(sums, [&](int o, int s, float& sum) { sum = begin(output + o, stream + s); });
      accumulate(weights, row, x.first + stream, stride, x.first_count, sums);
      accumulate(weights + static_cast<int64_t>(x.first_count) * row, row, x.second + stream, stride,
                 x.second_count, sums);
      for_each(sums, [&](int o, int s, float& sum) { finish(output + o, stream + s, sum); });
    }
  }

 private:
  template <class Work>
  WAVENET_DEVICE static void for_each(Sums<kEach>& sums, Work work) {
    WAVENET_UNROLL
    for (int o = 0; o < 4; ++o) {
      WAVENET_UNROLL
      for (int s = 0; s < kEach; ++s) work(o, s, sums.value[o][s]);
    }
  }
};

}  // namespace wavenet::cuda
