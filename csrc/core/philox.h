// The uniform numbers that samples are drawn with, as numpy's counter-based generator gives them.
#pragma once

#include <cstdint>

namespace wavenet {

// Names a sequence of numbers; the position in it is counted in words, of which a step of the counter gives
// four.
struct Sequence {
  uint64_t seed, stream, substream;
};

// Writes numbers `position` to `position + count - 1` of a sequence, in [0, 1), to 24 bits: the top of the
// words of numpy's Philox keyed (seed, stream), whose counter has the substream in its second word (Salmon et
// al. 2011, Philox4x64-10).
void uniforms(const Sequence& sequence, uint64_t position, int64_t count, float* to);

}  // namespace wavenet
