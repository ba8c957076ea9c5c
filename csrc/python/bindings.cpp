// What Python needs besides the ops: build facts, gains, and the raw words and distributions that tests look at.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <xinit/xinit.h>

#include <cmath>
#include <cstring>
#include <optional>

#include "../checked.h"
#include "../ops.h"
#include "../philox.h"
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

// Whether two elements of so many bytes have the same bits, or are zeros of any sign.
bool alike(const char* x, const char* y, size_t bytes) {
  uint64_t a = 0, b = 0;
  std::memcpy(&a, x, bytes);
  std::memcpy(&b, y, bytes);
  return a == b || (a | b) << (65 - 8 * bytes) == 0;
}

// Of those tensors of more than one real number whose elements may all be the same, their indices and what they are;
// None where it is for operators to tell: on a device, or in other memory than one run of the same bits.
std::vector<std::pair<size_t, std::optional<double>>> constants(const std::vector<at::Tensor>& tensors) {
  std::vector<std::pair<size_t, std::optional<double>>> found;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& tensor = tensors[i];
    if (!at::isFloatingType(tensor.scalar_type()) || tensor.is_meta() || tensor.is_inference() || tensor.numel() < 2 ||
        tensor.storage().nbytes() == 0)
      continue;
    std::optional<double> value;
    if (tensor.is_cpu()) {
      size_t last = 0;
      for (int64_t d = 0; d < tensor.dim(); ++d) last += static_cast<size_t>((tensor.size(d) - 1) * tensor.stride(d));
      const char* const data = static_cast<const char*>(tensor.const_data_ptr());
      const size_t bytes = tensor.element_size(), rest = last * bytes;
      if (!alike(data, data + rest, bytes)) continue;
      if (tensor.is_contiguous() && std::memcmp(data, data + bytes, rest) == 0)
        value = tensor.detach().as_strided({}, {}).item<double>();
    }
    if (!value || !std::isnan(*value)) found.emplace_back(i, value);
  }
  return found;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("build_info", &facts);
  m.def("ops", [] {
    std::vector<std::string> names;
    for (const Op& op : ops()) names.push_back(op.name);
    return names;
  });
  m.attr("fold_in") = py::reinterpret_steal<py::object>(make_fold_in());
  m.def("calculate_gain", &calculate_gain, py::arg("nonlinearity"), py::arg("slope"));
  m.def("resolve", &resolved, py::arg("description"), py::arg("shape"));
  m.def("constants", &constants, py::arg("tensors"));
  m.attr("calls") = py::reinterpret_steal<py::dict>(make_calls());
  m.def("words", &words, py::arg("seed"), py::arg("stream"), py::arg("block"), py::arg("blocks"),
        "The 4 * blocks words from that block on.");
  m.def(
      "uniform",
      [](double a, double b, const std::string& dtype) { return describe(uniform(a, b, parse_dtype(dtype))); },
      py::arg("a"), py::arg("b"), py::arg("dtype"));
  m.def("normal", [](double mean, double std) { return describe(normal(mean, std)); }, py::arg("mean"), py::arg("std"));
  m.def(
      "truncated_normal",
      [](double mean, double std, double a, double b, const std::string& dtype) {
        return describe(truncated_normal(mean, std, a, b, parse_dtype(dtype)));
      },
      py::arg("mean"), py::arg("std"), py::arg("a"), py::arg("b"), py::arg("dtype"));
}

}  // namespace xinit
