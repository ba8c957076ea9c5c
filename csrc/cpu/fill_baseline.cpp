// The loop for any machine: 4 lanes of the compiler's vector extensions (SSE2 on x86-64, NEON on aarch64). Where the
// target has no fused multiply-add, the C library's fmaf gives the same bits.
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "../half.h"
#define XINIT_VECTOR_BYTES 16
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
#else
  static XINIT_HD F fma(F a, F b, F c) {
    return F{::fmaf(a[0], b[0], c[0]), ::fmaf(a[1], b[1], c[1]), ::fmaf(a[2], b[2], c[2]), ::fmaf(a[3], b[3], c[3])};
  }
  static XINIT_HD Product<W> multiply(W x, uint32_t multiplier) {
    const W product = (x & 0xffffffff) * multiplier;
    return {product >> 32, product};
  }
#endif
  static XINIT_HD bool any(I mask) { return (mask[0] | mask[1] | mask[2] | mask[3]) != 0; }
  static XINIT_HD uint32_t at_least(F x, float bound) {
    uint32_t lanes = 0;
    for (int i = 0; i < kLanes; ++i) lanes |= static_cast<uint32_t>(x[i] >= bound) << i;
    return lanes;
  }
  static XINIT_HD void interleave(F (&x)[4]) {
    const F rows[4] = {x[0], x[1], x[2], x[3]};
    for (int i = 0; i < 4; ++i) x[i] = F{rows[0][i], rows[1][i], rows[2][i], rows[3][i]};
  }
  using VectorLanes::store;
  static XINIT_HD void store(DtypeTag<Dtype::kHalf>, uint16_t* out, F x) {
    for (int i = 0; i < kLanes; ++i) out[i] = float16_bits(x[i]);
  }
};

}  // namespace

void fill_baseline(const Fill& job, uint64_t begin, uint64_t end) { fill_units<Baseline>(job, begin, end); }

}  // namespace xinit
