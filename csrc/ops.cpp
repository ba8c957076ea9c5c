// The ops: schemas, validation in front of all devices, and what does not depend on the device.
#include "ops.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "float_environment.h"

namespace xinit {
namespace {

using Shape = std::vector<int64_t>;

// What every op takes besides its distribution's parameters.
struct Arguments {
  const char* op;
  at::Tensor& self;
  const std::optional<at::Generator>& generator;
  at::OptionalIntArrayRef key;
  at::OptionalSymIntArrayRef global_shape, offsets;
};

Source check_source(const Arguments& args) {
  if (!args.key) return {std::nullopt, args.generator};
  TORCH_CHECK_VALUE(!args.generator || !args.generator->defined(), args.op, ": key and generator exclude each other");
  TORCH_CHECK_VALUE(args.key->size() == 2, args.op, ": key is (seed, stream), but found ", args.key->size(),
                    " numbers");
  return {Key{static_cast<uint64_t>((*args.key)[0]), static_cast<uint64_t>((*args.key)[1])}, std::nullopt};
}

void check_tensor(const char* op, const at::Tensor& self) {
  const auto type = self.scalar_type();
  TORCH_CHECK_NOT_IMPLEMENTED(type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16,
                              '"', op, "\" not implemented for '", type,
                              "': supported are Float, Double, Half and BFloat16");
  if (self.is_meta()) return;
  at::assert_no_internal_overlap(self);
  if (self.numel() == 0) return;
  int64_t last = self.storage_offset();
  for (int64_t d = 0; d < self.dim(); ++d) last += (self.size(d) - 1) * self.stride(d);
  const size_t needed = static_cast<size_t>(last + 1) * self.element_size();
  TORCH_CHECK(self.storage().nbytes() >= needed, op, ": the tensor of shape ", self.sizes(), " needs ", needed,
              " bytes, but its storage has ", self.storage().nbytes(), ": was it released by a sharding wrapper?");
}

bool concrete(at::SymIntArrayRef sizes) {
  for (const auto& size : sizes)
    if (size.is_symbolic()) return false;
  return true;
}

Shape to_shape(at::SymIntArrayRef sizes) {
  Shape shape;
  for (const auto& size : sizes) shape.push_back(size.expect_int());
  return shape;
}

// The shape of the whole: the tensor's own, or that of which it is a window, checked to contain it.
Shape check_window(const Arguments& args) {
  const Shape local = to_shape(args.self.sym_sizes());
  TORCH_CHECK_VALUE(args.global_shape.has_value() == args.offsets.has_value(), args.op,
                    ": a window takes global_shape and offsets, but found only ",
                    args.global_shape ? "global_shape" : "offsets");
  if (!args.global_shape) return local;
  const Shape whole = to_shape(*args.global_shape), offsets = to_shape(*args.offsets);
  TORCH_CHECK_VALUE(whole.size() == local.size() && offsets.size() == local.size(), args.op, ": the window has ",
                    whole.size(), " dimensions and ", offsets.size(), " offsets, but the tensor has ", local.size(),
                    " dimensions");
  int64_t count = 1;
  for (size_t d = 0; d < whole.size(); ++d) {
    TORCH_CHECK_VALUE(offsets[d] >= 0 && whole[d] >= 0 && local[d] <= whole[d] && offsets[d] <= whole[d] - local[d],
                      args.op, ": the window [", offsets[d], ", ", offsets[d], " + ", local[d],
                      ") is outside its global shape's [0, ", whole[d], ") in dimension ", d);
    TORCH_CHECK_VALUE(!__builtin_mul_overflow(count, whole[d], &count), args.op, ": the global shape ",
                      at::IntArrayRef(whole), " has more than 2^63 elements at dimension ", d);
  }
  return whole;
}

std::vector<Placed> windows_of(const at::Tensor& self, const Shape& whole, const Shape& offsets) {
  std::vector<Dim> dims;
  uint64_t step = 1, base = 0;
  for (size_t d = whole.size(); d-- > 0;) {
    dims.push_back({self.size(static_cast<int64_t>(d)), self.stride(static_cast<int64_t>(d)), step});
    base += static_cast<uint64_t>(offsets[d]) * step;
    step *= static_cast<uint64_t>(whole[d]);
  }
  return make_windows(base, std::move(dims));
}

// ---- the plans: from an op's own parameters to a distribution, in torch's words where torch has them ----

// What a plan may ask of the tensor.
struct Target {
  const char* op;
  caffe2::TypeMeta type;
  Dtype dtype;
  Shape shape;  // of the whole
};

// No distribution: nothing is to be done.
using Plan = std::optional<Distribution>;

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

template <class Make>
Distribution in_domain(const Target& target, Make make) {
  try {
    return make();
  } catch (const std::domain_error& error) {
    C10_THROW_ERROR(ValueError, c10::str(target.op, ": ", error.what()));
  }
}

Plan plan_uniform(const Target& target, double a, double b) {
  check_in_range(target, "from", a);
  check_in_range(target, "to", b);
  TORCH_CHECK(a <= b, "uniform_ expects to return a [from, to) range, but found from=", a, " > to=", b);
  return in_domain(target, [&] { return uniform(a, b, target.dtype); });
}

Plan plan_normal(const Target& target, double mean, double std) {
  check_normal(target, mean, std);
  return normal(mean, std);
}

Plan plan_trunc_normal(const Target& target, double mean, double std, double a, double b) {
  check_normal(target, mean, std);
  check_in_range(target, "a", a);
  check_in_range(target, "b", b);
  TORCH_CHECK_VALUE(a < b, target.op, ": the window [a, b] is empty: a=", a, ", b=", b);
  return in_domain(target, [&] { return truncated_normal(mean, std, a, b, target.dtype); });
}

Plan plan_constant(const Target& target, double value) {
  check_in_range(target, "value", value);
  return constant(value);
}

bool empty(const Shape& shape) {
  for (const int64_t size : shape)
    if (size == 0) return true;
  return false;
}

Fans fans_of(const Shape& shape) {
  TORCH_CHECK_VALUE(shape.size() >= 2,
                    "Fan in and fan out can not be computed for tensor with fewer than 2 dimensions");
  double receptive = 1;
  for (size_t d = 2; d < shape.size(); ++d) receptive *= static_cast<double>(shape[d]);
  return {static_cast<double>(shape[1]) * receptive, static_cast<double>(shape[0]) * receptive};
}

// Of mean 0 and std = gain / sqrt(fan); "truncated_normal" is cut at two standard deviations of the untruncated.
// Nothing, after torch's warning, where the tensor has no elements.
Plan plan_scaled(const Target& target, std::string_view distribution, double gain, Fan mode) {
  const bool truncated = distribution == "truncated_normal", normal = distribution == "normal";
  TORCH_CHECK_VALUE(truncated || normal || distribution == "uniform", "Distribution ", distribution,
                    " not supported, please use one of ['truncated_normal', 'normal', 'uniform']");
  if (empty(target.shape)) {
    TORCH_WARN("Initializing zero-element tensors is a no-op");
    return std::nullopt;
  }
  const double std = standard_deviation(gain, fans_of(target.shape), mode), bound = std::sqrt(3.0) * std;
  if (normal) return plan_normal(target, 0, std);
  if (!truncated) return plan_uniform(target, -bound, bound);
  const double untruncated = std / 0.87962566103423978;  // the std of a standard normal truncated to +-2
  return plan_trunc_normal(target, 0, untruncated, -2 * untruncated, 2 * untruncated);
}

// Upper and lower case are alike, as for torch.
std::string lower(std::string_view name) {
  std::string out(name);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

Fan kaiming_mode(std::string_view name) {
  const std::string mode = lower(name);
  TORCH_CHECK_VALUE(mode == "fan_in" || mode == "fan_out", "Mode ", mode,
                    " not supported, please use one of ['fan_in', 'fan_out']");
  return mode == "fan_in" ? Fan::kIn : Fan::kOut;
}

Fan variance_scaling_mode(std::string_view name) {
  const std::string mode = lower(name);
  TORCH_CHECK_VALUE(mode == "fan_in" || mode == "fan_out" || mode == "fan_avg", "Mode ", mode,
                    " not supported, please use one of ['fan_in', 'fan_out', 'fan_avg']");
  return mode == "fan_avg" ? Fan::kAverage : kaiming_mode(mode);
}

Plan plan_xavier_uniform(const Target& target, double gain) {
  return plan_scaled(target, "uniform", gain, Fan::kAverage);
}

Plan plan_xavier_normal(const Target& target, double gain) {
  return plan_scaled(target, "normal", gain, Fan::kAverage);
}

Plan plan_kaiming_uniform(const Target& target, double a, std::string_view mode, std::string_view nonlinearity) {
  return plan_scaled(target, "uniform", calculate_gain(nonlinearity, a), kaiming_mode(mode));
}

Plan plan_kaiming_normal(const Target& target, double a, std::string_view mode, std::string_view nonlinearity) {
  return plan_scaled(target, "normal", calculate_gain(nonlinearity, a), kaiming_mode(mode));
}

Plan plan_variance_scaling(const Target& target, double scale, std::string_view mode, std::string_view distribution) {
  TORCH_CHECK_VALUE(scale >= 0 && std::isfinite(scale), target.op, ": scale must be finite and >= 0, but found ",
                    scale);
  return plan_scaled(target, distribution, std::sqrt(scale), variance_scaling_mode(mode));
}

// A distribution by name, with its parameters p, or, where a fan scales it, its gain p[0].
Plan plan_named(const Target& target, const std::string& distribution, const std::string& fan, const double* p) {
  if (!fan.empty()) return plan_scaled(target, distribution, p[0], variance_scaling_mode(fan));
  if (distribution == "constant") return plan_constant(target, p[0]);
  if (distribution == "uniform") return plan_uniform(target, p[0], p[1]);
  if (distribution == "normal") return plan_normal(target, p[0], p[1]);
  if (distribution == "truncated_normal") return plan_trunc_normal(target, p[0], p[1], p[2], p[3]);
  C10_THROW_ERROR(ValueError, c10::str(target.op, ": unknown distribution ", distribution));
}

// ---- from a call to a fill ----

// Everything that can fail comes first; the fill is the first to touch the tensor or the generator.
template <class MakePlan>
void run(const Backend& backend, const Arguments& args, MakePlan make_plan) {
  const FloatEnvironment environment;
  check_tensor(args.op, args.self);
  const Source source = check_source(args);
  if (!concrete(args.self.sym_sizes()) || (args.global_shape && !concrete(*args.global_shape)) ||
      (args.offsets && !concrete(*args.offsets)))
    return;  // traced with symbolic shapes: there is nothing to fill, and nothing to check against
  const Target target{args.op, args.self.dtype(), dtype_of(args.self), check_window(args)};
  const Plan plan = make_plan(target);
  if (!plan || args.self.is_meta() || empty(target.shape)) return;  // an empty tensor draws nothing
  const Shape offsets = args.offsets ? to_shape(*args.offsets) : Shape(target.shape.size(), 0);
  backend.fill(args.self, *plan, windows_of(args.self, target.shape, offsets), source);
}

template <class... Parameters>
void implement(torch::Library& library, Backend backend, const char* op, Plan (*plan)(const Target&, Parameters...)) {
  library.impl(op, [=](at::Tensor& self, Parameters... parameters, const std::optional<at::Generator>& generator,
                       at::OptionalIntArrayRef key, at::OptionalSymIntArrayRef global_shape,
                       at::OptionalSymIntArrayRef offsets) {
    run(backend, {op, self, generator, key, global_shape, offsets},
        [&](const Target& target) { return plan(target, parameters...); });
  });
}

// For tensor i a distribution by name, the fan that scales it ("" for none), a row of four parameters, and a key of two
// words. Everything is checked before the first tensor changes; tensors without elements are passed over.
void fill_many(const Backend& backend, at::TensorList tensors, const std::vector<std::string>& distributions,
               const std::vector<std::string>& fans, at::ArrayRef<double> parameters, at::IntArrayRef keys) {
  constexpr const char* op = "fill_many_";
  const FloatEnvironment environment;
  const size_t count = tensors.size();
  TORCH_CHECK_VALUE(distributions.size() == count && fans.size() == count && parameters.size() == 4 * count &&
                        keys.size() == 2 * count,
                    op, ": ", count, " tensors take as many distributions and fans, and four parameters and two key ",
                    "words each, but found ", distributions.size(), ", ", fans.size(), ", ", parameters.size(), " and ",
                    keys.size());
  std::vector<Fill> fills;
  for (size_t i = 0; i < count; ++i) {
    const at::Tensor& self = tensors[i];
    check_tensor(op, self);
    TORCH_CHECK(self.device() == tensors[0].device(), op, ": all tensors must be on one device, but found ",
                tensors[0].device(), " and, at index ", i, ", ", self.device());
    if (!concrete(self.sym_sizes())) continue;
    const Target target{op, self.dtype(), dtype_of(self), to_shape(self.sym_sizes())};
    if (empty(target.shape)) continue;
    const Plan plan = plan_named(target, distributions[i], fans[i], parameters.data() + 4 * i);
    if (self.is_meta()) continue;
    const Key key{static_cast<uint64_t>(keys[2 * i]), static_cast<uint64_t>(keys[2 * i + 1])};
    const auto windows = windows_of(self, target.shape, Shape(target.shape.size(), 0));
    for (const Fill& fill : fills_of(self, *plan, windows, key)) fills.push_back(fill);
  }
  if (!fills.empty()) backend.fill_many(tensors[0], fills);
}

// In place and without autograd: a leaf that requires grad is filled as under no_grad, and its version moves on.
void bump_version(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const c10::IValue first = torch::jit::peek(*stack, 0, op.schema().arguments().size());
  const auto tensors = first.isTensor() ? std::vector<at::Tensor>{first.toTensor()} : first.toTensorVector();
  for (const at::Tensor& tensor : tensors)
    TORCH_CHECK(!tensor.is_inference(), op.schema().name(),
                ": Inplace update to inference tensor outside InferenceMode is not allowed.");
  {
    at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
  for (const at::Tensor& tensor : tensors) tensor.unsafeGetTensorImpl()->bump_version();
}

constexpr Backend kMeta{[](const at::Tensor&, const Distribution&, const std::vector<Placed>&, const Source&) {},
                        [](const at::Tensor&, const std::vector<Fill>&) {}};

struct Op {
  const char *name, *parameters;
};
// fan_mode, not mode: torch's auto_functionalized passes an op's arguments on by name, and has a `mode` of its own.
constexpr Op kOps[] = {
    {"uniform_", "float a=0., float b=1."},
    {"normal_", "float mean=0., float std=1."},
    {"trunc_normal_", "float mean=0., float std=1., float a=-2., float b=2."},
    {"xavier_uniform_", "float gain=1."},
    {"xavier_normal_", "float gain=1."},
    {"kaiming_uniform_", "float a=0., str fan_mode='fan_in', str nonlinearity='leaky_relu'"},
    {"kaiming_normal_", "float a=0., str fan_mode='fan_in', str nonlinearity='leaky_relu'"},
    {"variance_scaling_", "float scale=1., str fan_mode='fan_in', str distribution='truncated_normal'"},
};

}  // namespace

Dtype dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return Dtype::kDouble;
    case at::kHalf:
      return Dtype::kHalf;
    case at::kBFloat16:
      return Dtype::kBFloat16;
    default:
      return Dtype::kFloat;
  }
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
  C10_THROW_ERROR(ValueError, c10::str("Unsupported nonlinearity ", nonlinearity));
}

std::vector<Fill> fills_of(const at::Tensor& self, const Distribution& distribution, const std::vector<Placed>& windows,
                           const Key& key) {
  char* const data = static_cast<char*>(self.mutable_data_ptr());
  const int64_t size = static_cast<int64_t>(self.element_size());
  std::vector<Fill> fills;
  for (const Placed& placed : windows)
    fills.push_back({data + placed.offset * size, dtype_of(self), key, distribution, placed.window});
  return fills;
}

void register_ops(torch::Library& library, Backend backend) {
  implement(library, backend, "uniform_", plan_uniform);
  implement(library, backend, "normal_", plan_normal);
  implement(library, backend, "trunc_normal_", plan_trunc_normal);
  implement(library, backend, "xavier_uniform_", plan_xavier_uniform);
  implement(library, backend, "xavier_normal_", plan_xavier_normal);
  implement(library, backend, "kaiming_uniform_", plan_kaiming_uniform);
  implement(library, backend, "kaiming_normal_", plan_kaiming_normal);
  implement(library, backend, "variance_scaling_", plan_variance_scaling);
  library.impl("fill_many_",
               [=](at::TensorList tensors, const std::vector<std::string>& distributions,
                   const std::vector<std::string>& fans, at::ArrayRef<double> parameters,
                   at::IntArrayRef keys) { fill_many(backend, tensors, distributions, fans, parameters, keys); });
}

TORCH_LIBRARY(xinit, m) {
  for (const Op& op : kOps)
    m.def(c10::str(op.name, "(Tensor(a!) self, ", op.parameters,
                   ", *, Generator? generator=None, int[]? key=None, SymInt[]? global_shape=None,"
                   " SymInt[]? offsets=None) -> ()")
              .c_str(),
          {at::Tag::nondeterministic_seeded, at::Tag::pt2_compliant_tag});
  m.def("fill_many_(Tensor(a!)[] tensors, str[] distributions, str[] fans, float[] parameters, int[] keys) -> ()",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(xinit, Meta, m) { register_ops(m, kMeta); }

TORCH_LIBRARY_IMPL(xinit, Autograd, m) {
  for (const Op& op : kOps) m.impl(op.name, torch::CppFunction::makeFallthrough());
  m.impl("fill_many_", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(xinit, ADInplaceOrView, m) {
  for (const Op& op : kOps) m.impl(op.name, torch::CppFunction::makeFromBoxedFunction<&bump_version>());
  m.impl("fill_many_", torch::CppFunction::makeFromBoxedFunction<&bump_version>());
}

}  // namespace xinit
