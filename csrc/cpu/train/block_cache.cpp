#include "cpu/train/block_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>

namespace wavenet::cpu {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Rounds up to one of eight sizes per power of two, so that layers of similar lengths share blocks. Pages
// that are never written use no memory.
size_t capacity_for(size_t bytes) {
  size_t eighth = size_t{1} << 12;
  while (16 * eighth < bytes) eighth *= 2;
  return (bytes + eighth - 1) / eighth * eighth;
}

}  // namespace

BlockCache& block_cache() {
  static BlockCache& all = *new BlockCache;
  return all;
}

void BlockCache::enable(bool on) {
  const std::lock_guard<std::mutex> lock(mutex_);
  users_ += on ? 1 : -1;
  if (users_ > 0) return;
  users_ = 0;
  shrink_to(0);
  max_requested_ = requested_;
}

bool BlockCache::enabled() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return users_ > 0;
}

void* BlockCache::allocate(size_t bytes) {
  const size_t capacity = capacity_for(bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  // Reserves space in advance, so that neither the code below nor `release` allocates.
  used_.reserve(used_.size() + 1);
  idle_.reserve(idle_.size() + used_.size() + 1);
  const size_t limit = std::max(max_requested_, requested_ + capacity);
  size_t found = find_idle(capacity, capacity);
  if (found == idle_.size() && used_bytes_ + idle_bytes_ + capacity > limit)
    found = find_idle(capacity, 2 * capacity);
  Block block;
  if (found < idle_.size()) {
    block = idle_[found];
    idle_.erase(idle_.begin() + static_cast<ptrdiff_t>(found));
    idle_bytes_ -= block.bytes;
  } else {
    shrink_to(limit - capacity);
    block = map(capacity, bytes);
  }
  block.requested = capacity;
  used_.push_back(block);
  used_bytes_ += block.bytes;
  requested_ += capacity;
  max_requested_ = limit;
  return block.begin;
}

void BlockCache::release(void* begin) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found =
      std::find_if(used_.begin(), used_.end(), [&](const Block& block) { return block.begin == begin; });
  const Block block = *found;
  used_.erase(found);
  used_bytes_ -= block.bytes;
  requested_ -= block.requested;
  if (users_ == 0) {
    unmap(block);
    return;
  }
  idle_.push_back(block);
  idle_bytes_ += block.bytes;
  // A block larger than requested may have raised the total above the limit.
  shrink_to(max_requested_);
}

BlockCache::Usage BlockCache::usage() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return {used_bytes_, idle_bytes_};
}

// Returns the index of the smallest idle block of `minimum` to `maximum` bytes, of several the one released
// last; idle_.size() if there is none.
size_t BlockCache::find_idle(size_t minimum, size_t maximum) const {
  size_t best = idle_.size();
  for (size_t i = idle_.size(); i-- > 0;) {
    const size_t bytes = idle_[i].bytes;
    if (bytes < minimum || bytes > maximum) continue;
    if (best == idle_.size() || bytes < idle_[best].bytes) best = i;
  }
  return best;
}

BlockCache::Block BlockCache::map(size_t capacity, size_t requested) {
  const size_t mapped = capacity + kHugePage;
  void* mapping = MAP_FAILED;
  while ((mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) ==
         MAP_FAILED) {
    if (idle_.empty()) throw std::bad_alloc();
    drop_oldest();
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(mapping);
  void* begin = reinterpret_cast<void*>((address + kHugePage - 1) / kHugePage * kHugePage);
#ifdef MADV_HUGEPAGE
  // Whole huge pages only, since part of another one would be wasted.
  if (requested >= kHugePage) madvise(begin, requested / kHugePage * kHugePage, MADV_HUGEPAGE);
#else
  (void)requested;
#endif
  return {begin, capacity, capacity, mapping, mapped};
}

void BlockCache::unmap(const Block& block) noexcept { munmap(block.mapping, block.mapped); }

void BlockCache::shrink_to(size_t bytes) noexcept {
  while (!idle_.empty() && used_bytes_ + idle_bytes_ > bytes) drop_oldest();
}

void BlockCache::drop_oldest() noexcept {
  unmap(idle_.front());
  idle_bytes_ -= idle_.front().bytes;
  idle_.erase(idle_.begin());
}

}  // namespace wavenet::cpu
