// The sample loop with 256-bit vectors, for processors with AVX2 and FMA.
#include <immintrin.h>

#include "cpu/params.h"

namespace wavenet::cpu::avx2 {
#include "cpu/simd/vector256.inc"
namespace {

// The byte product instruction saturates, so bytes are widened in place to 16 bits: the even bytes of a lane,
// then the odd ones.
inline IntVec dot(IntVec sums, IntVec weights, IntVec inputs) {
  const __m256i w = (__m256i)weights, x = (__m256i)inputs;
  const __m256i even = _mm256_madd_epi16(_mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8),
                                         _mm256_and_si256(x, _mm256_set1_epi16(0xff)));
  const __m256i odd = _mm256_madd_epi16(_mm256_srai_epi16(w, 8), _mm256_srli_epi16(x, 8));
  return (IntVec)_mm256_add_epi32((__m256i)sums, _mm256_add_epi32(even, odd));
}

inline int32_t max_lane(IntVec lanes) {
  __m128i x =
      _mm_max_epi32(_mm256_castsi256_si128((__m256i)lanes), _mm256_extracti128_si256((__m256i)lanes, 1));
  x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}

inline void store_low_bytes(int32_t* to, IntVec x) {
  const __m256i low = _mm256_and_si256((__m256i)x, _mm256_set1_epi32(0xff));
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
}

}  // namespace
#include "cpu/generate/kernel.inc"
}  // namespace wavenet::cpu::avx2
