// Rounding a float to the bits of a float16 or bfloat16, to nearest even, by integers alone.
#pragma once

#include "transforms.h"

namespace xinit {

XINIT_HD uint16_t bfloat16_bits(float x) {
  const uint32_t u = static_cast<uint32_t>(ScalarLanes::bits(x));
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

XINIT_HD uint16_t float16_bits(float x) {
  const uint32_t u = static_cast<uint32_t>(ScalarLanes::bits(x)), sign = (u >> 16) & 0x8000;
  const uint32_t magnitude = u & 0x7fffffff;
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {
    // Below 2^-14 the result is a multiple of 2^-24: adding 1/2 puts exactly those bits at the end of the significand.
    const float aligned = ScalarLanes::from_bits(static_cast<int32_t>(magnitude)) + 0.5f;
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(ScalarLanes::bits(aligned) - 0x3f000000));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
}

}  // namespace xinit
