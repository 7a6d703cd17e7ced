// The activation functions, with the same operations and rounding as in the CPU engine.
#pragma once

#include "cuda/platform.h"

namespace wavenet::cuda {

// All three return NaN for NaN, since a comparison with NaN is false.
WAVENET_DEVICE float at_least(float x, float low) { return x < low ? low : x; }
WAVENET_DEVICE float at_most(float x, float high) { return x > high ? high : x; }
WAVENET_DEVICE float relu(float x) { return at_least(x, 0.0f); }

// exp(x) = scale * (1 + fraction), where scale is a power of two and fraction = expm1 of the remainder.
struct Exponential {
  float scale, fraction;
};

// For x in [-87, 88]. Minimax coefficients on |r| <= ln(2)/2; the relative error of the fraction is 1.8e-8
// before rounding.
WAVENET_DEVICE Exponential exponential(float x) {
  // Adding 1.5 * 2^23 rounds to the nearest integer, in the low bits of the result.
  const float shifted = fused(x, 1.44269504f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  // ln(2) is split into two parts; the product of n and the first part is exact.
  float r = fused(n, -0.693359375f, x);
  r = fused(n, 2.12194440e-4f, r);
  float q = 0.0013882395578548312f;
  q = fused(q, r, 0.008367180824279785f);
  q = fused(q, r, 0.04166722297668457f);
  q = fused(q, r, 0.16666539013385773f);
  q = fused(q, r, 0.4999999701976776f);
  const uint32_t exponent = static_cast<uint32_t>(bits_of(shifted)) << 23;
  const uint32_t one = static_cast<uint32_t>(bits_of(1.0f));
  return {float_of(static_cast<int32_t>(exponent + one)), fused(q, r * r, r)};
}

// exp(x); zero if the result is below the smallest normal number.
WAVENET_DEVICE float exp(float x) {
  const Exponential e = exponential(at_least(at_most(x, 88.0f), -87.0f));
  return x < -87.0f ? 0.0f : fused(e.scale, e.fraction, e.scale);
}

// tanh(a) * sigmoid(b) with one division, computed with expm1(-2a) for accuracy at small a.
WAVENET_DEVICE float gate(float a, float b) {
  // Beyond |a| = 15, tanh rounds to 1 in float32.
  const Exponential e = exponential(at_least(at_most(-2.0f * a, 30.0f), -30.0f));
  const float m = fused(e.scale, e.fraction, e.scale - 1.0f);
  return divided(0.0f - m, (m + 2.0f) * (1.0f + exp(0.0f - b)));
}

}  // namespace wavenet::cuda
