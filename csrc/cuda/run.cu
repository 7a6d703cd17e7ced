// Launches the kernels; the only file that calls CUDA.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/run.h"
#include "cuda/stream_cta.h"
#include "cuda/tiles.h"

#if !defined(WAVENET_CUDA_ARCHITECTURES)
#define WAVENET_CUDA_ARCHITECTURES ""
#endif

namespace wavenet::cuda {
namespace {

constexpr int64_t kMostBlocks = int64_t{1} << 30;

__global__ void check_inputs(const __grid_constant__ Task task) {
  check_input(task, static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x);
}

template <class Product>
__global__ void __launch_bounds__(kThreads, 1)
    stream_cta(const __grid_constant__ Task task, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  const DeviceBlock block;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * Product::kStreams;
  StreamCta<DeviceBlock, Product>(block, task, plan, first, shared).run();
}

using Kernel = void (*)(Task, Plan);

template <class Format>
Kernel tiled_kernel(int streams) {
  if (streams == 8) return stream_cta<TileShare<Format, 8>>;
  if (streams == 16) return stream_cta<TileShare<Format, 16>>;
  if (streams == 32) return stream_cta<TileShare<Format, 32>>;
  return stream_cta<TileShare<Format, 64>>;
}

Kernel kernel_for(Tiles tiles, int streams) {
  if (tiles == Tiles::kFp16) return tiled_kernel<Fp16>(streams);
  if (tiles == Tiles::kBf16) return tiled_kernel<Bf16>(streams);
  if (streams == 8) return stream_cta<Share<2, 4>>;
  if (streams == 16) return stream_cta<Share<2, 8>>;
  if (streams == 32) return stream_cta<Share<4, 8>>;
  return stream_cta<Share<8, 8>>;
}

void require(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // forgets it, so that the next call is not told of it
  throw std::runtime_error(std::string("CUDA failed ") + doing + ": " + cudaGetErrorString(status));
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  require(cudaDeviceGetAttribute(&value, which, device), "asking for the device's limits");
  return value;
}

template <class T>
T read(const T* from, cudaStream_t stream) {
  T value;
  require(cudaMemcpyAsync(&value, from, sizeof(T), cudaMemcpyDeviceToHost, stream), "copying a number");
  require(cudaStreamSynchronize(stream), "copying a number");
  return value;
}

// Chooses a tile and makes room for it; says what the device lacks if there is none.
Plan plan_for(const Task& task, int device) {
  const Network& net = task.network;
  if (net.classes > kMostClasses) {
    throw std::runtime_error("stream_cta draws from at most " + std::to_string(kMostClasses) +
                             " classes, the network has " + std::to_string(net.classes) +
                             "; use --device cpu");
  }
  if (net.tiles == Tiles::kBf16 && attribute(cudaDevAttrComputeCapabilityMajor, device) < 8) {
    throw std::runtime_error(
        "the network has weights beyond the range of fp16, and this device has no bf16; use --precision "
        "fp32");
  }
  const int64_t shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const int streams = choose_tile(net, task.batch, attribute(cudaDevAttrMultiProcessorCount, device), shared);
  if (streams == 0) {
    throw std::runtime_error("the network is too wide for this device: stream_cta needs " +
                             std::to_string(make_plan(net, kTiles[0]).bytes) +
                             " bytes of shared memory per block, there are " + std::to_string(shared) +
                             "; use --device cpu");
  }
  const Plan plan = make_plan(net, streams);
  const auto* kernel = reinterpret_cast<const void*>(kernel_for(net.tiles, streams));
  require(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.bytes)),
      "asking for shared memory");
  return plan;
}

void refuse(const Task& task, const int64_t* refused, cudaStream_t stream) {
  if (refused[0] != kNone) {
    throw std::runtime_error("position holds " + std::to_string(read(task.position + refused[0], stream)) +
                             ": must be 0 to " + std::to_string(kMostPosition - 1));
  }
  const std::string classes = ": must be 0 to " + std::to_string(task.network.classes - 1);
  if (refused[1] != kNone) {
    throw std::runtime_error("last_sample holds " +
                             std::to_string(read(task.last_sample + refused[1], stream)) + classes);
  }
  if (refused[2] == kNone) return;
  if (task.given != nullptr) {
    throw std::runtime_error("samples holds " + std::to_string(read(task.given + refused[2], stream)) +
                             classes);
  }
  throw std::runtime_error("uniforms holds " + std::to_string(read(task.uniforms + refused[2], stream)) +
                           ": must be in [0, 1)");
}

}  // namespace

int64_t workspace_bytes(const Network& network, int64_t batch) {
  return (kRefusals + batch) * static_cast<int64_t>(sizeof(int64_t)) +
         network.layers * static_cast<int64_t>(sizeof(Layer));
}

std::vector<int64_t> run(Task task, int device, void* workspace, void* on_stream) {
  std::vector<int64_t> report(static_cast<size_t>(kRefusals + task.batch), kNone);
  const auto unfinished = report.end() - task.batch;
  if (task.batch == 0 || task.steps == 0) return {unfinished, report.end()};
  auto* stream = static_cast<cudaStream_t>(on_stream);
  // The runtime is linked in, and does not know what the caller's copy of it has chosen.
  require(cudaSetDevice(device), "choosing the device");
  const Plan plan = plan_for(task, device);
  const int64_t inputs = (task.batch * task.steps + kThreads - 1) / kThreads;
  const int64_t blocks = (task.batch + plan.streams - 1) / plan.streams;
  if (inputs > kMostBlocks) {
    throw std::runtime_error("batch " + std::to_string(task.batch) + " times " + std::to_string(task.steps) +
                             " samples are too many for one call: ask for fewer samples at a time");
  }
  task.refused = static_cast<int64_t*>(workspace);
  task.failed = task.refused + kRefusals;
  const size_t report_bytes = report.size() * sizeof(int64_t);
  auto* layers = reinterpret_cast<Layer*>(task.failed + task.batch);
  const size_t layer_bytes = static_cast<size_t>(task.network.layers) * sizeof(Layer);
  require(cudaMemsetAsync(workspace, static_cast<int>(kNone & 0xff), report_bytes, stream),
          "clearing memory");
  require(cudaMemcpyAsync(layers, task.network.layer, layer_bytes, cudaMemcpyHostToDevice, stream),
          "copying the table of layers");
  task.network.layer = layers;
  check_inputs<<<static_cast<unsigned>(inputs), kThreads, 0, stream>>>(task);
  require(cudaGetLastError(), "starting a kernel");
  kernel_for(task.network.tiles,
             plan.streams)<<<static_cast<unsigned>(blocks), kThreads, plan.bytes, stream>>>(task, plan);
  require(cudaGetLastError(), "starting stream_cta");
  require(cudaMemcpyAsync(report.data(), workspace, report_bytes, cudaMemcpyDeviceToHost, stream),
          "copying the report");
  require(cudaStreamSynchronize(stream), "running stream_cta");
  refuse(task, report.data(), stream);
  return {unfinished, report.end()};
}

std::string architectures() { return WAVENET_CUDA_ARCHITECTURES; }

}  // namespace wavenet::cuda
