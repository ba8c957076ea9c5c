// What Python needs besides the ops: build facts, gains, and the raw words and plans that tests look at.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <xinit/xinit.h>

#include "../ops.h"
#include "../philox.h"
#include "../plan.h"
#include "calls.h"

namespace py = pybind11;

namespace xinit {
namespace {

py::dict facts() {
  const BuildInfo info = build_info();
  py::dict out;
  out["version"] = info.version;
  out["contract"] = info.contract;
  out["torch"] = info.torch;
  out["cuda"] = info.cuda;
  out["cuda_arches"] = info.cuda_arches;
  out["compiler"] = info.compiler;
  out["cpu_isa"] = info.cpu_isa;
  return out;
}

std::vector<uint32_t> words(uint64_t seed, uint64_t stream, uint64_t block, uint64_t blocks) {
  const Schedule keys = schedule(seed);
  std::vector<uint32_t> out;
  for (uint64_t i = 0; i < blocks; ++i)
    for (const uint32_t w : philox_block(stream, block + i, keys).w) out.push_back(w);
  return out;
}

Dtype parse_dtype(const std::string& name) {
  if (name == "float32") return Dtype::kFloat;
  if (name == "float64") return Dtype::kDouble;
  if (name == "float16") return Dtype::kHalf;
  if (name == "bfloat16") return Dtype::kBFloat16;
  if (name == "float8_e4m3fn") return Dtype::kFloat8E4M3FN;
  if (name == "float8_e5m2") return Dtype::kFloat8E5M2;
  if (name == "float8_e4m3fnuz") return Dtype::kFloat8E4M3FNUZ;
  if (name == "float8_e5m2fnuz") return Dtype::kFloat8E5M2FNUZ;
  throw py::value_error("dtype must be a floating one that xinit fills, but found " + name);
}

py::dict describe(const Distribution& d) {
  static const char* kinds[] = {"uniform", "uniform_clamped", "normal", "truncated", "truncated_tail"};
  py::dict out;
  out["kind"] = kinds[static_cast<int>(d.kind)];
  out["scale"] = d.scale;
  out["shift"] = d.shift;
  out["low"] = d.low_wide;
  out["high"] = d.high_wide;
  return out;
}

// What a description is for tensors of that shape: a name, and parameters.
py::tuple resolved(const std::string& text, const Shape& shape) {
  const Description description = parse_description("resolve", text);
  const Named named = resolve(description, shape);
  const double* p = named.parameters;
  if (named.name == "truncated_normal") return py::make_tuple(named.name, py::make_tuple(p[0], p[1], p[2], p[3]));
  return py::make_tuple(named.name, py::make_tuple(p[0], p[1]));
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("build_info", &facts);
  m.def("ops", [] {
    std::vector<std::string> names;
    for (const Op& op : ops()) names.push_back(op.name);
    return names;
  });
  m.def(
      "fold_in",
      [](uint64_t seed, uint64_t stream, std::string_view name) { return Key{seed, stream}.fold_in(name).stream; },
      py::arg("seed"), py::arg("stream"), py::arg("name"));
  m.def(
      "fold_in",
      [](uint64_t seed, uint64_t stream, uint64_t number) { return Key{seed, stream}.fold_in(number).stream; },
      py::arg("seed"), py::arg("stream"), py::arg("number"));
  m.def("calculate_gain", &calculate_gain, py::arg("nonlinearity"), py::arg("slope"));
  m.def("resolve", &resolved, py::arg("description"), py::arg("shape"));
  m.attr("calls") = py::reinterpret_steal<py::dict>(make_calls());
  m.def("words", &words, py::arg("seed"), py::arg("stream"), py::arg("block"), py::arg("blocks"),
        "The 4 * blocks words from that block on.");
  m.def(
      "plan_uniform",
      [](double a, double b, const std::string& dtype) { return describe(uniform(a, b, parse_dtype(dtype))); },
      py::arg("a"), py::arg("b"), py::arg("dtype"));
  m.def(
      "plan_normal", [](double mean, double std) { return describe(normal(mean, std)); }, py::arg("mean"),
      py::arg("std"));
  m.def(
      "plan_truncated_normal",
      [](double mean, double std, double a, double b, const std::string& dtype) {
        return describe(truncated_normal(mean, std, a, b, parse_dtype(dtype)));
      },
      py::arg("mean"), py::arg("std"), py::arg("a"), py::arg("b"), py::arg("dtype"));
}

}  // namespace xinit
