// What autograd, functionalization (of torch.compile and torch.func.functionalize) and lazy views ask of an op,
// whatever its device. Boxed, so that each is written once for all ops. For vmap see xinit/vmap.py.
#include <ATen/FunctionalTensorWrapper.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "ops.h"

namespace xinit {
namespace {

// Ops take one tensor first, or a list.
std::vector<at::Tensor> tensors_of(const c10::IValue& value) {
  return value.isTensor() ? std::vector<at::Tensor>{value.toTensor()} : value.toTensorVector();
}

// In place and without reverse-mode autograd: a leaf that requires grad is filled as under no_grad, and its version
// moves on. What is drawn depends on nothing, so a forward-mode tangent becomes zero.
void fill_below_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto tensors = tensors_of(torch::jit::peek(*stack, 0, op.schema().arguments().size()));
  for (const at::Tensor& tensor : tensors)
    TORCH_CHECK(!tensor.is_inference(), op.schema().name(),
                ": Inplace update to inference tensor outside InferenceMode is not allowed.");
  {
    at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
  for (const at::Tensor& tensor : tensors) {
    tensor.unsafeGetTensorImpl()->bump_version();
    if (const at::Tensor& tangent = tensor._fw_grad(0); tangent.defined()) at::Tensor(tangent).zero_();
  }
}

// The twin's result takes the tensor's place. A tensor in a graph can be recomputed then, and the twin's tag says that
// its generator's state must be kept for that.
void fill_functional(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  namespace functional = at::functionalization::impl;
  c10::IValue& first = torch::jit::peek(*stack, 0, op.schema().arguments().size());
  const std::vector<at::Tensor> tensors = tensors_of(first);
  std::vector<at::Tensor> values;
  bool any = false;
  for (const at::Tensor& tensor : tensors) {
    any |= functional::isFunctionalTensor(tensor);
    functional::sync(tensor);
    values.push_back(functional::from_functional_tensor(tensor, /*assert_functional=*/false));
  }
  const at::AutoDispatchSkipFunctionalize below;
  if (!any) return op.callBoxed(stack);
  first = first.isTensor() ? c10::IValue(values[0]) : c10::IValue(values);
  c10::Dispatcher::singleton()
      .findSchemaOrThrow(twin(op.schema().name()).c_str(), op.schema().overload_name().c_str())
      .callBoxed(stack);
  const std::vector<at::Tensor> filled = tensors_of(torch::jit::pop(*stack));
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!functional::isFunctionalTensor(tensors[i])) {
      tensors[i].copy_(filled[i]);
      continue;
    }
    functional::replace_(tensors[i], filled[i]);
    functional::commit_update(tensors[i]);
    functional::sync(tensors[i]);
  }
}

// Lazily conjugated or negated views, of which memory of their own is filled and then copied to them. Torch's fallback
// for these takes it that an operator returns what it has written.
void fill_lazy_views(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  std::vector<std::pair<at::Tensor, at::Tensor>> filled;
  const auto resolved = [&](const at::Tensor& tensor) {
    if (!tensor.is_conj() && !tensor.is_neg()) return tensor;
    check_tensor(op.schema().name().c_str(), tensor);
    filled.emplace_back(tensor, tensor.resolve_conj().resolve_neg());
    return filled.back().second;
  };
  c10::IValue& first = torch::jit::peek(*stack, 0, op.schema().arguments().size());
  if (first.isTensor()) {
    first = resolved(first.toTensor());
  } else {
    c10::List<at::Tensor> tensors;
    for (const at::Tensor& tensor : tensors_of(first)) tensors.push_back(resolved(tensor));
    first = tensors;
  }
  op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::Conjugate), stack);
  for (const auto& [view, values] : filled) view.copy_(values);
}

// All that fill in place; each has a twin.
std::vector<std::string> fills() {
  std::vector<std::string> names{"fill_many_"};
  for (const Op& op : ops()) names.push_back(op.name);
  return names;
}

}  // namespace

TORCH_LIBRARY_IMPL(xinit, Autograd, m) {
  for (const std::string& name : fills()) {
    m.impl(name.c_str(), torch::CppFunction::makeFallthrough());
    m.impl(twin(name).c_str(), torch::CppFunction::makeFallthrough());
  }
  m.impl("digest", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(xinit, ADInplaceOrView, m) {
  for (const std::string& name : fills())
    m.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&fill_below_autograd>());
}

TORCH_LIBRARY_IMPL(xinit, Functionalize, m) {
  for (const std::string& name : fills())
    m.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&fill_functional>());
}

TORCH_LIBRARY_IMPL(xinit, Conjugate, m) {
  for (const std::string& name : fills())
    m.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&fill_lazy_views>());
}

TORCH_LIBRARY_IMPL(xinit, Negative, m) {
  for (const std::string& name : fills())
    m.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&fill_lazy_views>());
}

}  // namespace xinit
