// Products of matrices and the values of a block's streams in fp32.
#pragma once

#include "core/network.h"
#include "cuda/platform.h"

namespace wavenet::cuda {

// Sums of four outputs of `kPerThread` streams, in registers.
template <int kPerThread>
struct Sums {
  float value[4][kPerThread];
};

// Reads adjacent streams with the widest possible loads.
template <int kPerThread>
WAVENET_DEVICE void read_streams(const float* from, float* to) {
  constexpr int kWide = kPerThread < 4 ? kPerThread : 4;
  WAVENET_UNROLL
  for (int first = 0; first < kPerThread; first += kWide) {
    const auto part = *reinterpret_cast<const Pack<kWide>*>(from + first);
    WAVENET_UNROLL
    for (int s = 0; s < kWide; ++s) to[first + s] = part.value[s];
  }
}

// Adds the products of `inputs` rows of weights, `row` floats apart, with as many channels, `stride` floats
// apart. Adds in stored order for every tile size, so that a stream's values do not depend on the batch.
template <int kPerThread>
WAVENET_DEVICE void accumulate(const float* weights, int row, const float* x, int stride, int inputs,
                               Sums<kPerThread>& sums) {
  WAVENET_UNROLL_8
  for (int i = 0; i < inputs; ++i) {
    const Pack<4> w = read_weights<4>(weights + static_cast<int64_t>(i) * row);
    float values[kPerThread];
    read_streams<kPerThread>(x + i * stride, values);
    WAVENET_UNROLL
    for (int output = 0; output < 4; ++output) {
      WAVENET_UNROLL
      for (int s = 0; s < kPerThread; ++s) {
        sums.value[output][s] = fused(w.value[output], values[s], sums.value[output][s]);
      }
    }
  }
}

// The inputs of a matrix: two arrays of channels, one after the other.
struct Inputs {
  const float* first;
  int first_count;
  const float* second;
  int second_count;
};

// Divides a block's threads into `kGroups` groups. The threads of a group compute the same `kPerThread`
// streams and take four outputs each in turn. All threads of a warp are in one group, so that they read the
// same values and consecutive weights.
template <int kPerThread, int kGroups>
struct Share {
  static constexpr int kStreams = kPerThread * kGroups;
  static constexpr int kMembers = kThreads / kGroups;
  static_assert(kMembers % kWarpSize == 0, "a warp has one group only");
  int member, stream;

  WAVENET_DEVICE explicit Share(int thread)
      : member(thread % kMembers), stream(thread / kMembers * kPerThread) {}

  // Calls finish(output, stream, begin(output, stream) + W x) for every output and stream.
  template <class Begin, class Finish>
  WAVENET_DEVICE void multiply(const Matrix& matrix, const Inputs& x, int stride, Begin begin,
                               Finish finish) const {
    const auto* words = reinterpret_cast<const float*>(matrix.words);
    const int outputs = static_cast<int>(matrix.outputs);
    for (int output = 4 * member; output < outputs; output += 4 * kMembers) {
      const int block = output / static_cast<int>(kBlock) * static_cast<int>(kBlock);
      const int row = outputs - block < kBlock ? outputs - block : static_cast<int>(kBlock);
      const float* weights = words + block * matrix.inputs + (output - block);
      Sums<kPerThread> sums;
      for_each(sums, [&](int o, int s, float& sum) { sum = begin(output + o, stream + s); });
      accumulate(weights, row, x.first + stream, stride, x.first_count, sums);
      accumulate(weights + static_cast<int64_t>(x.first_count) * row, row, x.second + stream, stride,
                 x.second_count, sums);
      for_each(sums, [&](int o, int s, float& sum) { finish(output + o, stream + s, sum); });
    }
  }

 private:
  template <class Work>
  WAVENET_DEVICE static void for_each(Sums<kPerThread>& sums, Work work) {
    WAVENET_UNROLL
    for (int o = 0; o < 4; ++o) {
      WAVENET_UNROLL
      for (int s = 0; s < kPerThread; ++s) work(o, s, sums.value[o][s]);
    }
  }
};

}  // namespace wavenet::cuda
