// Kernels that time single operations of the sample loop: a layer's products with weights in shared memory,
// reading weights, and multiply-adds in registers.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "cuda/activations.h"
#include "cuda/cuda_error.h"
#include "cuda/pipeline/plan.h"
#include "cuda/tiles.h"

namespace wavenet::cuda {

constexpr int kBenchThreads = kStageWarps * kWarpSize;
constexpr int kBenchRuns = 5;
// Layers or barriers per run.
constexpr int kBenchTurns = 2000;
// Multiply-adds of a thread block in each turn of `products` and `fused_products`.
constexpr double kTileProducts = 8.0 * kTileOutputs * kTileInputs * kTileStreams * kWarps;
constexpr double kFusedProducts = 8.0 * kThreads;

// Computes layers as `Stage` does, with weights in shared memory: the newest tap's product, the gate, a
// barrier, the residual's product, a barrier.
template <int kWidth>
__global__ void __launch_bounds__(kBenchThreads, 1) layers(int turns, int64_t* cycles, float* out) {
  constexpr int kTiles = kWidth / kTileInputs;
  extern __shared__ __align__(16) int32_t weights[];
  __shared__ float x[kWidth * kStageStride], z[kWidth * kStageStride];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpSize;
  for (int i = thread; i < 3 * kTiles * kTiles * kTileWords; i += kBenchThreads) weights[i] = 0x1c002c00;
  for (int i = thread; i < kWidth * kStageStride; i += kBenchThreads) x[i] = z[i] = 0.01f;
  __syncthreads();
  const int64_t begin = clock64();
  for (int turn = 0; turn < turns; ++turn) {
    if (warp < kTiles) {
      TileSums<Fp16, 1> filter(thread), gated(thread);
      const int32_t* rows = weights + warp * kTiles * kTileWords;
      for (TileSums<Fp16, 1>* sums : {&filter, &gated}) {
        sums->for_each([](float& sum, int, int) { sum = 0.1f; });
        sums->accumulate(rows, x, kStageStride, kTiles, read_tile_generic);
        rows += kTiles * kTiles * kTileWords;
      }
      filter.for_both(gated, [&](float a, float b, int output, int s) {
        z[(warp * kTileOutputs + output) * kStageStride + s] = gate(a, b);
      });
    }
    __syncthreads();
    if (warp < kTiles) {
      TileSums<Fp16, 1> sums(thread);
      float* to = x + warp * kTileOutputs * kStageStride;
      sums.for_each([&](float& sum, int output, int s) { sum = 0.5f * to[output * kStageStride + s]; });
      const int32_t* rows = weights + (2 * kTiles + warp) * kTiles * kTileWords;
      sums.accumulate(rows, z, kStageStride, kTiles, read_tile_generic);
      sums.for_each([&](float& sum, int output, int s) { to[output * kStageStride + s] = sum; });
    }
    __syncthreads();
  }
  if (thread == 0) *cycles = clock64() - begin;
  out[thread] = x[thread % kWidth];
}

// Reads weights repeatedly from the L2 cache, as `stream_cta` does.
__global__ void __launch_bounds__(kThreads, 1)
    reads(const int32_t* words, int count, int turns, int32_t* out) {
  int32_t sum = 0;
  for (int turn = 0; turn < turns; ++turn) {
    WAVENET_UNROLL_8
    for (int i = static_cast<int>(threadIdx.x) * 4; i < count; i += kThreads * 4) {
      const uint4 four = __ldcg(reinterpret_cast<const uint4*>(words + i));
      sum += static_cast<int32_t>(four.x ^ four.y ^ four.z ^ four.w);
    }
  }
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// Tensor core products with all operands in registers: eight independent sums.
__global__ void __launch_bounds__(kThreads, 1) products(int turns, float* out) {
  const TileWeights weights[1] = {{{0x1c002c00, 0x2c001c00, 0x1c001c00, 0x2c002c00}}};
  const TileInputs inputs[1] = {{{0x2c001c00, 0x1c002c00}}};
  float sums[8][1][4] = {};
  for (int turn = 0; turn < turns; ++turn) {
    WAVENET_UNROLL
    for (int each = 0; each < 8; ++each) Fp16::multiply(weights, inputs, sums[each]);
  }
  float total = 0.0f;
  for (int each = 0; each < 8; ++each) total += sums[each][0][each % 4];
  out[blockIdx.x * kThreads + threadIdx.x] = total;
}

// The same in float32.
__global__ void __launch_bounds__(kThreads, 1) fused_products(int turns, float factor, float* out) {
  float sums[8] = {};
  for (int turn = 0; turn < turns; ++turn) {
    WAVENET_UNROLL
    for (float& sum : sums) sum = fused(sum, factor, 1.0f);
  }
  float total = 0.0f;
  for (const float sum : sums) total += sum;
  out[blockIdx.x * kThreads + threadIdx.x] = total;
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Event {
 public:
  Event() { require(cudaEventCreate(&event_), "creating an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_;
};

// Returns the median duration of several runs on a stream, in seconds, after a warm-up run.
template <class Run>
double median_seconds(Run run, cudaStream_t stream = nullptr) {
  const Event begin, end;
  std::vector<double> found;
  for (int each = 0; each <= kBenchRuns; ++each) {
    require(cudaEventRecord(begin, stream), "recording an event");
    run();
    require(cudaGetLastError(), "starting a kernel");
    require(cudaEventRecord(end, stream), "recording an event");
    require(cudaEventSynchronize(end), "running a kernel");
    float milliseconds = 0.0f;
    require(cudaEventElapsedTime(&milliseconds, begin, end), "reading an event");
    if (each > 0) found.push_back(milliseconds / 1e3);
  }
  return median(found);
}

}  // namespace wavenet::cuda
