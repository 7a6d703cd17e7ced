// Launches the kernels.
#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "cuda/cuda_error.h"
#include "cuda/engine.h"
#include "cuda/kernels.h"

#if !defined(WAVENET_CUDA_ARCHITECTURES)
#define WAVENET_CUDA_ARCHITECTURES ""
#endif

namespace wavenet::cuda {
namespace {

constexpr int64_t kMostBlocks = int64_t{1} << 30;
// Blocks of a cluster that every device with clusters promises.
constexpr int kPortableCluster = 8;

using StreamKernel = void (*)(Task, Plan);
using ClusterKernel = void (*)(Task, Pipeline);
using GridKernel = void (*)(Task, Pipeline, unsigned char*, unsigned char*);

template <class Format>
StreamKernel tiled_kernel(int streams) {
  if (streams == 8) return stream_cta<TileShare<Format, 8>>;
  if (streams == 16) return stream_cta<TileShare<Format, 16>>;
  if (streams == 32) return stream_cta<TileShare<Format, 32>>;
  return stream_cta<TileShare<Format, 64>>;
}

StreamKernel stream_kernel(Tiles tiles, int streams) {
  if (tiles == Tiles::kFp16) return tiled_kernel<Fp16>(streams);
  if (tiles == Tiles::kBf16) return tiled_kernel<Bf16>(streams);
  if (streams == 8) return stream_cta<Share<2, 4>>;
  if (streams == 16) return stream_cta<Share<2, 8>>;
  if (streams == 32) return stream_cta<Share<4, 8>>;
  return stream_cta<Share<8, 8>>;
}

ClusterKernel cluster_kernel(Tiles tiles) {
  return tiles == Tiles::kFp16 ? stage_cluster<Fp16> : stage_cluster<Bf16>;
}

GridKernel grid_kernel(Tiles tiles) { return tiles == Tiles::kFp16 ? stage_grid<Fp16> : stage_grid<Bf16>; }

template <class T>
T read(const T* from, cudaStream_t stream) {
  T value;
  require(cudaMemcpyAsync(&value, from, sizeof(T), cudaMemcpyDeviceToHost, stream), "copying a number");
  require(cudaStreamSynchronize(stream), "copying a number");
  return value;
}

// How a kernel of one block per processor is launched.
class Launch {
 public:
  template <class Kernel>
  Launch(Kernel kernel, int64_t blocks, int threads, int64_t bytes, cudaStream_t stream) {
    config_.gridDim = dim3(static_cast<unsigned>(blocks));
    config_.blockDim = dim3(static_cast<unsigned>(threads));
    config_.dynamicSmemBytes = static_cast<size_t>(bytes);
    config_.stream = stream;
    config_.attrs = &attribute_;
    // A kernel's limit holds for all its launches, in other threads too: always the most that there is.
    int device = 0;
    require(cudaGetDevice(&device), "asking for the device");
    const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    require(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
            "asking for shared memory");
  }

  template <class Kernel>
  void in_clusters(Kernel kernel, int64_t blocks) {
    attribute_.id = cudaLaunchAttributeClusterDimension;
    attribute_.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    config_.numAttrs = 1;
    require(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
            "asking for large clusters");
  }

  void at_once() {
    attribute_.id = cudaLaunchAttributeCooperative;
    attribute_.val.cooperative = 1;
    config_.numAttrs = 1;
  }

  const cudaLaunchConfig_t& config() const { return config_; }

 private:
  cudaLaunchConfig_t config_{};
  cudaLaunchAttribute attribute_{};
};

// The most blocks that a cluster can have, each with all the shared memory there is.
int64_t largest_cluster(int64_t shared_bytes) {
  const auto kernel = stage_cluster<Fp16>;
  Launch launch(kernel, kPortableCluster, kStageThreads, shared_bytes, nullptr);
  launch.in_clusters(kernel, kPortableCluster);
  int found = 0;
  require(cudaOccupancyMaxPotentialClusterSize(&found, kernel, &launch.config()),
          "asking for the largest cluster");
  return found;
}

// How many clusters the device has at once; 0 where it has none of that size.
int64_t clusters_at_once(const Network& network, int64_t blocks, int64_t bytes) {
  const auto kernel = cluster_kernel(network.tiles);
  Launch launch(kernel, blocks, kStageThreads, bytes, nullptr);
  launch.in_clusters(kernel, blocks);
  int clusters = 0;
  const cudaError_t status = cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config());
  if (status == cudaErrorInvalidClusterSize) {
    cudaGetLastError();
    return 0;
  }
  require(status, "asking how many clusters there are at once");
  return clusters;
}

Device properties(int device) {
  static std::mutex mutex;
  static std::map<int, Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  Device of{};
  of.capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                  attribute(cudaDevAttrComputeCapabilityMinor, device);
  of.processors = attribute(cudaDevAttrMultiProcessorCount, device);
  of.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  of.registers = attribute(cudaDevAttrMaxRegistersPerBlock, device);
  of.cooperative = attribute(cudaDevAttrCooperativeLaunch, device) != 0;
  of.cluster = of.capability < 90 ? 0 : largest_cluster(of.shared_bytes);
  of.clusters = clusters_at_once;
  return known[device] = of;
}

// Hands out parts of the workspace, all aligned for any type.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    unsigned char* part = memory_ == nullptr ? nullptr : memory_ + end_;
    end_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(part);
  }
  int64_t end() const { return end_; }

 private:
  unsigned char* memory_;
  int64_t end_ = 0;
};

struct Parts {
  int64_t* report;
  Layer* layers;
  StageBlock* blocks;
  Part* parts;
  unsigned char* flags;
  unsigned char* messages;
  int64_t end;
};

Parts divide(void* memory, const Task& task, const Choice& choice) {
  Workspace workspace(memory);
  const StagePlan& plan = choice.stages;
  const auto blocks = static_cast<int64_t>(plan.blocks.size());
  Parts parts{};
  parts.report = workspace.take<int64_t>(report_words(task.batch));
  parts.layers = workspace.take<Layer>(task.network.layers);
  parts.blocks = workspace.take<StageBlock>(blocks);
  parts.parts = workspace.take<Part>(static_cast<int64_t>(plan.parts.size()));
  parts.flags = workspace.take<unsigned char>(choice.pipelines * plan.flag_bytes);
  parts.messages = workspace.take<unsigned char>(choice.pipelines * plan.mail_bytes);
  parts.end = workspace.end();
  return parts;
}

template <class T>
void upload(T* to, const T* from, int64_t count, cudaStream_t stream) {
  const auto bytes = static_cast<size_t>(count) * sizeof(T);
  require(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "copying a table");
}

void launch_stages(const Task& task, const Choice& choice, const Parts& to, cudaStream_t stream) {
  const StagePlan& plan = choice.stages;
  const auto blocks = static_cast<int64_t>(plan.blocks.size());
  upload(to.blocks, plan.blocks.data(), blocks, stream);
  upload(to.parts, plan.parts.data(), static_cast<int64_t>(plan.parts.size()), stream);
  const Pipeline pipeline = view(plan, task.network, to.blocks, to.parts);
  const std::string starting = std::string("starting ") + name_of(choice.kernel);
  if (choice.kernel == Kernel::kStageCluster) {
    const auto kernel = cluster_kernel(task.network.tiles);
    Launch launch(kernel, choice.pipelines * blocks, kStageThreads, plan.bytes, stream);
    launch.in_clusters(kernel, blocks);
    require(cudaLaunchKernelEx(&launch.config(), kernel, task, pipeline), starting);
    return;
  }
  const auto flag_bytes = static_cast<size_t>(choice.pipelines * plan.flag_bytes);
  require(cudaMemsetAsync(to.flags, 0, flag_bytes, stream), "clearing memory");
  const auto kernel = grid_kernel(task.network.tiles);
  Launch launch(kernel, choice.pipelines * blocks, kStageThreads, plan.bytes, stream);
  launch.at_once();
  require(cudaLaunchKernelEx(&launch.config(), kernel, task, pipeline, to.flags, to.messages), starting);
}

void launch_streams(const Task& task, const Choice& choice, cudaStream_t stream) {
  const auto kernel = stream_kernel(task.network.tiles, choice.plan.streams);
  const int64_t blocks = (task.batch + choice.plan.streams - 1) / choice.plan.streams;
  const Launch launch(kernel, blocks, kThreads, choice.plan.bytes, stream);
  require(cudaLaunchKernelEx(&launch.config(), kernel, task, choice.plan), "starting stream_cta");
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

Choice choose_on(int device, const Network& network, int64_t batch, const std::string& name) {
  // The runtime is linked in, and does not know what the caller's copy of it has chosen.
  require(cudaSetDevice(device), "choosing the device");
  return choose(network, batch, properties(device), name);
}

std::string describe_on(int device, const Network& network, int64_t batch) {
  require(cudaSetDevice(device), "choosing the device");
  return describe(network, batch, properties(device));
}

int64_t workspace_bytes(const Task& task, const Choice& choice) { return divide(nullptr, task, choice).end; }

std::vector<int64_t> run(Task task, const Choice& choice, int device, void* workspace, void* on_stream) {
  std::vector<int64_t> report(static_cast<size_t>(report_words(task.batch)), kNone);
  const auto unfinished = report.end() - task.batch;
  if (task.batch == 0 || task.steps == 0) return {unfinished, report.end()};
  auto* stream = static_cast<cudaStream_t>(on_stream);
  require(cudaSetDevice(device), "choosing the device");
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  require(cudaStreamIsCapturing(stream, &capture), "asking for the stream's state");
  if (capture != cudaStreamCaptureStatusNone) {
    throw std::runtime_error(
        "the stream is being captured into a CUDA graph: generation waits for its results and cannot be part "
        "of one; call it outside of the capture");
  }
  const int64_t inputs = (task.batch * task.steps + kThreads - 1) / kThreads;
  if (inputs > kMostBlocks) {
    throw std::runtime_error("batch " + std::to_string(task.batch) + " times " + std::to_string(task.steps) +
                             " samples are too many for one call: ask for fewer samples at a time");
  }
  const Parts parts = divide(workspace, task, choice);
  bind_report(task, parts.report);
  const size_t report_bytes = report.size() * sizeof(int64_t);
  require(cudaMemsetAsync(parts.report, static_cast<int>(kNone & 0xff), report_bytes, stream),
          "clearing memory");
  upload(parts.layers, task.network.layer, task.network.layers, stream);
  task.network.layer = parts.layers;
  check_inputs<<<static_cast<unsigned>(inputs), kThreads, 0, stream>>>(task);
  require(cudaGetLastError(), "starting a kernel");
  if (choice.kernel == Kernel::kStreamCta) {
    launch_streams(task, choice, stream);
  } else {
    launch_stages(task, choice, parts, stream);
  }
  const std::string name = name_of(choice.kernel);
  require(cudaMemcpyAsync(report.data(), parts.report, report_bytes, cudaMemcpyDeviceToHost, stream),
          "copying the report");
  require(cudaStreamSynchronize(stream), "running " + name);
  refuse(task, report.data(), stream);
  if (report[kRefusals] != kNone) {
    throw std::runtime_error(name + " is stuck: block " + std::to_string(report[kRefusals]) +
                             " of a pipeline waited in vain for a message, and the state is of no more use; "
                             "use --backend cuda:stream_cta, and please report this");
  }
  return {unfinished, report.end()};
}

std::string architectures() { return WAVENET_CUDA_ARCHITECTURES; }

}  // namespace wavenet::cuda
