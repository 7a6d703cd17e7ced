#include "core/philox.h"

namespace wavenet {
namespace {

struct Block {
  uint64_t word[4];
};

struct Wide {
  uint64_t high, low;
};

Wide multiply(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return {static_cast<uint64_t>(product >> 64), static_cast<uint64_t>(product)};
}

Block philox(Block counter, uint64_t key0, uint64_t key1) {
  for (int round = 0; round < 10; ++round) {
    const Wide a = multiply(0xD2E7470EE14C6C93u, counter.word[0]);
    const Wide b = multiply(0xCA5A826395121157u, counter.word[2]);
    counter = {{b.high ^ counter.word[1] ^ key0, b.low, a.high ^ counter.word[3] ^ key1, a.low}};
    key0 += 0x9E3779B97F4A7C15u;
    key1 += 0xBB67AE8584CAA73Bu;
  }
  return counter;
}

}  // namespace

void uniforms(const Sequence& sequence, uint64_t position, int64_t count, float* to) {
  uint64_t skipped = position % 4;
  // numpy increments the counter before it returns the first block.
  for (uint64_t block = position / 4 + 1; count > 0; ++block) {
    const Block words = philox({{block, sequence.substream, 0, 0}}, sequence.seed, sequence.stream);
    for (; skipped < 4 && count > 0; ++skipped, --count) {
      *to++ = static_cast<float>(words.word[skipped] >> 40) / 16777216.0f;
    }
    skipped = 0;
  }
}

}  // namespace wavenet
