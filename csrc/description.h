// What to draw into a tensor of any shape, as text: how it crosses from Python, and from whoever calls fill_many_.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace xinit {

using Shape = std::vector<int64_t>;

// Which axes make up the fans; those that are in none are the receptive field, those of a batch (stacked experts) part
// of no fan. Axis 0 holds the channels of all groups of a convolution. Negative axes count from the last. As in JAX,
// the one axis of a vector may be both in and out, and both fans are 1 then.
struct Axes {
  Shape in = {1}, out = {0}, batch = {};
  int64_t groups = 1;
};

// "uniform(a, b)", "normal(mean, std)", "truncated_normal(mean, std, a, b)" or "constant(value)"; or one of the first
// three scaled by a fan, "normal(gain, fan_in)", of axes that may follow: "in=1, out=0, batch=2 3, groups=1".
struct Description {
  std::string name;
  std::vector<double> parameters;
  std::string fan;  // empty if there is none
  Axes axes;
};
Description parse_description(const char* op, std::string_view text);

}  // namespace xinit
