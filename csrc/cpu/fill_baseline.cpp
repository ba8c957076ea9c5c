// The loop for any machine: 4 lanes of the compiler's vector extensions (SSE2 on x86-64, NEON on aarch64). Where the
// target has no fused multiply-add, double arithmetic or the C library's fmaf gives the same bits.
#if defined(__ARM_NEON)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#define XINIT_VECTOR_BYTES 16
#include "digest_loop.h"
#include "fill_loop.h"
#include "vector_lanes.h"

namespace xinit {

namespace {

struct Baseline : VectorLanes {
#if defined(__ARM_NEON)
  static XINIT_HD F fma(F a, F b, F c) {
    return reinterpret_cast<F>(vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a),
                                         reinterpret_cast<float32x4_t>(b)));
  }
  static XINIT_HD Product<W> multiply(W x, uint32_t multiplier) {
    const uint32x2_t low = vmovn_u64(reinterpret_cast<uint64x2_t>(x));
    const W product = reinterpret_cast<W>(vmull_u32(low, vdup_n_u32(multiplier)));
    return {product >> 32, product};
  }
#elif defined(__SSE2__)
  // The product is exact in double. The sum, rounded to double and then to float, is as if rounded once, unless it
  // comes to lie halfway between two floats, or among the subnormal ones, where halfway is elsewhere.
  static XINIT_HD F fma(F a, F b, F c) {
    const __m128d low = _mm_add_pd(_mm_mul_pd(_mm_cvtps_pd(a), _mm_cvtps_pd(b)), _mm_cvtps_pd(c));
    const __m128d high = _mm_add_pd(_mm_mul_pd(upper(a), upper(b)), upper(c));
    const __m128 x = _mm_castpd_ps(low), y = _mm_castpd_ps(high);
    const I tail = reinterpret_cast<I>(_mm_shuffle_ps(x, y, 0x88));
    const I head = reinterpret_cast<I>(_mm_shuffle_ps(x, y, 0xDD));
    if (any(((tail & 0x1fffffff) == 0x10000000) | ((head & 0x7fffffff) < 0x38100000))) return careful_fma(a, b, c);
    return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
  }
  static __attribute__((noinline)) F careful_fma(F a, F b, F c) {
    const __m128d low = sum_to_odd(_mm_mul_pd(_mm_cvtps_pd(a), _mm_cvtps_pd(b)), _mm_cvtps_pd(c));
    const __m128d high = sum_to_odd(_mm_mul_pd(upper(a), upper(b)), upper(c));
    return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
  }
  // Rounds to odd: an inexact sum with an even last bit goes one up or down, towards its error. It cannot then be
  // halfway, nor on the other side of it, for any narrower format.
  static XINIT_HD __m128d sum_to_odd(__m128d a, __m128d b) {
    const __m128d sum = _mm_add_pd(a, b), rest = _mm_sub_pd(sum, a), zero = _mm_setzero_pd();
    const __m128d error = _mm_add_pd(_mm_sub_pd(a, _mm_sub_pd(sum, rest)), _mm_sub_pd(b, rest));
    const __m128d inexact = _mm_or_pd(_mm_cmplt_pd(error, zero), _mm_cmpgt_pd(error, zero));  // not where it is NaN
    const __m128i bits = _mm_castpd_si128(sum), one = _mm_set_epi32(0, 1, 0, 1);
    const __m128i even = _mm_sub_epi64(_mm_and_si128(bits, one), one);
    const __m128i signs = _mm_shuffle_epi32(_mm_xor_si128(bits, _mm_castpd_si128(error)), 0xF5);
    const __m128i step = _mm_or_si128(_mm_srai_epi32(signs, 31), one);  // -1 where the signs differ
    return _mm_castsi128_pd(_mm_add_epi64(bits, _mm_and_si128(_mm_and_si128(step, even), _mm_castpd_si128(inexact))));
  }
  static XINIT_HD __m128d upper(F x) { return _mm_cvtps_pd(_mm_movehl_ps(x, x)); }
  static XINIT_HD Product<W> multiply(W x, uint32_t multiplier) {
    const W product = reinterpret_cast<W>(_mm_mul_epu32(reinterpret_cast<__m128i>(x), _mm_set1_epi64x(multiplier)));
    return {product >> 32, product};
  }
#else
  static XINIT_HD F fma(F a, F b, F c) {
    return F{::fmaf(a[0], b[0], c[0]), ::fmaf(a[1], b[1], c[1]), ::fmaf(a[2], b[2], c[2]), ::fmaf(a[3], b[3], c[3])};
  }
  static XINIT_HD Product<W> multiply(W x, uint32_t multiplier) {
    const W product = (x & 0xffffffff) * multiplier;
    return {product >> 32, product};
  }
#endif
#if defined(__SSE2__)
  static XINIT_HD bool any(I mask) { return _mm_movemask_ps(reinterpret_cast<__m128>(mask)) != 0; }
  static XINIT_HD void interleave(F (&x)[4]) { _MM_TRANSPOSE4_PS(x[0], x[1], x[2], x[3]); }
#else
  static XINIT_HD bool any(I mask) { return (mask[0] | mask[1] | mask[2] | mask[3]) != 0; }
  static XINIT_HD void interleave(F (&x)[4]) {
    const F rows[4] = {x[0], x[1], x[2], x[3]};
    for (int i = 0; i < 4; ++i) x[i] = F{rows[0][i], rows[1][i], rows[2][i], rows[3][i]};
  }
#endif
  static XINIT_HD void zip(W a, W b, W& x, W& y) {
    x = W{a[0], b[0]};
    y = W{a[1], b[1]};
  }
  static XINIT_HD uint32_t at_least(F x, float bound) {
    uint32_t lanes = 0;
    for (int i = 0; i < kLanes; ++i) lanes |= static_cast<uint32_t>(x[i] >= bound) << i;
    return lanes;
  }
  using VectorLanes::store;
  static XINIT_HD void store(DtypeTag<Dtype::kHalf>, uint16_t* out, F x) {
    const Short rounded = __builtin_convertvector(float16_bits<VectorLanes>(x), Short);
    __builtin_memcpy(out, &rounded, sizeof rounded);
  }
};

}  // namespace

void fill_baseline(const Fill& job, uint64_t begin, uint64_t end) { fill_units<Baseline>(job, begin, end); }
Digest digest_baseline(const DigestJob& job, int64_t begin, int64_t end) { return digest_range(job, begin, end); }

}  // namespace xinit
