"""What the benchmarks share: interleaved timing, the machine they ran on, their files, and the look of their figures."""

import json
import math
import os
import platform
import time
import timeit
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles

import torch

import xinit

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

ROUNDS = 11
BUSY = 0.05  # of the machine's processor time taken by others: then a figure means nothing
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = {"xinit": "#0072B2", "light": "#56B4E9", "torch": "#D55E00", "fill_": "#8C8C8C"}
COLOURS |= {"inductor": "#CC79A7", "triton": "#009E73"}


def seconds(call, calls, device, wall=False):
    """The time of one call, of so many in a row; on a GPU by events, or by the wall's clock until the last one is done."""
    timer = timeit.Timer(call)
    if device == "cpu":
        return timer.timeit(calls) / calls
    if wall:
        torch.cuda.synchronize()
        start = time.perf_counter()
        timer.timeit(calls)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    timer.timeit(calls)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


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


def calls_for(call, device, wall=False, least=8e-3):
    """How many calls last long enough to be timed. They warm up, too."""
    calls = 1
    while (once := seconds(call, calls, device, wall)) * calls < least:
        calls = min(10 * calls, math.ceil(1.2 * least / once))
    return calls, once


def interleaved(contestants, device="cpu", rounds=ROUNDS, budget=math.inf, fresh=None, wall=False):
    """{name: {median, quartiles, runs}}, in seconds a call, of functions that take turns, so that drift hits all alike.

    One that would take longer than the budget, in seconds, takes part in fewer rounds, evenly spread, but in three at
    least. With `fresh`, each run is one call with a new tensor that this makes; otherwise the calls take nothing.
    """
    plan = {}
    for name, call in contestants.items():
        calls, once = (1, 0.0) if fresh else calls_for(call, device, wall)
        plan[name] = call, calls, max(3, int(min(rounds, budget / (once * calls or 1))))
    times = {name: [] for name in plan}
    order = list(plan)
    for r in range(rounds):
        for name in order[r % len(order) :] + order[: r % len(order)]:
            call, calls, runs = plan[name]
            if r * runs % rounds < runs:
                times[name].append(seconds(partial(call, fresh()) if fresh else call, calls, device, wall))
    return {
        name: {"median": median(t), "quartiles": [quantiles(t)[0], quantiles(t)[2]], "runs": len(t)}
        for name, t in times.items()
    }


def spread(timed):
    """The widest distance between a quartile and the median, as a fraction of it."""
    return max(max(abs(q / t["median"] - 1) for q in t["quartiles"]) for t in timed.values())


class Bystanders:
    """What part of the machine's processor time others take, so that it is known which figures mean nothing."""

    def __init__(self):
        self.then = self.now()

    @staticmethod
    def now():
        """Clock ticks: all, unused, and our own, with our children's."""
        ticks = [int(n) for n in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
        return sum(ticks), ticks[3] + ticks[4], sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK")

    def share(self):
        """Since it was last asked."""
        before, self.then = self.then, self.now()
        total, unused, own = (b - a for a, b in zip(before, self.then, strict=True))
        return max(0.0, (total - unused - own) / max(1, total))


def cores():
    return len(os.sched_getaffinity(0))


def cpu_model():
    """As the kernel names it; hypervisors hide the rest of the name, so family and model are said too."""
    lines = (line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    info = {name.strip(): value[0].strip() for name, *value in lines if value}
    if "model name" not in info:
        return platform.machine()
    return f"{info['model name']} (family {info['cpu family']}, model {info['model']})"


def machine(devices=("cpu",)):
    build = xinit.build_info()
    versions = {"python": platform.python_version()}
    for package in ("torch", "numpy", "jax", "triton", "cupy-cuda13x"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if "cuda" in devices else None,
        "isa": build["cpu_isa"],
        "xinit": {name: build[name] for name in ("version", "contract", "compiler", "cuda")},
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
    }


def describe(machine, device="cpu"):
    """One line."""
    if device != "cpu":
        return f"{machine['gpu']}, torch {machine['versions']['torch']}, {machine['date']}"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)} on {machine['cores']} cores"
    return f"{machine['cpu']}, {machine['isa']}, {threads}, torch {machine['versions']['torch']}, {machine['date']}"


def shape_of(log2):
    """As near to a square as 2^log2 elements can be."""
    return 2 ** (log2 - log2 // 2), 2 ** (log2 // 2)


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
