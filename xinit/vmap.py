"""The ops under ``torch.vmap``.

Its ``randomness`` means what it means for torch's own: "error" refuses to draw from a generator, "same" draws once for all
members, "different" draws for all of them at once. With a key nothing is random, and nothing is refused: each member gets what
the key gives, and with "different" the members, stacked along a first dimension, are one array of that key, whose first
member is what the key gives without vmap. Fans are always those of one member.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xinit import _C
from xinit._torch import below_vmap, current_vmap, unwrap_batched, vmap_key, wrap_batched

Fill = Callable[[list[Tensor], int | None], Any]  # tensors, and the size of their first dimension if that is a batch


def _fill_members(tensors: Sequence[Tensor], in_place: bool, random: bool, fill: Fill) -> list[Tensor]:
    vmap = current_vmap()
    level, size, randomness = vmap.level(), vmap.batch_size(), vmap.randomness()
    if random and randomness == "error":
        raise RuntimeError(
            "vmap: called random operation while in randomness error mode. Please either use the 'same' or 'different' "
            "randomness flags on vmap or perform the randomness operation out of vmap"
        )
    unwrapped = [unwrap_batched(tensor, level) for tensor in tensors]
    with below_vmap():
        if randomness != "different":
            members = [value if axis is None else torch.empty_like(value.select(axis, 0)) for value, axis in unwrapped]
            filled: list[Tensor] = fill(members, None)
            if in_place:
                with torch.no_grad():
                    for tensor, member, (_, axis) in zip(tensors, members, unwrapped, strict=True):
                        if axis is not None:
                            tensor.copy_(member)
            return filled
        if in_place and any(axis is None for _, axis in unwrapped):
            raise RuntimeError(
                "vmap: Cannot ask for different inplace randomness on an unbatched tensor. This will appear like same "
                "randomness. Make the tensor from a batched one instead, as x.new_empty(shape) does"
            )
        stacks = [
            value.expand(size, *value.shape) if axis is None else value.movedim(axis, 0) for value, axis in unwrapped
        ]
        filled = fill(stacks, size)
        return filled if in_place else [wrap_batched(stack, 0, level) for stack in filled]


def _one(op: Any, in_place: bool, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    def fill(tensors: list[Tensor], size: int | None) -> list[Tensor]:
        place = dict(kwargs)
        if size is not None:
            for name, first in (("global_shape", size), ("offsets", 0)):
                if place.get(name) is not None:
                    place[name] = [first, *place[name]]
            place["batch_dims"] = place.get("batch_dims", 0) + 1
        return [op(*tensors, *args, **place)]

    return _fill_members([tensor], in_place, kwargs.get("key") is None, fill)[0]


def _many(
    op: Any,
    in_place: bool,
    tensors: Sequence[Tensor],
    distributions: Sequence[str],
    keys: Sequence[int],
    names: Sequence[str],
    global_shapes: Sequence[int] = (),
    offsets: Sequence[int] = (),
    batch_dims: int = 0,
    traced_keys: Sequence[int] = (),
) -> list[Tensor] | None:
    def batched(numbers: Sequence[int], first: int) -> list[int]:
        rest = iter(numbers)
        return [number for tensor in tensors for number in (first, *(next(rest) for _ in tensor.shape))]

    def fill(tensors: list[Tensor], size: int | None) -> Any:
        windows = global_shapes, offsets
        if size is not None and (global_shapes or offsets):
            windows = batched(global_shapes, size), batched(offsets, 0)
        batch = batch_dims + (size is not None)
        return op(tensors, distributions, keys, names, *windows, batch_dims=batch, traced_keys=traced_keys)

    filled = _fill_members(tensors, in_place, False, fill)
    return None if in_place else filled


_library: Any = torch.library.Library("xinit", "IMPL")  # type: ignore[no-untyped-call]  # its rules last as long as it

for _rule, _names in ((_one, _C.ops()), (_many, ["fill_many_"])) if vmap_key else ():
    for _name in _names:
        _packet, _, _overload = _name.partition(".")
        for _op_name, _in_place in ((_packet, True), (_packet.removesuffix("_"), False)):
            _op = getattr(getattr(torch.ops.xinit, _op_name), _overload or "default")
            _library.impl(_op, partial(_rule, _op, _in_place), vmap_key.name)
