#include "cuda/select_kernel.h"

#include <algorithm>
#include <stdexcept>

#include "cuda/tiles.h"

namespace wavenet::cuda {
namespace {

constexpr char kAdvice[] = "; use --device cpu";
// Kernels count a ring's rows in 32 bits.
constexpr int64_t kMaxDepth = (int64_t{1} << 31) - 1;

std::string capability_text(int64_t capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

// Of a block: all its threads are there at once.
int64_t registers_of(Kernel kernel) {
  if (kernel == Kernel::kStreamCta) return int64_t{kThreads} * kStreamRegisters;
  return int64_t{kStageWarps} * kWarpSize * kStageRegisters;
}

// What holds for all kernels.
std::string refusal_of_any(Kernel kernel, const Network& net, const Device& device) {
  if (net.classes > kMaxClasses) {
    return "it draws from at most " + std::to_string(kMaxClasses) + " classes, the network has " +
           std::to_string(net.classes);
  }
  for (int64_t index = 0; index < net.layers; ++index) {
    if (net.layer[index].depth > kMaxDepth) {
      return "a layer's queue can have " + std::to_string(kMaxDepth) + " steps, that of layer " +
             std::to_string(index) + " has " + std::to_string(net.layer[index].depth);
    }
  }
  if (net.tiles == Tiles::kBf16 && device.capability < 80) {
    return "the network has weights beyond the range of fp16, and this device has no bf16; use --precision "
           "fp32";
  }
  if (registers_of(kernel) > device.registers) {
    return "a block needs " + std::to_string(registers_of(kernel)) + " registers, this device has " +
           std::to_string(device.registers);
  }
  return "";
}

void plan_tile(KernelSelection& choice, const Network& net, int64_t batch, const Device& device) {
  const int streams = select_tile(net, batch, device.processors, device.shared_bytes);
  if (streams == 0) {
    choice.refusal = "the network is too wide for this device: it needs " +
                     std::to_string(make_plan(net, kTiles[0]).bytes) +
                     " bytes of shared memory per block, there are " + std::to_string(device.shared_bytes);
    return;
  }
  choice.plan = make_plan(net, streams);
}

// Plans a pipeline and returns how many of its kind are on the device at once; 0 if the plan is refused.
int64_t plan_pipeline(KernelSelection& choice, const Network& net, int64_t tiles, const Device& device) {
  const bool cluster = choice.kernel == Kernel::kStageCluster;
  Room room{cluster ? device.cluster : device.processors, device.shared_bytes, cluster};
  for (;;) {
    choice.stages = plan_stages(net, room, tiles);
    if (!choice.stages.refusal.empty()) return 0;
    const auto blocks = static_cast<int64_t>(choice.stages.blocks.size());
    if (!cluster || !device.clusters) return device.processors / blocks;
    const int64_t found = device.clusters(net, blocks, choice.stages.bytes);
    if (found > 0) return found;
    // Not every size of cluster that is allowed fits the multiprocessors that are there.
    room.blocks = blocks - 1;
  }
}

// As few tiles under way as put all streams on the device at once.
void plan_pipelines(KernelSelection& choice, const Network& net, int64_t batch, const Device& device) {
  int64_t most = 0;
  for (int64_t tiles = 1; tiles <= kMaxTilesUnderWay; ++tiles) {
    const int64_t at_once = plan_pipeline(choice, net, tiles, device);
    if (at_once == 0) break;
    const int64_t together = tiles * kTileStreams;
    most = std::max(most, at_once * together);
    choice.pipelines = (batch + together - 1) / together;
    if (choice.pipelines <= at_once) return;
  }
  choice.refusal = most == 0 ? choice.stages.refusal
                             : "it takes at most " + std::to_string(most) + " streams of this network, not " +
                                   std::to_string(batch);
}

void plan_stage_kernel(KernelSelection& choice, const Network& net, int64_t batch, const Device& device) {
  const int64_t needed = choice.kernel == Kernel::kStageCluster ? 90 : 80;
  if (device.capability < needed) {
    choice.refusal = "it needs compute capability " + capability_text(needed) + ", this device has " +
                     capability_text(device.capability);
  } else if (net.tiles == Tiles::kNone) {
    choice.refusal = "it keeps weights of 16 bits, not those of fp32; use --precision fp16";
  } else if (choice.kernel == Kernel::kStageGrid && !device.cooperative) {
    choice.refusal = "this device cannot promise that all blocks of a launch run at once";
  } else {
    plan_pipelines(choice, net, batch, device);
  }
}

}  // namespace

const char* name_of(Kernel kernel) {
  if (kernel == Kernel::kStageCluster) return "stage_cluster";
  return kernel == Kernel::kStageGrid ? "stage_grid" : "stream_cta";
}

KernelSelection plan_for(Kernel kernel, const Network& network, int64_t batch, const Device& device) {
  KernelSelection choice{};
  choice.kernel = kernel;
  choice.refusal = refusal_of_any(kernel, network, device);
  if (!choice.refusal.empty()) return choice;
  if (kernel == Kernel::kStreamCta) {
    plan_tile(choice, network, batch, device);
  } else {
    plan_stage_kernel(choice, network, batch, device);
  }
  return choice;
}

KernelSelection select_kernel(const Network& network, int64_t batch, const Device& device,
                              const std::string& name) {
  std::string reasons;
  for (const Kernel kernel : kKernels) {
    if (!name.empty() && name != name_of(kernel)) continue;
    KernelSelection choice = plan_for(kernel, network, batch, device);
    if (choice.refusal.empty()) return choice;
    reasons += (reasons.empty() ? "" : "; ") + std::string(name_of(kernel)) + ": " + choice.refusal;
  }
  if (reasons.empty()) throw std::runtime_error("kernel = " + name + ": is unknown");
  const bool stages = !name.empty() && name != name_of(Kernel::kStreamCta);
  const bool advised = reasons.find("; use ") != std::string::npos;
  throw std::runtime_error("no CUDA kernel serves this network: " + reasons +
                           (advised  ? ""
                            : stages ? "; use --backend cuda"
                                     : kAdvice));
}

std::string describe(const Network& network, int64_t batch, const Device& device) {
  std::string text;
  for (const Kernel kernel : kKernels) {
    const KernelSelection choice = plan_for(kernel, network, batch, device);
    text += std::string(name_of(kernel)) + ": ";
    if (!choice.refusal.empty()) {
      text += "no: " + choice.refusal;
    } else if (kernel == Kernel::kStreamCta) {
      text += "tiles of " + std::to_string(choice.plan.streams) + " streams";
    } else {
      text += std::to_string(choice.pipelines) + " pipeline(s) of " +
              std::to_string(choice.stages.blocks.size()) + " blocks with " +
              std::to_string(choice.stages.tiles) + " tile(s) under way, " +
              (choice.stages.resident ? "all" : "not all") + " weights resident";
    }
    text += "\n";
  }
  return text;
}

}  // namespace wavenet::cuda
