"""Plans: what would be done to a model's parameters, as rows and as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from xinit.distributions import Distribution, Rows, What
from xinit.parameters.table import fold, paragraph, table


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
        return self._text(("name",), list)

    def folded(self) -> str:
        """The table with one line for the rows that differ only by the numbers in their names.

        Example:
            >>> import torch, xinit
            >>> layers = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(12)))
            >>> print(xinit.plan(layers, {"*.bias": xinit.zeros(), "*": xinit.normal(std=0.02)}).folded())
            count  name            shape   method   std
               12  {0..11}.weight  (8, 8)  normal  0.02
               12  {0..11}.bias    (8,)    zeros      0
            <BLANKLINE>
            24 parameters, 864 elements, 3.4 KiB of float32
        """
        return self._text(("count", "name"), fold)

    def _text(self, names: Sequence[str], gather: Callable[[Iterable[tuple[str, ...]]], list[tuple[str, ...]]]) -> str:
        """A table, totals, and the problems, of rows gathered in a way that puts such columns where their names were."""
        mixed = len({row.dtype for row in self.rows}) > 1
        good = [
            (
                "\n  tied: ".join((row.name, *row.tied)),
                str(row.shape),
                _short(row.dtype) if mixed else "",
                row.method,
                "" if row.std is None else f"{row.std:.3g}",
            )
            for row in self.rows
            if not row.problem
        ]
        lines = [table((*names, "shape", "dtype", "method", "std"), gather(good)), "", *self._totals()]
        for *count, what, problem in gather((f"{row.name} {row.shape}", row.problem) for row in self.problems):
            times = "" if count in ([], ["1"]) else f", {count[0]} of them"
            lines.append(paragraph(f"{what}{times}: {problem}"))
        return "\n".join(lines)

    def _totals(self) -> Iterator[str]:
        elements = [math.prod(row.shape) for row in self.rows]
        size: float = sum(count * row.dtype.itemsize for count, row in zip(elements, self.rows, strict=True))
        unit = 0
        while size >= 1024 and unit < 4:
            size, unit = size / 1024, unit + 1
        amount = f"{size:.1f} {'KMGT'[unit - 1]}iB" if unit else f"{size} B"
        dtypes = {_short(row.dtype) for row in self.rows}
        of = f" of {dtypes.pop()}" if len(dtypes) == 1 else ""
        yield f"{_count(len(self.rows))}, {sum(elements):,} elements, {amount}{of}"
        if self.kept:
            yield f"{_count(self.kept)} left as {'it is' if self.kept == 1 else 'they are'}"
        if self.loaded:
            yield f"{_count(self.loaded)} left as loaded from a checkpoint"
        if self.unused:
            yield f"nothing came to {', '.join(map(repr, self.unused))}"
        if self.problems:
            yield f"{_count(len(self.problems))} CANNOT be initialised:"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _count(number: int) -> str:
    return f"{number:,} parameter" + "s" * (number != 1)


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
_GAINS = {
    f"{gain:.12g}": name for gain, name in ((math.sqrt(2), "sqrt(2)"), (5 / 3, "5/3"), (1 / math.sqrt(3), "1/sqrt(3)"))
}
# Of torch's Linear and Conv, which write it kaiming_uniform_(weight, a=sqrt(5)).
_TORCHS_OWN = "kaiming_uniform fan_in gain 1/sqrt(3)"


@lru_cache
def _words(d: Distribution) -> str:
    if d.by_whole:
        return str(d)
    if d.fan:
        family = "{} " + d.fan if d.name == "truncated_normal" else _NAMES[d.fan]
        gain = _GAINS.get(f"{d.parameters[0]:.12g}", f"{d.parameters[0]:.3g}")
        text = family.format(d.name) + (f" gain {gain}" if gain != "1" else "")
        text = text.replace(_TORCHS_OWN, "U(±1/sqrt(fan_in))")
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
    if d.name not in ("uniform", "truncated_normal"):
        return str(d).removeprefix("Distribution(").removesuffix(")")
    low, high = d.parameters[-2:]
    close = ")" if d.name == "uniform" else "]"
    bounds = f" ±{p[-1]}" if low == -high else f" [{p[-2]}, {p[-1]}{close}"
    return ("uniform" if d.name == "uniform" else "trunc_normal" + mean) + bounds
