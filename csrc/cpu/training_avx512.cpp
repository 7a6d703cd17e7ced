// Training's layers on 512-bit vectors.
#include <immintrin.h>

#include "cpu/training.h"

namespace wavenet::cpu::avx512 {
// clang-format off
#include "cpu/vector512.inc"
#include "cpu/training.inc"
// clang-format on
}  // namespace wavenet::cpu::avx512
