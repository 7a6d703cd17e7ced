// Prepares device memory and launches the kernels.
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

constexpr int64_t kMaxBlocks = int64_t{1} << 30;
// The cluster size that every device with clusters supports.
constexpr int kPortableCluster = 8;

using StreamKernel = void (*)(Params, Plan);
using ClusterKernel = void (*)(Params, Pipeline);
using GridKernel = void (*)(Params, Pipeline, unsigned char*, unsigned char*);

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

// The launch configuration of a kernel.
class Launch {
 public:
  template <class Kernel>
  Launch(Kernel kernel, int64_t blocks, int threads, int64_t bytes, cudaStream_t stream) {
    config_.gridDim = dim3(static_cast<unsigned>(blocks));
    config_.blockDim = dim3(static_cast<unsigned>(threads));
    config_.dynamicSmemBytes = static_cast<size_t>(bytes);
    config_.stream = stream;
    config_.attrs = &attribute_;
    // The limit applies to all launches of the kernel, also from other threads, so it is always the maximum.
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

// Returns the maximum number of blocks of a cluster in which each uses all shared memory.
int64_t largest_cluster(int64_t shared_bytes) {
  const auto kernel = stage_cluster<Fp16>;
  Launch launch(kernel, kPortableCluster, kStageThreads, shared_bytes, nullptr);
  launch.in_clusters(kernel, kPortableCluster);
  int found = 0;
  require(cudaOccupancyMaxPotentialClusterSize(&found, kernel, &launch.config()),
          "asking for the largest cluster");
  return found;
}

// Returns how many clusters run on the device at once; 0 if it does not support that size.
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

// Divides the workspace into parts, each aligned for any type.
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

Parts divide(void* memory, const Params& params, const KernelSelection& choice) {
  Workspace workspace(memory);
  const StagePlan& plan = choice.stages;
  const auto blocks = static_cast<int64_t>(plan.blocks.size());
  Parts parts{};
  parts.report = workspace.take<int64_t>(report_words(params.batch));
  parts.layers = workspace.take<Layer>(params.network.layers);
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

void launch_stages(const Params& params, const KernelSelection& choice, const Parts& to,
                   cudaStream_t stream) {
  const StagePlan& plan = choice.stages;
  const auto blocks = static_cast<int64_t>(plan.blocks.size());
  upload(to.blocks, plan.blocks.data(), blocks, stream);
  upload(to.parts, plan.parts.data(), static_cast<int64_t>(plan.parts.size()), stream);
  const Pipeline pipeline = view(plan, params.network, to.blocks, to.parts);
  const std::string starting = std::string("starting ") + name_of(choice.kernel);
  if (choice.kernel == Kernel::kStageCluster) {
    const auto kernel = cluster_kernel(params.network.tiles);
    Launch launch(kernel, choice.pipelines * blocks, kStageThreads, plan.bytes, stream);
    launch.in_clusters(kernel, blocks);
    require(cudaLaunchKernelEx(&launch.config(), kernel, params, pipeline), starting);
    return;
  }
  const auto flag_bytes = static_cast<size_t>(choice.pipelines * plan.flag_bytes);
  require(cudaMemsetAsync(to.flags, 0, flag_bytes, stream), "clearing memory");
  const auto kernel = grid_kernel(params.network.tiles);
  Launch launch(kernel, choice.pipelines * blocks, kStageThreads, plan.bytes, stream);
  launch.at_once();
  require(cudaLaunchKernelEx(&launch.config(), kernel, params, pipeline, to.flags, to.messages), starting);
}

void launch_streams(const Params& params, const KernelSelection& choice, cudaStream_t stream) {
  const auto kernel = stream_kernel(params.network.tiles, choice.plan.streams);
  const int64_t blocks = (params.batch + choice.plan.streams - 1) / choice.plan.streams;
  const Launch launch(kernel, blocks, kThreads, choice.plan.bytes, stream);
  require(cudaLaunchKernelEx(&launch.config(), kernel, params, choice.plan), "starting stream_cta");
}

void throw_if_invalid(const Params& params, const int64_t* invalid, cudaStream_t stream) {
  if (invalid[0] != kNone) {
    throw std::runtime_error("position contains " +
                             std::to_string(read(params.position + invalid[0], stream)) + ": must be 0 to " +
                             std::to_string(kMaxPosition - 1));
  }
  const std::string classes = ": must be 0 to " + std::to_string(params.network.classes - 1);
  if (invalid[1] != kNone) {
    throw std::runtime_error("last_sample contains " +
                             std::to_string(read(params.last_sample + invalid[1], stream)) + classes);
  }
  if (invalid[2] == kNone) return;
  if (params.forced != nullptr) {
    throw std::runtime_error("samples contains " + std::to_string(read(params.forced + invalid[2], stream)) +
                             classes);
  }
  throw std::runtime_error("uniforms contains " + std::to_string(read(params.uniforms + invalid[2], stream)) +
                           ": must be in [0, 1)");
}

}  // namespace

KernelSelection select_kernel_on(int device, const Network& network, int64_t batch, const std::string& name) {
  // The runtime is linked statically, so it does not share the current device with torch's copy.
  require(cudaSetDevice(device), "choosing the device");
  return select_kernel(network, batch, properties(device), name);
}

std::string describe_on(int device, const Network& network, int64_t batch) {
  require(cudaSetDevice(device), "choosing the device");
  return describe(network, batch, properties(device));
}

int64_t workspace_bytes(const Params& params, const KernelSelection& choice) {
  return divide(nullptr, params, choice).end;
}

std::vector<int64_t> run(Params params, const KernelSelection& choice, int device, void* workspace,
                         void* on_stream) {
  std::vector<int64_t> report(static_cast<size_t>(report_words(params.batch)), kNone);
  const auto unfinished = report.end() - params.batch;
  if (params.batch == 0 || params.steps == 0) return {unfinished, report.end()};
  auto* stream = static_cast<cudaStream_t>(on_stream);
  require(cudaSetDevice(device), "choosing the device");
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  require(cudaStreamIsCapturing(stream, &capture), "asking for the stream's state");
  if (capture != cudaStreamCaptureStatusNone) {
    throw std::runtime_error(
        "the stream is being captured into a CUDA graph: generation synchronizes with the host, which a "
        "graph "
        "does not support; call it outside of the capture");
  }
  const int64_t inputs = (params.batch * params.steps + kThreads - 1) / kThreads;
  if (inputs > kMaxBlocks) {
    throw std::runtime_error("batch " + std::to_string(params.batch) + " times " +
                             std::to_string(params.steps) +
                             " samples are too many for one call: generate fewer samples at a time");
  }
  const Parts parts = divide(workspace, params, choice);
  bind_report(params, parts.report);
  const size_t report_bytes = report.size() * sizeof(int64_t);
  require(cudaMemsetAsync(parts.report, static_cast<int>(kNone & 0xff), report_bytes, stream),
          "clearing memory");
  upload(parts.layers, params.network.layer, params.network.layers, stream);
  params.network.layer = parts.layers;
  check_inputs<<<static_cast<unsigned>(inputs), kThreads, 0, stream>>>(params);
  require(cudaGetLastError(), "starting a kernel");
  if (choice.kernel == Kernel::kStreamCta) {
    launch_streams(params, choice, stream);
  } else {
    launch_stages(params, choice, parts, stream);
  }
  const std::string name = name_of(choice.kernel);
  require(cudaMemcpyAsync(report.data(), parts.report, report_bytes, cudaMemcpyDeviceToHost, stream),
          "copying the report");
  require(cudaStreamSynchronize(stream), "running " + name);
  throw_if_invalid(params, report.data(), stream);
  if (report[kInputKinds] != kNone) {
    throw std::runtime_error(name + " timed out: block " + std::to_string(report[kInputKinds]) +
                             " of a pipeline received no message, and the state is no longer valid; "
                             "use the backend cuda:stream_cta and report this as a bug");
  }
  return {unfinished, report.end()};
}

std::string architectures() { return WAVENET_CUDA_ARCHITECTURES; }

}  // namespace wavenet::cuda
