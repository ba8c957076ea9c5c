// The loop for AVX-512 (F, BW, DQ, VL): 16 lanes.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC optimize("schedule-insns", "sched-pressure")  // to mix one tile's Philox with another's transform
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif

// GCC on its own _mm512_undefined_epi32.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#define XINIT_VECTOR_BYTES 64
#include "digest_loop.h"
#include "fill_loop.h"
#include "vector_lanes.h"

namespace xinit {

namespace {

struct Avx512 : VectorLanes {
  static XINIT_HD F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static XINIT_HD bool any(I mask) { return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)) != 0; }
  static XINIT_HD uint32_t at_least(F x, float bound) {
    return _mm512_cmp_ps_mask(x, _mm512_set1_ps(bound), _CMP_GE_OQ);
  }
  static XINIT_HD F min(F a, F b) { return _mm512_min_ps(a, b); }
  static XINIT_HD F max(F a, F b) { return _mm512_max_ps(a, b); }
  static XINIT_HD Product<W> multiply(W x, uint32_t multiplier) {
    const W product =
        reinterpret_cast<W>(_mm512_mul_epu32(reinterpret_cast<__m512i>(x), _mm512_set1_epi64(multiplier)));
    return {product >> 32, product};
  }
  static XINIT_HD U merge(W even, W odd) {
    return reinterpret_cast<U>(_mm512_mask_shuffle_epi32(reinterpret_cast<__m512i>(even), 0xAAAA,
                                                         reinterpret_cast<__m512i>(odd), _MM_PERM_CCAA));
  }
  static XINIT_HD void zip(W a, W b, W& x, W& y) {
    const __m512i lower = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11),
                  upper = _mm512_add_epi64(lower, _mm512_set1_epi64(4));
    x = reinterpret_cast<W>(
        _mm512_permutex2var_epi64(reinterpret_cast<__m512i>(a), lower, reinterpret_cast<__m512i>(b)));
    y = reinterpret_cast<W>(
        _mm512_permutex2var_epi64(reinterpret_cast<__m512i>(a), upper, reinterpret_cast<__m512i>(b)));
  }
  static XINIT_HD void interleave(F (&x)[4]) {
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(x[0], x[1])),
                  b = _mm512_castps_pd(_mm512_unpackhi_ps(x[0], x[1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(x[2], x[3])),
                  d = _mm512_castps_pd(_mm512_unpackhi_ps(x[2], x[3]));
    x[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    x[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    x[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    x[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  using VectorLanes::store;
  static XINIT_HD void store(DtypeTag<Dtype::kHalf>, uint16_t* out, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

}  // namespace

void fill_avx512(const Fill& job, uint64_t begin, uint64_t end) { fill_units<Avx512>(job, begin, end); }
Digest digest_avx512(const DigestJob& job, int64_t begin, int64_t end) { return digest_range(job, begin, end); }

}  // namespace xinit

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
