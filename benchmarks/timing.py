"""What the benchmarks share: interleaved timing and the machine, as ``xinit bench`` has them, their files and figures."""

import json
import time
from pathlib import Path

import torch

from xinit.cli.timing import (  # noqa: F401
    BUSY,
    ROUNDS,
    Bystanders,
    cores,
    cpu_model,
    describe,
    interleaved,
    machine,
    seconds,
    shape_of,
    spread,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = {"xinit": "#0072B2", "light": "#56B4E9", "torch": "#D55E00", "fill_": "#8C8C8C"}
COLOURS |= {"inductor": "#CC79A7", "triton": "#009E73"}


def start_to_end(call, device):
    """Seconds of one call with nothing before it: until it returns, and until the device has done what it asked for."""
    if device == "cpu":
        return (seconds(call, 1, device),) * 2
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    start = time.perf_counter()
    call()
    host = time.perf_counter() - start
    end.record()
    end.synchronize()
    return host, begin.elapsed_time(end) / 1e3


def write(record, path, say=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if say:
        print(f"written to {path}")


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def figure(title, note, **layout):
    """A figure with a title above and a note on the machine below, and its axes."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update(
        {
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#666666",
            "axes.axisbelow": True,
            "grid.color": "#E6E6E6",
            "lines.linewidth": 2,
            "savefig.dpi": 160,
        }
    )
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(layout="constrained", squeeze=False, **layout)
    drawn.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    drawn.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    drawn.supxlabel(note, x=0.01, ha="left", fontsize=8, color="#666666")
    return drawn, axes


def log_axes(axes, sizes):
    """Elements against speed, both logarithmic; every fourth power of 2 is marked."""
    axes.set_xscale("log", base=2)
    exponents = range(4, max(sizes).bit_length(), 4)
    axes.set_xticks([2**e for e in exponents], [f"$2^{{{e}}}$" for e in exponents])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(speed_label)
    axes.minorticks_off()
    axes.grid(True)
    axes.set_xlabel("elements")


def label_ends(axes, ends):
    """Names right of where lines end, {name: (x, y, colour)}, moved apart where they would overlap.

    To be called when everything has been drawn that the axes' limits depend on.
    """
    axes.figure.canvas.draw()
    to_pixels, to_data = axes.transData.transform, axes.transData.inverted().transform
    gap, named = 14 * axes.figure.dpi / 72, sorted(ends.items(), key=lambda item: item[1][1])
    heights, above = [], axes.bbox.y1 + gap / 2
    for _, (x, y, _) in named:  # upwards, each as far as it has to
        heights.append(max(to_pixels((x, y))[1], heights[-1] + gap if heights else 0))
    for i in reversed(range(len(named))):  # and back down from the top
        above = heights[i] = min(heights[i], above - gap)
    for (name, (x, _, colour)), height in zip(named, heights, strict=True):
        axes.annotate(
            name,
            (x, to_data((0, height))[1]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )


def speed_label(x, _=None):
    """1e9 -> 1 G, 2e6 -> 2 M."""
    for scale, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if x >= scale:
            return f"{x / scale:g}{prefix}"
    return f"{x:g}"


def save(drawn, name):
    RESULTS.mkdir(parents=True, exist_ok=True)
    drawn.savefig(RESULTS / name)
    print(f"written to {RESULTS / name}")
