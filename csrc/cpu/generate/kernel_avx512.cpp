// The sample loop with 512-bit vectors, for processors with AVX-512 F, BW, DQ and VL.
#include <immintrin.h>

#include "cpu/params.h"

namespace wavenet::cpu::avx512 {
#include "cpu/simd/vector512.inc"
namespace {

// As in kernel_avx2.cpp.
inline IntVec dot(IntVec sums, IntVec weights, IntVec inputs) {
  const __m512i w = (__m512i)weights, x = (__m512i)inputs;
  const __m512i even = _mm512_madd_epi16(_mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8),
                                         _mm512_and_si512(x, _mm512_set1_epi16(0xff)));
  const __m512i odd = _mm512_madd_epi16(_mm512_srai_epi16(w, 8), _mm512_srli_epi16(x, 8));
  return (IntVec)_mm512_add_epi32((__m512i)sums, _mm512_add_epi32(even, odd));
}

}  // namespace
#include "cpu/generate/kernel.inc"
}  // namespace wavenet::cpu::avx512
