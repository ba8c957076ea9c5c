"""The picture of a coordinate check: sizes by width, a panel for each number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from typing import Any

from xinit.insight.pictures import COLOURS, figure, headline, label_ends, save

NAMED = 6  # layers, the steepest


def draw(
    title: str, widths: Sequence[int], rows: Sequence[Any], flat: float, path: str | PathLike[str] | None = None
) -> Any:
    """Lines of one layer each: those that are not flat in the last panel, or grow before, are black; the steepest are named."""
    steps = sorted({row.step for row in rows})
    steep = {r.layer for r in rows if r.step and (r.slope > flat or (r.step == steps[-1] and r.slope < -flat))}
    note = "mean absolute value of what each layer gives, for one batch, after so many steps of the optimizer"
    note += f"; black: steeper than width^±{flat:g}" * bool(steep)
    drawn, grid = figure(title, note, ncols=len(steps), sharey=True)
    colours = {row.layer: COLOURS["flagged" if row.layer in steep else "forward"] for row in rows}
    for axes, step in zip(grid[0], steps, strict=True):
        headline(axes, f"step {step}")
        axes.set(xscale="log", yscale="log")
        for row in rows:
            if row.step == step and all(row.sizes):
                axes.plot(widths, row.sizes, color=colours[row.layer], marker=".", linewidth=1.5)
        shown = widths if len(widths) < 4 else [widths[0], widths[len(widths) // 2], widths[-1]]
        axes.set_xticks(shown, [str(width) for width in shown])
        axes.minorticks_off()
    ticker = import_module("matplotlib.ticker")
    grid[0][0].yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    grid[0][0].yaxis.set_major_formatter(ticker.FuncFormatter(lambda size, _: f"{size:g}"))
    grid[0][0].set(ylabel="mean |x|")
    grid[0][len(steps) // 2].set(xlabel="width")
    last = {row.sizes: row for row in reversed(rows) if row.step == steps[-1] and all(row.sizes)}  # alike: the first
    named = sorted(last.values(), key=lambda row: -abs(row.slope))[:NAMED]
    label_ends(grid[0][-1], {row.layer: (widths[-1], row.sizes[-1], colours[row.layer]) for row in named})
    if path is not None:
        save(drawn, path)
    return drawn
