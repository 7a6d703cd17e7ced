// Runs the pipelines on the host with the real mailboxes of `stage_cluster` and `stage_grid` and one thread
// for each block, to test message passing, waiting and timeouts.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cuda/pipeline/stage.h"

namespace wavenet::cuda {

// The state of a cluster: the shared memory of its blocks, and a lock that replaces the hardware.
struct HostClusterMemory {
  std::vector<unsigned char*> shared;
  std::mutex mutex;
  std::condition_variable changed;
  size_t waiting = 0;
  int64_t generation = 0;
  std::string error;  // the first violation, or empty
};

// A block of a cluster with the interface of `DeviceCluster`. Reports an error if a piece arrives at a
// barrier whose owner has not announced a message.
class HostCluster {
 public:
  using Address = unsigned char*;

  HostCluster(HostClusterMemory& memory, int index) : memory_(memory), index_(index) {}

  int index() const { return index_; }
  Address at(int offset) const { return own() + offset; }
  Address there(Address here, int rank) const {
    return memory_.shared[static_cast<size_t>(rank)] + (here - own());
  }

  void start(Address barrier) const {
    change(barrier, [](Barrier& now) { now = {0, 0, 0}; });
  }
  void publish_barriers() const {}
  void expect(Address barrier, int bytes) const {
    change(barrier, [&](Barrier& now) {
      if (now.expects != 0) fail("a message was announced twice");
      now.expects = 1;
      now.bytes += bytes;
    });
  }
  bool ended(Address barrier, unsigned parity) const {
    bool found = false;
    change(barrier, [&](Barrier& now) { found = static_cast<unsigned>(now.phase) != parity; });
    return found;
  }

  void send(Address to, float a, float b, Address barrier) const {
    change(barrier, [&](Barrier& now) {
      if (now.expects == 0) fail("a piece arrived before its message was announced");
      const float both[2] = {a, b};
      std::memcpy(to, both, sizeof(both));
      now.bytes -= static_cast<int32_t>(sizeof(both));
      if (now.bytes < 0) fail("a message is longer than announced");
      if (now.bytes == 0) now = {0, 0, static_cast<int16_t>(1 - now.phase)};
    });
  }
  int read(Address from) const {
    const std::lock_guard<std::mutex> lock(memory_.mutex);
    int number;
    std::memcpy(&number, from, sizeof(number));
    return number;
  }

  void sync() const {
    std::unique_lock<std::mutex> lock(memory_.mutex);
    const int64_t current = memory_.generation;
    if (++memory_.waiting == memory_.shared.size()) {
      memory_.waiting = 0;
      ++memory_.generation;
      memory_.changed.notify_all();
    }
    memory_.changed.wait(lock, [&] { return memory_.generation != current; });
  }

 private:
  // Stored in the 8 bytes of an mbarrier.
  struct Barrier {
    int32_t bytes;  // not yet received in this phase
    int16_t expects, phase;
  };
  static_assert(sizeof(Barrier) == sizeof(SlotCounters::barrier), "it is stored in place of the barrier");

  unsigned char* own() const { return memory_.shared[static_cast<size_t>(index_)]; }
  void fail(const char* what) const {
    if (memory_.error.empty()) memory_.error = what;
  }

  template <class Change>
  void change(Address barrier, Change make) const {
    const std::lock_guard<std::mutex> lock(memory_.mutex);
    Barrier now;
    std::memcpy(&now, barrier, sizeof(now));
    make(now);
    std::memcpy(barrier, &now, sizeof(now));
  }

  HostClusterMemory& memory_;
  int index_;
};

// The configuration of a pipeline of threads.
struct HostThreads {
  PipelineResources resources;
  int64_t tiles;
  int max_polls;  // after which a block times out
};

// Runs a block until it is done or times out, as the kernels do.
template <class Format, class Mail>
void run_block(const Mail& mail, const Params& params, const Pipeline& pipeline, int index, int64_t first,
               unsigned char* shared, bool backward) {
  const HostBlock block{backward, kStageWarps};
  Stage<HostBlock, Mail, Format> stage(block, mail, params, pipeline, index, first, shared);
  run_stage<HostBlock>(stage, mail);
}

template <class Format>
void run_pipeline_of_threads(const Params& params, const StagePlan& plan, const HostThreads& how,
                             int64_t first, bool backward) {
  const Pipeline pipeline = view(plan, params.network, plan.blocks.data(), plan.parts.data());
  const auto release = [](unsigned char* memory) { std::free(memory); };
  const auto noise = [](int64_t bytes) {
    auto* memory = static_cast<unsigned char*>(std::aligned_alloc(16, static_cast<size_t>(bytes)));
    // Fills shared memory with NaN.
    std::memset(memory, 0xff, static_cast<size_t>(bytes));
    return memory;
  };
  std::vector<std::unique_ptr<unsigned char, decltype(release)>> shared;
  HostClusterMemory memory;
  for (const StageBlock& block : plan.blocks) {
    shared.emplace_back(noise(block.bytes), release);
    memory.shared.push_back(shared.back().get());
  }
  std::vector<float> messages(static_cast<size_t>(plan.mail_bytes / 4), float_of(-1));
  std::vector<uint32_t> flags(static_cast<size_t>(plan.flag_bytes / 4), 0);
  std::vector<std::thread> threads;
  for (int index = 0; index < pipeline.blocks; ++index) {
    threads.emplace_back([&, index] {
      unsigned char* own = memory.shared[static_cast<size_t>(index)];
      if (how.resources.mail_is_shared) {
        const HostCluster cluster(memory, index);
        const ClusterMail mail(cluster, params, pipeline, own, how.max_polls);
        run_block<Format>(mail, params, pipeline, index, first, own, backward);
        mail.close();
      } else {
        const GridMail mail(params, pipeline, index, own, reinterpret_cast<unsigned char*>(messages.data()),
                            reinterpret_cast<unsigned char*>(flags.data()), how.max_polls);
        run_block<Format>(mail, params, pipeline, index, first, own, backward);
      }
    });
  }
  for (std::thread& each : threads) each.join();
  if (!memory.error.empty()) throw std::logic_error(memory.error);
}

inline void run_threads(const Params& params, const HostThreads& how, bool backward) {
  if (has_invalid_input(params)) return;
  const StagePlan plan = plan_stages(params.network, how.resources, how.tiles);
  if (!plan.refusal.empty()) throw std::runtime_error(plan.refusal);
  for (int64_t first = 0; first < params.batch; first += plan.tiles * kTileStreams) {
    if (params.network.tiles == Tiles::kFp16) {
      run_pipeline_of_threads<Fp16>(params, plan, how, first, backward);
    } else {
      run_pipeline_of_threads<Bf16>(params, plan, how, first, backward);
    }
  }
}

}  // namespace wavenet::cuda
