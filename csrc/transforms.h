// From words to values: the contract's formulas (version 1), written once for every device and instruction set.
//
// L names the lanes: a float F, a signed word I and an unsigned word U, scalars or vectors of the same length, and what
// C++ operators do not say of them: fma, convert, bits, abs, select, any. Every operation is IEEE-754 binary32, rounded
// to nearest even; every fused multiply-add is written. Compile with contraction off. Constants: transforms_fit.py.
#pragma once

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <tuple>

#include "distribution.h"
#include "philox.h"

namespace xinit {

struct ScalarLanes {
  using F = float;
  using I = int32_t;
  using U = uint32_t;
  static XINIT_HD F splat(float x) { return x; }
  static XINIT_HD F fma(F a, F b, F c) { return ::fmaf(a, b, c); }
  static XINIT_HD F abs(F x) { return ::fabsf(x); }
  static XINIT_HD F to_float(I x) { return static_cast<float>(x); }
  static XINIT_HD F to_float(U x) { return static_cast<float>(x); }
  static XINIT_HD I as_signed(U x) { return static_cast<I>(x); }
  static XINIT_HD U as_unsigned(I x) { return static_cast<U>(x); }
  static XINIT_HD bool any(bool mask) { return mask; }
  template <class T>
  static XINIT_HD T select(bool mask, T yes, T no) {
    return mask ? yes : no;
  }
#ifdef __CUDA_ARCH__
  static XINIT_HD F min(F a, F b) { return ::fminf(a, b); }
  static XINIT_HD F max(F a, F b) { return ::fmaxf(a, b); }
  static XINIT_HD I bits(F x) { return __float_as_int(x); }
  static XINIT_HD F from_bits(I x) { return __int_as_float(x); }
#else
  static XINIT_HD F min(F a, F b) { return a < b ? a : b; }
  static XINIT_HD F max(F a, F b) { return a > b ? a : b; }
  static XINIT_HD I bits(F x) {
    I r;
    std::memcpy(&r, &x, sizeof r);
    return r;
  }
  static XINIT_HD F from_bits(I x) {
    F r;
    std::memcpy(&r, &x, sizeof r);
    return r;
  }
#endif
};

// c0 + x (c1 + x (c2 + ...))
template <class L>
XINIT_HD typename L::F polynomial(typename L::F, float c0) {
  return L::splat(c0);
}
template <class L, class... Rest>
XINIT_HD typename L::F polynomial(typename L::F x, float c0, float c1, Rest... rest) {
  return L::fma(x, polynomial<L>(x, c1, rest...), L::splat(c0));
}

// -2 ln(y) * kLogScale for normal y > 0. The scale is the one at which `root` needs no constant of its own.
constexpr float kLogScale = 0x1.f193d4p-6f;

template <class L>
XINIT_HD typename L::F scaled_log(typename L::F y) {
  const auto bits = L::bits(y);
  const auto exponent = (bits - 0x3f3504f3) & static_cast<int32_t>(0xff800000);  // y = 2^n m, m in [sqrt 1/2, sqrt 2)
  const auto f = L::from_bits(bits - exponent) - 1.0f;
  const auto series = polynomial<L>(f, -0x1.f193d4p-5f, 0x1.f194c4p-6f, -0x1.4bbc44p-6f, 0x1.f0fa6ep-7f,
                                    -0x1.8c1428p-7f, 0x1.575a54p-7f, -0x1.42daf4p-7f, 0x1.9235bep-8f);
  return L::fma(f, series, L::to_float(exponent) * -0x1.58e4fap-28f);
}

// sqrt(x) and 1/sqrt(x) for scaled = kLogScale x: an integer guess and two Newton steps. Relative error 5e-7; sqrt(0) =
// 0.
template <class F>
struct Root {
  F root, inverse;
};

template <class L>
XINIT_HD Root<typename L::F> root(typename L::F scaled) {
  auto y = L::from_bits(0x5f2004a0 - (L::bits(scaled) >> 1));
  auto t = scaled * y;
  y = y * L::fma(-t, y, L::splat(0x1.31e1f4p+1f));
  t = scaled * y;
  const auto step = L::fma(-t, y, L::splat(0x1.83accap+2f));
  return {t * step, y * step * kLogScale};
}

// As root, with one more correction: correct to the last bit or two.
template <class L>
XINIT_HD typename L::F precise_root(typename L::F scaled) {
  const auto r = root<L>(scaled);
  const auto rest = L::fma(-r.root, r.root, scaled * (1 / kLogScale));
  return L::fma(rest, r.inverse * 0.5f, r.root);
}

// The level of a uniform: an integer in [-2^23, 2^23), each equally likely. After transform's fma it lies in (a, b),
// for a = -b without 0 and exactly symmetric.
template <class L>
XINIT_HD typename L::F uniform_sample(typename L::U word) {
  return L::to_float(L::as_signed(word) >> 8);
}

// Two standard normals from two words (Box-Muller). u is in [2^-32, 1], never 0, and v in [-1/2, 1/2].
template <class L>
XINIT_HD void normal_samples(typename L::U word0, typename L::U word1, typename L::F& z0, typename L::F& z1) {
  const auto u = L::fma(L::to_float(L::as_signed(word0 >> 1)), L::splat(0x1p-31f), L::splat(0x1p-32f));
  const auto v = L::to_float(L::as_signed(word1)) * 0x1p-32f;
  const auto radius = root<L>(scaled_log<L>(u)).root;
  // With g = 1/4 - |v|, cos 2 pi v = sin 2 pi g is odd in g, and sin 2 pi v is v (1/2 - |v|) times a function even in
  // g: both come out with their signs and with full relative accuracy at their zeros, and no quadrants are told apart.
  const auto a = L::abs(v);
  const auto g = 0.25f - a;
  const auto h = g * g;
  const auto cosine =
      g * polynomial<L>(h, 0x1.921fb6p+2f, -0x1.4abbf0p+5f, 0x1.466f3ep+6f, -0x1.32e974p+6f, 0x1.4701dep+5f);
  const auto sine = v * (0.5f - a) *
                    polynomial<L>(h, 0x1.000000p+4f, -0x1.de9e60p+5f, 0x1.472a76p+6f, -0x1.d4786ep+5f, 0x1.8bd856p+4f);
  z0 = radius * cosine;
  z1 = radius * sine;
}

// A standard normal's quantile is z = t R(x), where t = 2p - 1 is computed for itself, so that it is accurate near
// zero, and x = -2 ln 4p(1 - p) from the smaller of p and 1 - p, so that it is accurate in either tail. R is smooth
// through the centre: one polynomial serves to 3 sigma, another beyond.
constexpr float kFirstTail = 0x1.49a526p-2f;  // the least scaled x beyond 3 sigma

template <class L>
XINIT_HD typename L::F truncated_tail_ratio(typename L::F x) {
  return polynomial<L>(x - 0x1.79758cp+0f, 0x1.b048f8p+2f, 0x1.31906ap+1f, -0x1.9ed670p-2f, 0x1.1610d2p-3f,
                       -0x1.ceab42p-5f, 0x1.b50f66p-6f, -0x1.b7c6d4p-7f, 0x1.14a4b6p-8f, -0x1.97fd88p-10f,
                       0x1.18c1dap-7f, -0x1.7d5066p-8f, -0x1.224f6cp-7f, 0x1.859ce2p-8f, 0x1.d7ed98p-8f,
                       -0x1.2846f0p-8f, -0x1.2f890ap-9f, 0x1.899abcp-10f);
}

template <class L, int n>
XINIT_HD typename L::F greatest(const typename L::F (&x)[n]) {
  if constexpr (n == 1) return x[0];
  auto result = L::max(x[0], x[1 % n]);
  XINIT_UNROLL
  for (int i = 2; i < n; i += 2) result = L::max(result, L::max(x[i], x[i + 1]));
  return result;
}

// What truncated_samples does about the ratios z of those beyond 3 sigma. They are few, so they are mended one at a
// time, farthest first, by one copy of the code. A caller that knows better passes something else to `transform`.
struct MendTails {
  template <class L, int n>
  static XINIT_HD void mend(typename L::F (&x)[n], typename L::F (&z)[n]) {
    auto farthest = greatest<L>(x);
    while (L::any(farthest >= kFirstTail)) {
      const auto ratio = truncated_tail_ratio<L>(farthest), reach = L::max(farthest, L::splat(kFirstTail));
      XINIT_UNROLL
      for (int i = 0; i < n; ++i) {
        const auto hit = x[i] >= reach;
        z[i] = L::select(hit, ratio, z[i]);
        x[i] = L::select(hit, L::splat(0.0f), x[i]);
      }
      farthest = greatest<L>(x);
    }
  }
};

template <class L, int n, class Tails>
XINIT_HD void truncated_samples(const typename L::U (&w)[n], typename L::F (&z)[n], const Distribution& d,
                                Tails& tails) {
  using F = typename L::F;
  F x[n], t[n];
  XINIT_UNROLL
  for (int i = 0; i < n; ++i) {
    t[i] = L::fma(L::to_float(L::as_signed(w[i] ^ 0x80000000u)), L::splat(2 * d.slope), L::splat(d.centre));
    const F below = L::fma(L::to_float(w[i]), L::splat(d.slope), L::splat(d.base));
    const F above = L::fma(L::to_float(~w[i]), L::splat(d.slope), L::splat(d.base_upper));
    const F q = L::min(below, above);
    x[i] = scaled_log<L>(q * L::fma(q, L::splat(-4.0f), L::splat(4.0f)));
    z[i] = polynomial<L>(x[i], 0x1.40d90ap+0f, 0x1.59c2e0p+2f, 0x1.1992f4p+2f, -0x1.c0ddfep+3f, -0x1.6fa086p+4f,
                         0x1.350ebcp+7f, -0x1.0a489cp+8f, 0x1.4be628p+7f);
  }
  tails.template mend<L>(x, z);
  XINIT_UNROLL
  for (int i = 0; i < n; ++i) z[i] = z[i] * t[i];
}

// The distance beyond a bound that lies 6 sigma or more from the mean, in units of 1 / hazard: with delta the log of
// the remaining mass's ratio, the root of delta = s + curvature s^2 / 2.
template <class L>
XINIT_HD typename L::F truncated_tail_sample(typename L::U word, const Distribution& d) {
  const auto y = L::fma(L::to_float(word ^ d.flip), L::splat(d.slope), L::splat(d.base));
  const auto x = scaled_log<L>(y);
  const auto denominator = precise_root<L>(L::fma(x, L::splat(d.curvature), L::splat(kLogScale))) + 1.0f;
  const auto inverse = root<L>(denominator * kLogScale).inverse;
  return x * (1 / kLogScale) * inverse * inverse;
}

// Further laws, each a type that says all that the library has to know of it; docs/extending.md shows one.
//   name        of the distribution, and with an underscore of the op that fills with it
//   parameters  of both, with their defaults
//   make(p)     from numbers within the dtype's range; throws std::domain_error for others that it does not take
//   sample      from one word, before the fma with scale and shift: what makes values that need no clamping
struct Parameter {
  const char* name;
  double initial;
};

template <class... Law>
struct Laws {
  static constexpr int count = sizeof...(Law);
  template <int i>
  using at = std::tuple_element_t<i, std::tuple<Law...>>;
};
using FurtherLaws = Laws<>;

constexpr Kind further_kind(int i) { return static_cast<Kind>(static_cast<int>(Kind::kFurther) + i); }
template <Kind kind>
using LawOf = FurtherLaws::at<static_cast<int>(kind) - static_cast<int>(Kind::kFurther)>;

// The values of one or more blocks, before clamping and rounding to the tensor's dtype.
template <Kind kind, class L, int n, class Tails = MendTails>
XINIT_HD void transform(const typename L::U (&w)[n], typename L::F (&x)[n], const Distribution& d,
                        Tails&& tails = Tails()) {
  if constexpr (kind == Kind::kNormal) {
    XINIT_UNROLL
    for (int i = 0; i < n; i += 2) normal_samples<L>(w[i], w[i + 1], x[i], x[i + 1]);
  }
  if constexpr (kind == Kind::kTruncated) truncated_samples<L>(w, x, d, tails);
  XINIT_UNROLL
  for (int i = 0; i < n; ++i) {
    if constexpr (kind == Kind::kUniform || kind == Kind::kUniformClamped) x[i] = uniform_sample<L>(w[i]);
    if constexpr (kind == Kind::kTruncatedTail) x[i] = truncated_tail_sample<L>(w[i], d);
    if constexpr (kind >= Kind::kFurther) x[i] = LawOf<kind>::template sample<L>(w[i], d);
    x[i] = L::fma(x[i], L::splat(d.scale), L::splat(d.shift));
  }
}

}  // namespace xinit
