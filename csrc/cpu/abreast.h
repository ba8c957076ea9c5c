// Several vectors abreast: each operation on all of them before the next. So many independent chains in step hide each
// other's latency, and one load of a constant serves them all.
#pragma once

#include <type_traits>

#include "../philox.h"

namespace xinit {
namespace {

template <class V, int n>
struct Pack {
  V v[n];
};

template <class T>
constexpr int kPacked = 0;
template <class V, int n>
constexpr int kPacked<Pack<V, n>> = n;

template <class V, int n>
XINIT_HD V part(const Pack<V, n>& x, int i) {
  return x.v[i];
}
template <class S, class = std::enable_if_t<kPacked<S> == 0>>
XINIT_HD S part(S x, int) {
  return x;
}

// op on each vector; a scalar, or a single vector, goes with all of them.
template <class Op, class... A>
XINIT_HD auto each(Op op, const A&... a) {
  constexpr int kWidths[] = {kPacked<A>...}, n = kWidths[0] > 0 ? kWidths[0] : kWidths[sizeof...(A) - 1];
  Pack<decltype(op(part(a, 0)...)), n> result;
  XINIT_UNROLL
  for (int i = 0; i < n; ++i) result.v[i] = op(part(a, i)...);
  return result;
}

template <class... A>
using IfPacked = std::enable_if_t<((kPacked<A> > 0) || ...)>;

#define XINIT_INLINE __attribute__((always_inline))
#define XINIT_UNARY(op)                                       \
  template <class A, class = IfPacked<A>>                     \
  XINIT_HD auto operator op(const A& a) {                     \
    return each([](auto x) XINIT_INLINE { return op x; }, a); \
  }
#define XINIT_BINARY(op)                                                   \
  template <class A, class B, class = IfPacked<A, B>>                      \
  XINIT_HD auto operator op(const A& a, const B& b) {                      \
    return each([](auto x, auto y) XINIT_INLINE { return x op y; }, a, b); \
  }
#define XINIT_NAMED(name)                                                    \
  template <class... A>                                                      \
  static XINIT_HD auto name(const A&... a) {                                 \
    return each([](auto... x) XINIT_INLINE { return L::name(x...); }, a...); \
  }

XINIT_UNARY(-)
XINIT_UNARY(~)
XINIT_BINARY(+)
XINIT_BINARY(-)
XINIT_BINARY(*)
XINIT_BINARY(&)
XINIT_BINARY(^)
XINIT_BINARY(>>)
XINIT_BINARY(>=)

// The lanes of n vectors of L: see transforms.h.
template <class L, int n>
struct Abreast {
  using F = Pack<typename L::F, n>;
  using I = Pack<typename L::I, n>;
  using U = Pack<typename L::U, n>;
  using W = Pack<typename L::W, n>;
  XINIT_NAMED(fma)
  XINIT_NAMED(abs)
  XINIT_NAMED(min)
  XINIT_NAMED(max)
  XINIT_NAMED(select)
  XINIT_NAMED(to_float)
  XINIT_NAMED(as_signed)
  XINIT_NAMED(bits)
  XINIT_NAMED(from_bits)
  static XINIT_HD F splat(float x) {
    F result;
    XINIT_UNROLL
    for (int i = 0; i < n; ++i) result.v[i] = L::splat(x);
    return result;
  }
  static XINIT_HD bool any(const I& mask) {
    auto hit = mask.v[0];
    XINIT_UNROLL
    for (int i = 1; i < n; ++i) hit |= mask.v[i];
    return L::any(hit);
  }
  static XINIT_HD Product<W> multiply(const W& x, uint32_t multiplier) {
    Product<W> result;
    XINIT_UNROLL
    for (int i = 0; i < n; ++i) {
      const auto product = L::multiply(x.v[i], multiplier);
      result.high.v[i] = product.high;
      result.low.v[i] = product.low;
    }
    return result;
  }
};

#undef XINIT_NAMED
#undef XINIT_BINARY
#undef XINIT_UNARY
#undef XINIT_INLINE

}  // namespace
}  // namespace xinit
