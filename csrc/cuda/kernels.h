// The entry points of the kernels.
#pragma once

#include "cuda/pipeline/stage.h"
#include "cuda/stream/stream_cta.h"
#include "cuda/tiles.h"

namespace wavenet::cuda {

constexpr int kStageThreads = kStageWarps * kWarpSize;

__global__ void check_inputs(const __grid_constant__ Params params) {
  check_input(params, static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x);
}

template <class Product>
__global__ void __launch_bounds__(kThreads, 1)
    stream_cta(const __grid_constant__ Params params, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const DeviceBlock block;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * Product::kStreams;
  StreamCta<DeviceBlock, Product>(block, params, plan, first, shared).run();
}

// Each cluster is a pipeline.
template <class Format>
__global__ void __launch_bounds__(kStageThreads, 1)
    stage_cluster(const __grid_constant__ Params params, const __grid_constant__ Pipeline pipeline) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char shared[];
  if (has_invalid_input(params)) return;
  const DeviceBlock block;
  const DeviceCluster cluster(shared);
  const ClusterMail mail(cluster, params, pipeline, shared);
  const int64_t first = static_cast<int64_t>(blockIdx.x) / pipeline.blocks * pipeline.tiles * kTileStreams;
  Stage<DeviceBlock, ClusterMail<DeviceCluster>, Format> stage(block, mail, params, pipeline, mail.index(),
                                                               first, shared);
  run_stage<DeviceBlock>(stage, mail);
  mail.close();
#else
  __trap();
#endif
}

// Consecutive blocks of a cooperative grid form a pipeline. Each pipeline has its own flags, initially zero,
// and messages.
template <class Format>
__global__ void __launch_bounds__(kStageThreads, 1)
    stage_grid(const __grid_constant__ Params params, const __grid_constant__ Pipeline pipeline,
               unsigned char* flags, unsigned char* messages) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ __align__(16) unsigned char shared[];
  if (has_invalid_input(params)) return;
  const DeviceBlock block;
  const int64_t number = blockIdx.x / pipeline.blocks;
  const int index = static_cast<int>(blockIdx.x % pipeline.blocks);
  const GridMail mail(params, pipeline, index, shared, messages + number * pipeline.mail_bytes,
                      flags + number * pipeline.flag_bytes);
  const int64_t first = number * pipeline.tiles * kTileStreams;
  Stage<DeviceBlock, GridMail, Format> stage(block, mail, params, pipeline, index, first, shared);
  run_stage<DeviceBlock>(stage, mail);
#else
  __trap();
#endif
}

}  // namespace wavenet::cuda
