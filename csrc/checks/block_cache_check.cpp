// Several threads take blocks, fill them, look that nobody else has written there, and give them back. Run
// under sanitizers by check_cpu.sh.
#include <cstdint>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "cpu/train/block_cache.h"

namespace {

constexpr size_t kLargest = size_t{5} << 20;
constexpr int kThreads = 4, kTurns = 400, kBlocks = 3;

struct Mine {
  uint8_t* begin;
  size_t bytes;
  uint8_t mark;
};

// A byte of every page, and the last.
template <typename Work>
void at_places(const Mine& mine, Work work) {
  for (size_t at = 0; at < mine.bytes; at += 4096) work(mine.begin[at]);
  work(mine.begin[mine.bytes - 1]);
}

int64_t take_and_give(uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Mine> mine;
  int64_t wrong = 0;
  const auto give = [&] {
    at_places(mine.front(), [&](uint8_t& byte) { wrong += byte != mine.front().mark; });
    wavenet::cpu::blocks().give(mine.front().begin);
    mine.erase(mine.begin());
  };
  for (int turn = 0; turn < kTurns; ++turn) {
    const size_t bytes = 1 + random() % kLargest;
    Mine next{static_cast<uint8_t*>(wavenet::cpu::blocks().take(bytes)), bytes,
              static_cast<uint8_t>(random())};
    at_places(next, [&](uint8_t& byte) { byte = next.mark; });
    mine.push_back(next);
    if (mine.size() == kBlocks) give();
    if (turn % 100 == 50) wavenet::cpu::blocks().keep(turn % 200 == 50);
  }
  while (!mine.empty()) give();
  return wrong;
}

}  // namespace

int main() {
  std::vector<int64_t> wrong(kThreads);
  std::vector<std::thread> threads;
  wavenet::cpu::blocks().keep(true);
  for (int number = 0; number < kThreads; ++number) {
    threads.emplace_back([&, number] { wrong[number] = take_and_give(static_cast<uint32_t>(number)); });
  }
  int64_t sum = 0;
  for (int number = 0; number < kThreads; ++number) {
    threads[number].join();
    sum += wrong[number];
  }
  const auto kept = wavenet::cpu::blocks().held();
  wavenet::cpu::blocks().keep(false);
  const auto left = wavenet::cpu::blocks().held();
  const bool bounded = kept.idle <= kThreads * kBlocks * (kLargest + kLargest / 8);
  std::printf("blocks: %lld bytes wrong, %zu idle while kept, %zu after\n", static_cast<long long>(sum),
              kept.idle, left.used + left.idle);
  return sum == 0 && kept.idle > 0 && bounded && left.used + left.idle == 0 ? 0 : 1;
}
