// Training's layers on 256-bit vectors.
#include <immintrin.h>

#include "cpu/training.h"

namespace wavenet::cpu::avx2 {
// clang-format off
#include "cpu/vector256.inc"
#include "cpu/training.inc"
// clang-format on
}  // namespace wavenet::cpu::avx2
