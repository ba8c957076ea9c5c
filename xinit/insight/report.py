"""What :func:`xinit.diagnose` found: a row for each layer, flags, and both as a table, as data and as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from os import PathLike
from typing import Any

from xinit.insight.findings import Flag
from xinit.insight.report_plot import draw
from xinit.parameters.table import WIDTH, table


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer that holds weights. What was not measured is None: a layer's input if it is of integers, say.

    Attributes:
        name: the module's, or that of a parameter that is used outside of a module of its own.
        type: its class.
        calls: how often the pass has used it; what follows is over all of them.
        fan_in: the number of inputs of a unit, receptive field included.
        fan_out: the same of outputs.
        weight_std: of its weights as they are; of its matrices, if it has any.
        own_std: what the model's own code would have drawn them with.
        in_rms: root mean square of what comes in.
        in_mean: its mean.
        out_rms: of what goes out, before the activation that follows.
        out_mean: its mean.
        activation: that follows, by its name, or "".
        post_rms: behind the activation.
        post_mean: its mean.
        grad_rms: of the loss's gradient with respect to what goes out.
        gain: what goes out, behind the activation, over what comes in.
        net_gain: the same over what came into the first layer.
        stream_rms: of the sum on a residual path, after what comes of this layer is added to it.
        dead: the share of units whose activation is flat for the whole batch, as a ReLU is below zero.
        saturated: the share of values at which the activation's slope is below 5 % of its largest, of one that saturates.
        flags: the kinds of this layer's flags.
    """

    name: str
    type: str
    calls: int
    fan_in: int | None
    fan_out: int | None
    weight_std: float
    own_std: float | None
    in_rms: float | None
    in_mean: float | None
    out_rms: float | None
    out_mean: float | None
    activation: str
    post_rms: float | None
    post_mean: float | None
    grad_rms: float | None
    gain: float | None
    net_gain: float | None
    stream_rms: float | None
    dead: float | None
    saturated: float | None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`xinit.diagnose` gives: prints as a summary, a table, and what to do.

    Attributes:
        model: the model's class.
        rows: one for each layer that holds weights, in the order of execution; those that were not reached come last.
        flags: what is wrong, the worst first; empty, if all is well.
        gain: of the signal's RMS, from what comes into the first layer to what goes out of the last one.
        gradient_gain: of the gradient's norm, from what goes out of the last layer to what goes out of the first one.
    """

    model: str
    rows: tuple[LayerRow, ...]
    flags: tuple[Flag, ...]
    gain: float | None
    gradient_gain: float | None

    @property
    def sound(self) -> bool:
        """Whether there is no flag."""
        return not self.flags

    def to_dict(self) -> dict[str, Any]:
        """All of it as dicts, lists, strings and numbers, fit for JSON but for numbers that are not finite."""
        return asdict(self)

    def to_pandas(self) -> Any:
        """The rows as a ``pandas.DataFrame``, indexed by name.

        Raises:
            ImportError: without pandas.
        """
        pandas: Any = import_module("pandas")
        return pandas.DataFrame([asdict(row) for row in self.rows]).set_index("name")

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """RMS of activations and gradients by depth, flagged layers named.

        Args:
            path: a file to write; its ending says in which format.

        Returns:
            The ``matplotlib.figure.Figure``.

        Raises:
            ImportError: without matplotlib.
        """
        return draw(self.model, self.rows, path)

    def summary(self) -> str:
        """Five lines: what was looked at, the three worst flags, how signal and gradient come through."""
        kinds = dict.fromkeys(flag.kind for flag in self.flags)
        found = f"{_counted(len(self.flags), 'flag')}: {', '.join(kinds)}" if kinds else "sound, no flags"
        lines = [f"{self.model}: {_counted(len(self.rows), 'layer')} with weights; {found}"]
        lines += [_short(f"  {i + 1}. {flag}") for i, flag in enumerate(self.flags[:3])]
        lines += [f"  {text}" for text in self._extremes()[: 4 - len(lines)]]
        ways = [f"signal out / in {_number(self.gain)}"] if self.gain is not None else []
        if self.gradient_gain is not None:
            ways.append(f"gradient first / last {_number(self.gradient_gain)}")
        return "\n".join([*lines, "  " + (", ".join(ways) or "nothing was measured")])

    def _extremes(self) -> list[str]:
        """Where the numbers come nearest to a flag."""
        lines = []
        if rms := [(row.out_rms, row.name) for row in self.rows if row.out_rms is not None]:
            low, high = min(rms), max(rms)
            lines.append(
                _short(f"smallest RMS {_number(low[0])} at {low[1]}, largest {_number(high[0])} at {high[1]}", 2)
            )
        if dead := [(row.dead, row.name) for row in self.rows if row.dead is not None]:
            lines.append(_short(f"most dead units {max(dead)[0]:.0%} at {max(dead)[1]}", 2))
        if saturated := [(row.saturated, row.name) for row in self.rows if row.saturated is not None]:
            lines.append(_short(f"most saturated values {max(saturated)[0]:.0%} at {max(saturated)[1]}", 2))
        return lines

    def __str__(self) -> str:
        text = f"{self.summary()}\n\n{_table(self.rows)}"
        for flag in self.flags:
            text += f"\n\n{textwrap.fill(str(flag), WIDTH)}\n  {flag.fix}"
        return text


_HEADER = ("layer", "fan in/out", "std", "own std", "in", "out", "post", "grad", "gain", "flat", "")


def _table(rows: Sequence[LayerRow]) -> str:
    """Columns: the fans, the weight's std and its own method's, RMS in, out, behind the activation and of the gradient, the gain,
    the share of dead units or saturated values, flags."""
    cells = [
        (
            row.name,
            "" if row.fan_in is None else f"{row.fan_in}/{row.fan_out}",
            *map(_number, (row.weight_std, row.own_std, row.in_rms, row.out_rms, row.post_rms, row.grad_rms, row.gain)),
            "" if (share := _flat(row)) is None else f"{share:.0%}",
            row.flags[0] + "+" * (len(row.flags) > 1) if row.flags else "",
        )
        for row in rows
    ]
    return table(_HEADER, cells)


def _flat(row: LayerRow) -> float | None:
    shares = [share for share in (row.dead, row.saturated) if share is not None]
    return max(shares, default=None)


def _number(value: float | None) -> str:
    """In at most six characters, or one more for the sign."""
    if value is None:
        return ""
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    text = f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"
    return text if len(text) <= 6 else f"{value:.2g}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def _short(text: str, indent: int = 0) -> str:
    return text if len(text) <= WIDTH - indent else text[: WIDTH - indent - 2].rstrip() + " …"
