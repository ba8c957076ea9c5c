// What to draw: a distribution as one plain struct, and the only place that turns fans, gains and modes into one.
#pragma once

#include <cstdint>

namespace xinit {

// kUniform: no draw can leave the interval, even after rounding to the dtype; kUniformClamped: one could.
// From kFurther on: the further laws of transforms.h, in their order.
enum class Kind : int32_t { kUniform, kUniformClamped, kNormal, kTruncated, kTruncatedTail, kFurther };

template <Kind kind>
constexpr bool kTopped = kind == Kind::kTruncated || kind == Kind::kTruncatedTail;  // top may differ from high
template <Kind kind>
constexpr bool kClamped = kTopped<kind> || kind == Kind::kUniformClamped;

// Read by every device, passed by value. What is computed in double is rounded to binary32 once, here.
struct Distribution {
  Kind kind = Kind::kUniform;
  float scale = 0;  // x = fma(sample, scale, shift)
  float shift = 0;
  float slope = 0;  // truncated: p = fma(float(word), slope, base), and
  float base = 0;
  float base_upper = 0;                //   1 - p = fma(float(~word), slope, base_upper), and
  float centre = 0;                    //   2p - 1 = fma(float(word - 2^31), 2 slope, centre)
  float curvature = 0;                 // truncated tail: of the log of its mass, over the squared hazard
  uint32_t flip = 0;                   //   all ones where the tail is the upper one
  float low = 0, high = 0;             // clamped kinds: into [low, high], values of the tensor's dtype,
  float top = 0;                       // what is not below this becomes high: high, or what would round to -0 below it
  double low_wide = 0, high_wide = 0;  // which are these for float64
};

enum class Dtype : int32_t {
  kFloat,
  kDouble,
  kHalf,
  kBFloat16,
  kFloat8E4M3FN,
  kFloat8E5M2,
  kFloat8E4M3FNUZ,
  kFloat8E5M2FNUZ
};
constexpr uint64_t kDtypes = 8;

// The least value of dtype >= x, and the greatest <= x (or < x).
double round_up(double x, Dtype dtype);
double round_down(double x, Dtype dtype, bool strictly);
double largest(Dtype dtype);

Distribution constant(double value);  // a uniform of width 0
Distribution uniform(double a, double b,
                     Dtype dtype);  // a <= b. No value of dtype in [a, b): throws std::domain_error.
Distribution normal(double mean, double std);
// a <= b, std >= 0. No value of dtype in [a, b], or nothing of the normal's mass: throws std::domain_error.
Distribution truncated_normal(double mean, double std, double a, double b, Dtype dtype);

enum class Fan { kIn, kOut, kAverage };

struct Fans {
  double in, out;
  double of(Fan mode) const { return mode == Fan::kIn ? in : mode == Fan::kOut ? out : (in + out) / 2; }
};

// std = gain / sqrt(fan). Kaiming: fan_in or fan_out; Xavier: their mean.
double standard_deviation(double gain, Fans fans, Fan mode);

}  // namespace xinit
