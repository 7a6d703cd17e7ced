// The passes of training in bf16, with the dot product of AVX-512 BF16.
#include <immintrin.h>

#include "cpu/train/training.h"

#define WAVENET_DOT2 1

namespace wavenet::cpu::avx512bf16 {
#include "cpu/simd/vector512.inc"
namespace {

inline Vec dot2(Vec sums, Vec words, IntVec inputs) {
  return (Vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)(__m512i)inputs, (__m512bh)(__m512i)words);
}

inline void write_bf16(uint16_t* to, Vec value) {
  const __m256i narrow = (__m256i)_mm512_cvtneps_pbh((__m512)value);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow);
}

inline Vec read_bf16(const uint16_t* from) {
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
}

// Returns words with `low` in the lower halves and `high` in the upper halves.
inline Vec pair_bf16(Vec low, Vec high) {
  const __m512i lower = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)low));
  const __m512i upper = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)high));
  return (Vec)_mm512_or_si512(lower, _mm512_slli_epi32(upper, 16));
}

}  // namespace
#include "cpu/train/gated_layer.inc"
}  // namespace wavenet::cpu::avx512bf16
