// The sample loop on 256-bit vectors; built with -mavx2 -mfma, run where the processor has both.
#include <immintrin.h>

#include "cpu/task.h"

namespace wavenet::cpu::avx2 {
namespace {

typedef float Vec __attribute__((vector_size(32)));
typedef int32_t IntVec __attribute__((vector_size(32)));

inline Vec splat(float x) { return (Vec)_mm256_set1_ps(x); }
inline Vec fma(Vec a, Vec b, Vec c) { return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }

}  // namespace
#include "cpu/kernel.inc"
}  // namespace wavenet::cpu::avx2
