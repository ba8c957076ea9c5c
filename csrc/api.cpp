// The functions of xinit.h: each calls its op.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/StringUtil.h>
#include <xinit/xinit.h>

#include <cinttypes>
#include <cstdio>
#include <unordered_set>

namespace xinit {
namespace {

using Ints = at::OptionalSymIntArrayRef;

auto find(const char* op) { return c10::Dispatcher::singleton().findSchemaOrThrow(op, ""); }

int64_t word(uint64_t x) { return static_cast<int64_t>(x); }

// Integers as ops take those that torch.compile may have as symbols.
struct Symbolic {
  explicit Symbolic(const std::optional<std::vector<int64_t>>& some) {
    if (some) values.emplace(some->begin(), some->end());
  }
  operator Ints() const { return values ? Ints(*values) : std::nullopt; }
  std::optional<std::vector<c10::SymInt>> values;
};

template <class... Parameters>
at::Tensor fill(const char* op, at::Tensor tensor, const FillOptions& options, Parameters... parameters) {
  std::optional<std::vector<int64_t>> key;
  if (options.key) key = {word(options.key->seed), word(options.key->stream)};
  find(op)
      .typed<void(at::Tensor&, Parameters..., const std::optional<at::Generator>&, Ints, Ints, Ints, int64_t)>()
      .call(tensor, parameters..., options.generator, Symbolic(key), Symbolic(options.global_shape),
            Symbolic(options.offsets), options.batch_dims);
  return tensor;
}

c10::List<std::string> strings(const std::vector<std::string>& from) {
  c10::List<std::string> list;
  for (const std::string& text : from) list.push_back(text);
  return list;
}

// The numbers of all tensors in a row, as the op takes them: those given, or, for a tensor that is whole, its own.
template <class Whole>
std::vector<int64_t> in_a_row(const char* what, at::TensorList tensors, const std::vector<std::vector<int64_t>>& given,
                              Whole whole) {
  std::vector<int64_t> row;
  if (given.empty()) return row;
  TORCH_CHECK_VALUE(given.size() == tensors.size(), "fill_many_: ", tensors.size(), " tensors take as many ", what,
                    ", but found ", given.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::vector<int64_t> numbers = given[i].empty() ? whole(tensors[i]) : given[i];
    TORCH_CHECK_VALUE(static_cast<int64_t>(numbers.size()) == tensors[i].dim(), "fill_many_: ", what, "[", i, "] has ",
                      numbers.size(), " dimensions, but its tensor ", tensors[i].dim());
    row.insert(row.end(), numbers.begin(), numbers.end());
  }
  return row;
}

}  // namespace

at::Tensor uniform_(at::Tensor tensor, double a, double b, const FillOptions& options) {
  return fill("xinit::uniform_", std::move(tensor), options, a, b);
}

at::Tensor normal_(at::Tensor tensor, double mean, double std, const FillOptions& options) {
  return fill("xinit::normal_", std::move(tensor), options, mean, std);
}

at::Tensor trunc_normal_(at::Tensor tensor, double mean, double std, double a, double b, const FillOptions& options) {
  return fill("xinit::trunc_normal_", std::move(tensor), options, mean, std, a, b);
}

at::Tensor xavier_uniform_(at::Tensor tensor, double gain, const FillOptions& options) {
  return fill("xinit::xavier_uniform_", std::move(tensor), options, gain);
}

at::Tensor xavier_normal_(at::Tensor tensor, double gain, const FillOptions& options) {
  return fill("xinit::xavier_normal_", std::move(tensor), options, gain);
}

at::Tensor kaiming_uniform_(at::Tensor tensor, double a, std::string_view mode, std::string_view nonlinearity,
                            const FillOptions& options) {
  return fill("xinit::kaiming_uniform_", std::move(tensor), options, a, mode, nonlinearity);
}

at::Tensor kaiming_normal_(at::Tensor tensor, double a, std::string_view mode, std::string_view nonlinearity,
                           const FillOptions& options) {
  return fill("xinit::kaiming_normal_", std::move(tensor), options, a, mode, nonlinearity);
}

at::Tensor variance_scaling_(at::Tensor tensor, double scale, std::string_view mode, std::string_view distribution,
                             at::IntArrayRef in_axis, at::IntArrayRef out_axis, at::IntArrayRef batch_axis,
                             int64_t groups, const FillOptions& options) {
  return fill("xinit::variance_scaling_", std::move(tensor), options, scale, mode, distribution, in_axis, out_axis,
              batch_axis, groups);
}

void fill_many_(at::TensorList tensors, const std::vector<std::string>& distributions, at::ArrayRef<Key> keys,
                const FillManyOptions& options) {
  std::vector<int64_t> words;
  for (const Key& key : keys) words.insert(words.end(), {word(key.seed), word(key.stream)});
  const auto shape = [](const at::Tensor& tensor) { return tensor.sizes().vec(); };
  const auto nowhere = [](const at::Tensor& tensor) { return std::vector<int64_t>(tensor.dim(), 0); };
  torch::jit::Stack stack{tensors,
                          strings(distributions),
                          words,
                          strings(options.names),
                          in_a_row("global_shapes", tensors, options.global_shapes, shape),
                          in_a_row("offsets", tensors, options.offsets, nowhere),
                          options.batch_dims};
  const auto op = find("xinit::fill_many_");
  for (size_t i = stack.size(); i < op.schema().arguments().size(); ++i)
    stack.push_back(*op.schema().arguments()[i].default_value());
  op.callBoxed(stack);
}

at::Tensor digest(const at::Tensor& tensor, Key key, const std::optional<std::vector<int64_t>>& global_shape,
                  const std::optional<std::vector<int64_t>>& offsets) {
  const int64_t words[] = {word(key.seed), word(key.stream)};
  return find("xinit::digest")
      .typed<at::Tensor(const at::Tensor&, at::IntArrayRef, Ints, Ints)>()
      .call(tensor, words, Symbolic(global_shape), Symbolic(offsets));
}

std::string fingerprint(const std::vector<std::pair<std::string, at::Tensor>>& named_parameters) {
  std::unordered_set<const void*> seen;
  std::vector<at::Tensor> digests;
  for (const auto& [name, parameter] : named_parameters)
    if (seen.insert(parameter.unsafeGetTensorImpl()).second)
      digests.push_back(digest(parameter.detach(), Key().fold_in(name)));
  uint64_t low = 0, high = 0;
  for (const at::Tensor& on_device : digests) {  // all are under way by now
    const at::Tensor sums = on_device.cpu();
    low += static_cast<uint64_t>(sums.const_data_ptr<int64_t>()[0]);
    high += static_cast<uint64_t>(sums.const_data_ptr<int64_t>()[1]);
  }
  char digits[33];
  std::snprintf(digits, sizeof digits, "%016" PRIx64 "%016" PRIx64, low, high);
  return digits;
}

}  // namespace xinit
