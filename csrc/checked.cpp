#include "checked.h"

#include <c10/core/ScalarTypeToTypeMeta.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace xinit {
namespace {

void check_in_range(const Target& target, const char* what, double value) {
  // A float64 tensor holds float32 values, widened.
  const double most = std::min(largest(target.dtype), largest(Dtype::kFloat));
  TORCH_CHECK(std::abs(value) <= most, what, " is out of bounds for ", target.type, ": ", target.op, " received ", what,
              "=", value);
}

void check_normal(const Target& target, double mean, double std) {
  TORCH_CHECK(std >= 0, "normal expects std >= 0.0, but found std ", std);
  check_in_range(target, "std", std);
  check_in_range(target, "mean", mean);
}

bool is_complex(const Target& target) { return c10::isComplexType(c10::typeMetaToScalarType(target.type)); }

// As torch refuses some of them: which part of the plane such an interval would be is not said.
void check_real(const Target& target) {
  TORCH_CHECK_NOT_IMPLEMENTED(!is_complex(target), '"', target.op, "\" not implemented for '",
                              c10::typeMetaToScalarType(target.type),
                              "': of complex tensors, normal distributions and constants are supported");
}

template <class Make>
Distribution in_domain(const Target& target, Make make) {
  try {
    return make();
  } catch (const std::domain_error& error) {
    C10_THROW_ERROR(ValueError, c10::str(target.op, ": ", error.what()));
  }
}

// Upper and lower case are alike, as for torch.
std::string lower(std::string_view name) {
  std::string out(name);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

std::string kaiming_mode(std::string_view name) {
  std::string mode = lower(name);
  TORCH_CHECK_VALUE(mode == "fan_in" || mode == "fan_out", "Mode ", mode,
                    " not supported, please use one of ['fan_in', 'fan_out']");
  return mode;
}

// Nothing, after torch's warning, where the tensor has no elements.
Checked checked_scaled(const Target& target, std::string_view distribution, double gain, std::string_view mode,
                       const Axes& axes = {}) {
  if (empty(target.shape)) {
    TORCH_WARN("Initializing zero-element tensors is a no-op");
    return std::nullopt;
  }
  Fans fans = fans_of(target.shape, axes);
  const Fan fan = parse_fan(mode, fans);
  return checked_named(target, scaled(distribution, gain, fans, fan));
}

// For all but Kaiming's: a shape that has no fans is an error also if it has no elements, as in torch.
Checked checked_with_fans(const Target& target, std::string_view distribution, double gain, std::string_view mode,
                          const Axes& axes = {}) {
  fans_of(target.shape, axes);
  return checked_scaled(target, distribution, gain, mode, axes);
}

size_t axis_of(int64_t axis, size_t dims, const char* argument) {
  const int64_t n = static_cast<int64_t>(dims);
  TORCH_CHECK_VALUE(-n <= axis && axis < n, argument, " ", axis, " is out of range for a tensor of ", n, " dimensions");
  return static_cast<size_t>(axis < 0 ? axis + n : axis);
}

}  // namespace

Checked checked_uniform(const Target& target, double a, double b) {
  check_real(target);
  check_in_range(target, "from", a);
  check_in_range(target, "to", b);
  TORCH_CHECK(a <= b, "uniform_ expects to return a [from, to) range, but found from=", a, " > to=", b);
  return in_domain(target, [&] { return uniform(a, b, target.dtype); });
}

Checked checked_normal(const Target& target, double mean, double std) {
  check_normal(target, mean, std);
  // The variance of a complex number is that of its real and its imaginary part together.
  return normal(mean, is_complex(target) ? std / std::sqrt(2.0) : std);
}

Checked checked_trunc_normal(const Target& target, double mean, double std, double a, double b) {
  check_real(target);
  check_normal(target, mean, std);
  check_in_range(target, "a", a);
  check_in_range(target, "b", b);
  TORCH_CHECK_VALUE(a < b, target.op, ": the window [a, b] is empty: a=", a, ", b=", b);
  return in_domain(target, [&] { return truncated_normal(mean, std, a, b, target.dtype); });
}

Checked checked_law(const Target& target, const Law& law, const double* parameters) {
  check_real(target);
  for (size_t i = 0; i < law.parameters.size(); ++i) check_in_range(target, law.parameters[i], parameters[i]);
  return in_domain(target, [&] { return law.make(parameters); });
}

Checked checked_xavier_uniform(const Target& target, double gain) {
  return checked_with_fans(target, "uniform", gain, "fan_avg");
}

Checked checked_xavier_normal(const Target& target, double gain) {
  return checked_with_fans(target, "normal", gain, "fan_avg");
}

Checked checked_kaiming_uniform(const Target& target, double a, std::string_view mode, std::string_view nonlinearity) {
  return checked_scaled(target, "uniform", calculate_gain(nonlinearity, a), kaiming_mode(mode));
}

Checked checked_kaiming_normal(const Target& target, double a, std::string_view mode, std::string_view nonlinearity) {
  return checked_scaled(target, "normal", calculate_gain(nonlinearity, a), kaiming_mode(mode));
}

Checked checked_variance_scaling(const Target& target, double scale, std::string_view mode,
                                 std::string_view distribution, c10::IntArrayRef in_axis, c10::IntArrayRef out_axis,
                                 c10::IntArrayRef batch_axis, int64_t groups) {
  TORCH_CHECK_VALUE(scale >= 0 && std::isfinite(scale), target.op, ": scale must be finite and >= 0, but found ",
                    scale);
  const Axes axes{in_axis.vec(), out_axis.vec(), batch_axis.vec(), groups};
  return checked_with_fans(target, distribution, std::sqrt(scale), mode, axes);
}

Named resolve(const Description& description, const Shape& shape) {
  if (!description.fan.empty()) {
    Fans fans = fans_of(shape, description.axes);
    const Fan fan = parse_fan(description.fan, fans);
    return scaled(description.name, description.parameters[0], fans, fan);
  }
  Named named{description.name, {}};
  std::copy(description.parameters.begin(), description.parameters.end(), named.parameters);
  return named;
}

Checked checked_named(const Target& target, const Named& named) {
  const double* p = named.parameters;
  if (named.name == "uniform") return checked_uniform(target, p[0], p[1]);
  if (named.name == "normal") return checked_normal(target, p[0], p[1]);
  if (named.name == "truncated_normal") return checked_trunc_normal(target, p[0], p[1], p[2], p[3]);
  if (const Law* law = find_law(named.name)) return checked_law(target, *law, p);
  TORCH_CHECK_VALUE(named.name == "constant", target.op, ": unknown distribution ", named.name);
  check_in_range(target, "value", p[0]);
  return constant(p[0]);
}

bool empty(const Shape& shape) { return std::find(shape.begin(), shape.end(), 0) != shape.end(); }

Fan parse_fan(std::string_view name, Fans& fans) {
  const std::string mode = lower(name);
  if (mode == "fan_in") return Fan::kIn;
  if (mode == "fan_out") return Fan::kOut;
  if (mode == "fan_avg") return Fan::kAverage;
  TORCH_CHECK_VALUE(mode == "fan_geo_avg", "Mode ", mode,
                    " not supported, please use one of ['fan_in', 'fan_out', 'fan_avg', 'fan_geo_avg']");
  fans.in = fans.out = std::sqrt(fans.in * fans.out);
  return Fan::kIn;
}

Fans fans_of(const Shape& shape, const Axes& axes) {
  TORCH_CHECK_VALUE(shape.size() >= 2 || axes.in != Axes().in,
                    "Fan in and fan out can not be computed for tensor with fewer than 2 dimensions");
  std::vector<std::string_view> role(shape.size());
  const auto product = [&](const Shape& chosen, const char* argument) {
    double sizes = 1;
    for (const int64_t axis : chosen) {
      const size_t d = axis_of(axis, shape.size(), argument);
      TORCH_CHECK_VALUE(role[d].empty(), argument, " ", axis, " is already in ", role[d]);
      role[d] = argument;
      sizes *= static_cast<double>(shape[d]);
    }
    return sizes;
  };
  Fans fans{product(axes.in, "in_axis"), 1};
  if (shape.size() == 1 && axes.in.size() == 1 && axes.out.size() == 1 && axes.batch.empty() && axes.groups == 1) {
    axis_of(axes.out[0], 1, "out_axis");
    return {1, 1};
  }
  fans.out = product(axes.out, "out_axis");
  product(axes.batch, "batch_axis");
  if (shape.empty()) return fans;
  TORCH_CHECK_VALUE(axes.groups >= 1 && shape[0] % axes.groups == 0, "groups ", axes.groups,
                    " does not divide the size ", shape[0], " of axis 0");
  if (role[0] == "in_axis") fans.in /= static_cast<double>(axes.groups);
  if (role[0] == "out_axis") fans.out /= static_cast<double>(axes.groups);
  for (size_t d = 0; d < shape.size(); ++d)
    if (role[d].empty()) {
      fans.in *= static_cast<double>(shape[d]);
      fans.out *= static_cast<double>(shape[d]);
    }
  return fans;
}

Named scaled(std::string_view distribution, double gain, Fans fans, Fan mode) {
  const double std = standard_deviation(gain, fans, mode), bound = std::sqrt(3.0) * std;
  if (distribution == "normal") return {"normal", {0, std}};
  if (distribution == "uniform") return {"uniform", {-bound, bound}};
  TORCH_CHECK_VALUE(distribution == "truncated_normal", "Distribution ", distribution,
                    " not supported, please use one of ['truncated_normal', 'normal', 'uniform']");
  if (std == 0) return {"normal", {0, 0}};               // zeros: there is no window to truncate to
  const double untruncated = std / 0.87962566103423978;  // the std of a standard normal truncated to +-2
  return {"truncated_normal", {0, untruncated, -2 * untruncated, 2 * untruncated}};
}

double calculate_gain(std::string_view nonlinearity, double slope) {
  for (const char* name :
       {"linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "sigmoid"})
    if (nonlinearity == name) return 1;
  if (nonlinearity == "tanh") return 5.0 / 3;
  if (nonlinearity == "relu") return std::sqrt(2.0);
  TORCH_CHECK_VALUE(nonlinearity != "leaky_relu" || std::isfinite(slope), "negative_slope ", slope,
                    " not a valid number");
  if (nonlinearity == "leaky_relu") return std::sqrt(2.0 / (1 + slope * slope));
  if (nonlinearity == "selu") return 3.0 / 4;
  if (nonlinearity == "gain") return slope;  // what Python has worked out for any other function
  C10_THROW_ERROR(ValueError, c10::str("Unsupported nonlinearity ", nonlinearity));
}

}  // namespace xinit
