#include "cpu/train/block_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>

namespace wavenet::cpu {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Eight sizes from one power of two to the next, so that layers whose lengths differ a little share blocks.
// Pages that nobody touches take no memory.
size_t room_for(size_t bytes) {
  size_t eighth = size_t{1} << 12;
  while (16 * eighth < bytes) eighth *= 2;
  return (bytes + eighth - 1) / eighth * eighth;
}

}  // namespace

Blocks& blocks() {
  static Blocks& all = *new Blocks;
  return all;
}

void Blocks::keep(bool on) {
  const std::lock_guard<std::mutex> lock(mutex_);
  keepers_ += on ? 1 : -1;
  if (keepers_ > 0) return;
  keepers_ = 0;
  shrink_to(0);
  most_wanted_ = wanted_;
}

bool Blocks::kept() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return keepers_ > 0;
}

void* Blocks::take(size_t bytes) {
  const size_t room = room_for(bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  // So that nothing below, nor `give`, needs memory for itself.
  used_.reserve(used_.size() + 1);
  idle_.reserve(idle_.size() + used_.size() + 1);
  const size_t most = std::max(most_wanted_, wanted_ + room);
  size_t found = find_idle(room, room);
  if (found == idle_.size() && used_bytes_ + idle_bytes_ + room > most) found = find_idle(room, 2 * room);
  Block block;
  if (found < idle_.size()) {
    block = idle_[found];
    idle_.erase(idle_.begin() + static_cast<ptrdiff_t>(found));
    idle_bytes_ -= block.bytes;
  } else {
    shrink_to(most - room);
    block = map(room, bytes);
  }
  block.wanted = room;
  used_.push_back(block);
  used_bytes_ += block.bytes;
  wanted_ += room;
  most_wanted_ = most;
  return block.begin;
}

void Blocks::give(void* begin) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found =
      std::find_if(used_.begin(), used_.end(), [&](const Block& block) { return block.begin == begin; });
  const Block block = *found;
  used_.erase(found);
  used_bytes_ -= block.bytes;
  wanted_ -= block.wanted;
  if (keepers_ == 0) {
    unmap(block);
    return;
  }
  idle_.push_back(block);
  idle_bytes_ += block.bytes;
  // One that served for less may have made it more.
  shrink_to(most_wanted_);
}

Blocks::Held Blocks::held() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return {used_bytes_, idle_bytes_};
}

// The smallest of those that were idle for least long, with at least so many bytes and at most so many; one
// past the last where there is none.
size_t Blocks::find_idle(size_t least, size_t most) const {
  size_t best = idle_.size();
  for (size_t i = idle_.size(); i-- > 0;) {
    const size_t bytes = idle_[i].bytes;
    if (bytes < least || bytes > most) continue;
    if (best == idle_.size() || bytes < idle_[best].bytes) best = i;
  }
  return best;
}

Blocks::Block Blocks::map(size_t room, size_t wanted) {
  const size_t mapped = room + kHugePage;
  void* mapping = MAP_FAILED;
  while ((mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) ==
         MAP_FAILED) {
    if (idle_.empty()) throw std::bad_alloc();
    drop_oldest();
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(mapping);
  void* begin = reinterpret_cast<void*>((address + kHugePage - 1) / kHugePage * kHugePage);
#ifdef MADV_HUGEPAGE
  // Whole ones only: the rest of another would be taken for nothing.
  if (wanted >= kHugePage) madvise(begin, wanted / kHugePage * kHugePage, MADV_HUGEPAGE);
#else
  (void)wanted;
#endif
  return {begin, room, room, mapping, mapped};
}

void Blocks::unmap(const Block& block) noexcept { munmap(block.mapping, block.mapped); }

void Blocks::shrink_to(size_t bytes) noexcept {
  while (!idle_.empty() && used_bytes_ + idle_bytes_ > bytes) drop_oldest();
}

void Blocks::drop_oldest() noexcept {
  unmap(idle_.front());
  idle_bytes_ -= idle_.front().bytes;
  idle_.erase(idle_.begin());
}

}  // namespace wavenet::cpu
