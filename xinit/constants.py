"""The functions of ``torch.nn.init`` that do not draw.

They take a tensor as :mod:`xinit.init` does: any strides, the meta device, a ``DTensor``, of which each rank fills its part;
but of any dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import init

from xinit.dtensor import is_sharded
from xinit.guards import left_alone
from xinit.parts import Part, check_tensor, parts_of, write_diagonals
from xinit.subclasses import wraps
from xinit.window import Window

# As they are now: whoever puts xinit's functions in their place is not to be called back.
_torch_constant_, _torch_ones_, _torch_zeros_ = init.constant_, init.ones_, init.zeros_


def _fill(op: str, torchs: Callable[..., Tensor], tensor: Tensor, value: Any, *arguments: Any) -> Tensor:
    if left_alone(op, getattr(init, op), tensor, *arguments):
        return tensor
    if not (is_sharded(tensor) or wraps(tensor)):
        check_tensor(op, tensor)
        return torchs(tensor, *arguments)
    with torch.no_grad():
        for part, _ in parts_of(op, tensor):
            part.fill_(value)
    torch.autograd.graph.increment_version(tensor)  # the fills have moved on that of the local tensor
    return tensor


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with the value ``val``, as ``torch.nn.init.constant_``; a ``DTensor`` too.

    Raises:
        TypeError: if ``tensor`` is not a tensor.
        ValueError, RuntimeError: for a ``DTensor``, as in :mod:`xinit.init`.

    Example:
        >>> import torch, xinit
        >>> xinit.constant_(torch.empty(2), 0.5)
        tensor([0.5000, 0.5000])
    """
    return _fill("constant_", _torch_constant_, tensor, val, val)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with ones, as ``torch.nn.init.ones_``; see :func:`constant_`.

    Example:
        >>> import torch, xinit
        >>> xinit.ones_(torch.empty(2))
        tensor([1., 1.])
    """
    return _fill("ones_", _torch_ones_, tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with zeros, as ``torch.nn.init.zeros_``; see :func:`constant_`.

    Example:
        >>> import torch, xinit
        >>> xinit.zeros_(torch.empty(2))
        tensor([0., 0.])
    """
    return _fill("zeros_", _torch_zeros_, tensor, 0.0)


def eye_(tensor: Tensor, *, window: Window | None = None) -> Tensor:
    """Fill a matrix with ones on the diagonal and zeros elsewhere, as ``torch.nn.init.eye_``.

    So a linear layer keeps its input, as much of it as there are outputs.

    Args:
        tensor: of two dimensions and any dtype; a ``DTensor`` gets this rank's part of the whole.
        window: an :class:`xinit.Window`, if the tensor is a part of a larger one.

    Raises:
        ValueError: if the tensor does not have 2 dimensions, or the window does not fit.
        TypeError, RuntimeError: as in :mod:`xinit.init`.

    Example:
        >>> import torch, xinit
        >>> xinit.eye_(torch.empty(2, 3))
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    if left_alone("eye_", init.eye_, tensor):
        return tensor
    parts = parts_of("eye_", tensor, window)
    if tensor.dim() != 2:
        raise ValueError("Only tensors with 2 dimensions are supported")
    return _write_diagonals(tensor, parts, 1)


def dirac_(tensor: Tensor, groups: int = 1, *, window: Window | None = None) -> Tensor:
    """Fill the weight of a convolution with the Dirac delta, as ``torch.nn.init.dirac_``.

    So the convolution, padded by half its kernel, keeps its input channels, as many of them as each group has outputs: the kernel
    of output channel d of a group is one at input channel d and the position ``size // 2``, and zero elsewhere.

    Args:
        tensor: of shape (out, in / groups, ...) with 3, 4 or 5 dimensions, of any dtype; a ``DTensor`` gets this rank's part.
        groups: of the convolution.
        window: an :class:`xinit.Window`, if the tensor is a part of a larger one.

    Raises:
        ValueError: for other numbers of dimensions, if ``groups`` does not divide the first, or the window does not fit.
        TypeError, RuntimeError: as in :mod:`xinit.init`.

    Example:
        >>> import torch, xinit
        >>> w, x = xinit.dirac_(torch.empty(4, 4, 3)), torch.randn(2, 4, 10)
        >>> torch.equal(torch.conv1d(x, w, padding=1), x)
        True
    """
    if left_alone("dirac_", init.dirac_, tensor):
        return tensor
    parts = parts_of("dirac_", tensor, window)
    if tensor.dim() not in (3, 4, 5):
        raise ValueError("Only tensors with 3, 4, or 5 dimensions are supported")
    if groups < 1 or parts[0][1].global_shape[0] % groups:
        raise ValueError("dim 0 must be divisible by groups")
    return _write_diagonals(tensor, parts, groups)


def _write_diagonals(tensor: Tensor, parts: list[Part], groups: int) -> Tensor:
    for part, _ in parts:
        if any(size > 1 and not step for size, step in zip(part.shape, part.stride(), strict=True)):
            raise RuntimeError(
                "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
                "Please clone() the tensor before performing the operation."
            )
    with torch.no_grad():
        for part, where in parts:
            write_diagonals(part, where, groups)
    if is_sharded(tensor) or wraps(tensor):
        torch.autograd.graph.increment_version(tensor)  # the fills have moved on that of the local tensor
    return tensor
