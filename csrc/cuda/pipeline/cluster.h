// The operations that messages between blocks need: GPU instructions, or on the host (host_threads.h)
// atomics, with one thread for each block.
#pragma once

#include <cstdint>

#include "cuda/platform.h"

#if !defined(__CUDACC__)
#include <thread>
#endif

namespace wavenet::cuda {

#if defined(__CUDACC__)

WAVENET_DEVICE int first_thread() { return static_cast<int>(threadIdx.x); }
WAVENET_DEVICE int thread_count() { return static_cast<int>(blockDim.x); }
// Barrier that returns whether `holds` is true for all threads of the block.
WAVENET_DEVICE bool for_all_threads(bool holds) { return __syncthreads_and(holds ? 1 : 0) != 0; }

// Operations on device memory. The store has release semantics; the load is relaxed, and the fence after a
// successful poll adds acquire semantics.
WAVENET_DEVICE void store_released(uint32_t* to, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
WAVENET_DEVICE uint32_t load_relaxed(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
WAVENET_DEVICE void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

WAVENET_DEVICE int64_t load_volatile(const int64_t* from) {
  return *static_cast<const volatile int64_t*>(from);
}
WAVENET_DEVICE void pause() {}

#if __CUDA_ARCH__ >= 900
// The blocks of a thread-block cluster. Addresses are in a block's shared memory; `there` converts one to the
// same location in another block. (PTX ISA: st.async, mbarrier, barrier.cluster.)
class DeviceCluster {
 public:
  using Address = unsigned;

  WAVENET_DEVICE explicit DeviceCluster(const void* shared)
      : base_(static_cast<unsigned>(__cvta_generic_to_shared(shared))) {
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(index_));
  }

  WAVENET_DEVICE int index() const { return static_cast<int>(index_); }
  WAVENET_DEVICE Address at(int offset) const { return base_ + static_cast<unsigned>(offset); }
  WAVENET_DEVICE Address there(Address here, int rank) const {
    unsigned remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(here), "r"(rank));
    return remote;
  }

  // A barrier whose phase ends when its owner has announced a number of bytes and they have arrived.
  WAVENET_DEVICE void start(Address barrier) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
  }
  WAVENET_DEVICE void publish_barriers() const {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  WAVENET_DEVICE void expect(Address barrier, int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
  }
  // Returns whether the phase of this parity has ended; if so, its data can be read.
  WAVENET_DEVICE bool ended(Address barrier, unsigned parity) const {
    unsigned found;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.test_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(found)
        : "r"(barrier), "r"(parity)
        : "memory");
    return found != 0;
  }

  // Writes two numbers to another block and counts their bytes at a barrier there.
  WAVENET_DEVICE void send(Address to, float a, float b, Address barrier) const {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to),
        "f"(a), "f"(b), "r"(barrier)
        : "memory");
  }
  WAVENET_DEVICE int read(Address from) const {
    int number;
    asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(number) : "r"(from) : "memory");
    return number;
  }

  // Barrier of all blocks; afterwards, each sees all earlier writes of the others.
  WAVENET_DEVICE void sync() const {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }

 private:
  unsigned base_, index_;
};
#endif

#else

inline int first_thread() { return 0; }
inline int thread_count() { return 1; }
inline bool for_all_threads(bool holds) { return holds; }

inline void store_released(uint32_t* to, uint32_t value) { __atomic_store_n(to, value, __ATOMIC_RELEASE); }
// Has acquire semantics itself, since the thread sanitizer does not support fences.
inline uint32_t load_relaxed(const uint32_t* from) { return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
inline void fence() {}

inline int64_t load_volatile(const int64_t* from) { return __atomic_load_n(from, __ATOMIC_RELAXED); }
inline void pause() { std::this_thread::yield(); }

#endif

}  // namespace wavenet::cuda
