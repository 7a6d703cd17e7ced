// Which kernel serves a network and a batch on a device.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/network.h"
#include "cuda/pipeline/plan.h"
#include "cuda/stream/plan.h"

namespace wavenet::cuda {

// What a kernel asks of a device.
struct Device {
  int64_t capability;  // 10 * major + minor
  int64_t processors;
  int64_t shared_bytes;  // that a block can have
  int64_t registers;     // as well
  int64_t cluster;       // blocks that a cluster can have
  bool cooperative;      // blocks of a launch can be sure to run at once
  // How many clusters of so many blocks with so much shared memory are on the device at once: fewer than
  // processors / blocks, as each lies within one of the groups that the processors stand in. Empty: as many.
  std::function<int64_t(const Network& network, int64_t blocks, int64_t bytes)> clusters;
};

// Registers that a thread may have: check_cuda.sh fails if a kernel was compiled to more. A pipeline's 512
// threads have 128 each of the 65,536 that multiprocessors have; the launch bounds keep the compiler to that.
constexpr int kStageRegisters = 128;
constexpr int kStreamRegisters = 160;

// In the order in which they are taken.
enum class Kernel { kStageCluster, kStageGrid, kStreamCta };
constexpr Kernel kKernels[] = {Kernel::kStageCluster, Kernel::kStageGrid, Kernel::kStreamCta};
const char* name_of(Kernel kernel);

struct KernelSelection {
  Kernel kernel;
  Plan plan;         // of `stream_cta`
  StagePlan stages;  // of the others
  int64_t pipelines;
  std::string refusal;  // why the kernel does not serve, or empty
};

// Plans a launch of one kernel, or says what forbids it.
KernelSelection plan_for(Kernel kernel, const Network& network, int64_t batch, const Device& device);

// The best kernel that serves, or the one of that name, if it is not empty. Throws std::runtime_error with
// the reasons if there is none.
KernelSelection select_kernel(const Network& network, int64_t batch, const Device& device,
                              const std::string& name);

// For each kernel a line: its name and, behind ": ", how it would go about it, or "no: " and why it does not.
std::string describe(const Network& network, int64_t batch, const Device& device);

}  // namespace wavenet::cuda
