// What to draw: a distribution as one plain struct, and the only place that turns fans, gains and modes into one.
#pragma once

#include <cstdint>

namespace xinit {

enum class Kind : int32_t { kConstant, kUniform, kNormal, kTruncated, kTruncatedTail };

// Read by every device, passed by value. What is computed in double is rounded to binary32 once, here.
struct Distribution {
  Kind kind = Kind::kConstant;
  float scale = 0;   // x = fma(sample, scale, shift)
  float shift = 0;
  float slope = 0;       // truncated: q = fma(float(word), slope, base), the probability from the nearer end,
  float base = 0;        //   for words up to the median's;
  float base_upper = 0;  //   with this base, for the complements of the words above it;
  float centre = 0, centre_upper = 0;  // 1 - 2 base, not rounded in between
  int32_t split = 0;     //   half of the last word below the median
  float curvature = 0;   // truncated tail: of the log of its mass, over the squared hazard
  uint32_t flip = 0;     //   all ones where the tail is the upper one
  bool bounded = false;  // clamp into [low, high], values of the tensor's dtype; false where no draw can leave it
  double low = 0, high = 0;
};

enum class Dtype : int32_t { kFloat, kDouble, kHalf, kBFloat16 };

// The least value of dtype >= x, and the greatest <= x (or < x).
double round_up(double x, Dtype dtype);
double round_down(double x, Dtype dtype, bool strictly);
double largest(Dtype dtype);

Distribution constant(double value);
Distribution uniform(double a, double b, Dtype dtype);  // a <= b. No value of dtype in [a, b): throws std::domain_error.
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
