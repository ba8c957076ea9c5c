// The ops: schemas, validation in front of all devices, and what does not depend on the device.
#include "ops.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "checked.h"
#include "digest.h"
#include "float_environment.h"
#include "transforms.h"

namespace xinit {
namespace {

// What every op takes besides its distribution's parameters.
struct Arguments {
  const char* op;
  const at::Tensor& self;
  const std::optional<at::Generator>& generator;
  at::OptionalSymIntArrayRef key, global_shape, offsets;
  int64_t batch_dims;
};

// (seed, stream), and then what torch.compile leaves to be folded in: a name as the number of its bytes, and these,
// eight a word; a number as -1 and itself.
Key key_of(const char* op, at::IntArrayRef words) {
  TORCH_CHECK_VALUE(words.size() >= 2, op, ": key is (seed, stream), but found ", words.size(), " numbers");
  Key key{static_cast<uint64_t>(words[0]), static_cast<uint64_t>(words[1])};
  for (size_t at = 2; at < words.size();) {
    const int64_t bytes = words[at++];
    const size_t left = words.size() - at, taken = bytes < 0 ? 1 : (static_cast<size_t>(bytes) + 7) / 8;
    TORCH_CHECK_VALUE(bytes >= -1 && taken <= left, op, ": key is (seed, stream), but found ", words.size(),
                      " numbers");
    const auto* const name = reinterpret_cast<const char*>(words.data() + at);
    key = bytes < 0 ? key.fold_in(static_cast<uint64_t>(words[at]))
                    : key.fold_in(std::string_view(name, static_cast<size_t>(bytes)));
    at += taken;
  }
  return key;
}

// Traced by torch.compile, words may be symbolic. Then nothing is filled, and any key will do.
Key key_of(const char* op, at::SymIntArrayRef words) {
  c10::SmallVector<int64_t, 2> known;
  for (const c10::SymInt& word : words) known.push_back(word.maybe_as_int().value_or(0));
  return key_of(op, at::IntArrayRef(known));
}

Source check_source(const Arguments& args) {
  if (!args.key) return {std::nullopt, args.generator};
  TORCH_CHECK_VALUE(!args.generator || !args.generator->defined(), args.op, ": key and generator exclude each other");
  return {key_of(args.op, *args.key), std::nullopt};
}

bool supported(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
    case at::kDouble:
    case at::kHalf:
    case at::kBFloat16:
    case at::kComplexFloat:
    case at::kComplexDouble:
    case at::kComplexHalf:
    case at::kFloat8_e4m3fn:
    case at::kFloat8_e5m2:
    case at::kFloat8_e4m3fnuz:
    case at::kFloat8_e5m2fnuz:
      return true;
    default:
      return false;
  }
}

void check_readable(const char* op, const at::Tensor& self) {
  const auto type = self.scalar_type();
  TORCH_CHECK_NOT_IMPLEMENTED(
      supported(type), '"', op, "\" not implemented for '", type,
      "': supported are Float, Double, Half, BFloat16, the complex ones of these, and float8 with a mantissa");
  if (self.is_meta() || self.numel() == 0) return;
  int64_t last = self.storage_offset();
  for (int64_t d = 0; d < self.dim(); ++d) last += (self.size(d) - 1) * self.stride(d);
  const size_t needed = static_cast<size_t>(last + 1) * self.element_size();
  TORCH_CHECK(self.storage().nbytes() >= needed, op, ": the tensor of shape ", self.sizes(), " needs ", needed,
              " bytes, but its storage has ", self.storage().nbytes(), ": was it released by a sharding wrapper?");
}

}  // namespace

void check_tensor(const char* op, const at::Tensor& self) {
  check_readable(op, self);
  if (!self.is_meta()) at::assert_no_internal_overlap(self);
}

namespace {

bool concrete(at::SymIntArrayRef sizes) {
  for (const auto& size : sizes)
    if (!size.maybe_as_int()) return false;
  return true;
}

Shape to_shape(at::SymIntArrayRef sizes) {
  Shape shape;
  for (const auto& size : sizes) shape.push_back(size.expect_int());
  return shape;
}

// The tensor of this shape as a part of a whole; by default it is the whole.
struct Part {
  Shape local, whole, offsets;
};

void check_part(const char* op, const Part& part) {
  TORCH_CHECK_VALUE(part.whole.size() == part.local.size() && part.offsets.size() == part.local.size(), op,
                    ": the window has ", part.whole.size(), " dimensions and ", part.offsets.size(),
                    " offsets, but the tensor has ", part.local.size(), " dimensions");
  int64_t count = 1;
  for (size_t d = 0; d < part.whole.size(); ++d) {
    const int64_t local = part.local[d], whole = part.whole[d], offset = part.offsets[d];
    TORCH_CHECK_VALUE(offset >= 0 && whole >= 0 && local <= whole && offset <= whole - local, op, ": the window [",
                      offset, ", ", offset, " + ", local, ") is outside its global shape's [0, ", whole,
                      ") in dimension ", d);
    TORCH_CHECK_VALUE(!__builtin_mul_overflow(count, whole, &count), op, ": the global shape ",
                      at::IntArrayRef(part.whole), " has more than 2^63 elements at dimension ", d);
  }
}

// Nothing if it is traced with symbolic shapes: then there is nothing to fill, and nothing to check against.
std::optional<Part> part_of(const char* op, const at::Tensor& self, at::OptionalSymIntArrayRef global_shape,
                            at::OptionalSymIntArrayRef offsets) {
  if (!concrete(self.sym_sizes()) || (global_shape && !concrete(*global_shape)) || (offsets && !concrete(*offsets)))
    return std::nullopt;
  Part part{to_shape(self.sym_sizes()), {}, {}};
  TORCH_CHECK_VALUE(global_shape.has_value() == offsets.has_value(), op,
                    ": a window takes global_shape and offsets, but found only ",
                    global_shape ? "global_shape" : "offsets");
  part.whole = global_shape ? to_shape(*global_shape) : part.local;
  part.offsets = offsets ? to_shape(*offsets) : Shape(part.local.size(), 0);
  check_part(op, part);
  return part;
}

// Of a complex tensor, those of its real view, in which element i is 2i and 2i + 1; or of one half of these.
enum class Half { kBoth, kReal, kImaginary };
std::vector<Placed> windows_of(const at::Tensor& self, const Part& part, Half half = Half::kBoth) {
  const int64_t numbers = self.is_complex() ? 2 : 1, first = half == Half::kImaginary ? 1 : 0;
  std::vector<Dim> dims;
  if (numbers == 2 && half == Half::kBoth) dims.push_back({2, 1, 1});
  uint64_t step = static_cast<uint64_t>(numbers), base = static_cast<uint64_t>(first);
  for (size_t d = part.whole.size(); d-- > 0;) {
    dims.push_back({self.size(static_cast<int64_t>(d)), self.stride(static_cast<int64_t>(d)) * numbers, step});
    base += static_cast<uint64_t>(part.offsets[d]) * step;
    step *= static_cast<uint64_t>(part.whole[d]);
  }
  std::vector<Placed> windows = make_windows(base, std::move(dims));
  for (Placed& placed : windows) placed.offset += first;
  return windows;
}

// The fills of a part, their key still to be given. A mean or a constant is a real number, and so that of the real
// parts alone.
std::vector<Fill> fills_of(const at::Tensor& self, const Part& part, const Distribution& distribution) {
  const Dtype dtype = dtype_of(self);
  char* const data = static_cast<char*>(self.mutable_data_ptr());
  std::vector<Fill> fills;
  const auto add = [&](const Distribution& drawn, Half half) {
    for (const Placed& placed : windows_of(self, part, half))
      fills.push_back({data + placed.offset * size_of(dtype), dtype, {}, drawn, placed.window});
  };
  if (!self.is_complex() || (distribution.shift == 0 && !std::signbit(distribution.shift))) {
    add(distribution, Half::kBoth);
  } else {
    add(distribution, Half::kReal);
    add(distribution.kind == Kind::kNormal ? normal(0, distribution.scale) : constant(0), Half::kImaginary);
  }
  return fills;
}

// The shape of each of those that are stacked, of which the fans are.
Shape member_of(const char* op, const Part& part, int64_t batch_dims) {
  const int64_t dims = static_cast<int64_t>(part.whole.size());
  TORCH_CHECK_VALUE(0 <= batch_dims && batch_dims <= dims, op, ": batch_dims must be in [0, ", dims,
                    "], the tensor's number of dimensions, but found ", batch_dims);
  return {part.whole.begin() + batch_dims, part.whole.end()};
}

// Everything that can fail comes first; the fill is the first to touch the tensor or the generator.
template <class Check>
void run(const Backend& backend, const Arguments& args, Check check) {
  const FloatEnvironment environment;
  check_tensor(args.op, args.self);
  const Source source = check_source(args);
  const auto part = part_of(args.op, args.self, args.global_shape, args.offsets);
  if (!part) return;
  const Checked drawn =
      check(Target{args.op, args.self.dtype(), dtype_of(args.self), member_of(args.op, *part, args.batch_dims)});
  if (!drawn || args.self.is_meta() || empty(part->whole)) return;  // an empty tensor draws nothing
  backend.fill(args.self, fills_of(args.self, *part, *drawn), source);
}

template <class... Parameters>
void implement(torch::Library& library, Backend backend, const char* op,
               Checked (*checked)(const Target&, Parameters...)) {
  using Ints = at::OptionalSymIntArrayRef;
  using Random = const std::optional<at::Generator>&;
  library.impl(op, [=](at::Tensor& self, Parameters... parameters, Random generator, Ints key, Ints global_shape,
                       Ints offsets, int64_t batch_dims) {
    run(backend, {op, self, generator, key, global_shape, offsets, batch_dims},
        [&](const Target& target) { return checked(target, parameters...); });
  });
  library.impl(twin(op).c_str(), [=](const at::Tensor& self, Parameters... parameters, Random generator, Ints key,
                                     Ints global_shape, Ints offsets, int64_t batch_dims) {
    at::Tensor filled = at::empty_like(self);
    run(backend, {op, filled, generator, key, global_shape, offsets, batch_dims},
        [&](const Target& target) { return checked(target, parameters...); });
    return filled;
  });
}

template <size_t>
using Number = double;

template <int law, size_t... i>
void implement_law(torch::Library& library, Backend backend, std::index_sequence<i...>) {
  Checked (*checked)(const Target&, Number<i>...) = [](const Target& target, Number<i>... parameters) {
    const double all[] = {parameters...};
    return checked_law(target, further_laws()[law], all);
  };
  implement(library, backend, further_laws()[law].op.c_str(), checked);
}

template <int... law>
void implement_laws(torch::Library& library, Backend backend, std::integer_sequence<int, law...>) {
  (implement_law<law>(library, backend, std::make_index_sequence<std::size(FurtherLaws::at<law>::parameters)>()), ...);
}

// For tensor i the description of a distribution, and a key of two words; if there are names at all, one for errors; if
// there are windows at all, as many numbers of global_shapes and offsets as it has dimensions. Compiled functions give
// no keys, but for each tensor how many words its key has, and these.
struct Many {
  at::TensorList tensors;
  const std::vector<std::string>& distributions;
  at::IntArrayRef keys;
  const std::vector<std::string>& names;
  at::IntArrayRef global_shapes, offsets;
  int64_t batch_dims;
  at::SymIntArrayRef traced_keys;

  bool windowed() const { return !global_shapes.empty() || !offsets.empty(); }
};

void check_counts(const char* op, const Many& many) {
  const size_t count = many.tensors.size();
  TORCH_CHECK_VALUE(many.distributions.size() == count && (many.keys.size() == 2 * count || !many.traced_keys.empty()),
                    op, ": ", count, " tensors take as many distributions, and two key words each, but found ",
                    many.distributions.size(), " and ", many.keys.size());
  size_t dims = 0;
  for (const at::Tensor& tensor : many.tensors) dims += static_cast<size_t>(tensor.dim());
  TORCH_CHECK_VALUE(!many.windowed() || (many.global_shapes.size() == dims && many.offsets.size() == dims), op,
                    ": tensors of ", dims, " dimensions together take as many global sizes and offsets, but found ",
                    many.global_shapes.size(), " and ", many.offsets.size());
  TORCH_CHECK_VALUE(many.names.empty() || many.names.size() == count, op, ": ", count,
                    " tensors take as many names, but found ", many.names.size());
}

std::vector<Key> keys_of(const char* op, const Many& many) {
  std::vector<Key> keys;
  keys.reserve(many.tensors.size());
  for (size_t at = 0; at < many.keys.size(); at += 2) keys.push_back(key_of(op, many.keys.slice(at, 2)));
  for (size_t at = 0; at < many.traced_keys.size();) {
    const size_t size = static_cast<size_t>(many.traced_keys[at++].expect_int());
    TORCH_CHECK_VALUE(size <= many.traced_keys.size() - at, op, ": a key is said to have ", size, " words");
    keys.push_back(key_of(op, many.traced_keys.slice(at, size)));
    at += size;
  }
  TORCH_CHECK_VALUE(keys.size() == many.tensors.size(), op, ": ", many.tensors.size(),
                    " tensors take as many keys, but found ", keys.size());
  return keys;
}

// Tensor i's fills, checked. Its dimensions begin there among those of all.
void add_fills(const char* op, const Many& many, size_t i, Key key, size_t dim, const Description& description,
               std::vector<Fill>& fills) {
  const at::Tensor& self = many.tensors[i];
  check_tensor(op, self);
  TORCH_CHECK(self.device() == many.tensors[0].device(), op, ": all tensors must be on one device, but found ",
              many.tensors[0].device(), " and ", self.device());
  if (!concrete(self.sym_sizes())) return;
  Part part{to_shape(self.sym_sizes()), {}, {}};
  const size_t n = part.local.size();
  part.whole = many.windowed() ? many.global_shapes.slice(dim, n).vec() : part.local;
  part.offsets = many.windowed() ? many.offsets.slice(dim, n).vec() : Shape(n, 0);
  check_part(op, part);
  if (empty(part.whole) && !description.fan.empty()) return;  // which has no fans
  const Shape member = member_of(op, part, many.batch_dims);
  const Checked drawn = checked_named({op, self.dtype(), dtype_of(self), member}, resolve(description, member));
  if (self.is_meta() || empty(part.local)) return;
  for (Fill& fill : fills_of(self, part, *drawn)) {
    fill.key = key;
    fills.push_back(fill);
  }
}

// Everything is checked before the first tensor changes; tensors without elements are passed over.
void fill_many(const Backend& backend, const Many& many) {
  constexpr const char* op = "fill_many_";
  const FloatEnvironment environment;
  check_counts(op, many);
  const std::vector<Key> keys = keys_of(op, many);
  std::unordered_map<std::string_view, Description> known;  // of many tensors, few differ in it
  std::vector<Fill> fills;
  fills.reserve(many.tensors.size());
  size_t dim = 0;
  for (size_t i = 0; i < many.tensors.size(); ++i) {
    try {
      auto found = known.find(many.distributions[i]);
      if (found == known.end())
        found = known.emplace(many.distributions[i], parse_description(op, many.distributions[i])).first;
      add_fills(op, many, i, keys[i], dim, found->second, fills);
    } catch (c10::Error& error) {
      error.add_context(many.names.empty() ? c10::str("tensor ", i) : many.names[i]);
      throw;
    }
    dim += static_cast<size_t>(many.tensors[i].dim());
  }
  if (!fills.empty()) backend.fill_many(many.tensors[0], fills);
}

at::Tensor digest(const Backend& backend, const at::Tensor& self, at::IntArrayRef key,
                  at::OptionalSymIntArrayRef global_shape, at::OptionalSymIntArrayRef offsets) {
  constexpr const char* op = "digest";
  check_readable(op, self);
  const Key checked = key_of(op, key);
  const auto part = part_of(op, self, global_shape, offsets);
  if (!part || self.is_meta()) return at::empty({2}, self.options().dtype(at::kLong));
  return backend.digest(self, windows_of(self, *part), digest_key(checked, dtype_of(self), self.is_complex()));
}

constexpr Backend kMeta{[](const at::Tensor&, std::vector<Fill>, const Source&) {},
                        [](const at::Tensor&, const std::vector<Fill>&) {}, nullptr};

}  // namespace

// fan_mode, not mode: torch's auto_functionalized passes an op's arguments on by name, and has a `mode` of its own.
const std::vector<Op>& ops() {
  static const std::vector<Op> all = [] {
    std::vector<Op> all{
        {"uniform_", "float a=0., float b=1."},
        {"normal_", "float mean=0., float std=1."},
        {"trunc_normal_", "float mean=0., float std=1., float a=-2., float b=2."},
        {"xavier_uniform_", "float gain=1."},
        {"xavier_normal_", "float gain=1."},
        {"kaiming_uniform_", "float a=0., str fan_mode='fan_in', str nonlinearity='leaky_relu'"},
        {"kaiming_normal_", "float a=0., str fan_mode='fan_in', str nonlinearity='leaky_relu'"},
        {"variance_scaling_",
         "float scale=1., str fan_mode='fan_in', str distribution='truncated_normal', "
         "int[] in_axis=[1], int[] out_axis=[0], int[] batch_axis=[], int groups=1"},
    };
    for (const Law& law : further_laws()) all.push_back({law.op.c_str(), law.schema.c_str()});
    return all;
  }();
  return all;
}

std::string twin(const std::string& name) {
  const size_t end = std::min(name.find('.'), name.size());  // of the name, before its overload's
  return name.substr(0, end - 1) + name.substr(end);
}

Dtype dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
    case at::kComplexDouble:
      return Dtype::kDouble;
    case at::kHalf:
    case at::kComplexHalf:
      return Dtype::kHalf;
    case at::kBFloat16:
      return Dtype::kBFloat16;
    case at::kFloat8_e4m3fn:
      return Dtype::kFloat8E4M3FN;
    case at::kFloat8_e5m2:
      return Dtype::kFloat8E5M2;
    case at::kFloat8_e4m3fnuz:
      return Dtype::kFloat8E4M3FNUZ;
    case at::kFloat8_e5m2fnuz:
      return Dtype::kFloat8E5M2FNUZ;
    default:
      return Dtype::kFloat;
  }
}

void register_ops(torch::Library& library, Backend backend) {
  implement(library, backend, "uniform_", checked_uniform);
  implement(library, backend, "normal_", checked_normal);
  implement(library, backend, "trunc_normal_", checked_trunc_normal);
  implement(library, backend, "xavier_uniform_", checked_xavier_uniform);
  implement(library, backend, "xavier_normal_", checked_xavier_normal);
  implement(library, backend, "kaiming_uniform_", checked_kaiming_uniform);
  implement(library, backend, "kaiming_normal_", checked_kaiming_normal);
  implement(library, backend, "variance_scaling_", checked_variance_scaling);
  implement_laws(library, backend, std::make_integer_sequence<int, FurtherLaws::count>());
  using Strings = const std::vector<std::string>&;
  library.impl("fill_many_", [=](at::TensorList tensors, Strings distributions, at::IntArrayRef keys, Strings names,
                                 at::IntArrayRef global_shapes, at::IntArrayRef offsets, int64_t batch_dims,
                                 at::SymIntArrayRef traced_keys) {
    fill_many(backend, {tensors, distributions, keys, names, global_shapes, offsets, batch_dims, traced_keys});
  });
  library.impl("fill_many", [=](at::TensorList tensors, Strings distributions, at::IntArrayRef keys, Strings names,
                                at::IntArrayRef global_shapes, at::IntArrayRef offsets, int64_t batch_dims,
                                at::SymIntArrayRef traced_keys) {
    std::vector<at::Tensor> filled;
    for (const at::Tensor& tensor : tensors) filled.push_back(at::empty_like(tensor));
    fill_many(backend, {filled, distributions, keys, names, global_shapes, offsets, batch_dims, traced_keys});
    return filled;
  });
  library.impl("digest",
               [=](const at::Tensor& self, at::IntArrayRef key, at::OptionalSymIntArrayRef global_shape,
                   at::OptionalSymIntArrayRef offsets) { return digest(backend, self, key, global_shape, offsets); });
}

TORCH_LIBRARY(xinit, m) {
  const std::vector<at::Tag> pure{at::Tag::pt2_compliant_tag};
  const std::vector<at::Tag> random{at::Tag::nondeterministic_seeded, at::Tag::pt2_compliant_tag};
  const std::string common =
      ", *, Generator? generator=None, SymInt[]? key=None, SymInt[]? global_shape=None, SymInt[]? offsets=None,"
      " int batch_dims=0)";
  for (const Op& op : ops()) {
    m.def(c10::str(op.name, "(Tensor(a!) self, ", op.parameters, common, " -> ()").c_str(), random);
    m.def(c10::str(twin(op.name), "(Tensor self, ", op.parameters, common, " -> Tensor").c_str(), random);
  }
  const std::string many =
      ", str[] distributions, int[] keys, str[] names, int[] global_shapes=[], int[] offsets=[], int batch_dims=0,"
      " SymInt[] traced_keys=[])";
  m.def(c10::str("fill_many_(Tensor(a!)[] tensors", many, " -> ()").c_str(), pure);
  m.def(c10::str("fill_many(Tensor[] tensors", many, " -> Tensor[]").c_str(), pure);
  m.def("digest(Tensor self, int[] key, SymInt[]? global_shape=None, SymInt[]? offsets=None) -> Tensor", pure);
}

TORCH_LIBRARY_IMPL(xinit, Meta, m) { register_ops(m, kMeta); }

}  // namespace xinit
