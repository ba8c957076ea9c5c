// Sends every 32-bit word through the uniform and through the normal's radius and angle, and 2^20 strata and both ends
// through truncated normals of many windows; reports the worst errors against double arithmetic, and the extremes. A
// minute on two cores; run by hand after a change to transforms.h:
//   cd tests
//   g++ -O3 -march=native -ffp-contract=off -fopenmp -o exhaustive exhaustive.cpp ../csrc/distribution.cpp
//   ./exhaustive
// Exits 1 where the contract's error bounds do not hold. An argument n takes every n-th word only.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "../csrc/transforms.h"

using namespace xinit;

namespace {

uint64_t step = 1;
bool passed = true;

void report(const char* what, double worst, double bound) {
  std::printf("%-58s %.3e  (bound %.1e)%s\n", what, worst, bound, worst <= bound ? "" : "  FAILED");
  passed = passed && worst <= bound;
}

// The radius sqrt(-2 ln u) and the direction (cos, sin) 2 pi v, each over all its words. Both errors are relative, so a
// sample's error is at most their sum times |z|, or times 1.
void normal_errors() {
  double radius_error = 0, angle_error = 0, smallest = 1e9, largest = 0;
#pragma omp parallel for reduction(max : radius_error, largest) reduction(min : smallest)
  for (uint64_t i = 0; i < (1ull << 31); i += step) {
    const float u = ::fmaf(static_cast<float>(static_cast<int32_t>(i)), 0x1p-31f, 0x1p-32f);
    const double exact = std::sqrt(-2 * std::log(static_cast<double>(u)));
    const double r = root<ScalarLanes>(scaled_log<ScalarLanes>(u)).root;
    radius_error = std::max(radius_error, std::abs(r - exact) / std::max(exact, 0.1));
    smallest = std::min(smallest, r);
    largest = std::max(largest, r);
  }
  const uint32_t unit_radius = 0x9b45ae00;  // any word: its radius divides out below
#pragma omp parallel for reduction(max : angle_error)
  for (uint64_t w = 0; w < (1ull << 32); w += step) {
    float z0, z1;
    normal_samples<ScalarLanes>(unit_radius, static_cast<uint32_t>(w), z0, z1);
    const float u = ::fmaf(static_cast<float>(static_cast<int32_t>(unit_radius >> 1)), 0x1p-31f, 0x1p-32f);
    const double r = root<ScalarLanes>(scaled_log<ScalarLanes>(u)).root;
    const double v = static_cast<double>(static_cast<float>(static_cast<int32_t>(w))) * 0x1p-32;
    const double c = std::cos(2 * M_PI * v), s = std::sin(2 * M_PI * v);
    angle_error = std::max(angle_error, std::abs(z0 / r - c) / std::max(std::abs(c), 0.15));
    angle_error = std::max(angle_error, std::abs(z1 / r - s) / std::max(std::abs(s), 0.15));
  }
  std::printf("radius in [%.6g, %.9g], relative error %.3e; direction's %.3e\n", smallest, largest, radius_error,
              angle_error);
  report("normal: |z - exact| / max(1, |z|)", radius_error + angle_error, 1e-6);
}

void uniform_levels() {
  const Distribution d = uniform(-0.25, 0.25, Dtype::kFloat);
  double least = 1, most = -1, nearest = 1;
#pragma omp parallel for reduction(min : least, nearest) reduction(max : most)
  for (uint64_t w = 0; w < (1ull << 32); w += step) {
    const double x = ScalarLanes::fma(uniform_sample<ScalarLanes>(static_cast<uint32_t>(w)), d.scale, d.shift);
    least = std::min(least, x);
    most = std::max(most, x);
    nearest = std::min(nearest, std::abs(x));
  }
  std::printf("uniform(-1/4, 1/4) in [%.9g, %.9g], nearest to zero %.3g\n", least, most, nearest);
  if (step == 1) report("uniform: asymmetry", std::abs(least + most), 0);
  passed = passed && least > -0.25 && most < 0.25 && nearest > 0;
}

long double exact_quantile(double p_lower, double p_upper) {  // Newton from the sample's own neighbourhood
  const bool low = p_lower < p_upper;
  const double q = low ? p_lower : p_upper;
  double z = q > 0.4 ? (0.5 - q) * 2.5066 : std::sqrt(-2 * std::log(q));
  for (int i = 0; i < 60; ++i) {
    const double tail = 0.5 * std::erfc(z * M_SQRT1_2), density = std::exp(-z * z / 2) * 0.3989422804014327;
    const double next = z + tail / density * std::log(tail / q);
    if (std::abs(next - z) < 1e-13 * std::max(1.0, std::abs(z))) break;
    z = next;
  }
  return low ? -z : z;
}

void truncated_errors(double a, double b, double bound) {
  const Distribution d = truncated_normal(0, 1, a, b, Dtype::kFloat);
  const double below = 0.5 * std::erfc(-a * M_SQRT1_2), above = 0.5 * std::erfc(b * M_SQRT1_2);
  const double mass = a > 0   ? 0.5 * std::erfc(a * M_SQRT1_2) - above
                      : b < 0 ? 0.5 * std::erfc(-b * M_SQRT1_2) - below
                              : 0.5 * (std::erf(b * M_SQRT1_2) - std::erf(a * M_SQRT1_2));
  const uint64_t stride = 4096 * step;  // the reference is slow; the ends are dense
  double worst = 0, fall = 0;
#pragma omp parallel for reduction(max : worst, fall) schedule(dynamic, 1024)
  for (uint64_t i = 0; i < (1ull << 32) / stride + 2 * 4096; ++i) {
    const uint64_t wide = i < 4096 ? i : i < 8192 ? (1ull << 32) - 1 - (i - 4096) : (i - 8192) * stride;
    const uint32_t w = static_cast<uint32_t>(wide);
    const auto sample = [&](uint32_t word) {
      const uint32_t words[4] = {word, word, word, word};
      float x[4];
      if (d.kind == Kind::kTruncated)
        transform<Kind::kTruncated, ScalarLanes>(words, x, d);
      else
        transform<Kind::kTruncatedTail, ScalarLanes>(words, x, d);
      return static_cast<double>(std::min(std::max(x[0], d.low), d.high));
    };
    const double u = (w + 0.5) * 0x1p-32;
    const double exact = static_cast<double>(exact_quantile(below + u * mass, above + (1 - u) * mass));
    worst = std::max(worst, std::abs(sample(w) - exact));
    if (w != ~0u) fall = std::max(fall, sample(w) - sample(w + 1));
  }
  char name[80];
  std::snprintf(name, sizeof name, "truncated normal on [%g, %g]: error in sigma", a, b);
  report(name, worst, bound);
  std::snprintf(name, sizeof name, "truncated normal on [%g, %g]: largest descent", a, b);
  report(name, fall, bound);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) step = std::strtoull(argv[1], nullptr, 10);
  const double windows[][2] = {{-2, 2},   {-100, 100}, {-3, 3},      {-1, 4},       {0, 6},
                               {2, 3},    {5.9, 30},   {-8, -5.5},   {-6, 1},       {4, 4.01},
                               {-0.5, 9}, {-3.5, 3.5}, {0.1, 0.102}, {-1e-3, 1e-3}, {5, 5.0005}};
  for (const auto& w : windows) truncated_errors(w[0], w[1], 2e-6);
  truncated_errors(6, 9, 3e-3);
  truncated_errors(-20, -7, 3e-3);
  truncated_errors(30, 31, 3e-3);
  uniform_levels();
  normal_errors();
  return passed ? 0 : 1;
}
