"""Layouts: tensors before they are filled, known by where each of their elements is in the whole model's parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from xinit.distributions import Distribution, zeros
from xinit.dtensor import view
from xinit.fill import fill_many_
from xinit.keys import Key
from xinit.subclasses import holds_tensors
from xinit.window import Window

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a local tensor, and the box of a parameter that it holds.

    Attributes:
        name: of the parameter in the whole model; "" for padding.
        distribution: that the whole parameter is drawn from, without a fan.
        offsets: where the box begins in the local tensor,
        shape: and its extent there.
        window: where it begins in the parameter,
        extent: and its extent there: as many elements as in ``shape``, in the same order.
    """

    name: str
    distribution: Distribution
    offsets: Shape
    shape: Shape
    window: Window
    extent: Shape

    def at(self, offsets: Shape, shape: Shape, window: Window, extent: Shape) -> Piece:
        """Another box of the same parameter."""
        return Piece(self.name, self.distribution, offsets, shape, window, extent)

    def moved(self, axis: int, by: int) -> Piece:
        """The same, further along the local tensor's axis."""
        return self.at(with_size(self.offsets, axis, self.offsets[axis] + by), self.shape, self.window, self.extent)

    def narrow(self, axis: int, start: int, stop: int) -> Iterator[Piece]:
        """What of it lies in [start, stop) of the local tensor's axis, which it overlaps, counted from there."""
        begin, size = self.offsets[axis], self.shape[axis]
        first, last = max(start, begin) - begin, min(stop, begin + size) - begin
        if first == 0 and last == size:
            yield self.moved(axis, -start)
            return
        local = with_size(self.offsets, axis, begin + first - start)
        if self.extent == self.shape:
            kept = with_size(self.shape, axis, last - first)
            inner = with_size(self.window.offsets, axis, self.window.offsets[axis] + first)
            yield self.at(local, kept, Window(self.window.global_shape, inner), kept)
            return
        for offsets, extent in _boxes(self.extent, first, last):  # a flat range of several axes of the parameter
            inner = tuple(a + b for a, b in zip(self.window.offsets, offsets, strict=True))
            piece = self.at(local, (math.prod(extent),), *_merged(Window(self.window.global_shape, inner), extent))
            yield piece
            local = (local[0] + piece.shape[0],)

    def flatten(self, whole: Shape) -> Iterator[Piece]:
        """The same within the flattened local tensor: one piece if it is one range there."""
        cut = max((d for d, size in enumerate(whole) if self.shape[d] != size), default=0)
        steps = [math.prod(whole[d + 1 :]) for d in range(len(whole))]
        extent = (1,) * cut + self.shape[cut:]
        for rows in product(*map(range, self.shape[:cut])):
            index = (*rows, *(0,) * (len(whole) - cut))
            start = sum((a + b) * step for a, b, step in zip(self.offsets, index, steps, strict=True))
            if self.extent == self.shape:
                inner = tuple(a + b for a, b in zip(self.window.offsets, index, strict=True))
                place = _merged(Window(self.window.global_shape, inner), extent)
            else:
                place = self.window, self.extent
            yield self.at((start,), (math.prod(extent),), *place)


def with_size(values: Sequence[int], axis: int, value: int) -> Shape:
    return (*values[:axis], value, *values[axis + 1 :])


def _boxes(extent: Shape, first: int, last: int) -> Iterator[tuple[Shape, Shape]]:
    """[first, last) of the flattened extent as boxes (offsets, shape), in order: part of a row, whole rows, part of a row."""
    if len(extent) == 1:
        yield (first,), (last - first,)
        return
    row = math.prod(extent[1:])
    while first < last:
        at, rest = divmod(first, row)
        rows = (last - first) // row
        if rest or not rows:
            stop = min(last, (at + 1) * row)
            for offsets, shape in _boxes(extent[1:], rest, stop - at * row):
                yield (at, *offsets), (1, *shape)
            first = stop
        else:
            yield (at, *(0,) * (len(extent) - 1)), (rows, *extent[1:])
            first += rows * row


def _merged(window: Window, extent: Shape) -> tuple[Window, Shape]:
    """The same elements in as few axes as can be: two are one if the inner is whole, or one row of the outer is left."""
    merged: list[tuple[int, int, int]] = []
    for whole, at, size in reversed([*zip(window.global_shape, window.offsets, extent, strict=True)]):
        if merged and (size == 1 or merged[-1][0] == merged[-1][2]):
            inner_whole, inner_at, inner_size = merged.pop()
            whole, at, size = whole * inner_whole, at * inner_whole + inner_at, size * inner_size
        merged.append((whole, at, size))
    wholes, offsets, sizes = zip(*reversed(merged), strict=True) if merged else ((1,), (0,), (1,))
    return Window(wholes, offsets), sizes


@dataclass(frozen=True, slots=True)
class Layout:
    """What a local tensor holds: for each of its elements, which element of which parameter. Made by :func:`parameter`.

    Attributes:
        shape: the local tensor's.
        pieces: boxes that cover it, each of them one box of a parameter, or padding.

    Example:
        >>> import torch, xinit
        >>> from xinit import parallel
        >>> key = xinit.Key(0)
        >>> whole = xinit.xavier_normal_(torch.empty(6, 8), key=key.fold_in("up.weight"))
        >>> weight = torch.empty(3, 8)
        >>> _ = parallel.parameter("up.weight", (6, 8), xinit.xavier_normal()).shard(0, 1, 2).fill_(weight, key)
        >>> torch.equal(weight, whole[3:])
        True
    """

    shape: Shape
    pieces: tuple[Piece, ...]

    def narrow(self, axis: int, start: int, length: int) -> Layout:
        """[start, start + length) of an axis.

        Raises:
            ValueError: if that is no part of the axis, or the axis none of the layout's.
        """
        axis = check_axis("narrow", axis, self.shape)
        if start < 0 or length < 0 or start + length > self.shape[axis]:
            raise ValueError(
                f"narrow: start {start} and length {length} are outside of dimension {axis} of shape {self.shape}"
            )
        stop = start + length
        if not start and stop == self.shape[axis]:
            return self
        near = (p for p in self.pieces if p.offsets[axis] < stop and p.offsets[axis] + p.shape[axis] > start)
        pieces = tuple(part for piece in near for part in piece.narrow(axis, start, stop))
        return Layout(with_size(self.shape, axis, length), pieces)

    def shard(self, axis: int, rank: int, world: int) -> Layout:
        """The rank's one of so many equal parts of an axis.

        Raises:
            ValueError: if rank is not in [0, world), or the axis does not divide by world.
        """
        check_rank("shard", rank, world)
        axis = check_axis("shard", axis, self.shape)
        size = self.shape[axis]
        if size % world:
            raise ValueError(f"shard: dimension {axis} of shape {self.shape} does not divide by world {world}")
        return self.narrow(axis, rank * (size // world), size // world)

    def pad(self, axis: int, multiple: int) -> Layout:
        """The same with zeros at the end of an axis, up to a multiple. They are part of no parameter, and of no fan.

        Raises:
            ValueError: if multiple is less than 1.

        Example:
            >>> import torch, xinit
            >>> from xinit import parallel
            >>> head = parallel.parameter("head.weight", (5, 2), xinit.normal()).pad(0, 4).shard(0, 1, 2)
            >>> head.fill_(torch.ones(4, 2), xinit.Key(0))[1:].any().item()
            False
        """
        axis = check_axis("pad", axis, self.shape)
        if multiple < 1:
            raise ValueError(f"pad: multiple must be at least 1, but found {multiple}")
        size = self.shape[axis]
        if size % multiple == 0:
            return self
        extra = with_size(self.shape, axis, -size % multiple)
        nothing = Piece(
            "", zeros(), with_size((0,) * len(extra), axis, size), extra, Window(extra, (0,) * len(extra)), extra
        )
        return Layout(with_size(self.shape, axis, size + extra[axis]), self.pieces + (nothing,) * (0 not in extra))

    def flatten(self) -> Layout:
        """The same in one dimension, in row-major order."""
        if not self.shape:
            return Layout((1,), tuple(p.at((0,), (1,), p.window, p.extent) for p in self.pieces))
        return Layout((math.prod(self.shape),), tuple(f for p in self.pieces for f in p.flatten(self.shape)))

    def fill_(self, tensor: Tensor, key: Key) -> Tensor:
        """Fill a local tensor, each part of a parameter with ``key.fold_in(name)``; see :func:`fill_layouts_`."""
        fill_layouts_([tensor], [self], key)
        return tensor

    def digest(self, tensor: Tensor) -> Tensor:
        """What a local tensor of this layout adds to the whole model's :func:`xinit.fingerprint`: int64[2].

        Added up over ranks (an all-reduce; sums wrap at 2^64) they are the fingerprint's two halves. Padding does not count.
        """
        total = torch.zeros(2, dtype=torch.int64, device=tensor.device)
        for piece, part in _views([tensor], [self], "digest"):
            if piece.name:
                words, window = Key(0).fold_in(piece.name).words, piece.window
                total += torch.ops.xinit.digest(part, words, window.global_shape, window.offsets)
        return total


def fill_layouts_(tensors: Sequence[Tensor], layouts: Sequence[Layout], key: Key) -> None:
    """Fill local tensors, all in one :func:`xinit.fill_many_`; each part of a parameter with ``key.fold_in(name)``.

    Args:
        tensors: of any strides and supported dtypes, with the layouts' shapes.
        layouts: as many.
        key: the model's, the same on all ranks.

    Raises:
        ValueError: if the numbers or shapes differ; nothing is changed then, nor after what ``fill_many_`` raises.

    Example:
        >>> import torch, xinit
        >>> from xinit import parallel
        >>> up = parallel.parameter("up.weight", (8, 6), xinit.normal())
        >>> down = parallel.parameter("down.weight", (6, 8), xinit.normal())
        >>> flat = parallel.cat([up.flatten(), down.flatten()])
        >>> shards = [torch.empty(32) for _ in range(3)]
        >>> parallel.fill_layouts_(shards, [flat.shard(0, rank, 3) for rank in range(3)], xinit.Key(0))
        >>> whole = xinit.normal_(torch.empty(8, 6), key=xinit.Key(0).fold_in("up.weight"))
        >>> torch.equal(torch.cat(shards)[:48], whole.flatten())
        True
    """
    if not isinstance(key, Key):
        raise TypeError(f"fill_layouts_: key must be an xinit.Key, but found {type(key).__name__}")
    parts = _views(tensors, layouts, "fill_layouts_")
    keys = {name: key.fold_in(name) for name in {piece.name for piece, _ in parts}}
    fill_many_(
        [part for _, part in parts],
        [piece.distribution for piece, _ in parts],
        [keys[piece.name] for piece, _ in parts],
        [piece.window for piece, _ in parts],
        [piece.name or "padding" for piece, _ in parts],
    )


def _views(tensors: Sequence[Tensor], layouts: Sequence[Layout], op: str) -> list[tuple[Piece, Tensor]]:
    if len(tensors) != len(layouts):
        raise ValueError(f"{op}: {len(tensors)} tensors take as many layouts, but found {len(layouts)}")
    views: list[tuple[Piece, Tensor]] = []
    for tensor, layout in zip(tensors, layouts, strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: tensors must be torch.Tensors, but found {type(tensor).__name__}")
        if holds_tensors(tensor):
            raise TypeError(f"{op}: tensors must be a rank's own, but found a {type(tensor).__name__}")
        if tuple(tensor.shape) != layout.shape:
            names = ", ".join(dict.fromkeys(piece.name for piece in layout.pieces[:3] if piece.name))
            raise ValueError(
                f"{op}: the tensor of shape {tuple(tensor.shape)} has the layout of {names or 'nothing'}, of shape {layout.shape}"
            )
        local = tensor.detach()
        views += [(piece, view(local, piece.offsets, piece.shape).view(piece.extent)) for piece in layout.pieces]
    return views


def check_axis(op: str, axis: int, shape: Shape) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{op}: axis {axis} is out of range for a layout of shape {shape}")
    return axis % len(shape)


def check_rank(op: str, rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise ValueError(f"{op}: rank {rank} is not in [0, {world}), the world's")
