"""The functions of ``torch.nn.init`` that do not draw.

They take a tensor as :mod:`xinit.init` does: any strides, the meta device, a ``DTensor``, of which each rank fills its part;
but of any dtype.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter, init

from xinit.calls import check_kept
from xinit.guards import left_alone
from xinit.sharding import check_view, is_sharded, pieces
from xinit.subclasses import held, wraps
from xinit.window import Window

Shape = tuple[int, ...]

# As they are now: whoever puts xinit's functions in their place is not to be called back.
_torch_constant_, _torch_ones_, _torch_zeros_ = init.constant_, init.ones_, init.zeros_


class Part(NamedTuple):
    """A tensor that is here, and where it begins in a whole of that shape."""

    tensor: Tensor
    whole: Shape
    offsets: Shape


def parts_of(op: str, tensor: Tensor, window: Window | None = None) -> list[Part]:
    """What is here of a tensor that is to be written to.

    Raises:
        TypeError: for other types.
        NotImplementedError: for a wrapper of which no one tensor holds the values.
        ValueError: for a window that does not fit; for a ``DTensor`` with a window, or one that :mod:`xinit.init` cannot fill.
        RuntimeError: for a view, or a value of parameters, that would lose the writes.
    """
    check_tensor(op, tensor)
    tensor = held(tensor, f"{op}: tensor")
    if not is_sharded(tensor):
        where = _checked(op, tensor, window)
        return [Part(tensor, tuple(where.global_shape), tuple(where.offsets))]
    if window is not None:
        raise ValueError(f"{op}: a DTensor knows which part of the whole it is, so it takes no window")
    check_view(tensor, op)
    whole = tuple(tensor.shape)
    return [Part(part, whole, tuple(where.offsets) if where else ()) for part, where in pieces(tensor, op)]


def check_tensor(op: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: tensor must be a torch.Tensor, but found {type(tensor).__name__}")
    if type(tensor) is not Parameter and tensor.requires_grad and not torch.compiler.is_compiling():
        check_kept(op, tensor)


def _checked(op: str, tensor: Tensor, window: Window | None) -> Window:
    shape = tuple(tensor.shape)
    if window is None:
        return Window(shape, (0,) * len(shape))
    if not isinstance(window, Window):
        raise TypeError(f"{op}: window must be an xinit.Window, but found {type(window).__name__}")
    if len(window.offsets) != len(shape):
        raise ValueError(
            f"{op}: the window has {len(window.offsets)} dimensions, but the tensor has {len(shape)} dimensions"
        )
    for d, (local, whole, offset) in enumerate(zip(shape, window.global_shape, window.offsets, strict=True)):
        if not 0 <= offset <= whole - local:
            raise ValueError(
                f"{op}: the window [{offset}, {offset} + {local}) is outside its global shape's [0, {whole}) in dimension {d}"
            )
    return window


def _fill(op: str, tensor: Tensor, value: Any) -> Tensor:
    with torch.no_grad():
        for part in parts_of(op, tensor):
            part.tensor.fill_(value)
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
    if left_alone("constant_", init.constant_, tensor, val):
        return tensor
    if is_sharded(tensor) or wraps(tensor):
        return _fill("constant_", tensor, val)
    check_tensor("constant_", tensor)
    return _torch_constant_(tensor, val)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with ones, as ``torch.nn.init.ones_``; see :func:`constant_`.

    Example:
        >>> import torch, xinit
        >>> xinit.ones_(torch.empty(2))
        tensor([1., 1.])
    """
    if left_alone("ones_", init.ones_, tensor):
        return tensor
    if is_sharded(tensor) or wraps(tensor):
        return _fill("ones_", tensor, 1.0)
    check_tensor("ones_", tensor)
    return _torch_ones_(tensor)


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with zeros, as ``torch.nn.init.zeros_``; see :func:`constant_`.

    Example:
        >>> import torch, xinit
        >>> xinit.zeros_(torch.empty(2))
        tensor([0., 0.])
    """
    if left_alone("zeros_", init.zeros_, tensor):
        return tensor
    if is_sharded(tensor) or wraps(tensor):
        return _fill("zeros_", tensor, 0.0)
    check_tensor("zeros_", tensor)
    return _torch_zeros_(tensor)


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
    if groups < 1 or parts[0].whole[0] % groups:
        raise ValueError("dim 0 must be divisible by groups")
    return _write_diagonals(tensor, parts, groups)


def _write_diagonals(tensor: Tensor, parts: list[Part], groups: int) -> Tensor:
    for part in parts:
        if any(size > 1 and not step for size, step in zip(part.tensor.shape, part.tensor.stride(), strict=True)):
            raise RuntimeError(
                "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
                "Please clone() the tensor before performing the operation."
            )
    with torch.no_grad():
        for part in parts:
            write_diagonals(part, groups)
    if is_sharded(tensor) or wraps(tensor):
        torch.autograd.graph.increment_version(tensor)  # the fills have moved on that of the local tensor
    return tensor


def write_diagonals(part: Part, groups: int = 1, value: float = 1.0) -> None:
    """Zeros, but for what is here of each group's diagonal, in the centre of the kernel."""
    part.tensor.zero_()
    centre = centre_of(part)
    if centre is None:
        return
    rows, columns = part.whole[0] // groups, part.whole[1]
    top, left = part.offsets[:2]
    for group in range(groups):
        start, stop = max(group * rows, top), min((group + 1) * rows, top + centre.shape[0])
        if start < stop and start - group * rows < columns:
            centre[start - top : stop - top].diagonal(start - group * rows - left).fill_(value)


def centre_of(part: Part) -> Tensor | None:
    """The matrix at position ``size // 2`` of a kernel, as much of it as is here, if any."""
    matrix = part.tensor
    for whole, offset, size in zip(part.whole[2:], part.offsets[2:], part.tensor.shape[2:], strict=True):
        at = whole // 2 - offset
        if not 0 <= at < size:
            return None
        matrix = matrix.select(2, at)
    return matrix
