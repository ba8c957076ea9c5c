// From an op's own parameters to a checked distribution; errors in torch's words where torch has them.
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/typeid.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "description.h"
#include "distribution.h"
#include "laws.h"

namespace xinit {

// What a check may ask of the tensor.
struct Target {
  const char* op;
  caffe2::TypeMeta type;
  Dtype dtype;
  Shape shape;  // of the whole
};

// No distribution: nothing is to be done.
using Checked = std::optional<Distribution>;

Checked checked_uniform(const Target&, double a, double b);
Checked checked_normal(const Target&, double mean, double std);
Checked checked_trunc_normal(const Target&, double mean, double std, double a, double b);
Checked checked_law(const Target&, const Law&, const double* parameters);
Checked checked_xavier_uniform(const Target&, double gain);
Checked checked_xavier_normal(const Target&, double gain);
Checked checked_kaiming_uniform(const Target&, double a, std::string_view mode, std::string_view nonlinearity);
Checked checked_kaiming_normal(const Target&, double a, std::string_view mode, std::string_view nonlinearity);
Checked checked_variance_scaling(const Target&, double scale, std::string_view mode, std::string_view distribution,
                                 c10::IntArrayRef in_axis, c10::IntArrayRef out_axis, c10::IntArrayRef batch_axis,
                                 int64_t groups);

// Of a shape that has these axes. Without a fan it is as it was described.
struct Named {
  std::string_view name;
  double parameters[4];
};
Named resolve(const Description&, const Shape& shape);
Checked checked_named(const Target&, const Named&);

bool empty(const Shape& shape);
// fan_in, fan_out, fan_avg, or fan_geo_avg, for which both fans become their geometric mean.
Fan parse_fan(std::string_view mode, Fans& fans);
Fans fans_of(const Shape& shape, const Axes& axes = {});
// Of mean 0 and std = gain / sqrt(fan); "truncated_normal" is cut at two standard deviations of the untruncated.
Named scaled(std::string_view distribution, double gain, Fans fans, Fan mode);

double calculate_gain(std::string_view nonlinearity, double slope);

}  // namespace xinit
