// Several threads allocate blocks, fill them, check that no other thread has written to them, and release
// them. check_cpu.sh runs this under sanitizers.
#include <cstdint>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "cpu/train/block_cache.h"

namespace {

constexpr size_t kLargest = size_t{5} << 20;
constexpr int kThreads = 4, kTurns = 400, kBlocks = 3;

struct Allocation {
  uint8_t* begin;
  size_t bytes;
  uint8_t mark;
};

// Calls `work` with one byte of every page and with the last byte.
template <typename Work>
void at_places(const Allocation& mine, Work work) {
  for (size_t at = 0; at < mine.bytes; at += 4096) work(mine.begin[at]);
  work(mine.begin[mine.bytes - 1]);
}

int64_t allocate_and_release(uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Allocation> mine;
  int64_t wrong = 0;
  const auto release = [&] {
    at_places(mine.front(), [&](uint8_t& byte) { wrong += byte != mine.front().mark; });
    wavenet::cpu::block_cache().release(mine.front().begin);
    mine.erase(mine.begin());
  };
  for (int turn = 0; turn < kTurns; ++turn) {
    const size_t bytes = 1 + random() % kLargest;
    Allocation next{static_cast<uint8_t*>(wavenet::cpu::block_cache().allocate(bytes)), bytes,
                    static_cast<uint8_t>(random())};
    at_places(next, [&](uint8_t& byte) { byte = next.mark; });
    mine.push_back(next);
    if (mine.size() == kBlocks) release();
    if (turn % 100 == 50) wavenet::cpu::block_cache().enable(turn % 200 == 50);
  }
  while (!mine.empty()) release();
  return wrong;
}

}  // namespace

int main() {
  std::vector<int64_t> wrong(kThreads);
  std::vector<std::thread> threads;
  wavenet::cpu::block_cache().enable(true);
  for (int number = 0; number < kThreads; ++number) {
    threads.emplace_back(
        [&, number] { wrong[number] = allocate_and_release(static_cast<uint32_t>(number)); });
  }
  int64_t sum = 0;
  for (int number = 0; number < kThreads; ++number) {
    threads[number].join();
    sum += wrong[number];
  }
  const auto kept = wavenet::cpu::block_cache().usage();
  wavenet::cpu::block_cache().enable(false);
  const auto left = wavenet::cpu::block_cache().usage();
  const bool bounded = kept.idle <= kThreads * kBlocks * (kLargest + kLargest / 8);
  std::printf("block cache: %lld wrong bytes, %zu bytes idle while enabled, %zu afterwards\n",
              static_cast<long long>(sum), kept.idle, left.used + left.idle);
  return sum == 0 && kept.idle > 0 && bounded && left.used + left.idle == 0 ? 0 : 1;
}
