// xinit from C++: weight initialisation in which every weight is a pure function of (seed, name, index). What Python's
// functions of the same names do, with the same bits; errors are c10::Error.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <xinit/key.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace xinit {

// What all fills take: where random words come from, by default the generator of the tensor's device; and, of a tensor
// that is part of a larger one, that one's shape, and where the part begins in it.
struct FillOptions {
  std::optional<Key> key;
  std::optional<at::Generator> generator;
  std::optional<std::vector<int64_t>> global_shape, offsets;
  int64_t batch_dims = 0;  // leading dimensions over which tensors are stacked: no part of the fans
};

// Each fills a tensor in place, as under no_grad, and returns it. The ops' functional twins have no functions here:
// they are for torch.compile to put in the ops' place, and fill at::empty_like(tensor).
at::Tensor uniform_(at::Tensor tensor, double a = 0, double b = 1, const FillOptions& options = {});
at::Tensor normal_(at::Tensor tensor, double mean = 0, double std = 1, const FillOptions& options = {});
at::Tensor trunc_normal_(at::Tensor tensor, double mean = 0, double std = 1, double a = -2, double b = 2,
                         const FillOptions& options = {});
at::Tensor xavier_uniform_(at::Tensor tensor, double gain = 1, const FillOptions& options = {});
at::Tensor xavier_normal_(at::Tensor tensor, double gain = 1, const FillOptions& options = {});
at::Tensor kaiming_uniform_(at::Tensor tensor, double a = 0, std::string_view mode = "fan_in",
                            std::string_view nonlinearity = "leaky_relu", const FillOptions& options = {});
at::Tensor kaiming_normal_(at::Tensor tensor, double a = 0, std::string_view mode = "fan_in",
                           std::string_view nonlinearity = "leaky_relu", const FillOptions& options = {});
at::Tensor variance_scaling_(at::Tensor tensor, double scale = 1, std::string_view mode = "fan_in",
                             std::string_view distribution = "truncated_normal", at::IntArrayRef in_axis = {1},
                             at::IntArrayRef out_axis = {0}, at::IntArrayRef batch_axis = {}, int64_t groups = 1,
                             const FillOptions& options = {});
double calculate_gain(std::string_view nonlinearity, double slope = 0.01);

// Of many tensors: what errors call each; and, if some are parts of larger ones, those one's shapes, and where in them
// the parts begin, both empty for a tensor that is whole. Nothing for all by default.
struct FillManyOptions {
  std::vector<std::string> names;
  std::vector<std::vector<int64_t>> global_shapes, offsets;
  int64_t batch_dims = 0;
};

// Tensor i, of those on one device, from distribution i and key i, all checked before the first changes. Distributions
// are written as "uniform(a, b)", "normal(mean, std)", "truncated_normal(mean, std, a, b)" and "constant(value)"; of a
// tensor's fans as "normal(gain, fan_in)", also uniform or truncated_normal, fan_out, fan_avg or fan_geo_avg.
void fill_many_(at::TensorList tensors, const std::vector<std::string>& distributions, at::ArrayRef<Key> keys,
                const FillManyOptions& options = {});

// 32 hexadecimal digits that tell a model's weights: what Python's fingerprint gives for parameters of these names. One
// that is there twice counts once, under its first name.
std::string fingerprint(const std::vector<std::pair<std::string, at::Tensor>>& named_parameters);
// What it sums, modulo 2^64: two int64 for each tensor, or part of one, with the key that is folded from its name.
at::Tensor digest(const at::Tensor& tensor, Key key,
                  const std::optional<std::vector<int64_t>>& global_shape = std::nullopt,
                  const std::optional<std::vector<int64_t>>& offsets = std::nullopt);

// What this build is. cuda and cuda_arches are null where it is without CUDA.
struct BuildInfo {
  const char* version;
  int contract;
  const char *torch, *cuda, *cuda_arches, *compiler;
  const char* cpu_isa;  // in use: avx512, avx2 or baseline
};
BuildInfo build_info();

}  // namespace xinit
