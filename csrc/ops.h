// The seam between the ops, which are the same for every device, and a device's fill.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <vector>

#include "distribution.h"
#include "window.h"

namespace xinit {

// Names one endless array of random words.
struct Key {
  uint64_t seed, stream;
};

// Where a fill's key comes from: given, or taken from a generator (the device's default one if none is named).
struct Source {
  std::optional<Key> key;
  std::optional<at::Generator> generator;
};

// Fills the windows of a checked tensor. Takes from the generator even if there is no window to fill: a rank whose
// shard is empty advances like the others.
using FillTensor = void (*)(const at::Tensor& self, const Distribution&, const std::vector<Placed>&, const Source&);

// Registers every op for the library's dispatch key. Each device's file calls it, at its end, with its own fill.
void register_ops(torch::Library& library, FillTensor fill);

Dtype dtype_of(const at::Tensor& tensor);
double calculate_gain(std::string_view nonlinearity, double slope);

}  // namespace xinit
