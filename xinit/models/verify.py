"""``verify()``: which parameters of a model still are what they were drawn as, which were trained, and which are corrupt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xinit._torch import DisableTorchFunction, without_modes
from xinit.dtensor import Box, is_sharded, shards, view
from xinit.history.storages import ordinary_tensors
from xinit.keys import Key
from xinit.lazy.draw import done_again, draw
from xinit.lazy.targets import targets_of
from xinit.models.memory import check_memory
from xinit.models.steps import Rulebook
from xinit.parallel.ranks import Ranks, sharded_sites
from xinit.parameters.sites import Patterns, Site, selected, some
from xinit.parameters.table import fold, paragraph, table
from xinit.parameters.writes import Write, fill_writes_
from xinit.recipes import Recipe
from xinit.subclasses import held

_BLOCK = 2**20  # elements that are drawn and compared at a time: 5 doubles and two masks for each stay below 64 MiB
_FEW = 0.05  # of the elements of rows, or columns, in which any has changed: training changes most of them
_HERE_AND_THERE, _SMALL = 1e-3, 1e-2  # of the elements, and of the root mean square of what was drawn
_COUNTED = 256  # elements from which on a correlation tells something


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of one parameter.

    Attributes:
        name: the first of its names, without wrappers' parts.
        shape: of the whole.
        state: "drawn": each bit is as drawn; "trained"; "corrupt"; or "unknown", if the recipe tells nothing of it.
        changed: the share of elements whose bits differ from those drawn; NaN, like ``moved``, if unknown.
        moved: the root mean square of these differences.
        correlation: of the values with those drawn; None where these are all the same, or not finite.
        why: a corrupt one's evidence, or "".
    """

    name: str
    shape: tuple[int, ...]
    state: str
    changed: float
    moved: float
    correlation: float | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """What :func:`verify` found: prints as a summary and a table of what is not as it was drawn.

    Attributes:
        rows: one for each parameter that was compared, in the model's order.
    """

    rows: tuple[Verified, ...]

    def names(self, state: str) -> list[str]:
        """Of the parameters in that state: "drawn", "trained", "corrupt" or "unknown"."""
        return [row.name for row in self.rows if row.state == state]

    def __str__(self) -> str:
        counts = [f"{len(self.names(state))} {state}" for state in ("drawn", "trained", "corrupt", "unknown")]
        text = f"{len(self.rows)} parameters: " + ", ".join(count for count in counts if not count.startswith("0 "))
        cells = [
            (
                *(row.name, str(row.shape), row.state, f"{100 * row.changed:.3g} %", f"{row.moved:.3g}"),
                "" if row.correlation is None else f"{row.correlation:.3f}",
            )
            for row in self.rows
            if row.state in ("trained", "corrupt")
        ]
        if cells:
            text += "\n\n" + table(("count", "name", "shape", "state", "changed", "moved", "corr."), fold(cells))
        bad = fold((row.name, row.why) for row in self.rows if row.state == "corrupt")
        return "\n".join([text, *(paragraph(f"{name}: {why}") for _, name, why in bad)])


def verify(
    model: nn.Module,
    key: Key,
    recipe: Recipe | nn.Module,
    *,
    only: Patterns | None = None,
    skip: Patterns | None = None,
) -> Verification:
    """Draw a model's initial weights again, a block at a time, and compare: what still is, what was trained, what is corrupt.

    A parameter whose bits are all those drawn is "drawn". One that training has moved is finite, has moved whole rows
    or columns, and for long resembles what it began as. It is "corrupt" if it holds NaN or infinity that was not drawn;
    if only a few scattered elements differ, as after a fault of memory or a file, by more than bfloat16 leaves of small steps; or
    if it has nothing in common with what was drawn, like raw memory, another key's values, or another rank's part: its
    correlation with them is that of chance. After very long training with weight decay a sound parameter may come to look so too.

    Of a sharded model each rank compares what it holds, with no more memory than that takes; the findings are added up over the
    mesh in one all-reduce. All ranks get the same.

    Args:
        model: with parameters that have memory. It is not changed.
        key: that it was initialised with.
        recipe: as :func:`init_` had it; or what :func:`deferred` gave for the same constructor, not materialised: then weights
            are compared with those of :func:`materialize_`.
        only: the parameters to compare, as for :func:`init_`, and so is ``skip``.

    Returns:
        a :class:`xinit.models.verify.Verification`. Beyond the model, drawing takes less than 64 MiB, but for parameters that can
        only be drawn as a whole: matrices such as ``orthogonal``, and what ``deferred`` has recorded as operators.

    Raises:
        TypeError: for a model, key or recipe that is none.
        ValueError: if the recipe does not fit the model; if the deferred model lacks a parameter of this one, or has it in
            another shape or dtype.
        RuntimeError: for parameters without memory, or a deferred model that cannot be drawn.

    Example:
        >>> import torch, xinit
        >>> model = xinit.init_(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)), "torch", xinit.Key(0))
        >>> with torch.no_grad():
        ...     _ = model[1].weight.add_(0.01 * torch.randn(64, 64))
        ...     model[1].bias[7] = torch.nan
        >>> found = xinit.verify(model, xinit.Key(0), "torch")
        >>> found.names("drawn"), found.names("trained"), found.names("corrupt")
        (['0.weight', '0.bias'], ['1.weight'], ['1.bias'])
    """
    if not isinstance(key, Key):
        raise TypeError(f"verify: key must be an xinit.Key, but found {type(key).__name__}")
    every = sharded_sites(model, "verify", computed=True)
    sites = selected(every, only, skip, "verify")
    check_memory("verify", [part for site in sites for part in site.parts])
    drawn: dict[str, Drawn] = {}
    with torch.no_grad(), without_modes(), DisableTorchFunction(), ordinary_tensors():
        if isinstance(recipe, nn.Module):
            drawn = _of_a_twin(recipe, sites, key)
        else:
            rules = Rulebook(recipe, model, "verify")
            steps = [rules.step(site, key) for site in sites if site.computed is None]
            drawn = {step.site.name: step.writes for step in steps if step.writes}
        compared = [site for site in sites if site.name in drawn]
        found = torch.zeros(len(compared), 10, dtype=torch.float64)  # sums
        for site, row in zip(compared, found, strict=True):
            for sums in _differences(site, drawn[site.name]):
                row += torch.tensor(sums, dtype=torch.float64)
    totals = Ranks((site.parameter for site in every), "verify").total(found).tolist()
    verdicts = {site.name: _verdict(site, Sums(*sums)) for site, sums in zip(compared, totals, strict=True)}
    return Verification(tuple(verdicts.get(site.name) or _verdict(site, None) for site in sites))


Drawn = Sequence[Write] | Tensor  # of a parameter: what it was filled with, or all of its values


class Sums(NamedTuple):
    """Over the elements of a parameter, x as drawn and y as they are."""

    elements: float
    changed: float
    lost: float  # not finite, but drawn so
    near: float  # in the rows, or the columns, in which any has changed, whichever are fewer
    x: float
    y: float
    xx: float
    yy: float
    xy: float
    moved: float  # squared differences


def _of_a_twin(twin: nn.Module, sites: Sequence[Site], key: Key) -> dict[str, Drawn]:
    """What materialize_ would draw of a deferred model, by the names of these parameters."""
    targets, _, unknown = targets_of(twin, "verify")
    if unknown or not targets:
        what = some([*unknown]) if unknown else "no parameters"
        raise RuntimeError(f"verify: of the deferred model, {what} can be drawn: build it anew within xinit.deferred()")
    named = {target.name: target for target in targets}
    chosen = []
    for site in sites:
        target = named.get(site.name)
        if target is None:
            raise ValueError(f"verify: the deferred model has no parameter {site.name}, or it was given memory")
        ours, theirs = ((tuple(t.shape), t.dtype) for t in (site.parameter, target.tensor))
        if ours != theirs:
            raise ValueError(
                f"verify: parameter {site.name} has shape and dtype {ours}, but the deferred model's {theirs}"
            )
        chosen.append(target)
    again = [*done_again(targets)]
    values = dict(zip(again, draw(again, lambda *_: None, torch.device("cpu"), key, "verify"), strict=True))
    return {t.name: values[t] if t in values else t.writes(key) for t in chosen if t in values or t.written()}


def _differences(site: Site, drawn: Drawn) -> Iterator[Sums]:
    """Of each block of what is here."""
    tensor = held(site.parameter, f"verify: parameter {site.name}")
    nowhere = (0,) * tensor.dim()
    local = [(tensor, [Box(nowhere, nowhere, tuple(tensor.shape))])]
    for part, boxes in shards(tensor, f"verify: parameter {site.name}") if is_sharded(tensor) else local:
        for box in boxes:
            at_once = isinstance(drawn, Sequence) and any(write.distribution.by_whole for write in drawn)
            for block in [box] if at_once else _blocks(box):
                here = view(part.detach(), block.local, block.shape)
                if isinstance(drawn, Tensor):
                    values = view(drawn, block.offsets, block.shape).to(here.device)
                else:
                    values = here.clone()
                    inner = Box(nowhere, block.offsets, block.shape)
                    writes = [cut for write in drawn if (cut := write.within(inner))]
                    fill_writes_([(site.name, values, writes)], op="verify")
                if here.numel():
                    yield _compared(values, here)


def _blocks(box: Box) -> Iterator[Box]:
    """Boxes of at most so many elements, which cover it: parts of its rows, or rows, or several of them."""
    steps, left = [], _BLOCK
    for size in reversed(box.shape):
        steps.append(max(1, min(size, left)))
        left //= steps[-1]
    ranges = [range(0, size, step) for size, step in zip(box.shape, reversed(steps), strict=True)]
    for start in product(*ranges):
        shape = tuple(min(r.step, size - at) for at, r, size in zip(start, ranges, box.shape, strict=True))
        local, offsets = (tuple(a + b for a, b in zip(place, start, strict=True)) for place in (box.local, box.offsets))
        yield Box(local, offsets, shape)


def _compared(drawn: Tensor, here: Tensor) -> Sums:
    x, y = (_numbers(tensor) for tensor in (drawn, here))
    differs = _bits(x) != _bits(y)
    lines = [_lines(differs, dim) * (x.numel() / x.shape[dim]) for dim in range(x.dim() if x.dim() > 1 else 0)]
    near = min(lines, default=float(differs.any()) * x.numel())
    x, y = x.double(), y.double()
    lost = x.isfinite() & ~y.isfinite()
    both = x.isfinite() & y.isfinite()
    x, y = x.where(both, 0), y.where(both, 0)
    sums = (x.sum(), y.sum(), x.square().sum(), y.square().sum(), (x * y).sum(), (x - y).square_().sum())
    return Sums(*(float(number) for number in (x.numel(), differs.sum(), lost.sum(), near, *sums)))


def _lines(differs: Tensor, dim: int) -> float:
    """At how many indices of a dimension anything differs."""
    return float(differs.movedim(dim, 0).flatten(1).any(1).sum())


def _numbers(tensor: Tensor) -> Tensor:
    """Contiguous, of real numbers."""
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).contiguous()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _rounded(sums: Sums) -> bool:
    """Whether that is what low precision leaves of small steps: they reach the smallest weights alone, here and there."""
    small = sums.moved * sums.elements < (_SMALL**2 * sums.changed) * sums.xx
    return small and sums.changed >= _HERE_AND_THERE * sums.elements


def _verdict(site: Site, sums: Sums | None) -> Verified:
    """What the sums say of a parameter; None if nothing is known of what it was."""
    place = site.name, tuple(site.parameter.shape)
    if sums is None:
        return Verified(*place, "unknown", math.nan, math.nan, None)
    n = max(sums.elements, 1)
    spreads = [max(square / n - (total / n) ** 2, 0.0) for square, total in ((sums.xx, sums.x), (sums.yy, sums.y))]
    correlation = None
    if all(spreads) and not sums.lost:
        correlation = (sums.xy / n - sums.x * sums.y / n**2) / math.sqrt(spreads[0] * spreads[1])
    why = ""
    if sums.lost:
        why = f"{sums.lost:,.0f} of {n:,.0f} elements are NaN or infinite"
    elif sums.changed and sums.changed < _FEW * sums.near and not _rounded(sums):
        why = f"{sums.changed:,.0f} scattered elements of {n:,.0f} differ, and all others are as drawn"
    elif sums.changed and spreads[0] and n >= _COUNTED and abs(correlation or 0) * math.sqrt(n) < 5:
        why = f"nothing in it resembles what was drawn: a correlation of {correlation or 0:.2g} over {n:,.0f} elements"
    state = "corrupt" if why else "trained" if sums.changed else "drawn"
    return Verified(*place, state, sums.changed / n, math.sqrt(sums.moved / n), correlation, why)
