// The uniform numbers for sampling, equal to those of numpy's counter-based generator.
#pragma once

#include <cstdint>

namespace wavenet {

// Identifies a sequence of numbers. Positions in it count 64-bit words; each counter value yields four.
struct Sequence {
  uint64_t seed, stream, substream;
};

// Writes numbers `position` to `position + count - 1` of a sequence. Each is in [0, 1) and has the top 24
// bits of a word of Philox4x64-10 (Salmon et al. 2011) with the key (seed, stream) and the substream as the
// second word of the counter.
void uniforms(const Sequence& sequence, uint64_t position, int64_t count, float* to);

}  // namespace wavenet
