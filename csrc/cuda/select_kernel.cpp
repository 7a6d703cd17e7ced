#include "cuda/select_kernel.h"

#include <algorithm>
#include <stdexcept>

#include "cuda/tiles.h"

namespace wavenet::cuda {
namespace {

constexpr char kAdvice[] = "; use device cpu";
// Kernels store row numbers of a ring in 32 bits.
constexpr int64_t kMaxDepth = (int64_t{1} << 31) - 1;

std::string capability_text(int64_t capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

// Registers of a block.
int64_t registers_of(Kernel kernel) {
  if (kernel == Kernel::kStreamCta) return int64_t{kThreads} * kStreamRegisters;
  return int64_t{kStageWarps} * kWarpSize * kStageRegisters;
}

// Returns why no kernel can run, or an empty text.
std::string refusal_of_any(Kernel kernel, const Network& net, const Device& device) {
  if (net.classes > kMaxClasses) {
    return "it supports at most " + std::to_string(kMaxClasses) + " classes; the network has " +
           std::to_string(net.classes);
  }
  for (int64_t index = 0; index < net.layers; ++index) {
    if (net.layer[index].depth > kMaxDepth) {
      return "a layer's queue can have at most " + std::to_string(kMaxDepth) + " steps; that of layer " +
             std::to_string(index) + " has " + std::to_string(net.layer[index].depth);
    }
  }
  if (net.tiles == Tiles::kBf16 && device.capability < 80) {
    return "the network has weights outside the range of fp16, and this device does not support bf16; use "
           "precision fp32";
  }
  if (registers_of(kernel) > device.registers) {
    return "a block needs " + std::to_string(registers_of(kernel)) + " registers; this device has " +
           std::to_string(device.registers);
  }
  return "";
}

void plan_tile(KernelSelection& selection, const Network& net, int64_t batch, const Device& device) {
  const int streams = select_tile(net, batch, device.processors, device.shared_bytes);
  if (streams == 0) {
    selection.refusal =
        "the network is too wide for this device: it needs " +
        std::to_string(make_plan(net, kTiles[0]).bytes) +
        " bytes of shared memory per block; available: " + std::to_string(device.shared_bytes);
    return;
  }
  selection.plan = make_plan(net, streams);
}

// Plans a pipeline and returns how many of them run on the device at once; 0 if there is no plan.
int64_t plan_pipeline(KernelSelection& selection, const Network& net, int64_t tiles, const Device& device) {
  const bool cluster = selection.kernel == Kernel::kStageCluster;
  PipelineResources resources{cluster ? device.cluster : device.processors, device.shared_bytes, cluster};
  for (;;) {
    selection.stages = plan_stages(net, resources, tiles);
    if (!selection.stages.refusal.empty()) return 0;
    const auto blocks = static_cast<int64_t>(selection.stages.blocks.size());
    if (!cluster || !device.clusters) return device.processors / blocks;
    const int64_t found = device.clusters(net, blocks, selection.stages.bytes);
    if (found > 0) return found;
    // Not every permitted cluster size fits on the available multiprocessors.
    resources.blocks = blocks - 1;
  }
}

// Plans the smallest number of tiles in flight with which all streams run at once.
void plan_pipelines(KernelSelection& selection, const Network& net, int64_t batch, const Device& device) {
  int64_t max_streams = 0;
  for (int64_t tiles = 1; tiles <= kMaxTilesInFlight; ++tiles) {
    const int64_t at_once = plan_pipeline(selection, net, tiles, device);
    if (at_once == 0) break;
    const int64_t together = tiles * kTileStreams;
    max_streams = std::max(max_streams, at_once * together);
    selection.pipelines = (batch + together - 1) / together;
    if (selection.pipelines <= at_once) return;
  }
  selection.refusal = max_streams == 0
                          ? selection.stages.refusal
                          : "it supports at most " + std::to_string(max_streams) +
                                " streams of this network; the batch has " + std::to_string(batch);
}

void plan_stage_kernel(KernelSelection& selection, const Network& net, int64_t batch, const Device& device) {
  const int64_t needed = selection.kernel == Kernel::kStageCluster ? 90 : 80;
  if (device.capability < needed) {
    selection.refusal = "it needs compute capability " + capability_text(needed) + "; this device has " +
                        capability_text(device.capability);
  } else if (net.tiles == Tiles::kNone) {
    selection.refusal = "it supports 16-bit weights only, not fp32; use precision fp16";
  } else if (selection.kernel == Kernel::kStageGrid && !device.cooperative) {
    selection.refusal = "this device does not support cooperative launches";
  } else {
    plan_pipelines(selection, net, batch, device);
  }
}

}  // namespace

const char* name_of(Kernel kernel) {
  if (kernel == Kernel::kStageCluster) return "stage_cluster";
  return kernel == Kernel::kStageGrid ? "stage_grid" : "stream_cta";
}

KernelSelection plan_for(Kernel kernel, const Network& network, int64_t batch, const Device& device) {
  KernelSelection selection{};
  selection.kernel = kernel;
  selection.refusal = refusal_of_any(kernel, network, device);
  if (!selection.refusal.empty()) return selection;
  if (kernel == Kernel::kStreamCta) {
    plan_tile(selection, network, batch, device);
  } else {
    plan_stage_kernel(selection, network, batch, device);
  }
  return selection;
}

KernelSelection select_kernel(const Network& network, int64_t batch, const Device& device,
                              const std::string& name) {
  std::string reasons;
  for (const Kernel kernel : kKernels) {
    if (!name.empty() && name != name_of(kernel)) continue;
    KernelSelection selection = plan_for(kernel, network, batch, device);
    if (selection.refusal.empty()) return selection;
    reasons += (reasons.empty() ? "" : "; ") + std::string(name_of(kernel)) + ": " + selection.refusal;
  }
  if (reasons.empty()) throw std::runtime_error("kernel = " + name + ": unknown kernel");
  const bool stages = !name.empty() && name != name_of(Kernel::kStreamCta);
  const bool advised = reasons.find("; use ") != std::string::npos;
  throw std::runtime_error("no CUDA kernel can run this network: " + reasons +
                           (advised  ? ""
                            : stages ? "; use backend cuda"
                                     : kAdvice));
}

std::string describe(const Network& network, int64_t batch, const Device& device) {
  std::string text;
  for (const Kernel kernel : kKernels) {
    const KernelSelection selection = plan_for(kernel, network, batch, device);
    text += std::string(name_of(kernel)) + ": ";
    if (!selection.refusal.empty()) {
      text += "no: " + selection.refusal;
    } else if (kernel == Kernel::kStreamCta) {
      text += "tiles of " + std::to_string(selection.plan.streams) + " streams";
    } else {
      text += std::to_string(selection.pipelines) + " pipeline(s) of " +
              std::to_string(selection.stages.blocks.size()) + " blocks with " +
              std::to_string(selection.stages.tiles) + " tile(s) in flight, " +
              (selection.stages.resident ? "all" : "not all") + " weights resident";
    }
    text += "\n";
  }
  return text;
}

}  // namespace wavenet::cuda
