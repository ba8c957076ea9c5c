"""How xinit's pictures look: one message in the title, lines named where they end, one colour a meaning everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from os import PathLike, fspath
from statistics import fmean
from textwrap import fill
from typing import Any

# Okabe and Ito's, and Tol's, which people who see few colours can tell apart too.
COLOURS = {
    "forward": "#0072B2",  # activations
    "backward": "#D55E00",  # gradients
    "stream": "#661100",  # sums of a residual path
    "flagged": "#000000",
    "kaiming": "#009E73",
    "xavier": "#E69F00",
    "bound": "#CC79A7",  # U(±sqrt(2/fan)), often quoted as Kaiming's
    "torch": "#56B4E9",  # nn.Linear's own, and torch.nn.init's speed
    "orthogonal": "#8C6BB1",
    "lecun": "#A6761D",
    "xinit": "#332288",  # its speed
    "numpy": "#AA4466",
    "inductor": "#999933",
    "triton": "#117733",
    "fill_": "#999999",  # the yardstick of speed
    "here": "#F0E442",  # the part of a tensor that lies on one rank
    "theory": "#333333",  # dashed
    "band": "#EDEDED",  # of health
    "quiet": "#666666",  # notes, ticks, what is there for comparison
}

# A figure is 8 inches wide, and so in 800 pixels its letters have 13, and those of notes 11.
_WIDTH = 8.0

_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["quiet"],
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "lines.linewidth": 2,
}


def figure(title: str, note: str = "", height: float = 4.5, **layout: Any) -> tuple[Any, Any]:
    """A figure with a title above and a note below, and its axes as an array of two dimensions.

    Nothing of matplotlib's state is touched: neither its backend nor its settings, nor is there a figure that stays behind.

    Args:
        title: what the picture says.
        note: what was done, in small letters.
        height: in inches; the width is 8.
        layout: as ``matplotlib.figure.Figure.subplots`` takes it (nrows, ncols, sharey ...).

    Raises:
        ImportError: if there is no matplotlib; it says how to get it.
    """
    try:
        matplotlib = import_module("matplotlib")
        made = import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise ImportError(f"a picture takes matplotlib ({error}): pip install 'xinit[plot]'") from error
    with matplotlib.rc_context(_STYLE):
        drawn = made(figsize=(_WIDTH, height), layout="constrained")
        axes = drawn.subplots(squeeze=False, **layout)
    drawn.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    drawn.suptitle(fill(title, 68), x=0.01, ha="left", fontsize=13, fontweight="bold")
    if note:
        drawn.supxlabel(fill(note, 140), x=0.01, ha="left", fontsize=8, color=COLOURS["quiet"])
    return drawn, axes


def headline(axes: Any, text: str) -> None:
    """What one of several axes shows, above them."""
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold")


def ink(colour: str) -> str:
    """A colour as dark as letters on white have to be: with the contrast of 4.5 that WCAG 2.2 asks for (1.4.3).

    Example:
        >>> ink("#0072B2"), ink("#E69F00")
        ('#0072B2', '#9C6C00')
    """
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    shade = 1.0
    while True:
        parts = [shade * part for part in (red, green, blue)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        if 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05) >= 4.5:
            return "#" + "".join(f"{round(255 * part):02X}" for part in parts)
        shade -= 0.02


def label_ends(axes: Any, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Names right of where lines end, {name: (x, y, colour)}, moved apart where they would overlap.

    To be called when everything has been drawn that the axes' limits depend on.
    """
    axes.figure.canvas.draw()
    to_pixels, to_data = axes.transData.transform, axes.transData.inverted().transform
    gap = 14 * axes.figure.dpi / 72
    low, high = axes.bbox.y0 + gap / 2, axes.bbox.y1 - gap / 2
    named = sorted(ends.items(), key=lambda item: item[1][1])
    heights = _apart([min(max(to_pixels((x, y))[1], low), high) for _, (x, y, _) in named], gap)
    for i, ((name, (x, _, colour)), height) in enumerate(zip(named, heights, strict=True)):
        height = min(max(height, low + i * gap), high - (len(named) - 1 - i) * gap)
        place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(name, (x, to_data((0, height))[1]), color=ink(colour), fontweight="bold", **place)


def _apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Places in the order of those that are wanted, at least a gap apart, and as near to them as can be.

    That is isotonic regression of the places less the gaps below them, by pooling neighbours that are out of order.

    Example:
        >>> _apart([0, 10, 11, 30], 5)
        [0.0, 8.0, 13.0, 30.0]
    """
    pools: list[list[float]] = []
    for i, place in enumerate(wanted):
        pools.append([place - i * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    return [mean + i * gap for i, mean in enumerate(fmean(pool) for pool in pools for _ in pool)]


def save(drawn: Any, path: str | PathLike[str]) -> None:
    """Write a figure to a file, whose ending says in which format.

    Raises:
        ValueError: for an ending that matplotlib does not know.
        OSError: if the file cannot be written.
    """
    drawn.savefig(fspath(path), dpi=200)
