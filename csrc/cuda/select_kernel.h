// Selection of the kernel for a network and a batch on a device.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/network.h"
#include "cuda/pipeline/plan.h"
#include "cuda/stream/plan.h"

namespace wavenet::cuda {

// The properties of a device that selection depends on.
struct Device {
  int64_t capability;  // 10 * major + minor
  int64_t processors;
  int64_t shared_bytes;  // maximum per block
  int64_t registers;     // maximum per block
  int64_t cluster;       // maximum number of blocks of a cluster
  bool cooperative;      // supports launches whose blocks all run at once
  // Returns how many clusters of a number of blocks with some shared memory run on the device at once. This
  // can be less than processors / blocks, since each cluster has to fit in one group of processors. If empty,
  // it is equal.
  std::function<int64_t(const Network& network, int64_t blocks, int64_t bytes)> clusters;
};

// Maximum number of registers per thread; check_cuda.sh fails if a kernel uses more. A pipeline's 512 threads
// can use 128 each of the 65,536 of a multiprocessor; launch bounds enforce that.
constexpr int kStageRegisters = 128;
constexpr int kStreamRegisters = 160;

// In order of preference.
enum class Kernel { kStageCluster, kStageGrid, kStreamCta };
constexpr Kernel kKernels[] = {Kernel::kStageCluster, Kernel::kStageGrid, Kernel::kStreamCta};
const char* name_of(Kernel kernel);

struct KernelSelection {
  Kernel kernel;
  Plan plan;         // for stream_cta
  StagePlan stages;  // for the others
  int64_t pipelines;
  std::string refusal;  // why the kernel cannot run; empty if it can
};

// Plans a launch of one kernel; sets `refusal` if it cannot run.
KernelSelection plan_for(Kernel kernel, const Network& network, int64_t batch, const Device& device);

// Selects the kernel of a name, or if it is empty, the first one that can run. Throws std::runtime_error with
// the reasons if there is none.
KernelSelection select_kernel(const Network& network, int64_t batch, const Device& device,
                              const std::string& name);

// Returns a line for each kernel: its name, ": ", and a summary of its plan, or "no: " and why it cannot run.
std::string describe(const Network& network, int64_t batch, const Device& device);

}  // namespace wavenet::cuda
