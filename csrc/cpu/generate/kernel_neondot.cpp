// As kernel_neon.cpp, with the int8 dot product of Armv8.2.
#include <arm_neon.h>

#include "cpu/params.h"

namespace wavenet::cpu::neondot {
#include "cpu/simd/vector_neon.inc"
namespace {

inline IntVec dot(IntVec sums, IntVec weights, IntVec inputs) {
  return (IntVec)vdotq_s32((int32x4_t)sums, (int8x16_t)weights, (int8x16_t)inputs);
}

}  // namespace
#include "cpu/generate/kernel.inc"
}  // namespace wavenet::cpu::neondot
