"""Sharded tensors: which elements of the whole a rank of a device mesh holds, placed as ``torch.distributed.tensor`` does."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from xinit._torch import base_of, identity_of, local_tensor, not_compiled, simulated_ranks, spec_of
from xinit.subclasses import held
from xinit.window import Window

_thread = threading.local()

Shape = tuple[int, ...]
Runs = list[tuple[int, int]]  # of a local dimension, in its order: where each begins in the global one, and its length


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangular piece of a shard.

    Attributes:
        local: where it begins in the local tensor,
        offsets: and in the global one.
        shape: its extent in both.
    """

    local: Shape
    offsets: Shape
    shape: Shape


def local_boxes(
    global_shape: Sequence[int], mesh_shape: Sequence[int], coordinate: Sequence[int], placements: Sequence[Any]
) -> list[Box]:
    """What a rank holds of a tensor: boxes that cover its local tensor, in C order; none if that is empty.

    Nearly always one; several where ``_StridedShard``, as of FSDP2 over tensor parallelism, gathers rows from several places.

    Args:
        global_shape: of the whole tensor.
        mesh_shape: of the device mesh.
        coordinate: the rank's in the mesh.
        placements: one for each mesh dimension: ``Shard``, ``Replicate`` or ``_StridedShard`` of ``torch.distributed.tensor``.

    Raises:
        ValueError: for ``Partial``; if the placements do not fit the mesh or the shape, or the coordinate is outside the mesh.
        TypeError: for a placement of another kind.

    Example:
        >>> from torch.distributed.tensor import Shard
        >>> from xinit.dtensor import local_boxes
        >>> local_boxes((10, 4), (4,), (3,), [Shard(0)])
        [Box(local=(0, 0), offsets=(9, 0), shape=(1, 4))]
    """
    return list(_layout(tuple(global_shape), tuple(mesh_shape), tuple(coordinate), tuple(placements))[1])


@lru_cache(4096)  # a model's layers are alike
def _layout(shape: Shape, mesh: Shape, coordinate: Shape, placements: tuple[Any, ...]) -> tuple[Shape, tuple[Box, ...]]:
    """The local tensor's shape, and its boxes."""
    runs = _runs(shape, mesh, coordinate, placements)
    return tuple(sum(length for _, length in dimension) for dimension in runs), tuple(_boxes(runs))


def _runs(
    shape: Sequence[int], mesh: Sequence[int], coordinate: Sequence[int], placements: Sequence[Any]
) -> list[Runs]:
    """Of each dimension. Mesh dimensions are taken from left to right, each cutting what those before it have left."""
    if len(coordinate) != len(mesh) or len(placements) != len(mesh):
        raise ValueError(
            f"a mesh of shape {tuple(mesh)} takes {len(mesh)} placements and coordinates, but found the placements "
            f"{tuple(placements)} and the coordinate {tuple(coordinate)}"
        )
    runs: list[Runs] = [[(0, size)] for size in shape]
    for axis, (count, index, placement) in enumerate(zip(mesh, coordinate, placements, strict=True)):
        if not 0 <= index < count:
            raise ValueError(f"coordinate {index} is outside mesh dimension {axis} of size {count}")
        dim = _dim(placement, axis, len(shape))
        if dim is not None and count > 1:
            runs[dim] = _cut(runs[dim], count, index, getattr(placement, "split_factor", 1))
    return runs


def _dim(placement: Any, axis: int, ndim: int) -> int | None:
    """The tensor dimension that the placement shards, if any. By methods: torch's classes take a second to import."""
    if not hasattr(placement, "is_partial"):
        raise TypeError(f"the placement over mesh dimension {axis} is {placement!r}, which is none of torch's")
    if placement.is_partial():
        raise ValueError(
            f"the placement over mesh dimension {axis} is {placement!r}: its ranks hold terms of a reduction that is still to be "
            f"done, none of them elements of the tensor; redistribute it to Shard or Replicate first"
        )
    if placement.is_replicate():
        return None
    dim = getattr(placement, "dim", None)
    if dim is None:
        raise TypeError(
            f"the placement over mesh dimension {axis} is {placement!r}; supported are Shard, Replicate and _StridedShard"
        )
    if not -ndim <= dim < ndim:
        raise ValueError(
            f"{placement!r} over mesh dimension {axis} shards dimension {dim} of a tensor of {ndim} dimensions"
        )
    return int(dim) % ndim


def _chunk(size: int, count: int, index: int) -> tuple[int, int]:
    """As ``torch.chunk``: all chunks are as large as the first, until nothing is left."""
    step = -(-size // count)
    return min(index * step, size), min((index + 1) * step, size)


def _cut(runs: Runs, count: int, index: int, split_factor: int) -> Runs:
    """The chunk of that index; with a split factor, of so many chunks the chunks of that index, joined."""
    size = sum(length for _, length in runs)
    cut: Runs = []
    for part in range(split_factor):
        start, stop = _chunk(size, split_factor, part)
        a, b = _chunk(stop - start, count, index)
        here = 0
        for begin, length in runs:
            low, high = max(start + a, here), min(start + b, here + length)
            if low < high:
                at = begin + low - here
                if cut and sum(cut[-1]) == at:
                    cut[-1] = cut[-1][0], cut[-1][1] + high - low
                else:
                    cut.append((at, high - low))
            here += length
    return cut


def _boxes(runs: list[Runs]) -> list[Box]:
    def placed(dimension: Runs) -> Iterator[tuple[int, int, int]]:
        here = 0
        for begin, length in dimension:
            yield here, begin, length
            here += length

    boxes = []
    for corner in product(*map(placed, runs)):
        local, offsets, shape = zip(*corner, strict=True) if corner else ((), (), ())
        if 0 not in shape:
            boxes.append(Box(local, offsets, shape))
    return boxes


def is_sharded(tensor: Any) -> bool:
    """Whether it is a ``DTensor``; if none has been imported, it is not."""
    if type(tensor) in (Tensor, nn.Parameter):  # as for torch.compile, which must not look further
        return False
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


@contextmanager
def answered(by_name: bool = False) -> Iterator[None]:
    """Within it, accelerate() answers this thread's calls of xinit's operators with a DTensor, which torch knows no rule for.

    Args:
        by_name: whether it draws parameters from the keys of their names.
    """
    before = getattr(_thread, "answered", None)
    _thread.answered = by_name
    try:
        yield
    finally:
        _thread.answered = before


def is_answered() -> bool:
    return getattr(_thread, "answered", None) is not None


def is_answered_by_name() -> bool:
    return bool(getattr(_thread, "answered", False))


def pieces(tensor: Tensor, name: str = "tensor") -> list[tuple[Tensor, Window | None]]:
    """Views of the rank's local tensor, and which window of the global tensor each is; of a plain tensor itself, and None.

    A rank without elements of a tensor has one view of none.

    Raises:
        NotImplementedError: for a wrapper subclass that has no such tensor: see :mod:`xinit.subclasses`.
        ValueError: as for :func:`local_boxes`; if the mesh is larger than the process group, or the local tensor of another
            shape than torch gives to that rank. ``name`` is what it calls the tensor.

    Example:
        >>> import torch
        >>> from xinit.dtensor import pieces
        >>> pieces(torch.zeros(2))
        [(tensor([0., 0.]), None)]
    """
    tensor = held(tensor, name)
    if not is_sharded(tensor):
        return [(tensor, None)]
    whole, parts = tuple(tensor.shape), list[tuple[Tensor, Window | None]]()
    for local, boxes in shards(tensor, name):
        parts += [(view(local, box.local, box.shape), Window(whole, box.offsets)) for box in boxes]
        if not boxes:
            parts.append((local, Window(whole, (0,) * len(whole))))
    return parts


def local_of(tensor: Any, name: str) -> tuple[Tensor, Sequence[Box]]:
    """A sharded tensor's local one, and its boxes; those of the first rank, if there are several in this process."""
    return shards(tensor, name)[0]


@not_compiled("torch.compile cannot tell that a DTensor changes when xinit fills its local tensor")
def shards(tensor: Any, name: str) -> list[tuple[Tensor, Sequence[Box]]]:
    """A sharded tensor's local one, and its boxes. Of each rank that ``LocalTensorMode`` simulates in this process.

    A rank outside the mesh holds nothing, as for torch, so that all ranks can make the same calls.
    """
    mesh, local = tensor.device_mesh, local_tensor(tensor)
    if simulated(mesh):
        ranks = simulated_ranks(local, mesh.get_coordinate())
        return [(part, _boxes_of(tensor, part, coordinate, name)) for part, coordinate in ranks]
    if outside(tensor):
        return [(local.new_empty((0,) * tensor.dim()), ())]
    local = held(local, name)
    return [(local, _boxes_of(tensor, local, mesh.get_coordinate(), name))]


def outside(tensor: Any) -> bool:
    """Whether it is a sharded tensor of which this rank holds nothing, as it is not in the mesh."""
    return is_sharded(tensor) and tensor.device_mesh.get_coordinate() is None


def simulated(mesh: Any) -> bool:
    """Whether ``LocalTensorMode`` has all ranks of a mesh in this process: they have several coordinates at once."""
    return type(mesh.get_coordinate()) is list


def _boxes_of(tensor: Any, local: Tensor, coordinate: Shape, name: str) -> Sequence[Box]:
    shape, placements = tensor.device_mesh.shape, tensor.placements
    try:
        if (ranks := math.prod(shape)) > (group := _world_size()):
            raise ValueError(f"the mesh of shape {tuple(shape)} has {ranks} ranks, but the process group {group}")
        expected, boxes = _layout(tuple(tensor.shape), shape, coordinate, placements)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    if tuple(local.shape) != expected:
        at = [d for d, sizes in enumerate(zip(local.shape, expected, strict=False)) if sizes[0] != sizes[1]]
        raise ValueError(
            f"{name}: the local tensor has shape {tuple(local.shape)}, but torch places {expected} of {tuple(tensor.shape)} at "
            f"{tuple(coordinate)} of the mesh {tuple(shape)} by {placements}"
            + (f": dimension {at[0]} differs" if at else "")
        )
    return boxes


def check_view(tensor: Any, name: str) -> None:
    """Whether what is written to a sharded tensor reaches the one that it is a view of.

    torch slices a sharded dimension by gathering it: what it calls a view then has memory of its own.

    Raises:
        RuntimeError: if not.
    """
    base = base_of(tensor)
    if base is None or not is_sharded(base) or _storage(tensor) == _storage(base):
        return
    raise RuntimeError(
        f"{name}: what is written to this view, of shape {tuple(tensor.shape)}, would be lost: torch has gathered it from a "
        f"DTensor of shape {tuple(base.shape)} placed by {base.placements}. Fill the whole DTensor, or a view that cuts none of "
        f"its sharded dimensions, or a part of its to_local() with window="
    )


def _storage(tensor: Any) -> int:
    local: Any = local_tensor(tensor)
    identity: int = identity_of(
        getattr(local, "elem", local).untyped_storage()
    )  # a tensor still on its way has it in elem
    return identity


def _world_size() -> float:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_initialized() else math.inf


def with_memory(tensor: Any, device: torch.device) -> Tensor:
    """A sharded tensor like this one, which may be on the meta device, whose local tensor has memory on that device."""
    local = torch.empty_like(local_tensor(tensor), device=device)
    like: Tensor = type(tensor)(
        local, spec_of(tensor), requires_grad=tensor.requires_grad
    )  # from_local takes five times as long
    return like


def cut(whole: Tensor, tensor: Any) -> None:
    """Copy what is the rank's of a whole tensor to a sharded one."""
    for local, boxes in shards(tensor, "tensor"):
        for box in boxes:
            view(local, box.local, box.shape).copy_(view(whole, box.offsets, box.shape))


def view(tensor: Tensor, start: Iterable[int], shape: Shape) -> Tensor:
    """The box of that shape that begins there."""
    if shape == tensor.shape:
        return tensor
    return tensor[tuple(slice(a, a + size) for a, size in zip(start, shape, strict=True))]


def first_words(mesh: Any, key: Sequence[int]) -> list[int]:
    """The seed and stream of a key's words, those of the mesh's first rank, on all of them.

    One small broadcast along each dimension, or one in all.
    """
    distributed: Any = torch.distributed
    coordinate = mesh.get_coordinate()
    if not distributed.is_initialized() or coordinate is None or simulated(mesh) or mesh.size() == 1:
        return [word % 2**64 for word in key]
    words = torch.tensor(key, device=mesh.device_type)
    if mesh.size() == distributed.get_world_size():
        distributed.broadcast(words, int(mesh.mesh.flatten()[0]))
    else:
        for dim, size in enumerate(mesh.shape):
            if size > 1:
                first = mesh.mesh[(*coordinate[:dim], 0, *coordinate[dim + 1 :])]
                distributed.broadcast(words, int(first), group=mesh.get_group(dim))
    return [word % 2**64 for word in words.tolist()]
