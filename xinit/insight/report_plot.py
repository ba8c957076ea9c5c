"""The picture of a report: how large activations and gradients are, by depth."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from xinit.insight.pictures import COLOURS, figure, label_ends, save

BAND = 1e-3, 1e3  # beyond which signals are flagged
NAMED = 6  # flagged layers


def draw(model: str, every: Sequence[Any], path: str | PathLike[str] | None = None) -> Any:
    """RMS of a report's rows by depth, behind each layer's activation, the band of health shaded, flagged layers named."""
    rows = [row for row in every if row.calls]
    lines = {
        "activations": _line(row.out_rms if row.post_rms is None else row.post_rms for row in rows),
        "gradients": _line(row.grad_rms for row in rows),
        "residual sums": _line(row.stream_rms for row in rows),
    }
    flagged = [row for row in rows if row.flags]
    title = f"{model}: signals and gradients come through"
    if flagged:
        more = f" and {len(flagged) - 1} more" if len(flagged) > 1 else ""
        title = f"{model}: {flagged[0].flags[0]} at layer {flagged[0].name}{more}"
    drawn, grid = figure(title, "root mean square over one batch; shaded: within a thousandfold of what came in")
    axes = grid[0][0]
    axes.set(yscale="log", xlabel="layers with weights, in the order of execution", ylabel="RMS")
    axes.minorticks_off()
    start = lines["activations"][0][1] if lines["activations"] else 1.0
    axes.axhspan(BAND[0] * start, BAND[1] * start, color=COLOURS["band"], zorder=0)
    ends = {}
    for (name, line), colour in zip(lines.items(), ("forward", "backward", "stream"), strict=True):
        if line:
            thin = bool(lines["residual sums"]) and name != "residual sums"  # branches go up and down, beside their sum
            size = 3 if len(line) < 60 else 0
            axes.plot(*zip(*line, strict=True), color=COLOURS[colour], marker="o", ms=size, lw=1 if thin else 2)
            ends[name] = (*line[-1], COLOURS[colour])
    every_rms = [start, *(rms for line in lines.values() for _, rms in line)]
    axes.set_ylim(min(every_rms) / 30, max(every_rms) * 30)
    _name(axes, rows, dict(lines["gradients"]) | dict(lines["activations"]), dict(lines["residual sums"]))
    label_ends(axes, ends)
    if path is not None:
        save(drawn, path)
    return drawn


def _line(values: Any) -> list[tuple[int, float]]:
    return [(i, rms) for i, rms in enumerate(values) if rms]


def _name(axes: Any, rows: Sequence[Any], places: dict[int, float], sums: dict[int, float]) -> None:
    """Flagged layers, each with a circle where its signal is, or the sum that it makes grow."""
    for i, row in [(i, row) for i, row in enumerate(rows) if row.flags and i in places][:NAMED]:
        grows = "residual growth" in row.flags and i in sums
        at = sums[i] if grows else places[i]
        axes.plot(i, at, "o", ms=9, markerfacecolor="none", markeredgecolor=COLOURS["flagged"])
        right = i > 0.7 * len(rows)
        where = {
            "xytext": (-8 if right else 8, 26 if grows else 10),
            "textcoords": "offset points",
            "ha": "right" if right else "left",
        }
        axes.annotate(f"{row.name}: {', '.join(row.flags)}", (i, at), fontsize=9, color=COLOURS["flagged"], **where)
