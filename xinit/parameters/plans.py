"""Plans: what would be done to a model's parameters, as rows and as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from xinit.distributions import Distribution, Rows, What


@dataclass(frozen=True, slots=True)
class Row:
    """What is to be done to one parameter.

    Attributes:
        name: the first of its names, without wrappers' parts.
        shape: its shape.
        dtype: its dtype.
        method: what it is drawn from, in words; "" if there is a problem.
        std: the standard deviation of what is drawn, over all blocks if there are several; None if there is a problem.
        tied: its other names.
        problem: why it cannot be initialised, or "".
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    method: str
    std: float | None
    tied: tuple[str, ...] = ()
    problem: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        std = "" if self.std is None else f"{self.std:.3g}"
        method = f"CANNOT: {self.problem}" if self.problem else self.method
        if self.tied:
            method += f" (tied: {', '.join(self.tied)})"
        return self.name, str(self.shape), str(self.dtype).removeprefix("torch."), method, std


@dataclass(frozen=True, slots=True)
class Plan:
    """What :func:`xinit.plan` gives: prints as a table.

    Attributes:
        rows: one for each parameter, in the model's order.
        kept: the number of parameters that ``only`` and ``skip`` leave as they are.
        unused: the recipe's globs that no parameter came to.
        loaded: the number of parameters that are left as they are because transformers has loaded them.
    """

    rows: tuple[Row, ...]
    kept: int = 0
    unused: tuple[str, ...] = ()
    loaded: int = 0

    @property
    def problems(self) -> tuple[Row, ...]:
        """The rows of parameters that cannot be initialised."""
        return tuple(row for row in self.rows if row.problem)

    def __str__(self) -> str:
        return _table([row.cells for row in self.rows]) + self._totals()

    def folded(self) -> str:
        """The table with one line for the rows that differ only by the numbers in their names.

        Example:
            >>> import torch, xinit
            >>> layers = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(12)))
            >>> print(xinit.plan(layers, {"*.bias": xinit.zeros(), "*": xinit.normal(std=0.02)}).folded())
            count  name            shape   dtype    method  std
               12  {0..11}.weight  (8, 8)  float32  normal  0.02
               12  {0..11}.bias    (8,)    float32  zeros   0
            <BLANKLINE>
            24 parameters, 864 elements, 3.4 KiB
        """
        groups: dict[tuple[object, ...], list[Row]] = {}
        for row in self.rows:
            name = tuple(None if part.isdigit() else part for part in row.name.split("."))
            groups.setdefault((name, *row.cells[1:]), []).append(row)
        lines = [(str(len(group)), *replace(group[0], name=_range(group)).cells) for group in groups.values()]
        return _table(lines) + self._totals()

    def _totals(self) -> str:
        elements = [math.prod(row.shape) for row in self.rows]
        size: float = sum(count * row.dtype.itemsize for count, row in zip(elements, self.rows, strict=True))
        unit = 0
        while size >= 1024 and unit < 4:
            size, unit = size / 1024, unit + 1
        amount = f"{size:.1f} {'KMGT'[unit - 1]}iB" if unit else f"{size} B"
        text = f"\n\n{_count(len(self.rows))}, {sum(elements):,} elements, {amount}"
        if self.kept:
            text += f"\n{_count(self.kept)} left as {'it is' if self.kept == 1 else 'they are'}"
        if self.loaded:
            text += f"\n{_count(self.loaded)} left as loaded from a checkpoint"
        if self.unused:
            text += f"\nnothing came to {', '.join(map(repr, self.unused))}"
        if self.problems:
            text += f"\n{_count(len(self.problems))} CANNOT be initialised"
        return text


def _count(number: int) -> str:
    return f"{number:,} parameter" + "s" * (number != 1)


def _range(group: Sequence[Row]) -> str:
    """The names as one, with the ranges of their numbers."""
    parts: list[str] = []
    for column in zip(*(row.name.split(".") for row in group), strict=True):
        numbers = sorted({int(part) for part in column}) if column[0].isdigit() else []
        parts.append(f"{{{numbers[0]}..{numbers[-1]}}}" if len(numbers) > 1 else column[0])
    return ".".join(parts)


def _table(lines: Iterable[tuple[str, ...]]) -> str:
    lines = list(lines)
    header: tuple[str, ...] = ("name", "shape", "dtype", "method", "std")
    counted = bool(lines) and len(lines[0]) > len(header)
    header = ("count", *header) if counted else header
    # A problem is a sentence, with nothing to the right of it.
    widths = [max(len(c) for c in column if not c.startswith("CANNOT")) for column in zip(header, *lines, strict=True)]
    rows = []
    for line in [header, *lines]:
        cells = [f"{cell:{'>' if counted and not i else '<'}{widths[i]}}" for i, cell in enumerate(line)]
        rows.append("  ".join(cells).rstrip())
    return "\n".join(rows)


def describe(what: What) -> str:
    """In words."""
    if isinstance(what, Distribution):
        return _words(what)
    if isinstance(what, Rows):
        along = f" of axis {what.axis}" if what.axis else ""
        stop = "" if what.stop is None else what.stop
        return f"rows {what.start}:{stop}{along}: {_words(what.distribution)}"
    texts = [_words(distribution) for _, _, distribution in what.parts]
    names = [name for name, _, _ in what.parts]
    if len(set(texts)) == 1:
        return f"{', '.join(names)}: {texts[0]}"
    return "; ".join(f"{name}: {text}" for name, text in zip(names, texts, strict=True))


_NAMES = {
    "fan_avg": "xavier_{}",
    "fan_in": "kaiming_{} fan_in",
    "fan_out": "kaiming_{} fan_out",
    "fan_geo_avg": "{} fan_geo_avg",
}


@lru_cache
def _words(d: Distribution) -> str:
    if d.by_whole:
        return str(d)
    if d.fan:
        family = "{} " + d.fan if d.name == "truncated_normal" else _NAMES[d.fan]
        text = family.format(d.name) + (f" gain {d.parameters[0]:.3g}" if d.parameters[0] != 1 else "")
        axes = {"in": d.in_axis, "out": d.out_axis} if (d.in_axis, d.out_axis) != ((1,), (0,)) else {}
        if d.batch_axis:
            axes["batch"] = d.batch_axis
        text += "".join(f", {name} {'+'.join(map(str, axis))}" for name, axis in axes.items())
        return text + (f", groups {d.groups}" if d.groups != 1 else "")
    p = [f"{value:.3g}" for value in d.parameters]
    if d.name == "constant":
        return {0.0: "zeros", 1.0: "ones"}.get(d.parameters[0], f"constant {p[0]}")
    mean = f" mean {p[0]}" if d.name != "uniform" and d.parameters[0] else ""
    if d.name == "normal":
        return "normal" + mean
    low, high = d.parameters[-2:]
    close = ")" if d.name == "uniform" else "]"
    bounds = f" ±{p[-1]}" if low == -high else f" [{p[-2]}, {p[-1]}{close}"
    return ("uniform" if d.name == "uniform" else "trunc_normal" + mean) + bounds
