"""From a history to fills: what was done to a parameter, as distributions over boxes of it, wherever that is possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch

from xinit.distributions import DTYPES, Distribution
from xinit.history.operators import COPIES, JOINS
from xinit.history.storages import Node, Ref, Store, now

_aten = torch.ops.aten
Shape = tuple[int, ...]
_SEEN = 6.4  # standard deviations: as far as a truncated normal of 32 bits reaches
_FAR = 8.0  # standard deviations: beyond it is nothing that a 32-bit word could stand for


class Record(NamedTuple):
    """What a view of a storage is.

    Attributes:
        ref: the view,
        time: up to when.
        parts: what it holds, as fills in their order, if it is that: distributions without a fan, and of each box where it
            begins, and its extent.
        sources: the other storages whose draws these repeat.
    """

    ref: Ref
    time: int
    parts: tuple[tuple[Distribution, Shape, Shape], ...] | None
    sources: frozenset[Store]


def record_of_view(whole: Ref) -> Record:
    """What a view of a storage is now."""
    time = now()
    drawn, sources = fills(whole.store, time) or (None, frozenset())
    boxes = [box(view, whole) for view, _ in drawn or ()]
    if drawn is None or None in boxes:
        return Record(whole, time, None, sources)
    return Record(
        whole, time, tuple((what, *where) for (_, what), where in zip(drawn, boxes, strict=True) if where), sources
    )


def fills(store: Store, time: int) -> Drawn | None:
    """What a storage holds at a time, as fills in their order, and the other storages whose draws these would repeat.

    None if it is not made of fills alone.
    """
    drawn: list[tuple[Ref, Distribution]] = []
    sources: frozenset[Store] = frozenset()
    for node in store.until(time):
        if node.fill:
            drawn.append(node.fill)
        elif node.func in JOINS:
            if (joined := _joined(node)) is None:
                return None
            drawn, sources = joined[0], sources | joined[1]
        elif (ends := _ends(node, store)) is None:
            return None
        else:
            source, target = ends
            if source.store is not store:
                if (carried := _carried(source, target, node.time)) is None or not carried[1].isdisjoint(sources):
                    return None
                if target.whole():  # of what it held itself nothing else is left
                    drawn, sources = carried[0], carried[1] - {store}
                elif store in carried[1]:
                    return None
                else:
                    drawn, sources = drawn + carried[0], sources | carried[1]
            if node.func not in COPIES:
                alone = len(drawn) == 1 and drawn[0][0][2:] == target[2:]
                after = [(view, other) for view, what in drawn if (other := _transformed(what, node))]
                if not drawn or len(after) < len(drawn) or not (alone or target.whole()):
                    return None
                drawn = after
    return drawn, sources


def _ends(node: Node, store: Store) -> tuple[Ref, Ref] | None:
    """The view whose values an operator takes, and that of the storage to which it writes them, or others made of them."""
    if node.is_unknown or node.answer is not None:
        return None
    copied = node.func is _aten.copy_.default
    source, target = node.args[1 if copied else 0], node.outputs[0][1] if node.outputs else node.args[0]
    if not isinstance(source, Ref) or not isinstance(target, Ref) or target.store is not store:
        return None
    return None if target.dtype not in DTYPES or (copied and source.store is store) else (source, target)


Drawn = tuple[list[tuple[Ref, Distribution]], frozenset[Store]]


def _carried(source: Ref, target: Ref, time: int) -> Drawn | None:
    """What a copy of a view of a storage is, as :func:`fills`: boxes that the view holds, or one that holds the view."""
    if source.size != target.size or source.dtype not in DTYPES:
        return None
    if source.dtype.is_complex != target.dtype.is_complex or (inner := fills(source.store, time)) is None:
        return None
    drawn = []
    for view, what in inner[0]:
        view = view._replace(store=source.store)
        if (place := box(view, source)) is not None:
            drawn.append((_part(target, *place), what))
        elif box(source, view) is not None:
            drawn.append((target, what))
        else:
            return None
    return drawn, inner[1] | {source.store}


def _joined(node: Node) -> Drawn | None:
    """What ``cat`` or ``stack`` gives, if each of what it takes is that, and no two share their random numbers."""
    views, (_, target) = node.args[0], node.outputs[0]
    dim = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(target.size)
    drawn: list[tuple[Ref, Distribution]] = []
    sources: frozenset[Store] = frozenset()
    begin = 0
    for view in views:
        if not isinstance(view, Ref):
            return None
        size = (*target.size[:dim], view.size[dim] if node.func is _aten.cat.default else 1, *target.size[dim + 1 :])
        part = _part(target, [begin if d == dim else 0 for d in range(len(size))], size)
        if node.func is _aten.stack.default:
            part = part._replace(size=view.size, stride=(*part.stride[:dim], *part.stride[dim + 1 :]))
        if (carried := _carried(view, part, node.time)) is None or not carried[1].isdisjoint(sources):
            return None
        drawn, sources, begin = drawn + carried[0], sources | carried[1], begin + size[dim]
    return drawn, sources


def _part(whole: Ref, offsets: Sequence[int], size: tuple[int, ...]) -> Ref:
    at = whole.offset + sum(offset * step for offset, step in zip(offsets, whole.stride, strict=True))
    return whole._replace(size=size, offset=at)


def origin(whole: Ref, time: int) -> tuple[Ref, int]:
    """What a view of a storage began as a copy of, as by ``copy.deepcopy``, and when that was made; itself if it is no copy."""
    nodes = whole.store.until(time)
    if nodes and nodes[0].func in COPIES and nodes[0].outputs and isinstance(nodes[0].args[0], Ref):
        source, target = nodes[0].args[0], nodes[0].outputs[0][1]
        if source[2:] == target[2:] == whole[2:]:
            return origin(source, nodes[0].time)
    return whole, time


def _transformed(what: Distribution, node: Node) -> Distribution | None:
    """The distribution of an operator's result, if its tensor argument has that one."""
    name = node.func.overloadpacket.__name__.rstrip("_")
    rest = node.args[1:]
    if not all(value is None or isinstance(value, (int, float)) for value in rest):
        return None
    if name == "clamp":
        return _clamped(what, *rest, **node.kwargs)
    if name == "erfinv" and what.name == "uniform":
        # With U = Φ(Z) in between bounds, erfinv(2U - 1) = Z / √2: how truncated normals are drawn by hand.
        low, high = (_normal_quantile((1 + bound) / 2) / math.sqrt(2) for bound in what.parameters)
        return Distribution("truncated_normal", (0.0, math.sqrt(0.5), low, high))
    if name == "neg":
        return _affine(what, -1.0, 0.0)
    if name not in ("mul", "div", "add", "sub") or node.kwargs.get("rounding_mode") or len(rest) != 1:
        return None
    value = float(rest[0]) * float(node.kwargs.get("alpha", 1))
    if name in ("mul", "div"):
        return _affine(what, value if name == "mul" else 1 / value, 0.0) if value else None
    return _affine(what, 1.0, value if name == "add" else -value)


def _normal_quantile(p: float) -> float:
    return NormalDist().inv_cdf(p) if 0 < p < 1 else math.copysign(_FAR, p - 0.5)


def _affine(what: Distribution, scale: float, shift: float) -> Distribution:
    first, *others = what.parameters
    moved = first * scale + shift
    if what.name == "constant":
        return Distribution("constant", (moved,))
    if what.name == "uniform":
        return Distribution("uniform", tuple(sorted((moved, others[0] * scale + shift))))
    bounds = sorted(bound * scale + shift for bound in others[1:])
    return Distribution(what.name, (moved, others[0] * abs(scale), *bounds))


def _clamped(what: Distribution, min: float | None = None, max: float | None = None) -> Distribution | None:
    """Bounds that are there already may move by a rounding error; others would make atoms."""
    if what.name != "truncated_normal":
        return None
    mean, std, a, b = what.parameters
    low = a if min is None or min < a else float(min)
    high = b if max is None or max > b else float(max)
    near, far = 1e-4 * std, _SEEN * std
    if (low - a > near and low - (mean - far) > near) or (b - high > near and mean + far - high > near):
        return None
    return Distribution(what.name, (mean, std, low, high))


def box(view: Ref, whole: Ref) -> tuple[Shape, Shape] | None:
    """The offsets and the shape of the box of a parameter that a view is, if it is one."""
    if view.dtype.is_complex != whole.dtype.is_complex or (view.store is whole.store and view.dtype != whole.dtype):
        return None  # as of the real view of a complex parameter
    same = view[2:] == whole[2:] or (view.offset == whole.offset and view.numel == whole.numel and view.dense())
    if same and whole.dense():
        return (0,) * len(whole.size), whole.size
    strides = {stride: size for stride, size in zip(view.stride, view.size, strict=True) if size != 1}
    if len(strides) < sum(size != 1 for size in view.size):
        return None
    rest = view.offset - whole.offset
    offsets, shape = [0] * len(whole.size), [1] * len(whole.size)
    for axis in sorted(range(len(whole.size)), key=lambda axis: -whole.stride[axis]):
        if whole.size[axis] == 1 or not whole.stride[axis]:
            continue
        offsets[axis], rest = divmod(rest, whole.stride[axis])
        shape[axis] = strides.pop(whole.stride[axis], 1)
        if not 0 <= offsets[axis] <= whole.size[axis] - shape[axis]:
            return None
    return None if rest or strides else (tuple(offsets), tuple(shape))
