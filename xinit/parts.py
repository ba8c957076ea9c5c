"""What is here of a tensor that is written as a whole, such as an identity: parts of it, and where in these a diagonal is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from xinit.dtensor import check_view, is_sharded, pieces
from xinit.guards import check_kept
from xinit.subclasses import held
from xinit.window import Window

Shape = tuple[int, ...]


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
