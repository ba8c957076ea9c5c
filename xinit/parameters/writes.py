"""Writes: what is to be filled where in a model's parameters, and all of them filled at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from xinit.distributions import Distribution, Rows, What, zeros
from xinit.dtensor import Box, is_sharded, shards, view
from xinit.fill import bar_of, fill_many_
from xinit.keys import Key
from xinit.subclasses import PLAIN, held, wraps
from xinit.window import Window

Shape = tuple[int, ...]


class Write(NamedTuple):
    """One fill of a box of a parameter.

    Attributes:
        distribution: without a fan.
        key: of the array that the values come from.
        offsets: where the box begins in the parameter,
        shape: and its extent.
        frame: which part of the key's array the box is; None if it is the whole.
    """

    distribution: Distribution
    key: Key
    offsets: Shape
    shape: Shape
    frame: Window | None = None

    def covers(self, other: Write) -> bool:
        ours, theirs = self._intervals(), other._intervals()
        return all(a <= c and d <= b for (a, b), (c, d) in zip(ours, theirs, strict=True))

    def overlaps(self, other: Write) -> bool:
        ours, theirs = self._intervals(), other._intervals()
        return all(max(a, c) < min(b, d) for (a, b), (c, d) in zip(ours, theirs, strict=True))

    def within(self, box: Box) -> Write | None:
        """What a piece of a shard gets of it: the part that they share, as a write to the local tensor; None if none."""
        start = tuple(map(max, self.offsets, box.offsets))
        ends = zip(self.offsets, self.shape, box.offsets, box.shape, strict=True)
        shape = tuple(min(a + m, b + n) - at for at, (a, m, b, n) in zip(start, ends, strict=True))
        if any(size <= 0 for size in shape):
            return None
        frame = self.frame or Window(self.shape, (0,) * len(shape))
        local = tuple(at - b + into for at, b, into in zip(start, box.offsets, box.local, strict=True))
        inside = tuple(f + at - a for f, at, a in zip(frame.offsets, start, self.offsets, strict=True))
        return Write(self.distribution, self.key, local, shape, Window(frame.global_shape, inside))

    def _intervals(self) -> Iterator[tuple[int, int]]:
        return ((start, start + size) for start, size in zip(self.offsets, self.shape, strict=True))


def writes_of(name: str, shape: Sequence[int], what: What, key: Key) -> list[Write]:
    """What fills the parameter of that name from a distribution, blocks or rows; ``key`` is the model's.

    Raises:
        ValueError: if the distribution does not fit the shape, or the blocks do not fit the name or the shape.
    """
    whole = tuple(shape)
    if isinstance(what, Distribution):
        if 0 not in whole:
            what = what.resolve(whole)
        elif what.fan:  # which it has not: nothing is drawn
            what = zeros()
        return [Write(what, key.fold_in(name), (0,) * len(whole), whole)]
    if isinstance(what, Rows):
        return _rows(name, whole, what, key)
    if not -len(whole) <= what.axis < len(whole):
        raise ValueError(f"blocks: axis {what.axis} is out of range for a parameter of shape {whole}")
    axis = what.axis % len(whole)
    sizes = [size for _, size, _ in what.parts]
    if sum(sizes) != whole[axis] or any(size < 0 for size in sizes):
        raise ValueError(f"blocks: sizes {sizes} do not add up to the {whole[axis]} of axis {axis} of shape {whole}")
    components = name.split(".")
    if what.fused not in components:
        raise ValueError(f"blocks: {what.fused!r} is no component of the name {name!r}")
    at = components.index(what.fused)
    writes, start = [], 0
    for part, size, distribution in what.parts:
        extent = (*whole[:axis], size, *whole[axis + 1 :])
        if 0 not in extent:
            offsets = (*(0,) * axis, start, *(0,) * (len(whole) - axis - 1))
            unfused = ".".join([*components[:at], part, *components[at + 1 :]])
            writes.append(Write(distribution.resolve(extent), key.fold_in(unfused), offsets, extent))
        start += size
    return writes


def _rows(name: str, whole: Shape, what: Rows, key: Key) -> list[Write]:
    if not -len(whole) <= what.axis < len(whole):
        raise ValueError(f"rows: axis {what.axis} is out of range for a parameter of shape {whole}")
    axis = what.axis % len(whole)
    start, stop, _ = slice(what.start, what.stop).indices(whole[axis])
    if not start < stop:
        raise ValueError(f"rows: there are none from {what.start} to {what.stop} along axis {axis} of shape {whole}")
    ((distribution, inner, *_),) = writes_of(name, whole, what.distribution, key)
    offsets = (*(0,) * axis, start, *(0,) * (len(whole) - axis - 1))
    return [
        Write(distribution, inner, offsets, (*whole[:axis], stop - start, *whole[axis + 1 :]), Window(whole, offsets))
    ]


Batch = list[tuple[str, Tensor, Write]]


def fill_writes_(
    jobs: Sequence[tuple[str, Tensor, Sequence[Write]]], progress: bool = False, op: str = "init_"
) -> None:
    """Fill parameters, each from its writes in their order: of two that overlap, the later one stands.

    Of a sharded one, a ``DTensor``, this rank's pieces: nothing is sent. Writes that no other waits for share one
    :func:`fill_many_`; one that a later one covers is never drawn. With ``progress``, a bar counts bytes; it takes tqdm.

    Raises:
        ImportError: for a bar without tqdm.
        Exception: what the fill raises, with the parameter's name; nothing is changed then.
    """
    waves: list[Batch] = [[]]
    places = [local for job in jobs for local in ([job] if type(job[1]) in PLAIN else _locals(*job))]
    for name, tensor, writes in places:
        for wave, write in _in_waves(writes):
            if wave == len(waves):
                waves.append([])
            whole = write.shape == tensor.shape
            waves[wave].append((name, tensor if whole else view(tensor.detach(), write.offsets, write.shape), write))
    batches = [batch for wave in waves for batch in (_cut(wave) if progress else [wave])]
    # The first batch is checked as it is filled, before it changes anything; the others, here.
    for batch in batches[1:]:
        _fill([(name, torch.empty_like(part, device="meta"), write) for name, part, write in batch])
    with bar_of(op, (part for batch in batches for _, part, _ in batch), progress) as bar:
        for batch in batches:
            _fill(batch)
            if progress:
                bar.update(sum(part.nbytes for _, part, _ in batch))
    torch.autograd.graph.increment_version([tensor for _, tensor, _ in jobs if is_sharded(tensor) or wraps(tensor)])


def _in_waves(writes: Sequence[Write]) -> Sequence[tuple[int, Write]]:
    """Those that a later one does not cover, each with the number of others that have to come before it, one by one."""
    if len(writes) == 1:
        return [(0, writes[0])]
    kept: list[tuple[int, Write]] = []
    for i, write in enumerate(writes):
        if not any(later.covers(write) for later in writes[i + 1 :]):
            kept.append((max((wave + 1 for wave, earlier in kept if earlier.overlaps(write)), default=0), write))
    return kept


def _locals(name: str, tensor: Tensor, writes: Sequence[Write]) -> list[tuple[str, Tensor, Sequence[Write]]]:
    tensor = held(tensor, f"parameter {name}")
    if not is_sharded(tensor):
        return [(name, tensor, writes)]
    return [
        (name, local, [part for write in writes for box in boxes if (part := write.within(box))])
        for local, boxes in shards(tensor, f"parameter {name}")
    ]


def _cut(wave: Batch) -> Iterator[Batch]:
    """Into a hundred batches of about as many bytes."""
    step, batch, size = sum(part.nbytes for _, part, _ in wave) / 100, [], 0
    for entry in wave:
        batch.append(entry)
        size += entry[1].nbytes
        if size >= step:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _fill(batch: Batch) -> None:
    fill_many_(
        [part for _, part, _ in batch],
        [write.distribution for _, _, write in batch],
        [write.key for _, _, write in batch],
        [write.frame for _, _, write in batch] if any(write.frame for _, _, write in batch) else None,
        [name for name, _, _ in batch],
    )
