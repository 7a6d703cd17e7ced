// The passes of training with 512-bit vectors.
#include <immintrin.h>

#include "cpu/train/training.h"

namespace wavenet::cpu::avx512 {
// clang-format off
#include "cpu/simd/vector512.inc"
#include "cpu/train/gated_layer.inc"
// clang-format on
}  // namespace wavenet::cpu::avx512
