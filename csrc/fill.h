// One fill: what crosses from the op to a device's loop, by value.
#pragma once

#include <xinit/key.h>

#include <type_traits>

#include "distribution.h"
#include "philox.h"
#include "transforms.h"
#include "window.h"

namespace xinit {

struct Fill {
  void* out;  // the element at the window's origin
  Dtype dtype;
  Key key;
  Distribution distribution;
  Window window;
};

template <Dtype dtype>
struct Element;
template <>
struct Element<Dtype::kFloat> {
  using type = float;
};
template <>
struct Element<Dtype::kDouble> {
  using type = double;
};
template <>
struct Element<Dtype::kHalf> {
  using type = uint16_t;
};
template <>
struct Element<Dtype::kBFloat16> {
  using type = uint16_t;
};

// One loop serves the four float8 dtypes, told by numbers in which they differ: it is compiled for this one.
constexpr Dtype kFloat8 = Dtype::kFloat8E4M3FN;
constexpr bool is_float8(Dtype dtype) { return dtype >= kFloat8; }
template <>
struct Element<kFloat8> {
  using type = uint8_t;
};

constexpr int64_t size_of(Dtype dtype) {
  return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : is_float8(dtype) ? 1 : 2;
}

template <Kind value>
using KindTag = std::integral_constant<Kind, value>;
template <Dtype value>
using DtypeTag = std::integral_constant<Dtype, value>;

// Calls f(KindTag, DtypeTag) with the fill's kind and dtype as types, so that a loop is compiled for each pair.
XINIT_ANY_CALLEE
template <class K, class F>
XINIT_HD auto specialize(K kind, Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat:
      return f(kind, DtypeTag<Dtype::kFloat>{});
    case Dtype::kDouble:
      return f(kind, DtypeTag<Dtype::kDouble>{});
    case Dtype::kHalf:
      return f(kind, DtypeTag<Dtype::kHalf>{});
    case Dtype::kBFloat16:
      return f(kind, DtypeTag<Dtype::kBFloat16>{});
    default:
      return f(kind, DtypeTag<kFloat8>{});
  }
}
XINIT_ANY_CALLEE
template <int i = 0, class F>
XINIT_HD auto specialize_further(Kind kind, Dtype dtype, F&& f) {
  if constexpr (i < FurtherLaws::count)
    return kind == further_kind(i) ? specialize(KindTag<further_kind(i)>{}, dtype, f)
                                   : specialize_further<i + 1>(kind, dtype, f);
  else
    return specialize(KindTag<Kind::kUniform>{}, dtype, f);
}
XINIT_ANY_CALLEE
template <class F>
XINIT_HD auto specialize(Kind kind, Dtype dtype, F&& f) {
  switch (kind) {
    case Kind::kUniformClamped:
      return specialize(KindTag<Kind::kUniformClamped>{}, dtype, f);
    case Kind::kNormal:
      return specialize(KindTag<Kind::kNormal>{}, dtype, f);
    case Kind::kTruncated:
      return specialize(KindTag<Kind::kTruncated>{}, dtype, f);
    case Kind::kTruncatedTail:
      return specialize(KindTag<Kind::kTruncatedTail>{}, dtype, f);
    default:
      return specialize_further(kind, dtype, f);
  }
}

}  // namespace xinit
