"""The picture of a report: how large activations and gradients are, by depth."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from xinit.insight.pictures import COLOURS, figure, label_ends, save

BAND = 1e-3, 1e3  # beyond which signals are flagged


def draw(model: str, every: Sequence[Any], path: str | PathLike[str] | None = None) -> Any:
    """RMS of a report's rows by depth, behind each layer's activation, the band of health shaded, flagged layers named."""
    rows = [row for row in every if row.calls]
    forward = [(i, rms) for i, row in enumerate(rows) if (rms := row.out_rms if row.post_rms is None else row.post_rms)]
    backward = [(i, row.grad_rms) for i, row in enumerate(rows) if row.grad_rms]
    flagged = [row for row in rows if row.flags]
    title = f"{model}: signals and gradients come through"
    if flagged:
        more = f" and {len(flagged) - 1} more" if len(flagged) > 1 else ""
        title = f"{model}: {flagged[0].flags[0]} at layer {flagged[0].name}{more}"
    drawn, grid = figure(title, "root mean square over one batch; shaded: within a thousandfold of what came in")
    axes = grid[0][0]
    axes.set(yscale="log", xlabel="layers with weights, in the order of execution", ylabel="RMS")
    start = forward[0][1] if forward else 1.0
    axes.axhspan(BAND[0] * start, BAND[1] * start, color=COLOURS["band"], zorder=0)
    ends = {}
    for name, colour, line in (("activations", "forward", forward), ("gradients", "backward", backward)):
        if line:
            axes.plot(
                *zip(*line, strict=True), color=COLOURS[colour], marker="o", markersize=3 if len(line) < 60 else 0
            )
            ends[name] = (*line[-1], COLOURS[colour])
    low, high = (find(rms for _, rms in (*forward, *backward, (0, start))) for find in (min, max))
    axes.set_ylim(min(low, start) / 30, max(high, start) * 30)
    places = dict(forward) | {i: rms for i, rms in backward if i not in dict(forward)}
    for i, row in [(i, row) for i, row in enumerate(rows) if row.flags and i in places][:6]:
        axes.plot(i, places[i], "o", markersize=9, markerfacecolor="none", markeredgecolor="black")
        right = i > 0.7 * len(rows)
        where = {"xytext": (-8 if right else 8, 10), "textcoords": "offset points", "ha": "right" if right else "left"}
        axes.annotate(f"{row.name}: {', '.join(row.flags)}", (i, places[i]), fontsize=8, **where)
    label_ends(axes, ends)
    if path is not None:
        save(drawn, path)
    return drawn
