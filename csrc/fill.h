// One fill: what crosses from the op to a device's loop, by value.
#pragma once

#include <type_traits>

#include "distribution.h"
#include "philox.h"
#include "window.h"

namespace xinit {

struct Fill {
  void* out;  // the element at the window's origin
  Dtype dtype;
  uint64_t stream;
  Schedule keys;
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

template <Kind value>
using KindTag = std::integral_constant<Kind, value>;
template <Dtype value>
using DtypeTag = std::integral_constant<Dtype, value>;

// Calls f(KindTag, DtypeTag) with the fill's kind and dtype as types, so that a loop is compiled for each pair.
template <class F>
auto specialize(Kind kind, Dtype dtype, F f) {
  const auto with_kind = [&](auto k) {
    switch (dtype) {
      case Dtype::kDouble:
        return f(k, DtypeTag<Dtype::kDouble>{});
      case Dtype::kHalf:
        return f(k, DtypeTag<Dtype::kHalf>{});
      case Dtype::kBFloat16:
        return f(k, DtypeTag<Dtype::kBFloat16>{});
      case Dtype::kFloat:
        break;
    }
    return f(k, DtypeTag<Dtype::kFloat>{});
  };
  switch (kind) {
    case Kind::kUniformClamped:
      return with_kind(KindTag<Kind::kUniformClamped>{});
    case Kind::kNormal:
      return with_kind(KindTag<Kind::kNormal>{});
    case Kind::kTruncated:
      return with_kind(KindTag<Kind::kTruncated>{});
    case Kind::kTruncatedTail:
      return with_kind(KindTag<Kind::kTruncatedTail>{});
    case Kind::kUniform:
      break;
  }
  return with_kind(KindTag<Kind::kUniform>{});
}

}  // namespace xinit
