// Training's layers on 256-bit vectors.
#include <immintrin.h>

#include "cpu/training.h"

namespace wavenet::cpu::avx2 {
#include "cpu/vector256.inc"
#include "cpu/training.inc"
}  // namespace wavenet::cpu::avx2
