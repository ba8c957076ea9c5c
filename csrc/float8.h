// Rounding a float to the bits of a float8: to nearest even, at most to the largest finite value, by integers alone.
#pragma once

#include "fill.h"
#include "transforms.h"

namespace xinit {

// What tells a float8 dtype from the others. Values are given as a float's bits.
struct Float8 {
  int32_t mantissa;       // bits of it
  int32_t largest;        // finite value
  int32_t least;          // normal value
  int32_t aligner;        // the power of two that has the least subnormal value as its last place
  int32_t negative_zero;  // 0x80; or 0 where there is none, for that is NaN

  static XINIT_HD Float8 of(Dtype dtype) {
    const bool fnuz = dtype == Dtype::kFloat8E4M3FNUZ || dtype == Dtype::kFloat8E5M2FNUZ;
    const bool e4m3 = dtype == Dtype::kFloat8E4M3FN || dtype == Dtype::kFloat8E4M3FNUZ;
    const int32_t mantissa = e4m3 ? 3 : 2, bias = (e4m3 ? 7 : 15) + (fnuz ? 1 : 0);
    const int32_t largest = !e4m3 ? 0x47600000 : fnuz ? 0x43700000 : 0x43e00000;  // 57344, 240, 448
    return {mantissa, largest, (128 - bias) << 23, (151 - bias - mantissa) << 23, fnuz ? 0 : 0x80};
  }
};

template <class L>
XINIT_HD typename L::I float8_bits(typename L::F x, const Float8& f) {
  using I = typename L::I;
  const I bits = L::bits(x), given = bits & 0x7fffffff;
  const I magnitude = L::select(given > f.largest, I{} + f.largest, given);
  // As in float16_bits: adding the aligner rounds to a multiple of the least subnormal value.
  const I subnormal = L::bits(L::from_bits(magnitude) + ScalarLanes::from_bits(f.aligner)) - f.aligner;
  const int32_t shift = 23 - f.mantissa;
  const I rebased = magnitude - (f.least - 0x800000);
  const I normal = (rebased + ((1 << (shift - 1)) - 1) + ((rebased >> shift) & 1)) >> shift;
  const I code = L::select(magnitude < f.least, subnormal, normal), sign = (bits >> 24) & 0x80;
  return code | L::select(code == 0, sign & f.negative_zero, sign);
}

}  // namespace xinit
