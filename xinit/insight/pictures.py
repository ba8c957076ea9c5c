"""How xinit's pictures look: one message in the title, lines named where they end, one colour a meaning everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from os import PathLike, fspath
from typing import Any

# Okabe and Ito's, which people who see few colours can tell apart too.
COLOURS = {
    "forward": "#0072B2",  # activations
    "backward": "#D55E00",  # gradients
    "kaiming": "#009E73",
    "xavier": "#E69F00",
    "bound": "#CC79A7",  # U(±sqrt(2/fan)), often quoted as Kaiming's
    "torch": "#56B4E9",  # nn.Linear's own
    "orthogonal": "#8C6BB1",
    "lecun": "#A6761D",
    "theory": "#333333",  # dashed
    "band": "#EDEDED",  # of health
    "quiet": "#666666",  # notes, ticks, what is there for comparison
}

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


def figure(title: str, note: str = "", **layout: Any) -> tuple[Any, Any]:
    """A figure with a title above and a note below, and its axes as an array of two dimensions.

    Nothing of matplotlib's state is touched: neither its backend nor its settings, nor is there a figure that stays behind.

    Args:
        title: what the picture says, in one line, or two.
        note: what was done, in small letters.
        layout: as ``matplotlib.figure.Figure.subplots`` takes it (nrows, ncols, sharey ...), and ``figsize`` in inches.

    Raises:
        ImportError: if there is no matplotlib; it says how to get it.
    """
    try:
        matplotlib = import_module("matplotlib")
        made = import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise ImportError(f"a picture takes matplotlib ({error}): pip install 'xinit[plot]'") from error
    with matplotlib.rc_context(_STYLE):
        drawn = made(figsize=layout.pop("figsize", (8, 4.5)), layout="constrained")
        axes = drawn.subplots(squeeze=False, **layout)
    drawn.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    drawn.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    if note:
        drawn.supxlabel(note, x=0.01, ha="left", fontsize=8, color=COLOURS["quiet"])
    return drawn, axes


def headline(axes: Any, text: str) -> None:
    """What one of several axes shows, above them."""
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold")


def label_ends(axes: Any, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Names right of where lines end, {name: (x, y, colour)}, moved apart where they would overlap.

    To be called when everything has been drawn that the axes' limits depend on.
    """
    axes.figure.canvas.draw()
    to_pixels, to_data = axes.transData.transform, axes.transData.inverted().transform
    gap = 14 * axes.figure.dpi / 72
    low, high = axes.bbox.y0 + gap / 2, axes.bbox.y1 - gap / 2
    named = sorted(ends.items(), key=lambda item: item[1][1])
    heights: list[float] = []
    for _, (x, y, _) in named:  # upwards, each as far as it has to
        heights.append(max(to_pixels((x, y))[1], heights[-1] + gap if heights else low))
    above = high + gap
    for i in reversed(range(len(named))):  # and back down from the top
        above = heights[i] = min(heights[i], above - gap)
    for (name, (x, _, colour)), height in zip(named, heights, strict=True):
        place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(name, (x, to_data((0, height))[1]), color=colour, fontweight="bold", **place)


def save(drawn: Any, path: str | PathLike[str]) -> None:
    """Write a figure to a file, whose ending says in which format.

    Raises:
        ValueError: for an ending that matplotlib does not know.
        OSError: if the file cannot be written.
    """
    drawn.savefig(fspath(path), dpi=160)
