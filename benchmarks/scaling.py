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
from xinit.insight.pictures import COLOURS, figure, headline, label_ends

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
    """By size, a panel for each function, and by threads, a panel for warm memory and one for cold; in float32."""
    rows = {
        (r["function"], r["memory"], r["threads"], r["elements"]): r["elements_per_second"]
        for r in record["rows"]
        if r["dtype"] == "float32"
    }
    labels = [label for label in PLOTTED if any(label == r[0] for r in rows)]
    threads, sizes = (sorted({key[i] for key in rows}) for i in (2, 3))
    many = threads[-1]
    gains = [rows[label, "warm", many, 2**SIZE]["xinit"] / rows[label, "warm", 1, 2**SIZE]["xinit"] for label in labels]
    title = f"{many} threads fill {min(gains):.1f} to {max(gains):.1f} times as fast as one in warm memory"
    note = f"float32; medians. Cold: memory fresh from the kernel, page faults included. {timing.describe(record['machine'])}"
    drawn, axes = figure(title, note, 6.4, nrows=2, ncols=2)
    for ax, label in zip(axes[0], labels, strict=True):
        headline(ax, label)
        _by_size(ax, {key[1:]: speed for key, speed in rows.items() if key[0] == label}, sizes, many)
    axes[0][0].set_ylabel("elements per second")
    for ax, memory in zip(axes[1], ("warm", "cold"), strict=True):
        headline(ax, f"{' × '.join(map(str, shape_of(SIZE)))}, {memory} memory")
        _by_threads(ax, {(key[0], key[2]): s for key, s in rows.items() if key[1] == memory and key[3] == 2**SIZE})
    axes[1][0].set_ylabel("speed, of one thread = 1")
    timing.save(drawn, "scaling.png")


def _by_size(ax, rows, sizes, many):
    """xinit with one thread and many, and fill_ with many, each in warm memory and in cold."""
    ends = {}
    for contestant, memory, count in (
        *(("fill_", "warm", many), ("xinit", "warm", many), ("xinit", "warm", 1)),
        *(("fill_", "cold", many), ("xinit", "cold", many)),
    ):
        found = [(n, rows[memory, count, n][contestant]) for n in sizes if (memory, count, n) in rows]
        if found:
            style = "-" if (memory, count) == ("warm", many) else "--" if memory == "warm" else ":"
            ax.plot(*zip(*found, strict=True), color=COLOURS[contestant], linestyle=style)
            name = f"{contestant}, {'cold' if memory == 'cold' else '1 thread' if count == 1 else f'{count} threads'}"
            ends[name] = (*found[-1], COLOURS[contestant])
    timing.log_axes(ax, sizes, every=8)
    label_ends(ax, ends)


def _by_threads(ax, rows):
    labels, threads = sorted({label for label, _ in rows}), sorted({count for _, count in rows})
    ends = {"in proportion": (threads[-1], threads[-1], COLOURS["quiet"])}
    ax.plot(threads, threads, color=COLOURS["quiet"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for label in (*labels, "fill_"):
        contestant = "fill_" if label == "fill_" else "xinit"
        speeds = [rows[labels[0] if label == "fill_" else label, count][contestant] for count in threads]
        gains = [speed / speeds[0] for speed in speeds]
        ax.plot(threads, gains, color=COLOURS[contestant], marker="o", markersize=4)
        ends[f"{label} {gains[-1]:.2f}"] = (threads[-1], gains[-1], COLOURS[contestant])
    ax.set_ylim(0.9, 1.1 * threads[-1])
    ax.set_xticks(threads)
    ax.set_xlabel("threads")
    label_ends(ax, ends)


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
