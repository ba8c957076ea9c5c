"""The picture of a coordinate check: sizes by width, a panel for each number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from xinit.insight.pictures import COLOURS, figure, label_ends, save


def draw(
    title: str, widths: Sequence[int], rows: Sequence[Any], flat: float, path: str | PathLike[str] | None = None
) -> Any:
    """Lines of one layer each: those that are not flat in the last panel are orange, and named."""
    steps = sorted({row.step for row in rows})
    steep = {r.layer for r in rows if r.step and (r.slope > flat or (r.step == steps[-1] and r.slope < -flat))}
    note = "mean absolute value of what each layer gives, for one batch"
    drawn, grid = figure(title, note, ncols=len(steps), sharey=True, figsize=(2.2 * len(steps) + 2, 4.2))
    for axes, step in zip(grid[0], steps, strict=True):
        axes.set(xscale="log", yscale="log", title=f"step {step}")
        for row in rows:
            if row.step == step and all(row.sizes):
                axes.plot(widths, row.sizes, color=COLOURS["backward" if row.layer in steep else "forward"], marker=".")
        axes.set_xticks(widths, [str(width) for width in widths], rotation=60)
        axes.minorticks_off()
    grid[0][0].set(ylabel="mean |x|")
    grid[0][len(steps) // 2].set(xlabel="width")
    last = [row for row in rows if row.step == steps[-1] and all(row.sizes)]
    named = sorted(last, key=lambda row: -abs(row.slope))[:6]
    ends = {r.layer: (widths[-1], r.sizes[-1], COLOURS["backward" if r.layer in steep else "forward"]) for r in named}
    label_ends(grid[0][-1], ends)
    if path is not None:
        save(drawn, path)
    return drawn
