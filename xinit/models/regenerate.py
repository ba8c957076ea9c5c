"""``regenerate()``: any part of any initial weight, at any time, without a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xinit.distributions import What
from xinit.dtensor import Box
from xinit.keys import Key
from xinit.parameters.writes import fill_writes_, writes_of
from xinit.window import Window


def regenerate(
    name: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    distribution: What,
    key: Key,
    window: Window | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """What :func:`init_` gives to a parameter, or to a part of it: what rewinding, or a checkpoint of differences, takes.

    Args:
        name: the parameter's in the model, without wrappers' parts.
        shape: of what is wanted: of the parameter, or of the part that ``window`` says.
        dtype: the parameter's; in another one, each element is the same number, rounded.
        distribution: a recipe's value: a distribution, or blocks or rows, whose other rows are zero here.
        key: the model's.
        window: which part of the parameter, whose shape it has; None for the whole.
        device: where; the CPU by default.

    Returns:
        a tensor of that shape, contiguous.

    Raises:
        TypeError: if key, shape, distribution or window are not of these types.
        ValueError: if the distribution does not fit the parameter's shape, or the window its part's.
        NotImplementedError: for a dtype that :mod:`xinit.init` does not fill.

    Example:
        >>> import torch, xinit
        >>> model = xinit.init_(torch.nn.Linear(40, 30), {"*": xinit.normal(std=0.02)}, xinit.Key(7))
        >>> rows = xinit.Window(global_shape=(30, 40), offsets=(10, 0))
        >>> part = xinit.regenerate("weight", (5, 40), torch.float32, xinit.normal(std=0.02), xinit.Key(7), rows)
        >>> torch.equal(part, model.weight[10:15])
        True
    """
    if not isinstance(key, Key):
        raise TypeError(f"regenerate: key must be an xinit.Key, but found {type(key).__name__}")
    if not isinstance(distribution, What):
        raise TypeError(f"regenerate: distribution must be a recipe's value, but found {type(distribution).__name__}")
    if window is not None and not isinstance(window, Window):
        raise TypeError(f"regenerate: window must be an xinit.Window, but found {type(window).__name__}")
    if not isinstance(shape, Sequence):
        raise TypeError(f"regenerate: shape must be a sequence of sizes, but found {shape!r}")
    shape = tuple(shape)
    nowhere = (0,) * len(shape)
    window = window or Window(shape, nowhere)
    ends = zip(window.offsets, shape, window.global_shape, strict=False)
    if len(window.offsets) != len(shape) or any(at < 0 or at + size > whole for at, size, whole in ends):
        raise ValueError(
            f"regenerate: {name}: a part of shape {shape} at {window.offsets} is none of {window.global_shape}"
        )
    writes = writes_of(name, window.global_shape, distribution, key)
    part = torch.zeros(shape, dtype=dtype, device=device)
    box = Box(nowhere, tuple(window.offsets), shape)
    fill_writes_([(name, part, [inner for write in writes if (inner := write.within(box))])], op="regenerate")
    return part
