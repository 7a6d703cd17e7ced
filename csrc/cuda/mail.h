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

#include "cuda/stage_memory.h"
#include "cuda/task.h"
#include "cuda/tiles.h"

namespace wavenet::cuda {

// Which message a block waits for.
struct Awaited {
  int box, tile;
  int64_t use;  // counted from 0, the messages to that slot
  bool more;    // whether another one follows
};

#if defined(__CUDACC__)

// Two looks at a mailbox in a cluster are tens of cycles apart, in the device's memory hundreds: seconds.
constexpr int kMostLooksShared = 1 << 27;
constexpr int kMostLooksDevice = 1 << 23;
constexpr int kLooksBetween = 1 << 12;

// Looks until there is what is looked for; false if that takes too long, or another block has given up.
template <class Look>
WAVENET_DEVICE bool look(const Task& task, int most, int block, Look found) {
  for (int looks = 1; !found(); ++looks) {
    if (looks % kLooksBetween != 0) continue;
    if (looks >= most) lower(task.stuck, block);
    if (*static_cast<const volatile int64_t*>(task.stuck) != kNone) return false;
  }
  return true;
}

// Pieces are written straight into the other block's shared memory. Each counts its bytes at the slot's
// barrier there, whose phase ends once the owner has said how many bytes make the message, and they have
// come. (PTX ISA: st.async, mbarrier.) The owner says so before anyone can send: for the first message before
// the cluster starts, for each other when it has received the one before, which the sender waits for.
#if __CUDA_ARCH__ >= 900
class ClusterMail {
 public:
  // The pipeline is the cluster. Ends with all its blocks ready to receive.
  WAVENET_DEVICE ClusterMail(const Task& task, const Pipeline& pipeline, unsigned char* shared)
      : task_(task),
        pipeline_(pipeline),
        plan_(own_plan(pipeline, shared)),
        shared_(shared),
        base_(address(shared)) {
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(index_));
    for (int i = static_cast<int>(threadIdx.x); i < kBoxes * pipeline.tiles; i += blockDim.x) {
      const int box = i / pipeline.tiles, tile = i % pipeline.tiles;
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier(box, tile)) : "memory");
      book(box, tile).sent = book(box, tile).received = 0;
      const int rows = pipeline.block[index_].box[box].rows;
      if (rows > 0) expect(box, tile, rows);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    meet();
  }

  WAVENET_DEVICE int index() const { return static_cast<int>(index_); }

  // Ends the exchange, also where a block has given up: no block may end while a piece is on its way to it.
  // Once all have met no one sends any more, and all messages are whole, since a block gives up between two
  // only. What the block before has sent and this one has not received is then waited for; normally there is
  // nothing.
  WAVENET_DEVICE void leave() const {
    meet();
    const int before = (index() + pipeline_.blocks - 1) % pipeline_.blocks;
    for (int i = static_cast<int>(threadIdx.x); i < kBoxes * pipeline_.tiles; i += blockDim.x) {
      const int box = i / pipeline_.tiles, tile = i % pipeline_.tiles;
      const unsigned here = barrier(box, tile) + static_cast<unsigned>(offsetof(SlotBook, sent));
      int sent;
      asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(sent) : "r"(there(here, before)) : "memory");
      const int received = book(box, tile).received;
      if (sent != received) arrives(box, tile, received);
    }
    meet();
  }

  WAVENET_DEVICE const float* slot(int box, int tile) const {
    return reinterpret_cast<const float*>(shared_ + place(plan_.box[box], tile));
  }

  WAVENET_DEVICE void put(int to, int box, int tile, int row, int s, float a, float b) const {
    const unsigned piece = base_ + place(plan_.next[box], tile) + (row * kTileStreams + s) * 4;
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
            there(piece, to)),
        "f"(a), "f"(b), "r"(there(barrier(box, tile), to))
        : "memory");
  }
  WAVENET_DEVICE void post(int, int box, int tile, int64_t use) const {
    if (threadIdx.x == 0) book(box, tile).sent = static_cast<int32_t>(use + 1);
  }

  WAVENET_DEVICE bool wait(const Awaited& message) const {
    const bool found = arrives(message.box, message.tile, message.use);
    if (found && threadIdx.x == 0) {
      book(message.box, message.tile).received = static_cast<int32_t>(message.use + 1);
      if (message.more) expect(message.box, message.tile, plan_.box[message.box].rows);
    }
    return __syncthreads_and(found ? 1 : 0) != 0;
  }

 private:
  // All blocks have come so far, and see what the others wrote before.
  WAVENET_DEVICE static void meet() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }

  // Looks until all bytes of a message are there; false if that takes too long.
  WAVENET_DEVICE bool arrives(int box, int tile, int64_t use) const {
    const unsigned at = barrier(box, tile);
    const auto parity = static_cast<unsigned>(use & 1);
    return look(task_, kMostLooksShared, index(), [&] {
      unsigned ended;
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.test_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(ended)
          : "r"(at), "r"(parity)
          : "memory");
      return ended != 0;
    });
  }

  WAVENET_DEVICE static unsigned address(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
  }
  WAVENET_DEVICE static unsigned there(unsigned here, int rank) {
    unsigned remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(here), "r"(rank));
    return remote;
  }
  WAVENET_DEVICE static int place(const Mailbox& mailbox, int tile) {
    return mailbox.offset + tile * mailbox.rows * kTileStreams * 4;
  }
  WAVENET_DEVICE SlotBook& book(int box, int tile) const {
    return reinterpret_cast<SlotBook*>(shared_)[box * pipeline_.tiles + tile];
  }
  WAVENET_DEVICE unsigned barrier(int box, int tile) const {
    return base_ + (box * pipeline_.tiles + tile) * static_cast<unsigned>(sizeof(SlotBook));
  }
  WAVENET_DEVICE void expect(int box, int tile, int rows) const {
    const int bytes = rows * kTileStreams * 4;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier(box, tile)),
                 "r"(bytes)
                 : "memory");
  }

  const Task& task_;
  const Pipeline& pipeline_;
  const StageBlock& plan_;
  unsigned char* shared_;
  unsigned base_, index_;
};
#endif

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
  WAVENET_DEVICE GridMail(const Task& task, const Pipeline& pipeline, int index, const unsigned char* shared,
                          unsigned char* mail, unsigned char* flags)
      : task_(task),
        pipeline_(pipeline),
        plan_(own_plan(pipeline, shared)),
        index_(index),
        mail_(mail),
        flags_(flags) {}

  WAVENET_DEVICE const float* slot(int box, int tile) const { return place(plan_.box[box], tile); }

  WAVENET_DEVICE void put(int, int box, int tile, int row, int s, float a, float b) const {
    *reinterpret_cast<float2*>(place(plan_.next[box], tile) + row * kTileStreams + s) = make_float2(a, b);
  }

  WAVENET_DEVICE void post(int to, int box, int tile, int64_t use) const {
    if (threadIdx.x != 0) return;
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag(to, box, tile)), "r"(after(use))
                 : "memory");
  }

  WAVENET_DEVICE bool wait(const Awaited& message) const {
    bool found = true;
    if (threadIdx.x == 0) {
      const uint32_t* count = flag(index_, message.box, message.tile);
      found = look(task_, kMostLooksDevice, index_, [&] {
        uint32_t now;
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(count) : "memory");
        return static_cast<int32_t>(now - after(message.use)) >= 0;
      });
      asm volatile("fence.acq_rel.gpu;" ::: "memory");
    }
    return __syncthreads_and(found ? 1 : 0) != 0;
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

  const Task& task_;
  const Pipeline& pipeline_;
  const StageBlock& plan_;
  int index_;
  unsigned char* mail_;
  unsigned char* flags_;
};

#endif

}  // namespace wavenet::cuda
