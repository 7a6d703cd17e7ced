// The sample loop on 512-bit vectors; built with -mavx512f/bw/dq/vl, run where the processor has all four.
#include <immintrin.h>

#include "cpu/task.h"

namespace wavenet::cpu::avx512 {
namespace {

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IntVec __attribute__((vector_size(64)));

inline Vec splat(float x) { return (Vec)_mm512_set1_ps(x); }
inline Vec fma(Vec a, Vec b, Vec c) { return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }

}  // namespace
#include "cpu/kernel.inc"
}  // namespace wavenet::cpu::avx512
