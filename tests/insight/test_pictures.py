"""Pictures: colours that everybody can tell apart, names that do not overlap, titles that say what was measured."""

import json
import math
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Transformer, batch, deep, tokens
from torch import nn

import xinit
from xinit.insight import pictures, training
from xinit.insight.pictures import COLOURS, ink

TOGETHER = (  # the meanings that lines of one picture have
    ("forward", "backward", "stream", "flagged"),
    ("kaiming", "xavier", "bound", "torch", "orthogonal", "lecun"),
    ("xinit", "torch", "numpy", "fill_"),
    ("xinit", "torch", "inductor", "triton", "fill_"),
)
# Machado, Oliveira & Fernandes 2009: what people see who lack a kind of cone, in linear RGB.
SIGHT = {
    "all": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}


def linear(colour):
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB, under D65."""
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]] @ np.clip(rgb, 0, 1)
    t = xyz / [0.9505, 1, 1.089]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_of_one_picture_can_be_told_apart(sight):
    seen = {name: lab(np.array(SIGHT[sight]) @ linear(COLOURS[name])) for group in TOGETHER for name in group}
    for group in TOGETHER:
        for a, b in combinations(group, 2):
            assert np.linalg.norm(seen[a] - seen[b]) > 15, (a, b)  # CIE76; 2.3 is just noticeable
    assert len(set(COLOURS.values())) == len(COLOURS)  # one colour a meaning


@pytest.mark.parametrize("name", COLOURS)
def test_letters_have_contrast(name):
    luminance = np.array([0.2126, 0.7152, 0.0722]) @ linear(ink(COLOURS[name]))
    assert 1.05 / (luminance + 0.05) > 4.45


def places(axes):
    """Of the names right of lines, in pixels, from the bottom up."""
    return sorted((axes.transData.transform(text.xy)[1], text.get_text()) for text in axes.texts)


def test_names_at_the_ends_of_lines_do_not_overlap():
    pytest.importorskip("matplotlib")
    drawn, grid = pictures.figure("title")
    grid[0][0].set_ylim(0, 1)
    ends = {"a": 0.5, "b": 0.5, "c": 0.51, "d": 0.95, "e": 1.0, "f": 2.0, "g": -3.0}
    pictures.label_ends(grid[0][0], {name: (1.0, y, "#000000") for name, y in ends.items()})
    named = places(grid[0][0])
    assert [name for _, name in named] == ["g", "a", "b", "c", "d", "e", "f"]
    gaps = [high - low for (low, _), (high, _) in pairwise(named)]
    assert min(gaps) > 13.9 * drawn.dpi / 72
    box = grid[0][0].bbox
    assert box.y0 < named[0][0] < named[-1][0] < box.y1
    middle = np.mean([y for y, name in named if name in "abc"])
    assert middle == pytest.approx(grid[0][0].transData.transform((1, 0.5033))[1], abs=0.5)  # as near as can be


def test_titles_say_what_was_measured():
    pytest.importorskip("matplotlib")

    def curve(depth, method, last):
        return training.Curve(depth, method, 0, (0.9, last))

    errors = {"kaiming_normal": (0.02, 0.04), "xavier_normal": (0.5, 0.9)}
    curves = [curve(d, method, e) for method, both in errors.items() for d, e in zip((22, 30), both, strict=True)]
    drawn = training.draw_curves(curves)
    assert drawn.get_suptitle() == "With 30 ReLU layers Kaiming gets 4% wrong, Xavier gets 90% wrong"
    names = [[text.get_text() for text in axes.texts if "%" in text.get_text()] for axes in drawn.axes]
    assert names == [["Kaiming 2%", "Xavier 50%"], ["Kaiming 4%", "Xavier 90%"]]
    spread = torch.tensor([-1.0, 1.0])
    passed = [
        training.Passed(method, tuple(spread * keep**n for n in range(5)), tuple(spread * keep**n for n in range(5)))
        for method, keep in (("torch", 0.5), ("xavier_uniform", 0.9))
    ]
    assert training.draw_passed(passed).get_suptitle() == "5 tanh layers pass on 66% with Xavier, 6% with U(±1/√n)"


def test_a_residual_stream_is_drawn_with_its_sums(one_thread):
    """In a network without one there is none."""
    pytest.importorskip("matplotlib")
    model = Transformer(3)
    sums = []
    model.blocks[1].register_forward_hook(
        lambda module, args, output: sums.append(output.square().mean().sqrt().item())
    )
    report = xinit.diagnose(model, tokens())
    by_name = {row.name: row.stream_rms for row in report.rows}
    assert by_name["blocks.1.down"] == pytest.approx(sums[0], rel=1e-5)
    assert by_name["blocks.1.up"] is None
    assert {text.get_text() for text in report.plot().axes[0].texts} == {"gradients", "activations", "residual sums"}
    plain = xinit.diagnose(deep(3, nn.ReLU, xinit.kaiming_normal(nonlinearity="relu")), batch(64, 64))
    assert all(row.stream_rms is None for row in plain.rows)
    assert len(plain.plot().axes[0].texts) == 2


def test_speed_has_one_yardstick(monkeypatch):
    """All panels share it and their axes; medians of what was measured, with quartiles; NumPy among them."""
    pytest.importorskip("matplotlib")
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    import fill
    import fill_plots

    record = json.loads((benchmarks / "results" / "fill_cpu.json").read_text())
    rows = record["rows"]
    drawn = fill_plots.functions(record, rows, fill.SIZE, fill.FUNCTIONS, fill.DTYPES)
    assert [ax.get_title(loc="left") for ax in drawn.axes] == ["float32", "bfloat16", "float16"]
    assert len({ax.get_xlim() for ax in drawn.axes}) == 1
    large = [row for row in rows if row["elements"] == 2**fill.SIZE]
    for ax in drawn.axes:
        speeds = [r["elements_per_second"]["fill_"] for r in large if r["dtype"] == ax.get_title(loc="left")]
        (across,) = {x for line in ax.lines for x in line.get_xdata() if line.get_color() == COLOURS["fill_"]}
        assert across == pytest.approx(np.median(speeds))
    dots = {tuple(line.get_xdata()) for line in drawn.axes[0].lines if line.get_color() == COLOURS["numpy"]}
    xavier = next(r["seconds"]["numpy"] for r in large if "numpy" in r["seconds"])
    slow, fast = (2**fill.SIZE / t for t in sorted(xavier["quartiles"], reverse=True))
    assert any(len(ends) == 2 and math.isclose(ends[0], slow) and math.isclose(ends[1], fast) for ends in dots)
    ratios = [row["xinit_times"]["torch"] for row in large]
    assert f"{min(ratios):.0f} to {max(ratios):.0f} times" in drawn.get_suptitle()
    by_size = fill_plots.sizes(record, rows)
    assert "NumPy" in [text.get_text() for text in by_size.axes[0].texts]
    yardsticks = {
        tuple(line.get_ydata()) for ax in by_size.axes for line in ax.lines if line.get_color() == COLOURS["fill_"]
    }
    assert len(yardsticks) == 1
