// The passes of training with 256-bit vectors.
#include <immintrin.h>

#include "cpu/train/training.h"

namespace wavenet::cpu::avx2 {
// clang-format off
#include "cpu/simd/vector256.inc"
#include "cpu/train/gated_layer.inc"
// clang-format on
}  // namespace wavenet::cpu::avx2
