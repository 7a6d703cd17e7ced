// How messages travel between the blocks of a pipeline: through the shared memory of a cluster, or through
// the device's.
//
// A block writes a message piece by piece with `put`, in one phase, and after it calls `post`, which is told
// how many messages went to that slot before. Another block's `wait` returns true once all of that message
// can be read in its slot; it is called by all threads of the block, and they agree on what it returns. False
// says that the kernel is stuck: the wait is bounded, and who gives up marks `task.stuck`, at which all
// others give up too.
#pragma once

#include <cstddef>

#include "cuda/params.h"
#include "cuda/pipeline/cluster.h"
#include "cuda/pipeline/shared_memory.h"
#include "cuda/tiles.h"

namespace wavenet::cuda {

// Which message a block waits for.
struct PendingMessage {
  int box, tile;
  int64_t use;  // counted from 0, the messages to that slot
  bool more;    // whether another one follows
};

// Two looks at a mailbox in a cluster are tens of cycles apart, in the device's memory hundreds: seconds.
constexpr int kMaxPollsShared = 1 << 27;
constexpr int kMaxPollsDevice = 1 << 23;
constexpr int kPollsPerCheck = 1 << 12;

// Looks until there is what is looked for; false if that takes too long, or another block has given up.
template <class Condition>
WAVENET_DEVICE bool poll_until(const Params& params, int most, int block, Condition found) {
  for (int polls = 1; !found(); ++polls) {
    pause();
    if (polls % kPollsPerCheck != 0) continue;
    if (polls >= most) atomic_min(params.stuck, block);
    if (load_volatile(params.stuck) != kNone) return false;
  }
  return true;
}

// Pieces are written straight into the other block's shared memory. Each counts its bytes at the slot's
// barrier there, whose phase ends once the owner has said how many bytes make the message, and they have
// come. The owner says so before anyone can send: for the first message before the cluster starts, for each
// other when it has received the one before, which the sender waits for.
template <class Cluster>
class ClusterMail {
 public:
  // The pipeline is the cluster. Ends with all its blocks ready to receive.
  WAVENET_DEVICE ClusterMail(const Cluster& cluster, const Params& params, const Pipeline& pipeline,
                             unsigned char* shared, int max_polls = kMaxPollsShared)
      : cluster_(cluster),
        params_(params),
        pipeline_(pipeline),
        plan_(own_plan(pipeline, shared)),
        shared_(shared),
        max_polls_(max_polls) {
    for (int i = first_thread(); i < kBoxes * pipeline.tiles; i += thread_count()) {
      const int box = i / pipeline.tiles, tile = i % pipeline.tiles;
      cluster_.start(barrier(box, tile));
      book(box, tile).sent = book(box, tile).received = 0;
      const int rows = pipeline.block[index()].box[box].rows;
      if (rows > 0) expect(box, tile, rows);
    }
    cluster_.show_started();
    cluster_.sync();
  }

  WAVENET_DEVICE int index() const { return cluster_.index(); }

  // Ends the exchange, also where a block has given up: no block may end while a piece is on its way to it.
  // Once all have met no one sends any more, and all messages are whole, since a block gives up between two
  // only. What the block before has sent and this one has not received is then waited for; normally there is
  // nothing.
  WAVENET_DEVICE void leave() const {
    cluster_.sync();
    const int before = (index() + pipeline_.blocks - 1) % pipeline_.blocks;
    for (int i = first_thread(); i < kBoxes * pipeline_.tiles; i += thread_count()) {
      const int box = i / pipeline_.tiles, tile = i % pipeline_.tiles;
      const auto here = barrier(box, tile) + static_cast<unsigned>(offsetof(SlotCounters, sent));
      const int sent = cluster_.read(cluster_.there(here, before));
      const int received = book(box, tile).received;
      if (sent != received) arrives(box, tile, received);
    }
    cluster_.sync();
  }

  WAVENET_DEVICE const float* slot(int box, int tile) const {
    return reinterpret_cast<const float*>(shared_ + place(plan_.box[box], tile));
  }

  WAVENET_DEVICE void put(int to, int box, int tile, int row, int s, float a, float b) const {
    const auto piece = cluster_.at(place(plan_.next[box], tile) + (row * kTileStreams + s) * 4);
    cluster_.send(cluster_.there(piece, to), a, b, cluster_.there(barrier(box, tile), to));
  }
  WAVENET_DEVICE void post(int, int box, int tile, int64_t use) const {
    if (first_thread() == 0) book(box, tile).sent = static_cast<int32_t>(use + 1);
  }

  WAVENET_DEVICE bool wait(const PendingMessage& message) const {
    const bool found = arrives(message.box, message.tile, message.use);
    if (found && first_thread() == 0) {
      book(message.box, message.tile).received = static_cast<int32_t>(message.use + 1);
      if (message.more) expect(message.box, message.tile, plan_.box[message.box].rows);
    }
    return for_all_threads(found);
  }

 private:
  // Looks until all bytes of a message are there; false if that takes too long.
  WAVENET_DEVICE bool arrives(int box, int tile, int64_t use) const {
    const auto at = barrier(box, tile);
    const auto parity = static_cast<unsigned>(use & 1);
    return poll_until(params_, max_polls_, index(), [&] { return cluster_.ended(at, parity); });
  }

  WAVENET_DEVICE static int place(const Mailbox& mailbox, int tile) {
    return mailbox.offset + tile * mailbox.rows * kTileStreams * 4;
  }
  WAVENET_DEVICE SlotCounters& book(int box, int tile) const {
    return reinterpret_cast<SlotCounters*>(shared_)[box * pipeline_.tiles + tile];
  }
  WAVENET_DEVICE typename Cluster::Address barrier(int box, int tile) const {
    return cluster_.at((box * pipeline_.tiles + tile) * static_cast<int>(sizeof(SlotCounters)));
  }
  WAVENET_DEVICE void expect(int box, int tile, int rows) const {
    cluster_.expect(barrier(box, tile), rows * kTileStreams * 4);
  }

  const Cluster& cluster_;
  const Params& params_;
  const Pipeline& pipeline_;
  const StageBlock& plan_;
  unsigned char* shared_;
  int max_polls_;
};

// Pieces are written to the device's memory. Once all threads have passed the barrier behind the phase, one
// of them stores the slot's count of messages, at which one thread of the other block looks; another barrier
// then lets the rest read.
//
// Why the pieces are there (PTX ISA, memory consistency model): the barrier puts them before the store of the
// count in causality order, and the store releases what is before it, other threads' writes too. The looks
// are relaxed, since each that acquires may empty the first-level cache; the one fence behind the look that
// finds the count makes an acquire pattern with it, which the store synchronises with, and the second barrier
// puts it before all reads of the block.
class GridMail {
 public:
  // `mail` and `flags` are the pipeline's; these are zero when the kernel starts.
  WAVENET_DEVICE GridMail(const Params& params, const Pipeline& pipeline, int index,
                          const unsigned char* shared, unsigned char* mail, unsigned char* flags,
                          int max_polls = kMaxPollsDevice)
      : params_(params),
        pipeline_(pipeline),
        plan_(own_plan(pipeline, shared)),
        index_(index),
        mail_(mail),
        flags_(flags),
        max_polls_(max_polls) {}

  WAVENET_DEVICE const float* slot(int box, int tile) const { return place(plan_.box[box], tile); }

  WAVENET_DEVICE void put(int, int box, int tile, int row, int s, float a, float b) const {
    *reinterpret_cast<Pack<2>*>(place(plan_.next[box], tile) + row * kTileStreams + s) = {{a, b}};
  }

  WAVENET_DEVICE void post(int to, int box, int tile, int64_t use) const {
    if (first_thread() == 0) store_released(flag(to, box, tile), after(use));
  }

  WAVENET_DEVICE bool wait(const PendingMessage& message) const {
    bool found = true;
    if (first_thread() == 0) {
      const uint32_t* count = flag(index_, message.box, message.tile);
      found = poll_until(params_, max_polls_, index_,
                         [&] { return static_cast<int32_t>(load_relaxed(count) - after(message.use)) >= 0; });
      fence();
    }
    return for_all_threads(found);
  }

 private:
  WAVENET_DEVICE float* place(const Mailbox& mailbox, int tile) const {
    return reinterpret_cast<float*>(mail_ + mailbox.offset) + tile * mailbox.rows * kTileStreams;
  }
  // A slot's count once it has had `use` messages and one more; it goes around as 32 bits do.
  WAVENET_DEVICE static uint32_t after(int64_t use) { return static_cast<uint32_t>(use + 1); }
  WAVENET_DEVICE uint32_t* flag(int of, int box, int tile) const {
    return reinterpret_cast<uint32_t*>(flags_ + ((of * kBoxes + box) * pipeline_.tiles + tile) * kFlagBytes);
  }

  const Params& params_;
  const Pipeline& pipeline_;
  const StageBlock& plan_;
  int index_;
  unsigned char* mail_;
  unsigned char* flags_;
  int max_polls_;
};

}  // namespace wavenet::cuda
