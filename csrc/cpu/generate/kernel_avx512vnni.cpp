// As kernel_avx512.cpp, with the int8 dot product of AVX-512 VNNI.
#include <immintrin.h>

#include "cpu/params.h"

namespace wavenet::cpu::avx512vnni {
#include "cpu/simd/vector512.inc"
namespace {

inline IntVec dot(IntVec sums, IntVec weights, IntVec inputs) {
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)inputs, (__m512i)weights);
}

}  // namespace
#include "cpu/generate/kernel.inc"
}  // namespace wavenet::cpu::avx512vnni
