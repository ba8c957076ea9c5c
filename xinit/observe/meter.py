"""Measurements: sums of what a tensor holds, gathered where it is, and read, for all ranks together, when all are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from xinit._torch import local_tensor
from xinit.dtensor import is_sharded
from xinit.parallel.ranks import Ranks
from xinit.subclasses import wraps

PART = 2**16  # elements, of which something is computed that takes memory


class Moments(NamedTuple):
    """Of what was measured.

    Attributes:
        number: of elements.
        mean: theirs; not finite if one of them is not.
        norm: the root of the sum of their squares.
    """

    number: float = 0.0
    mean: float = 0.0
    norm: float = 0.0

    @property
    def rms(self) -> float:
        return self.norm / math.sqrt(self.number) if self.number else 0.0

    @property
    def std(self) -> float:
        return math.sqrt(max(0.0, self.rms**2 - self.mean**2))

    @property
    def finite(self) -> bool:
        return math.isfinite(self.mean)

    @classmethod
    def together(cls, found: Sequence[Moments]) -> Moments:
        """Of several measurements as of one."""
        number = sum(moments.number for moments in found)
        mean = sum(moments.mean * moments.number for moments in found) / number if number else 0.0
        return cls(number, mean, math.sqrt(sum(moments.norm**2 for moments in found)))


class Meter:
    """Takes measurements without waiting for the device: each is a number, under which it is found in the end."""

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._sums: list[Tensor] = []  # of elements and the norm, alternately

    def measure(self, tensor: Tensor) -> int:
        """Of all elements, in two passes over them and no memory."""
        values = local(tensor)
        dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
        if values.dtype == dtype or values.device.type != "cpu":
            return self.note(values.numel(), values.sum(dtype=dtype), torch.linalg.vector_norm(values, dtype=dtype))
        pieces = parts(values)  # low precision is summed in float32 by way of a copy
        sums = torch.stack([piece.sum(dtype=dtype) for piece in pieces])
        norms = torch.stack([torch.linalg.vector_norm(piece, dtype=dtype) for piece in pieces])
        return self.note(values.numel(), sums.sum(), torch.linalg.vector_norm(norms))

    def measure_beyond(self, tensor: Tensor, low: float, high: float) -> int:
        """Of all elements, how many are below or above, part by part: comparisons take memory."""
        values = local(tensor)
        counts = [(piece > high).sum() + (piece < low).sum() for piece in parts(values)]
        return self.note(values.numel(), torch.stack(counts).sum())

    def note(self, count: int, total: Tensor, norm: Tensor | None = None) -> int:
        """Of so many things, their sum."""
        self._counts.append(count)
        self._sums += [total, torch.zeros_like(total) if norm is None else norm]
        return len(self._counts) - 1

    def read(self, ranks: Ranks) -> list[Moments]:
        """All of them, over all ranks: one transfer from each device, and one all-reduce."""
        places: dict[torch.device, list[int]] = {}
        for i, value in enumerate(self._sums):
            places.setdefault(value.device, []).append(i)
        values = torch.zeros(len(self._sums), dtype=torch.float64, device="cpu")
        for indices in places.values():
            values[indices] = torch.stack([self._sums[i].float() for i in indices]).cpu().double()
        counts = torch.tensor(self._counts, dtype=torch.float64, device="cpu")
        sums = torch.stack((counts, values[0::2], values[1::2].square()))
        count, total, squares = ranks.total(sums).tolist()
        return [
            Moments(n, t / n if n else 0.0, math.sqrt(s) if s >= 0 else math.nan)
            for n, t, s in zip(count, total, squares, strict=True)
        ]


def parts(values: Tensor) -> Sequence[Tensor]:
    """Views of about so many elements, as far as the strides or the first axis allow."""
    if values.is_contiguous():
        return torch.split(values.view(-1), PART)
    return torch.split(values, max(1, PART * len(values) // max(values.numel(), 1))) if values.dim() else [values]


def local(tensor: Tensor) -> Tensor:
    """What this rank has of it, as real numbers of a dtype that can be summed."""
    values = tensor.detach()
    if wraps(values) and hasattr(values, "dequantize"):
        values = values.dequantize()
    if is_sharded(values):
        values = local_tensor(_settled(values))
    if values.is_complex():
        values = torch.view_as_real(values)
    return values.float() if values.dtype.itemsize == 1 else values


def _settled(tensor: Tensor) -> Tensor:
    """A DTensor without the terms of a sum that is still to be done."""
    from torch.distributed.tensor import Replicate

    placements = [Replicate() if p.is_partial() else p for p in tensor.placements]  # type: ignore[attr-defined]
    return tensor.redistribute(placements=placements)  # type: ignore[attr-defined,no-any-return]
