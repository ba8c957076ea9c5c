"""What is here of a tensor that is written as a whole, such as an identity: parts of it, and where in these a diagonal is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from xinit.dtensor import check_view, is_sharded, pieces
from xinit.guards import check_kept
from xinit.subclasses import held
from xinit.window import Window

Part = tuple[Tensor, Window]  # a tensor that is here, and which part of the whole


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
        return [(tensor, _checked(op, tensor, window))]
    if window is not None:
        raise ValueError(f"{op}: a DTensor knows which part of the whole it is, so it takes no window")
    check_view(tensor, op)
    return [(part, where) for part, where in pieces(tensor, op) if where is not None]


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


def write_diagonals(tensor: Tensor, where: Window, groups: int = 1, value: float = 1.0) -> None:
    """Zeros, but for what is here of each group's diagonal, in the centre of the kernel."""
    tensor.zero_()
    centre = centre_of(tensor, where)
    if centre is None:
        return
    rows, columns = where.global_shape[0] // groups, where.global_shape[1]
    top, left = where.offsets[:2]
    for group in range(groups):
        start, stop = max(group * rows, top), min((group + 1) * rows, top + centre.shape[0])
        if start < stop and start - group * rows < columns:
            centre[start - top : stop - top].diagonal(start - group * rows - left).fill_(value)


def centre_of(tensor: Tensor, where: Window) -> Tensor | None:
    """The matrix at position ``size // 2`` of a kernel, as much of it as is here, if any."""
    for whole, offset in zip(where.global_shape[2:], where.offsets[2:], strict=True):
        at = whole // 2 - offset
        if not 0 <= at < tensor.shape[2]:
            return None
        tensor = tensor.select(2, at)
    return tensor
