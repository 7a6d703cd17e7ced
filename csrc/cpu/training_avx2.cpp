// Training's layers on 256-bit vectors.
#include <immintrin.h>

#include "cpu/training.h"

namespace wavenet::cpu::avx2 {
#include "cpu/training.inc"
#include "cpu/vector256.inc"
}  // namespace wavenet::cpu::avx2
