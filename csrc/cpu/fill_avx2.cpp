// The loop for AVX2 with FMA and F16C: 8 lanes.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC optimize("schedule-insns", "sched-pressure")  // to mix one tile's Philox with another's transform
#pragma GCC target("avx2,fma,f16c")
#endif

#define XINIT_VECTOR_BYTES 32
#include "digest_loop.h"
#include "fill_loop.h"
#include "vector_lanes.h"

namespace xinit {

namespace {

struct Avx2 : VectorLanes {
  static XINIT_HD F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static XINIT_HD bool any(I mask) { return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0; }
  static XINIT_HD uint32_t at_least(F x, float bound) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_set1_ps(bound), _CMP_GE_OQ)));
  }
  using VectorLanes::to_float;
  // The halves of x put into the last places of 2^39 and 2^23; what is added to them is taken off exactly, and the sum
  // of both rounds once.
  static XINIT_HD F to_float(U x) {
    const F high = reinterpret_cast<F>(x >> 16 | 0x53000000), two_23 = splat(0x1p23f);
    const F low =
        reinterpret_cast<F>(_mm256_blend_epi16(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(two_23), 0xAA));
    return high - (0x1p39f + 0x1p23f) + low;
  }
  static XINIT_HD F min(F a, F b) { return _mm256_min_ps(a, b); }
  static XINIT_HD F max(F a, F b) { return _mm256_max_ps(a, b); }
  static XINIT_HD Product<W> multiply(W x, uint32_t multiplier) {
    const W product =
        reinterpret_cast<W>(_mm256_mul_epu32(reinterpret_cast<__m256i>(x), _mm256_set1_epi64x(multiplier)));
    return {product >> 32, product};
  }
  static XINIT_HD U merge(W even, W odd) {
    return reinterpret_cast<U>(_mm256_blend_epi32(reinterpret_cast<__m256i>(even),
                                                  _mm256_shuffle_epi32(reinterpret_cast<__m256i>(odd), 0xA0), 0xAA));
  }
  static XINIT_HD void zip(W a, W b, W& x, W& y) {
    const __m256i even = _mm256_unpacklo_epi64(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)),
                  odd = _mm256_unpackhi_epi64(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b));
    x = reinterpret_cast<W>(_mm256_permute2x128_si256(even, odd, 0x20));
    y = reinterpret_cast<W>(_mm256_permute2x128_si256(even, odd, 0x31));
  }
  static XINIT_HD void interleave(F (&x)[4]) {
    const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(x[0], x[1])),
                  b = _mm256_castps_pd(_mm256_unpackhi_ps(x[0], x[1]));
    const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(x[2], x[3])),
                  d = _mm256_castps_pd(_mm256_unpackhi_ps(x[2], x[3]));
    x[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
    x[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
    x[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
    x[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
  }
  using VectorLanes::store;
  static XINIT_HD void store(DtypeTag<Dtype::kHalf>, uint16_t* out, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

}  // namespace

void fill_avx2(const Fill& job, uint64_t begin, uint64_t end) { fill_units<Avx2>(job, begin, end); }
Digest digest_avx2(const DigestJob& job, int64_t begin, int64_t end) { return digest_range(job, begin, end); }

}  // namespace xinit

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
