"""Wrapper subclasses of other packages: tensors that hold others, as a weight that is cast to float8 where it is gathered."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

PLAIN = frozenset((Tensor, torch.nn.Parameter))


def plain(tensor: Tensor) -> bool:
    """Whether a tensor is strided memory and nothing else: not fake, sharded, quantized, or still without a shape."""
    usual = type(tensor) in PLAIN
    return (
        (usual or type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__)
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and (usual or not is_lazy(tensor))
    )


def holds_tensors(tensor: Tensor) -> bool:
    """Whether it is made of others, by torch's protocol for that."""
    return hasattr(type(tensor), "__tensor_flatten__") and hasattr(type(tensor), "__tensor_unflatten__")


def wraps(tensor: Tensor) -> bool:
    """Whether a tensor is such a wrapper. Those that come with torch, ``DTensor`` among them, see to their operators."""
    return type(tensor) not in PLAIN and holds_tensors(tensor) and not type(tensor).__module__.startswith("torch.")


def held(tensor: Tensor, name: str) -> Tensor:
    """The tensor whose values a wrapper's are; any other tensor as it is.

    A wrapper that holds one tensor alone, which is like itself, only changes what is done with it. What others hold, such as
    numbers of fewer bits and their scales, is made from values that are not there any more.

    Raises:
        NotImplementedError: for the latter. ``name`` is what it calls the tensor.
    """
    while wraps(tensor):
        names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        inner: Tensor | None = getattr(tensor, names[0]) if len(names) == 1 else None
        if inner is None or _likeness(inner) != _likeness(tensor):
            raise NotImplementedError(
                f"{name} is a {type(tensor).__name__}, whose values are made from its {' and '.join(names)}: initialise the "
                f"tensor that it is made from, before it is converted"
            )
        tensor = inner
    return tensor


def rewrap(wrapper: Tensor, values: Tensor) -> None:
    """Make a wrapper, in place, one of a tensor that has got its memory; nothing if it is that tensor."""
    if wrapper is values:
        return
    (name,), context = wrapper.__tensor_flatten__()  # type: ignore[attr-defined]
    inner: Tensor = getattr(wrapper, name)
    rewrap(inner, values)
    again = type(wrapper).__tensor_unflatten__({name: inner}, context, values.shape, values.stride())  # type: ignore[attr-defined]
    if isinstance(wrapper, torch.nn.Parameter):
        again = torch.nn.Parameter(again, wrapper.requires_grad)
    torch.utils.swap_tensors(wrapper, again)  # type: ignore[no-untyped-call]


def _likeness(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device, tuple[int, ...]]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.stride()
