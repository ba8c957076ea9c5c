"""The guide's pictures that no other command draws:

python docs/draw.py [words bound family stream]    # all of them, or some, to docs/pictures
"""

import math
import sys
from pathlib import Path

import torch
from blocks import blocks, run

import xinit
from xinit.insight.pictures import COLOURS, figure, headline, ink, label_ends, save

HERE = Path(__file__).parent / "pictures"


def words():
    """A tensor, its words, and the part of it that another rank has."""
    rows, columns, first = 3, 8, 5  # the shard: columns 5, 6 and 7
    key = xinit.Key(0).fold_in("up.weight")
    window = xinit.Window(global_shape=(rows, columns), offsets=(0, first))
    whole = xinit.uniform_(torch.empty(rows, columns), -1, 1, key=key)
    shard = xinit.uniform_(torch.empty(rows, columns - first), -1, 1, key=key, window=window)
    drawn, axes = figure(
        "An element's place in the whole tensor says which word is its own: a rank draws its part, and no more",
        'uniform_(w, -1, 1, key=Key(0).fold_in("up.weight")); grey numbers: place in the row of words = logical index',
        height=4.3,
    )
    ax = axes[0][0]
    ax.set(xlim=(-0.1, 24.1), ylim=(-8.2, 3), aspect="equal")
    ax.axis("off")
    quiet = {"color": COLOURS["quiet"], "ha": "center"}

    def cell(x, y, text, place, width=1.0, height=1.3):
        colour = COLOURS["here"] if place % columns >= first else "white"
        ax.add_patch(_rectangle((x, y), width, height, colour))
        ax.text(x + width / 2, y + 0.4, text, ha="center", va="center", fontsize=8)
        ax.text(x + width - 0.08, y + height - 0.05, place, ha="right", va="top", fontsize=6.5, color=COLOURS["quiet"])

    ax.text(0, 2.6, "the key's row of 32-bit words, which has no end", fontsize=10, fontweight="bold")
    for i in range(rows * columns):
        cell(i, 0, f"w{i % 4}", i)
    for block in range(rows * columns // 4):
        ax.plot([4 * block + 0.06, 4 * block + 3.94], [1.5, 1.5], color=COLOURS["quiet"], linewidth=1.2)
        ax.text(4 * block + 2, 1.68, f"Philox block {block}", fontsize=8.5, **quiet)
    wide, right = 1.55, 15.6
    for tensor, x, skipped in ((whole, 0.0, 0), (shard, right, first)):
        for row in range(rows):
            for column in range(tensor.shape[1]):
                place = row * columns + skipped + column
                cell(x + wide * column, -2.5 - 1.3 * row, f"{tensor[row, column]:+.2f}", place, wide)
    named = {"va": "top", "fontsize": 9.5}
    ax.text(0, -5.5, "the whole tensor, 3 × 8, on one device", fontweight="bold", **named)
    ax.text(0, -6.5, "element (r, c) has the logical index 8 r + c,\nwherever it lies in memory", **named)
    ax.text(right, -5.5, "columns 5 to 7, on another", fontweight="bold", **named)
    ax.text(right, -6.5, "window=Window(\n  global_shape=(3, 8), offsets=(0, 5))", **named)
    left = wide * columns + 0.3
    ax.annotate("", (right - 0.3, -3.6), (left, -3.6), arrowprops={"arrowstyle": "<->", "color": COLOURS["quiet"]})
    ax.text((left + right - 0.3) / 2, -3.3, "the same\nbits", va="bottom", fontsize=9.5, **quiet)
    return drawn


def _rectangle(corner, width, height, colour):
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, facecolor=colour, edgecolor=COLOURS["quiet"], linewidth=0.8)


def bound():
    """Real draws of U(±sqrt(6/fan)), U(±sqrt(2/fan)) and N(0, 2/fan)."""
    fan = 2048
    key, size = xinit.Key(0), (fan, fan)
    quoted = math.sqrt(2 / fan)
    drawn, axes = figure(
        "√(2/fan) is the standard deviation that ReLU needs, not a uniform's bound: "
        "U(±√(2/fan)) has a third of the variance",
        f"densities of {fan} × {fan} weights, as they were drawn; arrows: one standard deviation",
        height=4.4,
    )
    ax = axes[0][0]
    normal = xinit.kaiming_normal_(torch.empty(size), nonlinearity="relu", key=key)
    uniform = xinit.kaiming_uniform_(torch.empty(size), nonlinearity="relu", key=key)
    wrong = xinit.uniform_(torch.empty(size), -quoted, quoted, key=key)
    thin = {"linewidth": 1.2, "linestyle": (0, (1, 1))}
    for w, reach, colour, style in (
        (normal, 4.6, "kaiming", thin),
        (uniform, math.sqrt(6), "kaiming", {}),
        (wrong, math.sqrt(2), "bound", {}),
    ):
        heights, edges = torch.histogram((w * math.sqrt(fan)).flatten(), 72, range=(-reach, reach), density=True)
        ax.stairs(heights.tolist(), edges.tolist(), color=COLOURS[colour], **{"linewidth": 2, **style})
    for y, std, colour in ((0.12, math.sqrt(2), "kaiming"), (0.305, math.sqrt(2 / 3), "bound")):
        ax.annotate("", (std, y), (0, y), arrowprops={"arrowstyle": "->", "color": COLOURS[colour], "linewidth": 2})
    place = {"fontweight": "bold", "fontsize": 10}
    ax.text(-1.3, 0.317, "σ = √(2/(3 fan))", color=ink(COLOURS["bound"]), **place)
    ax.text(0.02, 0.132, "σ = √(2/fan)", color=ink(COLOURS["kaiming"]), **place)
    ax.text(1.48, 0.335, "U(±√(2/fan)): sometimes quoted", color=ink(COLOURS["bound"]), **place)
    ax.text(2.55, 0.187, "U(±√(6/fan)): kaiming_uniform_", color=ink(COLOURS["kaiming"]), **place)
    ax.text(2.55, 0.07, "N(0, 2/fan): kaiming_normal_", color=ink(COLOURS["kaiming"]), **place)
    ax.set(xlim=(-3.9, 5.8), ylim=(0, 0.4), ylabel="density of weight · √fan")
    ticks = (-math.sqrt(6), -math.sqrt(2), 0, math.sqrt(2), math.sqrt(6))
    ax.set_xticks(ticks, ["−√(6/fan)", "−√(2/fan)", "0", "√(2/fan)", "√(6/fan)"])
    ax.set_xlabel("weight")
    return drawn


def family():
    """What one linear layer does to the mean square of signals and gradients, by how much wider or narrower it gets."""
    fan_in, batch = 512, 256
    ratios = [2.0**n for n in range(-3, 4)]
    methods = {
        "Kaiming, fan_in": ("kaiming", lambda w: xinit.kaiming_normal_(w, nonlinearity="linear", key=xinit.Key(0))),
        "Kaiming, fan_out": (
            "kaiming",
            lambda w: xinit.kaiming_normal_(w, mode="fan_out", nonlinearity="linear", key=xinit.Key(0)),
        ),
        "Xavier": ("xavier", lambda w: xinit.xavier_normal_(w, key=xinit.Key(0))),
    }
    drawn, axes = figure(
        "fan_in keeps activations, fan_out keeps gradients, and Xavier stands between: they differ where widths change",
        f"mean square behind one linear layer, of {fan_in} inputs, over that before it; measured, one draw each",
        ncols=2,
        sharey=True,
        height=4.2,
    )
    for ax, title, backward in zip(
        axes[0], ("forward: activations", "backward: gradients"), (False, True), strict=True
    ):
        ax.set(xscale="log", yscale="log", xlabel="fan_out / fan_in")
        ends = {}
        for name, (colour, fill_) in methods.items():
            factors = []
            for ratio in ratios:
                w = fill_(torch.empty(int(fan_in * ratio), fan_in))
                x = xinit.normal_(torch.empty(batch, w.shape[0 if backward else 1]), key=xinit.Key(1))
                factors.append(float((x @ w if backward else x @ w.T).square().mean() / x.square().mean()))
            ax.plot(ratios, factors, color=COLOURS[colour], marker="o", markersize=4)
            ends[name] = (ratios[-1], factors[-1], COLOURS[colour])
        headline(ax, title)
        ax.set_xticks(ratios, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        ax.set_yticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        ax.minorticks_off()
        label_ends(ax, ends)
    axes[0][0].set_ylabel("mean square, out / in")
    return drawn


def stream():
    """The residual stream of the guide's transformer, before and after it is mended: what each norm is given."""
    space = {}
    for block in blocks((HERE.parent / "worked.md").read_text()):
        if block.language == "python" and "mended" not in space:
            run(block, space)
    reports = {"N(0, 1)": space["exploding"], "recommended": space["mended"]}
    lines = {name: [row.in_rms for row in report.rows if "norm" in row.name] for name, report in reports.items()}
    exploding, mended = (sizes[-1] / sizes[0] for sizes in lines.values())
    drawn, axes = figure(
        f"Branches drawn from N(0, 1) make the residual stream grow {exploding:.0f}-fold; those recommended {mended:.1f}-fold",
        "a pre-norm transformer of 12 layers; RMS over one batch, where the norms read the stream",
    )
    ax = axes[0][0]
    ax.set(yscale="log", xlabel="branches that have been added", ylabel="RMS of the residual stream")
    ends = {}
    for name, sizes in lines.items():
        ax.plot(sizes, color=COLOURS["stream"], marker="o", markersize=4)
        ends[name] = (len(sizes) - 1, sizes[-1], COLOURS["stream"])
    ax.set_xticks(range(0, 25, 4))
    ax.set_ylim(0.3, 1500)
    ax.minorticks_off()
    label_ends(ax, ends)
    return drawn


PICTURES = {function.__name__: function for function in (words, bound, family, stream)}

if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        save(PICTURES[name](), HERE / f"{name}.png")
