"""How fast is each function? Against torch.nn.init, fill_ of the same tensor, and NumPy and JAX where they are installed.

    python benchmarks/fill.py                   # a table: functions x dtypes x sizes x devices
    python benchmarks/fill.py --save --plot     # and benchmarks/results/fill_*.json, *.png
    python benchmarks/fill.py --check           # exits 0 only if the floors below hold, on a quiet machine with two cores

Before a row is timed its values are checked: least, greatest, mean and standard deviation against the formula's, and runs of
up to 64 elements bit for bit against float32 values that were filled apart, through windows, and rounded. The contestants then
take turns on the same warm memory, JAX after them. What is printed are medians, and their ratios; "spread" is the widest
distance between a contestant's quartile and its median, "others" the part of the machine's processor time that other processes
took meanwhile: a row with more than a few per cent means nothing.
"""

import argparse
import importlib.util
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timing
import torch
from timing import ROUNDS, interleaved, shape_of

import xinit

KEY = xinit.Key(2026)


def uniform(low, high):
    """(mean, std, least value, greatest value); `high` itself is not drawn."""
    return (low + high) / 2, (high - low) / math.sqrt(12), low, math.nextafter(high, low)


def normal(std):
    return 0.0, std, -math.inf, math.inf


def truncated(std, bound):
    z = bound / std
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return 0.0, std * math.sqrt(1 - 2 * z * density / math.erf(z / math.sqrt(2))), -bound, bound


class Function(NamedTuple):
    name: str
    law: Callable[[int, int], tuple[float, ...]]  # of fan_out and fan_in
    jax: Callable[[Any], Any]  # of jax.nn.initializers
    numpy: str | None = None  # numpy.random.Generator's method, not scaled
    arguments: dict[str, float] = {}  # noqa: RUF012


FUNCTIONS = {
    "xavier_uniform_": Function(
        "xavier_uniform_",
        lambda o, i: uniform(-math.sqrt(6 / (i + o)), math.sqrt(6 / (i + o))),
        lambda jax: jax.glorot_uniform(1, 0),
        "random",
    ),
    "xavier_normal_": Function(
        "xavier_normal_",
        lambda o, i: normal(math.sqrt(2 / (i + o))),
        lambda jax: jax.variance_scaling(1, "fan_avg", "normal", 1, 0),
        "standard_normal",
    ),
    "kaiming_uniform_": Function(
        "kaiming_uniform_",
        lambda o, i: uniform(-math.sqrt(6 / i), math.sqrt(6 / i)),
        lambda jax: jax.he_uniform(1, 0),
        "random",
    ),
    "kaiming_normal_": Function(
        "kaiming_normal_",
        lambda o, i: normal(math.sqrt(2 / i)),
        lambda jax: jax.variance_scaling(2, "fan_in", "normal", 1, 0),
        "standard_normal",
    ),
    "uniform_": Function("uniform_", lambda o, i: uniform(0.0, 1.0), lambda jax: jax.uniform(1.0), "random"),
    "normal_": Function("normal_", lambda o, i: normal(1.0), lambda jax: jax.normal(1.0), "standard_normal"),
    "trunc_normal_ ±2": Function(
        "trunc_normal_",
        lambda o, i: truncated(0.02, 2.0),
        lambda jax: jax.truncated_normal(0.02, lower=-100.0, upper=100.0),
        arguments={"std": 0.02, "a": -2.0, "b": 2.0},
    ),
    "trunc_normal_ ±0.04": Function(
        "trunc_normal_",
        lambda o, i: truncated(0.02, 0.04),
        lambda jax: jax.truncated_normal(0.02, lower=-2.0, upper=2.0),
        arguments={"std": 0.02, "a": -0.04, "b": 0.04},
    ),
}
DTYPES = ["float32", "bfloat16", "float16", "float64"]
SIZE = 24  # log2 of the elements of 4096 x 4096
LINES = {"fill_": "fill_", "xinit": "xinit", "torch": "torch.nn.init"}
PLOTTED = ("xavier_uniform_", "kaiming_normal_", "trunc_normal_ ±2")  # by size
COLUMNS = "{:<20} {:<9} {:>10} {:>13} {:>9} {:>12} {:>12} {:>10} {:>7} {:>7}".format
TITLES = ("function", "dtype", "elements", "M elements/s", "of fill_", "times torch", "times NumPy", "times JAX")
TITLES += ("spread", "others")


def fill(function, w, **place):
    return getattr(xinit, function.name)(w, **function.arguments, **place)


def rounded(values, dtype, low, high):
    """float32 values in another dtype: the nearest, or the next towards zero where that is not within [low, high]."""
    near = values.to(dtype)
    outside = (near.double() < low) | (near.double() > high)
    return torch.where(outside, torch.nextafter(near, torch.zeros_like(near)), near)


def check_values(function, w):
    """Fill w, and compare with what does not depend on how: the law, and values filled one short run at a time."""
    mean, std, low, high = function.law(*w.shape)
    fill(function, w, key=KEY)
    n, total, squares = w.numel(), 0.0, 0.0
    for part in w.view(-1).split(2**24):
        values = part.double()
        if not low <= values.min().item() <= values.max().item() <= high:
            raise RuntimeError(f"{function.name} {w.dtype} {tuple(w.shape)}: values outside [{low}, {high}]")
        total, squares = total + (values - mean).sum().item(), squares + (values - mean).square().sum().item()
    # Five standard errors; no law here has heavier tails than the normal's.
    errors = total / n / std * math.sqrt(n), (math.sqrt(squares / n) / std - 1) * math.sqrt(2 * n)
    if max(map(abs, errors)) > 5:
        raise RuntimeError(
            f"{function.name} {w.dtype} {tuple(w.shape)}: mean and std are off by {errors} standard errors"
        )
    rows, columns = w.shape
    for row, column in ((0, 0), (rows // 2, (columns - 1) // 3), (rows - 1, max(0, columns - 64))):
        part = torch.empty(1, min(64, columns - column))
        fill(function, part, key=KEY, window=xinit.Window(w.shape, (row, column)))
        if not torch.equal(w[row : row + 1, column : column + 64].cpu(), rounded(part, w.dtype, low, high)):
            raise RuntimeError(f"{function.name} {w.dtype} {tuple(w.shape)}: wrong bits at {row}, {column}")


def contestants(function, w, against):
    """{name: fills w, or a tensor like it}."""
    calls = {
        "xinit": partial(getattr(xinit, function.name), w, **function.arguments),
        "fill_": partial(w.fill_, 1.0),
        "torch": partial(getattr(torch.nn.init, function.name), w, **function.arguments),
    }
    if "numpy" in against and function.numpy and w.device.type == "cpu" and w.dtype in (torch.float32, torch.float64):
        import numpy as np

        generator, array = np.random.Generator(np.random.SFC64(0)), w.numpy()
        calls["numpy"] = partial(getattr(generator, function.numpy), out=array, dtype=array.dtype)
    if "jax" in against and w.dtype != torch.float64:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # of the GPU's memory, which torch needs too
        import jax

        platform = "gpu" if w.is_cuda else "cpu"
        place = [device for device in jax.devices("cpu") + jax.devices() if device.platform == platform]
        if place:
            draw = jax.jit(function.jax(jax.nn.initializers), static_argnums=(1, 2))
            key, shape = jax.device_put(jax.random.key(0), place[0]), tuple(w.shape)
            dtype = jax.numpy.dtype(str(w.dtype).removeprefix("torch."))
            calls["jax"] = lambda: draw(key, shape, dtype).block_until_ready()
    return calls


def measure(label, dtype, log2, device="cpu", against=(), **how):
    """One row: values checked, then times."""
    bystanders = timing.Bystanders()
    w = torch.empty(shape_of(log2), dtype=getattr(torch, dtype), device=device)
    check_values(FUNCTIONS[label], w)
    calls = contestants(FUNCTIONS[label], w, against)
    jax = calls.pop("jax", None)
    timed = interleaved(calls, device, **how)
    if jax:  # apart, as its threads get in the way of torch's
        timed |= interleaved({"jax": jax}, device, **how)
    ours = timed["xinit"]["median"]
    return {
        "function": label,
        "dtype": dtype,
        "elements": w.numel(),
        "device": device,
        "elements_per_second": {name: w.numel() / t["median"] for name, t in timed.items()},
        "xinit_times": {name: t["median"] / ours for name, t in timed.items() if name != "xinit"},
        "seconds": timed,
        "others": round(bystanders.share(), 3),
    }


def print_row(row):
    times = row["xinit_times"]
    cells = [f"{row['elements_per_second']['xinit'] / 1e6:.1f}", f"{times['fill_']:.1%}"]
    cells += [f"{times[name]:.2f}" if name in times else "" for name in ("torch", "numpy", "jax")]
    cells += [f"{timing.spread(row['seconds']):.0%}", f"{row['others']:.0%}"]
    print(COLUMNS(row["function"], row["dtype"], row["elements"], *cells), flush=True)


# The floors of --check. Ratios, so that they hold on any machine with AVX-512.
UNIFORM = {"float32": 9, "bfloat16": 11, "float16": 10}
NORMAL = {"float32": 6.5, "bfloat16": 8, "float16": 8}
TRUNCATED = {"float32": 9, "bfloat16": 9, "float16": 9}
FLOORS = {  # times torch.nn.init at 4096 x 4096, with two threads
    "xavier_uniform_": UNIFORM,
    "kaiming_uniform_": UNIFORM,
    "xavier_normal_": NORMAL,
    "kaiming_normal_": NORMAL,
    "trunc_normal_ ±2": TRUNCATED,
    "trunc_normal_ ±0.04": TRUNCATED,
}
SMALL = {12: 1.0, 4: 1 / 1.3}  # times torch.nn.init by log2 of the elements: the whole call from Python
AVX2 = 0.5  # of the speed with AVX-512
BASELINE = 1.0  # times torch.nn.init, uniform
PLACES = {  # shape, global shape, offsets, transposed, fraction of the contiguous speed
    "rows of 64": ((32768, 64), (32768, 1024), (0, 64), False, 0.8),
    "rows of 64, odd": ((32768, 64), (32768, 1027), (0, 65), False, 0.8),
    "column shard": ((4096, 512), (4096, 4096), (0, 512), False, 0.8),
    "transposed": ((4096, 4096), (4096, 4096), (0, 0), True, 0.3),
}


def times_torch(label, dtype, log2, floor):
    times = measure(label, dtype, log2)["xinit_times"]
    yield f"{label} {dtype} {'x'.join(map(str, shape_of(log2)))}, times torch", floor, times["torch"]


def placed(label, where):
    shape, global_shape, offsets, transposed, floor = PLACES[where]
    function, window = FUNCTIONS[label], xinit.Window(global_shape, offsets)
    w = torch.empty(shape[::-1]).t() if transposed else torch.empty(shape)
    rows, columns = (slice(o, o + n) for o, n in zip(offsets, shape, strict=True))
    whole = fill(function, torch.empty(global_shape), key=KEY)
    if not torch.equal(fill(function, w, key=KEY, window=window), whole[rows, columns]):
        raise RuntimeError(f"{label} {where}: not the slice of the whole")
    calls = {"contiguous": (torch.empty(shape), {}), "placed": (w, {"window": window})}
    timed = interleaved({name: partial(fill, function, t, key=KEY, **place) for name, (t, place) in calls.items()})
    yield f"{label} {where}, of contiguous", floor, timed["contiguous"]["median"] / timed["placed"]["median"]


def forced(capability, functions, dtypes):
    """{(function, dtype): row}, from a process with another instruction set."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "fill.json"
        command = [sys.executable, __file__, "--devices", "cpu", "--sizes", str(SIZE), "--json", str(path)]
        command += ["--functions", *functions, "--dtypes", *dtypes, "--threads", str(torch.get_num_threads())]
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
        done = subprocess.run([*command, "--against"], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        record = timing.read(path)
    isa = {"default": "baseline"}.get(capability, capability)
    if record["machine"]["isa"] != isa:
        raise RuntimeError(f"ATEN_CPU_CAPABILITY={capability} ran {record['machine']['isa']}")
    return {(row["function"], row["dtype"]): row for row in record["rows"]}


def avx2():
    """Each instruction set twice, in turn; the better run counts, as one that was disturbed is slower."""
    runs = [{isa: forced(isa, PLOTTED, DTYPES[:2]) for isa in ("avx512", "avx2")} for _ in range(2)]
    for case in runs[0]["avx2"]:
        speed = {isa: max(r[isa][case]["elements_per_second"]["xinit"] for r in runs) for isa in runs[0]}
        yield f"{' '.join(case)} avx2, of avx512", AVX2, speed["avx2"] / speed["avx512"]


def baseline():
    for case, row in forced("default", PLOTTED[:1], DTYPES[:3]).items():
        yield f"{' '.join(case)} baseline, times torch", BASELINE, row["xinit_times"]["torch"]


def floors():
    """Functions that measure, each for some (what, required, reached)."""
    for label, required in FLOORS.items():
        yield from (partial(times_torch, label, dtype, SIZE, floor) for dtype, floor in required.items())
    for log2, floor in SMALL.items():
        yield from (partial(times_torch, label, "float32", log2, floor) for label in FUNCTIONS)
    for where in PLACES:
        yield from (partial(placed, label, where) for label in ("uniform_", "normal_"))
    if xinit.build_info()["cpu_isa"] == "avx512":
        yield avx2
    yield baseline


def quietly(measured, bystanders):
    """Its rows, and the others' share meanwhile. What was measured while the machine was busy is measured again."""
    for _ in range(3):
        rows, others = list(measured()), bystanders.share()
        if others < timing.BUSY:
            break
    return rows, others


def check():
    """Whether all floors hold.

    What misses one is measured four times more, and the median of the five counts: what runs beside a virtual machine slows
    memory and not torch.nn.init for seconds on end, and no count of its own tells. What was always busy does not count.
    """
    torch.set_num_threads(min(2, timing.cores()))
    print(timing.describe(timing.machine()))
    print(f"{'what':<60} {'required':>8} {'reached':>8} {'others':>6}")
    bystanders, verdicts = timing.Bystanders(), []
    for measured in floors():
        runs = [quietly(measured, bystanders)]
        if any(reached < floor for _, floor, reached in runs[0][0]):
            runs += [quietly(measured, bystanders) for _ in range(4)]
        others = max(share for _, share in runs)
        for again in zip(*(rows for rows, _ in runs), strict=True):
            what, floor, _ = again[0]
            ratios = [reached for *_, reached in again]
            reached, all_of_them = statistics.median(ratios), ", ".join(f"{ratio:.2f}" for ratio in ratios)
            verdicts.append("busy" if others >= timing.BUSY else "FAILED" if reached < floor else "ok")
            note = f" (median of {all_of_them})" if len(runs) > 1 else ""
            print(f"{what:<60} {floor:>8.2f} {reached:>8.2f} {others:>6.0%} {verdicts[-1]}{note}", flush=True)
    print(", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)))
    return set(verdicts) == {"ok"}


def plot_functions(record, rows, device):
    """Bars at 4096 x 4096, a panel for each dtype: xinit and torch.nn.init before fill_, the most there is to reach."""
    rows = {(r["function"], r["dtype"]): r for r in rows if r["elements"] == 2**SIZE}
    labels = [label for label in FUNCTIONS if any(label == function for function, _ in rows)]
    dtypes = [dtype for dtype in DTYPES if all((label, dtype) in rows for label in labels)]
    if not rows or not dtypes:
        return None
    title = "Filling a 4096 × 4096 tensor, elements per second"
    note = f"trunc_normal_: std 0.02. {timing.describe(record['machine'], device)}"
    size = (1.2 + 3.8 * len(dtypes), 1.6 + 0.62 * len(labels))
    drawn, axes = timing.figure(title, note, ncols=len(dtypes), figsize=size)
    for ax, dtype in zip(axes[0], dtypes, strict=True):
        bars = [rows[label, dtype]["elements_per_second"] for label in labels]
        for name, shift, height in (("fill_", 0, 0.84), ("xinit", -0.2, 0.36), ("torch", 0.2, 0.36)):
            colour = "#DDDDDD" if name == "fill_" else timing.COLOURS[name]
            ax.barh([y + shift for y in range(len(labels))], [speed[name] for speed in bars], height, color=colour)
        for y, (label, speed) in enumerate(zip(labels, bars, strict=True)):
            times, at = rows[label, dtype]["xinit_times"], {"va": "center", "fontsize": 9}
            blue, orange, grey = timing.COLOURS["xinit"], timing.COLOURS["torch"], "#555555"
            names = y == 0 and ax is axes[0][0]
            ratio = f" {'xinit: ' if names else ''}{times['torch']:.{int(times['torch'] < 10)}f} × torch"
            ax.text(speed["xinit"], y - 0.2, ratio, color=blue, fontweight="bold", **at)
            ax.text(speed["torch"], y + 0.2, " torch.nn.init" if names else "", color=orange, fontweight="bold", **at)
            ax.text(speed["fill_"], y + 0.2, f"{times['fill_']:.0%} of fill_ ", color=grey, ha="right", **at)
        ax.set_title(dtype)
        ax.invert_yaxis()
        ax.tick_params(left=False)
        ax.set_yticks(range(len(labels)), labels if ax is axes[0][0] else [""] * len(labels))
        ax.xaxis.set_major_formatter(timing.speed_label)
        ax.grid(True, axis="x")
    return drawn


def plot_sizes(record, rows, device):
    """Lines by size, a panel for each kind of distribution, in float32."""
    rows = {(r["function"], r["elements"]): r["elements_per_second"] for r in rows if r["dtype"] == "float32"}
    sizes = sorted({elements for _, elements in rows})
    labels = [label for label in PLOTTED if all((label, elements) in rows for elements in sizes)]
    if len(sizes) < 2 or not labels:
        return None
    title = "Filling float32 tensors of all sizes, elements per second"
    note = f"trunc_normal_: std 0.02. {timing.describe(record['machine'], device)}"
    drawn, axes = timing.figure(title, note, ncols=len(labels), sharey=True, figsize=(4.8 * len(labels), 4.6))
    for ax, label in zip(axes[0], labels, strict=True):
        for name in LINES:
            speeds = [rows[label, elements][name] for elements in sizes]
            ax.plot(sizes, speeds, color=timing.COLOURS[name], marker="o", markersize=3.5)
        timing.log_axes(ax, sizes)
        ax.set_title(label)
    for ax, label in zip(axes[0], labels, strict=True):
        last = rows[label, sizes[-1]]
        timing.label_ends(ax, {title: (sizes[-1], last[name], timing.COLOURS[name]) for name, title in LINES.items()})
    return drawn


def plot(record):
    for device in dict.fromkeys(r["device"] for r in record["rows"]):
        rows = [r for r in record["rows"] if r["device"] == device]
        for name, draw in {"fill_functions": plot_functions, "fill_sizes": plot_sizes}.items():
            if drawn := draw(record, rows, device):
                timing.save(drawn, f"{name}{'' if device == 'cpu' else '_' + device}.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    installed = [name for name in ("numpy", "jax") if importlib.util.find_spec(name)]
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    default = ["xavier_uniform_", "kaiming_normal_", "uniform_", "normal_", "trunc_normal_ ±2", "trunc_normal_ ±0.04"]
    add = parser.add_argument
    add(
        "--functions",
        nargs="+",
        default=default,
        metavar="NAME",
        help=f"or how their names begin: {', '.join(FUNCTIONS)}",
    )
    add("--dtypes", nargs="+", default=DTYPES[:3], choices=DTYPES)
    add(
        "--sizes", nargs="+", type=int, default=range(4, 27, 2), metavar="LOG2", help="powers of two; 24 is 4096 x 4096"
    )
    add("--devices", nargs="+", default=devices, choices=devices)
    add("--threads", type=int, default=timing.cores())
    add("--rounds", type=int, default=ROUNDS)
    add("--against", nargs="*", default=installed, choices=("numpy", "jax"), help="besides torch.nn.init and fill_")
    add("--json", type=Path, metavar="FILE", help="write everything there")
    add("--save", action="store_true", help="write it to benchmarks/results/fill_<device>.json")
    add("--plot", nargs="?", const=True, metavar="FROM.json", help="draw what was measured now, or what is in a file")
    add("--check", action="store_true", help="exit 0 only if the floors hold")
    args = parser.parse_args()
    if args.check:
        return 0 if check() else 1
    if isinstance(args.plot, str):
        return plot(timing.read(args.plot))
    labels = [label for label in FUNCTIONS if any(label.startswith(name) for name in args.functions)]
    torch.set_num_threads(args.threads)
    record = {"machine": timing.machine(args.devices), "rows": []}
    print(*(timing.describe(record["machine"], device) for device in args.devices), sep="\n")
    print(COLUMNS(*TITLES))
    for device in args.devices:
        for log2 in args.sizes:
            for label in labels:
                for dtype in args.dtypes:
                    row = measure(label, dtype, log2, device, args.against, rounds=args.rounds, budget=3.0)
                    record["rows"].append(row)
                    print_row(row)
    if args.json:
        timing.write(record, args.json)
    if args.save:
        for device in args.devices:
            rows = [row for row in record["rows"] if row["device"] == device]
            timing.write(record | {"rows": rows}, timing.RESULTS / f"fill_{device}.json")
    if args.plot:
        plot(record)


if __name__ == "__main__":
    sys.exit(main())
