// The sample loop on 128-bit vectors without a fused multiply-add: every x86-64, and any other processor.
#include "cpu/task.h"

namespace wavenet::cpu::base {
namespace {

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(16)));

inline Vec splat(float x) { return Vec{x, x, x, x}; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }

}  // namespace
#include "cpu/kernel.inc"
}  // namespace wavenet::cpu::base
