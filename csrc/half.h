// Rounding a float to the bits of a float16 or bfloat16, to nearest even, by integers alone. L names the lanes: see
// transforms.h.
#pragma once

#include "transforms.h"

namespace xinit {

// Adding 0x7fff, or 0x8000 to an odd one, carries into the upper half where it rounds up.
template <class L>
XINIT_HD typename L::U bfloat16_bits(typename L::F x) {
  const typename L::U u = L::as_unsigned(L::bits(x));
  return (u + (0x7fff + ((u >> 16) & 1))) >> 16;
}

template <class L>
XINIT_HD typename L::U float16_bits(typename L::F x) {
  using I = typename L::I;
  const I sign = (L::bits(x) >> 16) & 0x8000, magnitude = L::bits(x) & 0x7fffffff;
  // Below 2^-14 the result is a multiple of 2^-24: adding 1/2 puts exactly those bits at the end of the significand.
  const I subnormal = L::bits(L::from_bits(magnitude) + 0.5f) - 0x3f000000;
  const I normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const I finite = L::select(magnitude < 0x38800000, subnormal, normal);
  return L::as_unsigned(sign | L::select(magnitude >= 0x477ff000, I{} + 0x7c00, finite));  // from 65520 on: infinity
}

}  // namespace xinit
