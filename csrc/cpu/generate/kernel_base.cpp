// The sample loop with 128-bit vectors and without fused multiply-add, for any processor.
#include "cpu/params.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace wavenet::cpu::base {
namespace {

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(16)));
constexpr int kRegisters = 16;
constexpr bool kSignedInputs = false;

inline Vec splat(float x) { return Vec{x, x, x, x}; }
inline IntVec splat_word(int32_t x) { return IntVec{x, x, x, x}; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline void keep_in_register(IntVec&) {}
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }

inline IntVec dot(IntVec sums, IntVec weights, IntVec inputs) {
#if defined(__SSE2__)
  // Widens bytes in place to 16 bits: the even bytes of a lane, then the odd ones.
  const __m128i w = (__m128i)weights, x = (__m128i)inputs;
  const __m128i even =
      _mm_madd_epi16(_mm_srai_epi16(_mm_slli_epi16(w, 8), 8), _mm_and_si128(x, _mm_set1_epi16(0xff)));
  const __m128i odd = _mm_madd_epi16(_mm_srai_epi16(w, 8), _mm_srli_epi16(x, 8));
  return (IntVec)_mm_add_epi32((__m128i)sums, _mm_add_epi32(even, odd));
#else
  for (int byte = 0; byte < 4; ++byte) {
    sums += ((weights << (24 - 8 * byte)) >> 24) * ((inputs >> (8 * byte)) & 0xff);
  }
  return sums;
#endif
}

inline int32_t max_lane(IntVec x) {
  const int32_t a = x[0] > x[1] ? x[0] : x[1], b = x[2] > x[3] ? x[2] : x[3];
  return a > b ? a : b;
}

inline void store_low_bytes(int32_t* to, IntVec x) {
  const unsigned char bytes[4] = {static_cast<unsigned char>(x[0]), static_cast<unsigned char>(x[1]),
                                  static_cast<unsigned char>(x[2]), static_cast<unsigned char>(x[3])};
  __builtin_memcpy(to, bytes, sizeof(bytes));
}

}  // namespace
#include "cpu/generate/kernel.inc"
}  // namespace wavenet::cpu::base
