// The way of most calls from Python to an op: a tensor that is just one, and plain numbers for arguments. What
// torch.ops does for arguments of every kind takes it several times as long as a small tensor takes to be filled.
#include "calls.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/Generator.h>
#include <torch/csrc/autograd/python_variable.h>

#include "../ops.h"

namespace xinit {
namespace {

// Whether torch.ops would do nothing more with it than what is done here; see calls.py for what else it must not be.
bool plain(PyObject* object) {
  if (!THPVariable_CheckExact(object) || at::impl::torch_function_mode_enabled()) return false;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  const bool parameter = Py_TYPE(object) != reinterpret_cast<PyTypeObject*>(THPVariableClass);
  return (parameter || !tensor.requires_grad()) && tensor.sym_numel().maybe_as_int() != 0;
}

// Onto the stack, if the argument is of that type and it is a float, an int or a string.
bool push(PyObject* object, const c10::Argument& argument, torch::jit::Stack& stack) {
  const c10::TypeKind kind = argument.type()->kind();
  if (kind == c10::TypeKind::FloatType && PyFloat_CheckExact(object)) {
    stack.emplace_back(PyFloat_AS_DOUBLE(object));
  } else if (kind == c10::TypeKind::FloatType && PyLong_CheckExact(object)) {
    stack.emplace_back(PyLong_AsDouble(object));
  } else if (kind == c10::TypeKind::StringType && PyUnicode_CheckExact(object)) {
    const char* const text = PyUnicode_AsUTF8(object);
    stack.emplace_back(std::string(text ? text : ""));
  } else {
    return false;
  }
  return !PyErr_Occurred();
}

// (tensor, parameters, generator) or (tensor, parameters, generator, seed, stream): whether it was filled. Where it was
// not, torch.ops is to be asked.
PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const auto& op = *static_cast<const c10::OperatorHandle*>(PyCapsule_GetPointer(self, nullptr));
  const auto& arguments = op.schema().arguments();
  PyObject *const parameters = args[1], *const generator = args[2];
  if (!plain(args[0]) ||
      (generator != Py_None && Py_TYPE(generator) != reinterpret_cast<PyTypeObject*>(THPGeneratorClass)))
    Py_RETURN_FALSE;
  torch::jit::Stack stack;
  stack.reserve(arguments.size());
  stack.emplace_back(THPVariable_Unpack(args[0]));
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(parameters); ++i)
    if (!push(PyTuple_GET_ITEM(parameters, i), arguments[stack.size()], stack)) {
      PyErr_Clear();
      Py_RETURN_FALSE;
    }
  while (!arguments[stack.size()].kwarg_only()) stack.push_back(*arguments[stack.size()].default_value());
  stack.push_back(generator == Py_None ? c10::IValue()
                                       : c10::IValue(reinterpret_cast<THPGenerator*>(generator)->cdata));
  if (count == 5) {
    c10::List<int64_t> key;
    for (Py_ssize_t i = 3; i < count; ++i) key.push_back(static_cast<int64_t>(PyLong_AsUnsignedLongLong(args[i])));
    stack.emplace_back(std::move(key));
  }
  while (stack.size() < arguments.size()) stack.push_back(*arguments[stack.size()].default_value());
  {
    const pybind11::gil_scoped_release no_gil;
    op.callBoxed(stack);
  }
  Py_RETURN_TRUE;
  END_HANDLE_TH_ERRORS
}

// (seed, stream, data): the new stream.
PyObject* fold_in(PyObject*, PyObject* const* args, Py_ssize_t) {
  const Key key{PyLong_AsUnsignedLongLong(args[0]), PyLong_AsUnsignedLongLong(args[1])};
  if (PyUnicode_Check(args[2])) {
    Py_ssize_t size = 0;
    const char* const name = PyUnicode_AsUTF8AndSize(args[2], &size);
    return name ? PyLong_FromUnsignedLongLong(key.fold_in({name, static_cast<size_t>(size)}).stream) : nullptr;
  }
  const uint64_t number = PyLong_AsUnsignedLongLong(args[2]);
  return PyErr_Occurred() ? nullptr : PyLong_FromUnsignedLongLong(key.fold_in(number).stream);
}

using Fast = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);
PyMethodDef fast(const char* name, Fast function) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, nullptr};
}

}  // namespace

PyObject* make_fold_in() {
  static PyMethodDef method = fast("fold_in", fold_in);
  return PyCFunction_New(&method, nullptr);
}

PyObject* make_calls() {
  static const std::vector<c10::OperatorHandle> handles = [] {
    std::vector<c10::OperatorHandle> found;
    for (const Op& op : ops())
      found.push_back(c10::Dispatcher::singleton().findSchemaOrThrow(c10::str("xinit::", op.name).c_str(), ""));
    return found;
  }();
  static PyMethodDef method = fast("call", call);
  PyObject* const made = PyDict_New();
  for (size_t i = 0; i < handles.size(); ++i) {
    PyObject* const handle = PyCapsule_New(const_cast<c10::OperatorHandle*>(&handles[i]), nullptr, nullptr);
    PyDict_SetItemString(made, ops()[i].name, PyCFunction_New(&method, handle));
  }
  return made;
}

}  // namespace xinit
