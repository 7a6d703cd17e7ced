// Runs the pipelines on the host with the mailboxes of `stage_cluster` and `stage_grid` themselves, every
// block a thread of its own, for tests: how messages travel, how blocks wait, and how they give up.
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

// What the blocks of a cluster have in common: their shared memory, and a lock in place of its hardware.
struct HostClusterMemory {
  std::vector<unsigned char*> shared;
  std::mutex mutex;
  std::condition_variable changed;
  size_t waiting = 0;
  int64_t meetings = 0;
  std::string wrong;  // what broke the rules first, or empty
};

// A block of a cluster as `DeviceCluster` has it. A piece that comes to a barrier whose owner expects none is
// an error here.
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
  void show_started() const {}
  void expect(Address barrier, int bytes) const {
    change(barrier, [&](Barrier& now) {
      if (now.expects != 0) fail("a message was expected twice");
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
      if (now.expects == 0) fail("a piece came that no one expects");
      const float both[2] = {a, b};
      std::memcpy(to, both, sizeof(both));
      now.bytes -= static_cast<int32_t>(sizeof(both));
      if (now.bytes < 0) fail("a message is longer than was expected");
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
    const int64_t meeting = memory_.meetings;
    if (++memory_.waiting == memory_.shared.size()) {
      memory_.waiting = 0;
      ++memory_.meetings;
      memory_.changed.notify_all();
    }
    memory_.changed.wait(lock, [&] { return memory_.meetings != meeting; });
  }

 private:
  // In the 8 bytes of an mbarrier.
  struct Barrier {
    int32_t bytes;  // still to come in this phase
    int16_t expects, phase;
  };
  static_assert(sizeof(Barrier) == sizeof(SlotCounters::barrier), "it stands in the barrier's place");

  unsigned char* own() const { return memory_.shared[static_cast<size_t>(index_)]; }
  void fail(const char* what) const {
    if (memory_.wrong.empty()) memory_.wrong = what;
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

// What a host's pipeline of threads is like.
struct HostThreads {
  Room room;
  int64_t tiles;
  int max_polls;  // after which a block gives up
};

// Takes a block through all its acts, or as far as it gets, as the kernels do.
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
    // As floats it is NaN.
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
      if (how.room.mail_is_shared) {
        const HostCluster cluster(memory, index);
        const ClusterMail mail(cluster, params, pipeline, own, how.max_polls);
        run_block<Format>(mail, params, pipeline, index, first, own, backward);
        mail.leave();
      } else {
        const GridMail mail(params, pipeline, index, own, reinterpret_cast<unsigned char*>(messages.data()),
                            reinterpret_cast<unsigned char*>(flags.data()), how.max_polls);
        run_block<Format>(mail, params, pipeline, index, first, own, backward);
      }
    });
  }
  for (std::thread& each : threads) each.join();
  if (!memory.wrong.empty()) throw std::logic_error(memory.wrong);
}

inline void run_threads(const Params& params, const HostThreads& how, bool backward) {
  if (has_invalid_input(params)) return;
  const StagePlan plan = plan_stages(params.network, how.room, how.tiles);
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
