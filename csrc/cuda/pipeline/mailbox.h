// Message passing between the blocks of a pipeline, through the shared memory of a cluster or through device
// memory.
//
// A block writes a message piece by piece with `put`, in one phase, and then calls `post` with the number of
// earlier messages to that slot. The receiving block's `wait` returns true when the whole message can be read
// from the slot; all threads of the block call it and get the same result. It returns false after a timeout:
// the block that times out sets `params.stuck`, which makes all others stop too.
#pragma once

#include <cstddef>

#include "cuda/params.h"
#include "cuda/pipeline/cluster.h"
#include "cuda/pipeline/shared_memory.h"
#include "cuda/tiles.h"

namespace wavenet::cuda {

// The message that a block waits for.
struct PendingMessage {
  int box, tile;
  int64_t use;  // index of the message among those to this slot, from 0
  bool more;    // whether another one follows
};

// Limits of polling, both a few seconds: a poll takes tens of cycles in a cluster, hundreds in device memory.
constexpr int kMaxPollsShared = 1 << 27;
constexpr int kMaxPollsDevice = 1 << 23;
constexpr int kPollsPerCheck = 1 << 12;

// Polls until `found` returns true. Returns false after `most` polls, or if another block has timed out.
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

// Pieces are written directly to the other block's shared memory. Each counts its bytes at the slot's barrier
// there, whose phase ends when the owner has announced the size of the message and all bytes have arrived.
// The owner announces it before the sender can write: for the first message before the cluster starts, for
// each later one when it receives the previous message, which the sender depends on.
template <class Cluster>
class ClusterMail {
 public:
  // The pipeline is the cluster. When this returns, all its blocks can receive.
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
      counters(box, tile).sent = counters(box, tile).received = 0;
      const int rows = pipeline.block[index()].box[box].rows;
      if (rows > 0) expect(box, tile, rows);
    }
    cluster_.publish_barriers();
    cluster_.sync();
  }

  WAVENET_DEVICE int index() const { return cluster_.index(); }

  // Ends message passing, also after a timeout: no block may exit while a piece is in flight to it. After the
  // first barrier no block sends any more, and all messages are complete, since a block stops only between
  // messages. Then waits for messages that the previous block has sent and this one has not received;
  // normally there are none.
  WAVENET_DEVICE void close() const {
    cluster_.sync();
    const int before = (index() + pipeline_.blocks - 1) % pipeline_.blocks;
    for (int i = first_thread(); i < kBoxes * pipeline_.tiles; i += thread_count()) {
      const int box = i / pipeline_.tiles, tile = i % pipeline_.tiles;
      const auto here = barrier(box, tile) + static_cast<unsigned>(offsetof(SlotCounters, sent));
      const int sent = cluster_.read(cluster_.there(here, before));
      const int received = counters(box, tile).received;
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
    if (first_thread() == 0) counters(box, tile).sent = static_cast<int32_t>(use + 1);
  }

  WAVENET_DEVICE bool wait(const PendingMessage& message) const {
    const bool found = arrives(message.box, message.tile, message.use);
    if (found && first_thread() == 0) {
      counters(message.box, message.tile).received = static_cast<int32_t>(message.use + 1);
      if (message.more) expect(message.box, message.tile, plan_.box[message.box].rows);
    }
    return for_all_threads(found);
  }

 private:
  // Polls until all bytes of a message have arrived; returns false after a timeout.
  WAVENET_DEVICE bool arrives(int box, int tile, int64_t use) const {
    const auto at = barrier(box, tile);
    const auto parity = static_cast<unsigned>(use & 1);
    return poll_until(params_, max_polls_, index(), [&] { return cluster_.ended(at, parity); });
  }

  WAVENET_DEVICE static int place(const Mailbox& mailbox, int tile) {
    return mailbox.offset + tile * mailbox.rows * kTileStreams * 4;
  }
  WAVENET_DEVICE SlotCounters& counters(int box, int tile) const {
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

// Pieces are written to device memory. After the barrier at the end of the phase, one thread stores the
// slot's message count, which one thread of the other block polls; another barrier then lets its other
// threads read.
//
// Why the pieces are visible then (PTX ISA, memory consistency model): the barrier orders them before the
// store of the count in causality order, and the store releases all earlier writes, also those of other
// threads. The polls are relaxed, since an acquiring load may invalidate the L1 cache. The fence after the
// successful poll forms an acquire pattern with it, which synchronizes with the store, and the second barrier
// orders it before all reads of the block.
class GridMail {
 public:
  // `mail` and `flags` belong to the pipeline; flags are zero when the kernel starts.
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
  // A slot's count after message `use`, modulo 2^32.
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
