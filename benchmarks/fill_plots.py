"""The pictures of fill.py: every function at one size, a panel for each dtype, and three functions at every size."""

import statistics

import timing
from timing import shape_of

from xinit.insight.pictures import COLOURS, figure, headline, ink, label_ends

LINES = dict(fill_="fill_", xinit="xinit", torch="torch", numpy="NumPy", inductor="Inductor", triton="Triton")
BY_SIZE = ("xavier_uniform_", "kaiming_normal_", "trunc_normal_ ±2")
WHO = "torch: torch.nn.init; NumPy: its Generator, one thread, float32; fill_: the median of all its runs"


def speeds(row, name):
    """(median, the slower quartile, the faster one), in elements per second; None if it was not measured."""
    timed = row["seconds"].get(name)
    return timed and tuple(row["elements"] / t for t in (timed["median"], *timed["quartiles"][::-1]))


def yardstick(rows):
    """fill_'s, of all rows of a dtype and size together: it is the same call, whatever it is timed beside."""
    medians, slower, faster = zip(*(speeds(row, "fill_") for row in rows), strict=True)
    return statistics.median(medians), min(slower), max(faster)


def times(rows):
    """How many times as fast as torch, from the row with the least to that with the most."""
    found = [row["xinit_times"]["torch"] for row in rows]
    low, high = (f"{ratio:.{int(ratio < 2)}f}" for ratio in (min(found), max(found)))
    return low if low == high else f"{low} to {high}"


def functions(record, rows, size, order, dtypes):
    """On one axis for all dtypes; fill_, the most there is to reach, is a line across."""
    rows = {(r["function"], r["dtype"]): r for r in rows if r["elements"] == 2**size}
    labels = [label for label in order if any(label == function for function, _ in rows)]
    dtypes = [dtype for dtype in dtypes if all((label, dtype) in rows for label in labels)]
    if not labels or not dtypes:
        return None
    shown = {dtype: [rows[label, dtype] for label in labels] for dtype in dtypes}
    every = [row for panel in shown.values() for row in panel]
    title = f"xinit fills {' × '.join(map(str, shape_of(size)))} elements {times(every)} times as fast as torch"
    machine = timing.describe(record["machine"], every[0]["device"])
    note = f"Dots: medians; bars: quartiles; trunc_normal_: std 0.02. {WHO}. {machine}"
    drawn, axes = figure(title, note, 1.9 + 0.42 * len(labels), ncols=len(dtypes), sharex=True, sharey=True)
    for ax, (dtype, panel) in zip(axes[0], shown.items(), strict=True):
        headline(ax, dtype)
        _dots(ax, panel)
        ax.set_xscale("log")
        ax.set_ylim(len(labels) - 0.4, -0.8)
        ax.tick_params(axis="y", left=False)
        ax.set_yticks(range(len(labels)), labels)
        ax.xaxis.set_major_formatter(timing.speed_label)
        ax.minorticks_off()
        ax.grid(False, axis="y")
    axes[0][len(dtypes) // 2].set_xlabel("elements per second")
    return drawn


def _dots(ax, rows):
    """Medians, with bars from quartile to quartile; each name where its dots are alone."""
    full, low, high = yardstick(rows)
    ax.axvspan(low, high, color=COLOURS["fill_"], alpha=0.25, linewidth=0)
    ax.axvline(full, color=COLOURS["fill_"])
    ax.text(full, len(rows) - 0.6, "fill_ ", color=ink(COLOURS["fill_"]), fontweight="bold", ha="right", fontsize=9)
    named = {"torch": (0, (0, 15), "center"), "xinit": (0, (8, 15), "right")}
    for y, row in enumerate(rows):
        ends = [speeds(row, name)[0] for name in ("torch", "xinit")]
        ax.plot(ends, (y, y), color=COLOURS["quiet"], linewidth=0.8, zorder=1)
        ratio, middle = ends[1] / ends[0], (ends[0] * ends[1]) ** 0.5
        ax.text(middle, y - 0.14, f"{ratio:.{int(ratio < 10)}f}×", ha="center", fontsize=9, color=COLOURS["quiet"])
        for name in ("torch", "numpy", "xinit"):
            if found := speeds(row, name):
                ax.plot(found[1:], (y, y), color=COLOURS[name], linewidth=3, solid_capstyle="butt", alpha=0.6)
                ax.plot(found[0], y, "o", color=COLOURS[name], markersize=6)
                if name == "numpy" and found[0] < ends[0]:
                    named.setdefault(name, (y, (0, -13), "center"))
    for name, (y, place, align) in named.items():
        where = {"xytext": place, "textcoords": "offset points", "ha": align, "va": "center", "fontsize": 9}
        at = speeds(rows[y], name)[0], y
        ax.annotate(LINES[name], at, color=ink(COLOURS[name]), fontweight="bold", **where)


def sizes(record, rows):
    """Lines by size, quartiles shaded, a panel for each kind of distribution, in float32."""
    rows = {(r["function"], r["elements"]): r for r in rows if r["dtype"] == "float32"}
    counts = sorted({elements for _, elements in rows})
    labels = [label for label in BY_SIZE if all((label, elements) in rows for elements in counts)]
    if len(counts) < 2 or not labels:
        return None
    small, large = ([rows[label, counts[end]] for label in labels] for end in (0, -1))
    title = f"xinit is {times(large)} times as fast as torch, {times(small)} for tiny tensors"
    note = (
        f"float32. Lines: medians; shaded: quartiles. {WHO}. {timing.describe(record['machine'], large[0]['device'])}"
    )
    drawn, axes = figure(title, note, 4.0, ncols=len(labels), sharey=True)
    full = [yardstick([rows[label, elements] for label in labels]) for elements in counts]
    ends = []
    for ax, label in zip(axes[0], labels, strict=True):
        headline(ax, label)
        lines = {name: [speeds(rows[label, elements], name) for elements in counts] for name in LINES} | {"fill_": full}
        lines = {name: found for name, found in lines.items() if all(found)}
        for name, found in lines.items():
            middle, low, high = zip(*found, strict=True)
            ax.plot(counts, middle, color=COLOURS[name])
            ax.fill_between(counts, low, high, color=COLOURS[name], alpha=0.3, linewidth=0)
        timing.log_axes(ax, counts)
        ends.append({LINES[name]: (counts[-1], found[-1][0], COLOURS[name]) for name, found in lines.items()})
    axes[0][0].set_ylabel("elements per second")
    for ax, named in zip(axes[0], ends, strict=True):
        label_ends(ax, named)
    return drawn
