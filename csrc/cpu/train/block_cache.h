// Memory that one step of training gives back and the next takes again.
//
// A step takes hundreds of megabytes. The system hands memory out page by page, each with a fault and filled
// with zeros: 5 to 10 % of a step. So while training asks for it, blocks that are given back are kept for the
// next that ask for as much.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

namespace wavenet::cpu {

// Blocks may be taken and given back by any thread, and by several networks at once. Blocks are idle only
// within what was once wanted at one time, used and idle ones together: where a new one would go beyond that,
// an idle one of up to twice the size serves, or those that have been idle for longest go back to the system.
class Blocks {
 public:
  // Blocks are kept from the first `keep(true)` to the `keep(false)` for the last of them, which gives all
  // that are idle back to the system; those in use follow when they are given.
  void keep(bool on);
  bool kept();

  // Whole pages, of any content. Throws std::bad_alloc.
  void* take(size_t bytes);
  void give(void* begin) noexcept;

  struct Held {
    size_t used, idle;  // bytes
  };
  Held held();

 private:
  struct Block {
    void* begin;
    size_t bytes;   // of room, one of few sizes
    size_t wanted;  // while in use: the size that would have done
    void* mapping;
    size_t mapped;
  };

  size_t find_idle(size_t least, size_t most) const;
  Block map(size_t room, size_t wanted);
  static void unmap(const Block& block) noexcept;
  void shrink_to(size_t bytes) noexcept;
  void drop_oldest() noexcept;

  std::mutex mutex_;
  int64_t keepers_ = 0;
  std::vector<Block> used_, idle_;  // idle for longest first
  size_t used_bytes_ = 0, idle_bytes_ = 0;
  size_t wanted_ = 0, most_wanted_ = 0;  // of those in use; at one time, since blocks are kept
};

// The process's. It has no end, as tensors may have none.
Blocks& blocks();

}  // namespace wavenet::cpu
