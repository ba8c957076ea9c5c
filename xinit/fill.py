"""Many tensors filled at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from xinit._torch import not_compiled
from xinit.distributions import Distribution
from xinit.dtensor import check_view, is_sharded, pieces
from xinit.keys import Key
from xinit.subclasses import PLAIN, wraps
from xinit.window import Window

_fill_many_ = torch.ops.xinit.fill_many_.default
_FILLS = frozenset((Distribution,))  # others take the whole
_KEYS = frozenset((Key,))


def fill_many_(
    tensors: Sequence[Tensor],
    distributions: Sequence[Distribution],
    keys: Sequence[Key],
    windows: Sequence[Window | None] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Fill many tensors at once: tensor i from distribution i with key i, each with the bits that it would get alone.

    All tensors of a device are checked before the first of them changes. On a CPU all of them are shared out among the
    threads as one; on a GPU the contiguous ones take one launch for each seed among the keys, however many they are.

    Args:
        tensors: of any shapes, strides and supported dtypes, on any devices; a ``DTensor`` gets this rank's part of the whole.
        distributions: as many.
        keys: as many.
        windows: as many, or None: for a tensor that is part of a larger one, which part; None for one that is whole.
        names: as many, or None: what errors call the tensors.

    Raises:
        ValueError: if the numbers differ, or a distribution or a window does not fit its tensor; see :mod:`xinit.init` for
            the rest.

    Example:
        >>> import torch, xinit
        >>> w, b = torch.empty(4, 3), torch.empty(4)
        >>> key = xinit.Key(0)
        >>> xinit.fill_many_([w, b], [xinit.kaiming_normal(), xinit.zeros()], [key.fold_in("w"), key.fold_in("b")])
        >>> torch.equal(w, xinit.kaiming_normal_(torch.empty(4, 3), key=key.fold_in("w")))
        True
    """
    count = len(tensors)
    for what, values in (("distributions", distributions), ("keys", keys), ("windows", windows), ("names", names)):
        if values is not None and len(values) != count:
            raise ValueError(f"fill_many_: {count} tensors take as many {what}, but found {len(values)}")
    _check_types("tensors", tensors, Tensor, PLAIN)
    _check_types("distributions", distributions, Distribution, _FILLS)
    _check_types("keys", keys, Key, _KEYS)
    if not PLAIN.issuperset(map(type, tensors)) and (any(map(is_sharded, tensors)) or any(map(wraps, tensors))):
        _fill_many_parts_(tensors, distributions, keys, windows, names)
        return
    if not _FILLS.issuperset(map(type, distributions)):
        _fill_many_wholes_(tensors, distributions, keys, windows, names)
        return
    described = {id(distribution): distribution for distribution in distributions}  # there are few of them
    texts = {at: distribution.description for at, distribution in described.items()}
    compiling = torch.compiler.is_compiling()
    devices: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        devices.setdefault(tensor.device, []).append(i)
    for indices in devices.values():
        places = [] if windows is None else [_window(i, tensors[i], windows[i]) for i in indices]
        _fill_many_(
            [tensors[i] for i in indices],
            [texts[id(distributions[i])] for i in indices],
            [] if compiling else [word for i in indices for word in keys[i].words],
            [] if names is None else [names[i] for i in indices],
            [size for place in places for size in place.global_shape],
            [offset for place in places for offset in place.offsets],
            0,
            [word for i in indices for word in (len(keys[i].words), *keys[i].words)] if compiling else [],
        )


def _check_types(what: str, values: Sequence[Any], kind: type, nearly_all: frozenset[Any]) -> None:
    if nearly_all.issuperset(map(type, values)):
        return
    for i, value in enumerate(values):
        if not isinstance(value, kind):
            of = f"{'torch' if kind is Tensor else 'xinit'}.{kind.__name__}"
            raise TypeError(f"fill_many_: {what} must be of type {of}, but found {type(value).__name__} at index {i}")


@not_compiled("torch.compile cannot tell that a DTensor changes when xinit fills its local tensor")
def _fill_many_parts_(
    tensors: Sequence[Tensor],
    distributions: Sequence[Distribution],
    keys: Sequence[Key],
    windows: Sequence[Window | None] | None,
    names: Sequence[str] | None,
) -> None:
    called = names or [f"tensor {i}" for i in range(len(tensors))]
    parts: list[tuple[Tensor, Distribution, Key, Window | None, str]] = []
    for i, (tensor, name) in enumerate(zip(tensors, called, strict=True)):
        window = windows[i] if windows is not None else None
        if is_sharded(tensor) and window is not None:
            raise ValueError(f"fill_many_: {name} is a DTensor, which knows which part of the whole it is: no window")
        if is_sharded(tensor):
            check_view(tensor, f"fill_many_: {name}")
        for part, where in pieces(tensor, f"fill_many_: {name}"):
            parts.append((part, distributions[i], keys[i], where or window, name))
    fill_many_(*zip(*parts, strict=True))
    torch.autograd.graph.increment_version([tensor for tensor in tensors if is_sharded(tensor) or wraps(tensor)])


def _fill_many_wholes_(
    tensors: Sequence[Tensor],
    distributions: Sequence[Any],
    keys: Sequence[Key],
    windows: Sequence[Window | None] | None,
    names: Sequence[str] | None,
) -> None:
    """What does not take the whole first, in one fill, which checks all tensors; then, over it, one whole at a time."""
    drawn, wholes = list(distributions), dict[Any, list[tuple[Tensor, Window]]]()
    for i, (tensor, distribution) in enumerate(zip(tensors, distributions, strict=True)):
        if distribution.by_whole:
            where = _window(i, tensor, windows[i] if windows is not None else None)
            matrix = distribution.resolve(where.global_shape)
            matrix.check(names[i] if names is not None else f"tensor {i}", tensor.dtype)
            drawn[i] = matrix.drawn
            wholes.setdefault((matrix, keys[i], tensor.device, tensor.dtype), []).append((tensor, where))
    fill_many_(tensors, drawn, keys, windows, names)
    for (matrix, key, _, _), parts in wholes.items():
        matrix.finish_(parts, lambda key=key: {"key": key.fold_in(0).words})


def _window(index: int, tensor: Tensor, window: Window | None) -> Window:
    if window is None:
        return Window(tuple(tensor.shape), (0,) * tensor.dim())
    if len(window.offsets) != tensor.dim():
        raise ValueError(
            f"fill_many_: the window at index {index} has {len(window.offsets)} dimensions, but its tensor {tensor.dim()}"
        )
    return window


def bar_of(op: str, parts: Iterable[Tensor], progress: bool) -> Any:
    """Counts their bytes."""
    if not progress:
        return nullcontext()
    try:
        tqdm = import_module("tqdm.auto").tqdm
    except ImportError:
        raise ImportError(f"{op}: progress=True takes tqdm, which is not installed") from None
    return tqdm(total=sum(part.nbytes for part in parts), unit="B", unit_scale=True, desc=op)
