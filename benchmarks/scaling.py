"""How does filling scale? With threads, with the size of the tensor, and with memory that is warm or cold.

    python benchmarks/scaling.py [--save] [--plot]      # a table; and benchmarks/results/scaling.json, scaling.png

Warm memory has been written before. Cold memory is a new tensor for each run, of 64 MiB at least, which the allocator takes
fresh from the kernel: the time includes the page faults of the first touch, but not the mapping. fill_ of the same memory is the
yardstick. The values are checked before they are timed, as in fill.py, and cold memory is checked to fault.
"""

import argparse
import resource
import sys
from functools import partial
from pathlib import Path

import timing
import torch
from fill import DTYPES, FUNCTIONS, SIZE, check_values
from timing import ROUNDS, interleaved, shape_of

import xinit

PLOTTED = ("xavier_uniform_", "kaiming_normal_")
COLD_BYTES = 2**26  # glibc's malloc maps, and unmaps, every block of more than 32 MiB
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
COLUMNS = "{:<20} {:<9} {:>10} {:>7} {:>8} {:>13} {:>9} {:>15} {:>7} {:>7}".format
TITLES = ("function", "dtype", "elements", "memory", "threads", "M elements/s", "of fill_", "times 1 thread")
TITLES += ("spread", "others")


def check_cold(make):
    """That writing to what this makes faults at least once for every 2 MiB, the largest page there could be."""
    w = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    w.fill_(1.0)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    if faults < w.nbytes // 2**21:
        raise RuntimeError(f"{w.nbytes >> 20} MiB of new memory had {faults} page faults: it was warm")


def measure(labels, dtype, log2, memory, threads, rounds):
    """One record for each function: values checked, then times, of all and fill_ in turn."""
    bystanders = timing.Bystanders()
    torch.set_num_threads(threads)
    make = partial(torch.empty, shape_of(log2), dtype=getattr(torch, dtype))
    w = make()
    for label in labels:
        check_values(FUNCTIONS[label], w)
    calls = {label: partial(getattr(xinit, FUNCTIONS[label].name), **FUNCTIONS[label].arguments) for label in labels}
    calls["fill_"] = lambda w: w.fill_(1.0)
    if memory == "cold":
        check_cold(make)
        timed = interleaved(calls, rounds=rounds, fresh=make)
    else:
        timed = interleaved({name: partial(call, w) for name, call in calls.items()}, rounds=rounds)
    yardstick, others = timed.pop("fill_"), round(bystanders.share(), 3)
    for label, ours in timed.items():
        both = {"xinit": ours, "fill_": yardstick}
        yield {
            "function": label,
            "dtype": dtype,
            "elements": w.numel(),
            "memory": memory,
            "threads": threads,
            "elements_per_second": {name: w.numel() / t["median"] for name, t in both.items()},
            "seconds": both,
            "others": others,
        }


def print_row(row, single):
    """Beside the same case on one thread."""
    speed = row["elements_per_second"]
    cells = [row[name] for name in ("function", "dtype", "elements", "memory", "threads")]
    cells += [f"{speed['xinit'] / 1e6:.1f}", f"{speed['xinit'] / speed['fill_']:.1%}"]
    cells += [f"{speed['xinit'] / single['elements_per_second']['xinit']:.2f}" if single else ""]
    print(COLUMNS(*cells, f"{timing.spread(row['seconds']):.0%}", f"{row['others']:.0%}"), flush=True)


def thread_counts():
    """1, 2, 4, ... and all."""
    n = timing.cores()
    return sorted({2**i for i in range(n.bit_length())} | {n})


def plot(record):
    """By size, a panel for each function, and by threads, at 4096 x 4096; in float32."""
    rows = {
        (r["function"], r["memory"], r["threads"], r["elements"]): r["elements_per_second"]
        for r in record["rows"]
        if r["dtype"] == "float32"
    }
    labels = [label for label in PLOTTED if any(label == r[0] for r in rows)]
    threads, sizes = (sorted({key[i] for key in rows}) for i in (2, 3))
    drawn, axes = timing.figure(
        "How filling float32 tensors scales, elements per second",
        timing.describe(record["machine"]),
        ncols=len(labels) + 1,
        figsize=(4.4 * (len(labels) + 1), 4.6),
    )
    many, *by_size, by_threads = f"{threads[-1]} threads", *axes[0]
    lines = {  # name: contestant, memory, threads, style
        f"fill_, {many}": ("fill_", "warm", threads[-1], {"color": timing.COLOURS["fill_"]}),
        "fill_, cold": ("fill_", "cold", threads[-1], {"color": timing.COLOURS["fill_"], "linestyle": ":"}),
        f"xinit, {many}": ("xinit", "warm", threads[-1], {"color": timing.COLOURS["xinit"]}),
        "xinit, cold": ("xinit", "cold", threads[-1], {"color": timing.COLOURS["xinit"], "linestyle": ":"}),
        "xinit, 1 thread": ("xinit", "warm", 1, {"color": timing.COLOURS["light"]}),
    }
    for ax, label in zip(by_size, labels, strict=True):
        if ax is not by_size[0]:
            ax.sharey(by_size[0])
        ends = {}
        for name, (contestant, memory, count, style) in lines.items():
            found = [(n, rows[label, memory, count, n][contestant]) for n in sizes if (label, memory, count, n) in rows]
            if found:
                ax.plot(*zip(*found, strict=True), marker="o", markersize=3.5, **style)
                ends[name] = (*found[-1], style["color"])
        timing.log_axes(ax, sizes)
        timing.label_ends(ax, ends)
        ax.set_title(label)
    ends = {}
    for name, (contestant, memory, _, style) in lines.items():
        for label in labels if contestant == "xinit" else labels[:1]:
            found = {t: rows.get((label, memory, t, 2**SIZE), {}).get(contestant) for t in threads}
            if "1 thread" not in name and None not in found.values():
                speeds = [speed / found[1] for speed in found.values()]
                by_threads.plot(threads, speeds, marker="o", markersize=3.5, **style)
                name = f"{'fill_' if contestant == 'fill_' else label}{', cold' * (memory == 'cold')}"
                ends[f"{name} {speeds[-1]:.2f}"] = (threads[-1], speeds[-1], style["color"])
    by_threads.plot(threads, threads, color="#BBBBBB", linewidth=1, zorder=0)
    by_threads.set_ylim(0, 1.1 * threads[-1])
    timing.label_ends(by_threads, ends | {"proportional": (threads[-1], threads[-1], "#999999")})
    by_threads.set_title("speed-up by threads, 4096 × 4096")
    by_threads.set_xticks(threads)
    by_threads.set_xlabel("threads")
    by_threads.grid(True)
    timing.save(drawn, "scaling.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--functions", nargs="+", default=PLOTTED, choices=FUNCTIONS)
    add("--dtypes", nargs="+", default=DTYPES[:1], choices=DTYPES)
    add(
        "--sizes", nargs="+", type=int, default=range(4, 29, 2), metavar="LOG2", help="powers of two; 24 is 4096 x 4096"
    )
    add("--threads", nargs="+", type=int, default=thread_counts())
    add("--rounds", type=int, default=ROUNDS)
    add("--json", type=Path, metavar="FILE", help="write everything there")
    add("--save", action="store_true", help="write it to benchmarks/results/scaling.json")
    add("--plot", nargs="?", const=True, metavar="FROM.json", help="draw what was measured now, or what is in a file")
    args = parser.parse_args()
    if isinstance(args.plot, str):
        return plot(timing.read(args.plot))
    torch.set_num_threads(max(args.threads))
    record = {"machine": timing.machine(), "rows": []}
    record["machine"]["huge_pages"] = HUGE_PAGES.read_text().strip() if HUGE_PAGES.exists() else None
    print(timing.describe(record["machine"]))
    print(COLUMNS(*TITLES))
    for dtype in args.dtypes:
        for log2 in args.sizes:
            large = 2**log2 * getattr(torch, dtype).itemsize >= COLD_BYTES
            for memory in ("warm", "cold")[: 1 + large]:
                singles = {}
                for threads in args.threads:  # next to each other, as their ratio is what counts
                    for row in measure(args.functions, dtype, log2, memory, threads, args.rounds):
                        if threads == 1:
                            singles[row["function"]] = row
                        record["rows"].append(row)
                        print_row(row, singles.get(row["function"]))
    if args.json:
        timing.write(record, args.json)
    if args.save:
        timing.write(record, timing.RESULTS / "scaling.json")
    if args.plot:
        plot(record)


if __name__ == "__main__":
    sys.exit(main())
