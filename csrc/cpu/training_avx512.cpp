// Training's layers on 512-bit vectors.
#include <immintrin.h>

#include "cpu/training.h"

namespace wavenet::cpu::avx512 {
#include "cpu/training.inc"
#include "cpu/vector512.inc"
}  // namespace wavenet::cpu::avx512
