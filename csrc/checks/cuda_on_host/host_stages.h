// Runs the pipelines of `stage_cluster` and `stage_grid` on the host, with simulated mailboxes, for tests.
#pragma once

#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/pipeline/stage.h"

namespace wavenet::cuda {

// The resources of a pipeline and the order in which its blocks run.
struct HostStages {
  PipelineResources resources;
  int64_t tiles;
  uint64_t seed;
  int64_t dropped;  // number of the message that is lost, counted over all blocks; -1: none
};

// The mailboxes of one pipeline. A message is available after its sender has posted it, until the receiver
// has processed it. Reports an error if a sender writes to a slot that is not free, omits a piece of a
// message, or writes one twice.
class HostMailboxes {
 public:
  HostMailboxes(const StagePlan& plan, const HostStages& stages) : plan_(plan), stages_(stages) {
    for (const StageBlock& block : plan.blocks) {
      for (const Mailbox& box : block.box) {
        for (int64_t tile = 0; tile < plan.tiles; ++tile) {
          slots_.push_back({std::vector<float>(static_cast<size_t>(box.rows * kTileStreams)),
                            std::vector<bool>(static_cast<size_t>(box.rows * kTileStreams))});
        }
      }
    }
  }

  const float* read(int block, int box, int tile) const { return at(block, box, tile).numbers.data(); }

  void put(int to, int box, int tile, int row, int s, float a, float b) {
    Slot& slot = at(to, box, tile);
    if (slot.full) throw std::logic_error("a slot was written before it was read");
    for (const size_t i :
         {static_cast<size_t>(row * kTileStreams + s), static_cast<size_t>(row * kTileStreams + s + 1)}) {
      if (slot.written.at(i)) throw std::logic_error("a piece of a message was written twice");
      slot.written[i] = true;
      slot.numbers[i] = i % 2 == 0 ? a : b;
    }
  }

  void post(int to, int box, int tile, int64_t use) {
    Slot& slot = at(to, box, tile);
    if (slot.use != use) throw std::logic_error("a sender posted a message with a wrong number");
    for (const bool written : slot.written) {
      if (!written) throw std::logic_error("a piece of a message is missing");
    }
    slot.full = posted_++ != stages_.dropped;
    slot.written.assign(slot.written.size(), false);
    ++slot.use;
  }

  bool available(int block, const PendingMessage& message) const {
    const Slot& slot = at(block, message.box, message.tile);
    if (slot.full && slot.use != message.use + 1)
      throw std::logic_error("a receiver waits for a message with a wrong number");
    return slot.full;
  }

  // Fills the slot with NaN.
  void free(int block, const PendingMessage& message) {
    Slot& slot = at(block, message.box, message.tile);
    slot.full = false;
    slot.numbers.assign(slot.numbers.size(), float_of(-1));
  }

 private:
  struct Slot {
    std::vector<float> numbers;
    std::vector<bool> written;
    bool full = false;
    int64_t use = 0;
  };

  Slot& at(int block, int box, int tile) {
    return slots_.at(static_cast<size_t>((block * kBoxes + box) * plan_.tiles + tile));
  }
  const Slot& at(int block, int box, int tile) const {
    return const_cast<HostMailboxes*>(this)->at(block, box, tile);
  }

  const StagePlan& plan_;
  const HostStages& stages_;
  std::vector<Slot> slots_;
  int64_t posted_ = 0;
};

// The mailboxes as one block uses them.
struct HostMail {
  HostMailboxes& mailboxes;
  int index;

  const float* slot(int box, int tile) const { return mailboxes.read(index, box, tile); }
  void put(int to, int box, int tile, int row, int s, float a, float b) const {
    mailboxes.put(to, box, tile, row, s, a, b);
  }
  void post(int to, int box, int tile, int64_t use) const { mailboxes.post(to, box, tile, use); }
};

// A block and its shared memory.
template <class Format>
struct HostStage {
  HostStage(HostMailboxes& mailboxes, const HostBlock& block, const Params& params, const Pipeline& pipeline,
            int index, int64_t first)
      : mail{mailboxes, index},
        shared(static_cast<unsigned char*>(
            std::aligned_alloc(16, static_cast<size_t>(pipeline.block[index].bytes)))),
        stage(block, mail, params, pipeline, index, first, noise(pipeline.block[index].bytes)) {}

  // Fills shared memory with NaN.
  unsigned char* noise(int32_t bytes) {
    std::memset(shared.get(), 0xff, static_cast<size_t>(bytes));
    return shared.get();
  }

  struct Release {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
  HostMail mail;
  std::unique_ptr<unsigned char, Release> shared;
  Stage<HostBlock, HostMail, Format> stage;
};

// Runs the blocks of one pipeline in a random order that their messages allow.
template <class Format>
void run_pipeline(const Params& params, const StagePlan& plan, const HostStages& stages,
                  const HostBlock& block, int64_t first) {
  const Pipeline pipeline = view(plan, params.network, plan.blocks.data(), plan.parts.data());
  HostMailboxes mailboxes(plan, stages);
  std::vector<std::unique_ptr<HostStage<Format>>> blocks;
  for (int index = 0; index < pipeline.blocks; ++index) {
    blocks.push_back(std::make_unique<HostStage<Format>>(mailboxes, block, params, pipeline, index, first));
    blocks.back()->stage.prepare();
  }
  std::mt19937_64 random(stages.seed);
  for (;;) {
    std::vector<int> ready;
    bool done = true;
    for (int index = 0; index < pipeline.blocks; ++index) {
      const auto& stage = blocks[static_cast<size_t>(index)]->stage;
      if (stage.done()) continue;
      done = false;
      if (!stage.needs_message() || mailboxes.available(index, stage.pending_message()))
        ready.push_back(index);
    }
    if (done) break;
    if (ready.empty()) {
      *params.stuck = 0;
      return;
    }
    const int index = ready[random() % ready.size()];
    auto& stage = blocks[static_cast<size_t>(index)]->stage;
    const bool waited = stage.needs_message();
    const PendingMessage message = stage.pending_message();
    stage.process();
    if (waited) mailboxes.free(index, message);
  }
  for (const auto& each : blocks) each->stage.finish();
}

inline void run_stages(const Params& params, const HostStages& stages, bool backward) {
  if (has_invalid_input(params)) return;
  const StagePlan plan = plan_stages(params.network, stages.resources, stages.tiles);
  if (!plan.refusal.empty()) throw std::runtime_error(plan.refusal);
  const HostBlock block{backward, kStageWarps};
  for (int64_t first = 0; first < params.batch; first += plan.tiles * kTileStreams) {
    if (params.network.tiles == Tiles::kFp16) {
      run_pipeline<Fp16>(params, plan, stages, block, first);
    } else {
      run_pipeline<Bf16>(params, plan, stages, block, first);
    }
  }
}

}  // namespace wavenet::cuda
