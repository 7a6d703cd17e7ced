// The operations that kernels need: phases of a block, warps, asynchronous copies.
//
// A kernel consists of phases, functions of the thread number with a barrier after each. On a GPU every
// thread calls the function once. On the host one thread calls it for every number in turn, so that tests run
// the same source without a GPU. A phase must not read what another thread writes in the same phase; running
// threads in reverse order on the host detects that.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__CUDACC__)
#define WAVENET_DEVICE __device__ __forceinline__
#define WAVENET_UNROLL _Pragma("unroll")
#define WAVENET_UNROLL_8 _Pragma("unroll 8")
#else
#define WAVENET_DEVICE inline
#define WAVENET_UNROLL
#define WAVENET_UNROLL_8
#endif

namespace wavenet::cuda {

constexpr int kWarpSize = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;

// Adjacent numbers that are read at once.
template <int kCount>
struct alignas(kCount * sizeof(float) < 16 ? kCount * sizeof(float) : 16) Pack {
  float value[kCount];
};

#if defined(__CUDACC__)

class DeviceWarp {
 public:
  WAVENET_DEVICE DeviceWarp() : lane_(static_cast<int>(threadIdx.x) % kWarpSize) {}

  WAVENET_DEVICE int index() const { return static_cast<int>(threadIdx.x) / kWarpSize; }

  template <class Work>
  WAVENET_DEVICE void each(Work work) const {
    work(lane_);
    __syncwarp();
  }

  // Sum over lanes, always added in the same tree.
  template <class Value>
  WAVENET_DEVICE double sum(Value value) const {
    double total = value(lane_);
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
      total += __shfl_xor_sync(kAll, total, distance);
    }
    return total;
  }

  template <class T, class Value>
  WAVENET_DEVICE T max(Value value) const {
    T found = value(lane_);
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
      const T other = __shfl_xor_sync(kAll, found, distance);
      found = other > found ? other : found;
    }
    return found;
  }

  // Number of lanes for which `holds` returns true.
  template <class Holds>
  WAVENET_DEVICE int count(Holds holds) const {
    return __popc(__ballot_sync(kAll, holds(lane_)));
  }

  // First lane for which `holds` returns true, or kWarpSize.
  template <class Holds>
  WAVENET_DEVICE int first(Holds holds) const {
    const unsigned found = __ballot_sync(kAll, holds(lane_));
    return found == 0 ? kWarpSize : __ffs(static_cast<int>(found)) - 1;
  }

  // Broadcasts the value that one lane computes.
  template <class Value>
  WAVENET_DEVICE int from(int lane, Value value) const {
    return __shfl_sync(kAll, lane == lane_ ? value(lane_) : 0, lane);
  }

 private:
  static constexpr unsigned kAll = 0xffffffffu;
  int lane_;
};

struct DeviceBlock {
  template <class Work>
  WAVENET_DEVICE void phase(Work work) const {
    work(static_cast<int>(threadIdx.x));
    __syncthreads();
  }

  template <class Work>
  WAVENET_DEVICE void warps(Work work) const {
    work(DeviceWarp());
    __syncthreads();
  }

  // All threads can read the copy after the copying thread has waited for it and passed a barrier.
  WAVENET_DEVICE static void start_copy(float* to_shared, const float* from) {
#if __CUDA_ARCH__ >= 800
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to_shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(from) : "memory");
#else
    *to_shared = *from;
#endif
  }
  WAVENET_DEVICE static void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
  }
};

template <int kCount>
WAVENET_DEVICE Pack<kCount> read_weights(const float* from) {
  static_assert(kCount == 4, "weights are read in fours");
  const float4 four = __ldg(reinterpret_cast<const float4*>(from));
  return {{four.x, four.y, four.z, four.w}};
}

WAVENET_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
WAVENET_DEVICE float divided(float a, float b) { return __fdiv_rn(a, b); }
WAVENET_DEVICE int32_t bits_of(float x) { return __float_as_int(x); }
WAVENET_DEVICE float float_of(int32_t bits) { return __int_as_float(bits); }
WAVENET_DEVICE void atomic_min(int64_t* to, int64_t value) {
  atomicMin(reinterpret_cast<long long*>(to), static_cast<long long>(value));
}

#else

// Runs lanes or threads in order or, with `backward`, in reverse order; data races change the results.
class HostWarp {
 public:
  HostWarp(int index, bool backward) : index_(index), backward_(backward) {}

  int index() const { return index_; }

  template <class Work>
  void each(Work work) const {
    for (int i = 0; i < kWarpSize; ++i) work(backward_ ? kWarpSize - 1 - i : i);
  }

  template <class Value>
  double sum(Value value) const {
    double lanes[kWarpSize];
    for (int lane = 0; lane < kWarpSize; ++lane) lanes[lane] = value(lane);
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
      for (int lane = 0; lane < distance; ++lane) lanes[lane] += lanes[lane + distance];
    }
    return lanes[0];
  }

  template <class T, class Value>
  T max(Value value) const {
    T found = value(0);
    for (int lane = 1; lane < kWarpSize; ++lane) {
      const T other = value(lane);
      found = other > found ? other : found;
    }
    return found;
  }

  template <class Holds>
  int count(Holds holds) const {
    int found = 0;
    for (int lane = 0; lane < kWarpSize; ++lane) found += holds(lane) ? 1 : 0;
    return found;
  }

  template <class Holds>
  int first(Holds holds) const {
    int lane = 0;
    while (lane < kWarpSize && !holds(lane)) ++lane;
    return lane;
  }

  template <class Value>
  int from(int lane, Value value) const {
    return value(lane);
  }

 private:
  int index_;
  bool backward_;
};

// Copies immediately or, with `backward`, as late as possible: when the kernel waits for copies.
class HostBlock {
 public:
  explicit HostBlock(bool backward, int warp_count = kWarps) : backward_(backward), warp_count_(warp_count) {
    deferred = backward;
    pending.clear();
  }

  template <class Work>
  void phase(Work work) const {
    const int threads = warp_count_ * kWarpSize;
    for (int i = 0; i < threads; ++i) work(backward_ ? threads - 1 - i : i);
  }

  template <class Work>
  void warps(Work work) const {
    for (int i = 0; i < warp_count_; ++i) work(HostWarp(backward_ ? warp_count_ - 1 - i : i, backward_));
  }

  static void start_copy(float* to_shared, const float* from) {
    if (deferred) {
      pending.push_back({to_shared, from});
    } else {
      *to_shared = *from;
    }
  }
  static void wait_for_copies() {
    for (const Copy& copy : pending) *copy.to = *copy.from;
    pending.clear();
  }

 private:
  struct Copy {
    float* to;
    const float* from;
  };
  static inline thread_local bool deferred = false;
  static inline thread_local std::vector<Copy> pending;

  bool backward_;
  int warp_count_;
};

template <int kCount>
inline Pack<kCount> read_weights(const float* from) {
  Pack<kCount> weights;
  std::memcpy(&weights, from, sizeof(weights));
  return weights;
}

inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float divided(float a, float b) { return a / b; }
inline int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float float_of(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline void atomic_min(int64_t* to, int64_t value) {
  int64_t found = __atomic_load_n(to, __ATOMIC_RELAXED);
  while (value < found) {
    if (__atomic_compare_exchange_n(to, &found, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return;
  }
}

#endif

}  // namespace wavenet::cuda
