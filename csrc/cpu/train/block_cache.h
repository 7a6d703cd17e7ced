// A cache of memory blocks that successive training steps reuse.
//
// A step allocates hundreds of megabytes. The system provides them page by page, each with a page fault and
// filled with zeros, which takes 5 to 10 % of a step. While the cache is enabled, it keeps released blocks
// for later requests of the same size.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

namespace wavenet::cpu {

// All functions are thread-safe, and several networks can share the cache. Used and idle blocks together are
// limited to the maximum that was ever requested at one time. If a new block would exceed that, the cache
// uses an idle block of up to twice the size, or returns the blocks that have been idle for longest to the
// system.
class BlockCache {
 public:
  // Calls nest: the cache is enabled until every `enable(true)` has been followed by an `enable(false)`. The
  // last one returns all idle blocks to the system; blocks in use follow when they are released.
  void enable(bool on);
  bool enabled();

  // Returns whole pages with undefined content. Throws std::bad_alloc.
  void* allocate(size_t bytes);
  void release(void* begin) noexcept;

  struct Usage {
    size_t used, idle;  // bytes
  };
  Usage usage();

 private:
  struct Block {
    void* begin;
    size_t bytes;      // capacity, see `capacity_for`
    size_t requested;  // while in use: the capacity that was requested
    void* mapping;
    size_t mapped;
  };

  size_t find_idle(size_t minimum, size_t maximum) const;
  Block map(size_t capacity, size_t requested);
  static void unmap(const Block& block) noexcept;
  void shrink_to(size_t bytes) noexcept;
  void drop_oldest() noexcept;

  std::mutex mutex_;
  int64_t users_ = 0;
  std::vector<Block> used_, idle_;  // longest idle first
  size_t used_bytes_ = 0, idle_bytes_ = 0;
  size_t requested_ = 0,
         max_requested_ = 0;  // of blocks in use: now, and the maximum since the cache was enabled
};

// Returns the cache of the process. It is never destroyed, since tensors may outlive static objects.
BlockCache& block_cache();

}  // namespace wavenet::cpu
