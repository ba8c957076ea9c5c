// What all vector lanes share, from the compiler's vector extensions; each instruction set's file defines
// XINIT_VECTOR_BYTES, includes this, and adds what needs an instruction by name. The namespace has no name: the same
// struct is compiled with different instructions in different files.
#pragma once

#include "../float8.h"
#include "../half.h"

namespace xinit {
namespace {

struct VectorLanes {
  static constexpr int bytes = XINIT_VECTOR_BYTES;
  static constexpr int kLanes = bytes / 4;
  typedef float F __attribute__((vector_size(bytes)));
  typedef int32_t I __attribute__((vector_size(bytes)));
  typedef uint32_t U __attribute__((vector_size(bytes)));
  typedef uint64_t W __attribute__((vector_size(bytes)));
  typedef double D __attribute__((vector_size(bytes)));
  typedef float Half __attribute__((vector_size(bytes / 2)));
  typedef uint16_t Short __attribute__((vector_size(bytes / 2)));
  typedef uint8_t Byte __attribute__((vector_size(bytes / 4)));

  static XINIT_HD F splat(float x) { return x - F{}; }  // x - 0 is x, also for -0
  static XINIT_HD F to_float(I x) { return __builtin_convertvector(x, F); }
  static XINIT_HD F to_float(U x) { return __builtin_convertvector(x, F); }
  static XINIT_HD I as_signed(U x) { return reinterpret_cast<I>(x); }
  static XINIT_HD U as_unsigned(I x) { return reinterpret_cast<U>(x); }
  static XINIT_HD I bits(F x) { return reinterpret_cast<I>(x); }
  static XINIT_HD F from_bits(I x) { return reinterpret_cast<F>(x); }
  static XINIT_HD F abs(F x) { return from_bits(bits(x) & 0x7fffffff); }
  template <class T>
  static XINIT_HD T select(I mask, T yes, T no) {
    return mask ? yes : no;
  }
  static XINIT_HD F min(F a, F b) { return a < b ? a : b; }
  static XINIT_HD F max(F a, F b) { return a > b ? a : b; }
  static XINIT_HD U merge(W even, W odd) { return reinterpret_cast<U>((even & 0xffffffff) | (odd << 32)); }

  static XINIT_HD void store(DtypeTag<Dtype::kFloat>, float* out, F x) { __builtin_memcpy(out, &x, sizeof x); }
  static XINIT_HD void store(DtypeTag<Dtype::kDouble>, double* out, F x) {
    Half halves[2];
    __builtin_memcpy(halves, &x, sizeof x);
    const D wide[2] = {__builtin_convertvector(halves[0], D), __builtin_convertvector(halves[1], D)};
    __builtin_memcpy(out, wide, sizeof wide);
  }
  static XINIT_HD void store(DtypeTag<Dtype::kBFloat16>, uint16_t* out, F x) {
    const Short rounded = __builtin_convertvector(bfloat16_bits<VectorLanes>(x), Short);
    __builtin_memcpy(out, &rounded, sizeof rounded);
  }
  static XINIT_HD void store(const Float8& format, uint8_t* out, F x) {
    const Byte rounded = __builtin_convertvector(float8_bits<VectorLanes>(x, format), Byte);
    __builtin_memcpy(out, &rounded, sizeof rounded);
  }
};

}  // namespace
}  // namespace xinit
