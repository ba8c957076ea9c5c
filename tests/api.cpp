// Each function of xinit.h, and the digest of what it fills: tests/test_cpp.py does the same in Python.
#include <ATen/Functions.h>
#include <xinit/xinit.h>

#include <iostream>

namespace {

void show(const char* name, const at::Tensor& tensor) {
  std::cout << name << " " << xinit::fingerprint({{"w", tensor}}) << "\n";
}

at::Tensor empty() { return at::empty({6, 4}); }

}  // namespace

int main() {
  const xinit::Key key = xinit::Key{~0ull, 7}.fold_in("läyer.0").fold_in(3);
  const xinit::FillOptions options{key};
  std::cout << "key " << key.seed << " " << key.stream << "\n";
  show("uniform_", xinit::uniform_(empty(), -1, 3, options));
  show("normal_", xinit::normal_(empty(), 1, 0.5, options));
  show("trunc_normal_", xinit::trunc_normal_(empty(), 0, 1, -1, 2, options));
  show("xavier_uniform_", xinit::xavier_uniform_(empty(), 2, options));
  show("xavier_normal_", xinit::xavier_normal_(empty(), 2, options));
  show("kaiming_uniform_", xinit::kaiming_uniform_(empty(), 0.1, "fan_out", "leaky_relu", options));
  show("kaiming_normal_", xinit::kaiming_normal_(empty(), xinit::calculate_gain("tanh"), "fan_in", "relu", options));
  show("variance_scaling_", xinit::variance_scaling_(empty(), 2, "fan_in", "uniform", {0}, {1}, {}, 1, options));
  show("bfloat16", xinit::normal_(at::empty({5, 3}, at::kBFloat16), 0, 1, options));

  xinit::FillOptions part{key};
  part.global_shape = {{9, 8}};
  part.offsets = {{2, 3}};
  show("part", xinit::xavier_normal_(empty(), 1, part));

  at::Tensor w = empty(), b = at::empty({6});
  xinit::fill_many_({w, b}, {"normal(2.0, fan_out)", "constant(0.25)"}, {key, key.fold_in("b")});
  std::cout << "fill_many_ " << xinit::fingerprint({{"w", w}, {"b", b}, {"again", w}}) << "\n";

  xinit::FillManyOptions parts;
  parts.names = {"first", "second"};
  parts.global_shapes = {{9, 8}, {}};
  parts.offsets = {{2, 3}, {}};
  xinit::fill_many_({w, b}, {"normal(1.0, fan_in)", "uniform(-1.0, 1.0)"}, {key, key}, parts);
  std::cout << "parts " << xinit::fingerprint({{"w", w}, {"b", b}}) << "\n";
  try {
    xinit::fill_many_({w, b}, {"normal(0.0, 1.0)", "normal(0.0, -1.0)"}, {key, key}, parts);
  } catch (const c10::Error& error) {
    std::cout << "named " << error.what_without_backtrace() << "\n";
  }
  parts.offsets = {{2}, {}};
  try {
    xinit::fill_many_({w, b}, {"normal(0.0, 1.0)", "normal(0.0, 1.0)"}, {key, key}, parts);
  } catch (const c10::Error& error) {
    std::cout << "offsets " << error.what_without_backtrace() << "\n";
  }

  auto generator = at::globalContext().defaultGenerator(at::kCPU).clone();
  generator.set_current_seed(5);
  xinit::FillOptions drawn;
  drawn.generator = generator;
  show("generator", xinit::normal_(empty(), 0, 1, drawn));
  try {
    xinit::normal_(empty(), 0, -1);
  } catch (const c10::Error& error) {
    std::cout << "error " << error.what_without_backtrace() << "\n";
  }
  std::cout << "torch " << xinit::build_info().torch << "\n";
}
