// The sample loop for any 64-bit ARM processor.
#include <arm_neon.h>

#include "cpu/params.h"

namespace wavenet::cpu::neon {
#include "cpu/simd/vector_neon.inc"
namespace {

inline IntVec dot(IntVec sums, IntVec weights, IntVec inputs) {
  const int8x16_t w = (int8x16_t)weights, x = (int8x16_t)inputs;
  // Weights are never -128, so every product fits in 16 bits.
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
  const int32x4_t high = vpaddlq_s16(vmull_high_s8(w, x));
  return (IntVec)vaddq_s32((int32x4_t)sums, vpaddq_s32(low, high));
}

}  // namespace
#include "cpu/generate/kernel.inc"
}  // namespace wavenet::cpu::neon
