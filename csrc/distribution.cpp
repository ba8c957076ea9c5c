#include "distribution.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace xinit {
namespace {

struct Format {
  int digits, least_exponent;
  double largest;
};

Format format(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat:
      return {24, -126, std::numeric_limits<float>::max()};
    case Dtype::kHalf:
      return {11, -14, 65504.0};
    case Dtype::kBFloat16:
      return {8, -126, 0x1.fep127};
    case Dtype::kFloat8E4M3FN:
      return {4, -6, 448.0};
    case Dtype::kFloat8E5M2:
      return {3, -14, 57344.0};
    case Dtype::kFloat8E4M3FNUZ:
      return {4, -7, 240.0};
    case Dtype::kFloat8E5M2FNUZ:
      return {3, -15, 57344.0};
    case Dtype::kDouble:
      break;
  }
  return {53, -1022, std::numeric_limits<double>::max()};
}

// The distance between neighbouring values of the dtype around x.
double spacing(double x, Dtype dtype) {
  const Format f = format(dtype);
  const int exponent = x == 0 ? f.least_exponent : std::max(std::ilogb(x), f.least_exponent);
  return std::ldexp(1.0, exponent - (f.digits - 1));
}

double round_nearest(double x, Dtype dtype) {
  if (dtype == Dtype::kDouble) return x;
  const double unit = spacing(x, dtype);
  return std::nearbyint(x / unit) * unit;
}

void bound(Distribution& d, double low, double high) {
  if (low > high) throw std::domain_error("the interval holds no value of the tensor's dtype");
  d.low_wide = low + 0.0;  // never -0, whose order against +0 is not the same everywhere
  d.high_wide = high + 0.0;
  d.low = static_cast<float>(d.low_wide);
  d.high = d.top = static_cast<float>(d.high_wide);
}

constexpr double kSqrtHalf = 0.70710678118654752440;

double upper_tail(double x) { return 0.5 * std::erfc(x * kSqrtHalf); }

// hazard(x) - x for x >= 6, where hazard = density / upper tail: Laplace's continued fraction 1/(x + 2/(x + 3/(x +
// ...))).
double hazard_excess(double x) {
  double k = 0;
  for (int i = 60; i >= 1; --i) k = i / (x + k);
  return k;
}

// Both bounds at least 6 sigma beyond the mean, on one side: near and far in standard deviations from it.
void truncate_tail(Distribution& d, double near, double far, double std) {
  const double excess = hazard_excess(near), hazard = near + excess;
  const double log_ratio = 0.5 * (near - far) * (near + far) + std::log(hazard / (far + hazard_excess(far)));
  const double lost = -std::expm1(log_ratio);  // the part of the mass beyond `near` that lies before `far`
  d.kind = Kind::kTruncatedTail;
  d.scale = static_cast<float>(std / hazard);
  d.slope = static_cast<float>(lost * 0x1p-32);
  d.base = static_cast<float>((1 - lost) + lost * 0x1p-33);
  d.curvature = static_cast<float>(excess / hazard);
}

}  // namespace

double largest(Dtype dtype) { return format(dtype).largest; }

double round_up(double x, Dtype dtype) {
  if (dtype == Dtype::kDouble) return x;
  const double unit = spacing(x, dtype);
  return std::ceil(x / unit) * unit;
}

double round_down(double x, Dtype dtype, bool strictly) {
  if (strictly) x = std::nextafter(x, -std::numeric_limits<double>::infinity());
  if (dtype == Dtype::kDouble) return x;
  const double unit = spacing(x, dtype);
  return std::floor(x / unit) * unit;
}

Distribution constant(double value) {
  Distribution d;
  d.shift = static_cast<float>(value);
  if (value == 0 && std::signbit(value)) {  // which a sum would lose: as a bound it is kept
    d.kind = Kind::kUniformClamped;
    d.low_wide = d.high_wide = d.low = d.high = d.top = -0.0f;
  }
  return d;
}

Distribution uniform(double a, double b, Dtype dtype) {
  if (a == b) return constant(a);
  const double half = b / 2 - a / 2, middle = b / 2 + a / 2;
  Distribution d;
  d.scale = static_cast<float>(half) * 0x1p-23f;
  d.shift = static_cast<float>(middle + half * 0x1p-24);
  bound(d, round_up(a, dtype), round_down(b, dtype, true));
  const double least = round_nearest(std::fma(-0x1p23f, d.scale, d.shift), dtype);
  const double most = round_nearest(std::fma(0x1p23f - 1, d.scale, d.shift), dtype);
  d.kind = least >= d.low_wide && most <= d.high_wide ? Kind::kUniform : Kind::kUniformClamped;
  return d;
}

Distribution normal(double mean, double std) {
  Distribution d;
  d.kind = Kind::kNormal;
  d.scale = static_cast<float>(std);
  d.shift = static_cast<float>(mean);
  return d;
}

Distribution truncated_normal(double mean, double std, double a, double b, Dtype dtype) {
  if (std == 0 && a <= mean && mean <= b) {
    Distribution d = constant(mean + 0.0);  // never -0, as a bound
    d.kind = Kind::kUniformClamped;
    bound(d, round_up(a, dtype), round_down(b, dtype, false));
    return d;
  }
  if (std == 0 || a == b) throw std::domain_error("the interval holds none of the normal's mass");
  const double alpha = (a - mean) / std, beta = (b - mean) / std;
  Distribution d;
  bound(d, round_up(a, dtype), round_down(b, dtype, false));
  const bool rounded = dtype != Dtype::kFloat && dtype != Dtype::kDouble;
  if (rounded && d.high == 0) d.top = static_cast<float>(-spacing(0, dtype) / 2);
  if (alpha >= 6) {
    truncate_tail(d, alpha, beta, std);
    d.flip = ~0u;
    d.shift = static_cast<float>(a);
  } else if (beta <= -6) {
    truncate_tail(d, -beta, -alpha, std);
    d.scale = -d.scale;
    d.shift = static_cast<float>(b);
  } else {
    const double below = upper_tail(-alpha), above = upper_tail(beta);
    const double mass = alpha > 0  ? upper_tail(alpha) - above
                        : beta < 0 ? upper_tail(-beta) - below
                                   : 0.5 * (std::erf(beta * kSqrtHalf) - std::erf(alpha * kSqrtHalf));
    d.kind = Kind::kTruncated;
    d.scale = static_cast<float>(std);
    d.shift = static_cast<float>(mean);
    d.slope = static_cast<float>(mass * 0x1p-32);
    d.base = static_cast<float>(below + mass * 0x1p-33);
    d.base_upper = static_cast<float>(above + mass * 0x1p-33);
    d.centre = static_cast<float>(0.5 * (std::erf(alpha * kSqrtHalf) + std::erf(beta * kSqrtHalf)) + mass * 0x1p-32);
  }
  return d;
}

double standard_deviation(double gain, Fans fans, Fan mode) { return gain / std::sqrt(fans.of(mode)); }

}  // namespace xinit
