// The seam between the ops, which are the same for every device, and a device's fill.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <vector>

#include "digest.h"
#include "fill.h"

namespace xinit {

// Where a fill's key comes from: given, or taken from a generator (the device's default one if none is named).
struct Source {
  std::optional<Key> key;
  std::optional<at::Generator> generator;
};

// What a device has to be able to do.
struct Backend {
  // Fills a checked tensor, all with the source's key. Takes from the generator even if there is nothing to fill: a
  // rank whose shard is empty advances like the others.
  void (*fill)(const at::Tensor& self, std::vector<Fill> fills, const Source&);
  // Many fills at once, on this tensor's device.
  void (*fill_many)(const at::Tensor& on, const std::vector<Fill>& fills);
  // Two integers on the tensor's device: see digest.h.
  at::Tensor (*digest)(const at::Tensor& self, const std::vector<Placed>&, const DigestKey&);
};

// An op that fills in place, and what it takes between the tensor and the arguments that all take. Each has a twin, of
// the same name without the underscore, that fills a new tensor like the one it is given: what torch.compile and
// torch.func.functionalize put in its place.
struct Op {
  const char *name, *parameters;
};
std::string twin(const std::string& name);
const std::vector<Op>& ops();

// Whether it can be filled: else the error.
void check_tensor(const char* op, const at::Tensor& self);

// Registers every op for the library's dispatch key. Each device's file calls it, at its end.
void register_ops(torch::Library& library, Backend backend);

// Of a complex tensor, that of its real and imaginary parts.
Dtype dtype_of(const at::Tensor& tensor);

}  // namespace xinit
