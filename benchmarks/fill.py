"""How fast is each function? Against torch.nn.init, fill_ of the same tensor, and NumPy and JAX where they are installed.

    python benchmarks/fill.py                   # a table: functions x dtypes x sizes x devices
    python benchmarks/fill.py --save --plot     # and benchmarks/results/fill_*.json, *.png
    python benchmarks/fill.py --check           # exits 0 only if the floors below hold, on a quiet machine with two cores

Before a row is timed its values are checked: mean and standard deviation against the formula's, and runs of up to 64 elements
bit for bit against float32 values that were filled apart, through windows, and rounded. The contestants then take turns on the
same warm memory; what is printed are medians, and their ratios.
"""

import argparse
import importlib.util
import math
import os
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
COLUMNS = "{:<20} {:<9} {:>11} {:>14} {:>11} {:>11} {:>11} {:>11} {:>9}".format
TITLES = (
    "function",
    "dtype",
    "elements",
    "M elements/s",
    "of fill_",
    "times torch",
    "times NumPy",
    "times JAX",
    "spread",
)


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
        centred = part.double() - mean
        total, squares = total + centred.sum().item(), squares + centred.square().sum().item()
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
        import jax

        draw = jax.jit(function.jax(jax.nn.initializers), static_argnums=(1, 2))
        key = jax.device_put(jax.random.key(0), jax.devices("gpu" if w.is_cuda else "cpu")[0])
        shape, dtype = tuple(w.shape), jax.numpy.dtype(str(w.dtype).removeprefix("torch."))
        calls["jax"] = lambda: draw(key, shape, dtype).block_until_ready()
    return calls


def measure(label, dtype, log2, device="cpu", against=(), **how):
    """One row: values checked, then times."""
    w = torch.empty(shape_of(log2), dtype=getattr(torch, dtype), device=device)
    check_values(FUNCTIONS[label], w)
    timed = interleaved(contestants(FUNCTIONS[label], w, against), device, **how)
    ours = timed["xinit"]["median"]
    return {
        "function": label,
        "dtype": dtype,
        "elements": w.numel(),
        "device": device,
        "elements_per_second": {name: w.numel() / t["median"] for name, t in timed.items()},
        "xinit_times": {name: t["median"] / ours for name, t in timed.items() if name != "xinit"},
        "seconds": timed,
    }


def print_row(row):
    times = row["xinit_times"]
    cells = [f"{row['elements_per_second']['xinit'] / 1e6:.1f}", f"{times['fill_']:.1%}"]
    cells += [f"{times[name]:.2f}" if name in times else "" for name in ("torch", "numpy", "jax")]
    cells += [f"{timing.spread(row['seconds']):.0%}"]
    print(COLUMNS(row["function"], row["dtype"], row["elements"], *cells), flush=True)


# The floors of --check. Ratios, so that they hold on any machine with AVX-512.
FLOORS = {  # times torch.nn.init, in float32, bfloat16, float16, with two threads
    "xavier_uniform_": (9, 11, 10),
    "kaiming_uniform_": (9, 11, 10),
    "xavier_normal_": (6.5, 8, 8),
    "kaiming_normal_": (6.5, 8, 8),
    "trunc_normal_ ±2": (9, 9, 9),
    "trunc_normal_ ±0.04": (9, 9, 9),
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


def against_torch():
    for label, floors in FLOORS.items():
        for dtype, floor in zip(DTYPES, floors, strict=False):
            times = measure(label, dtype, SIZE)["xinit_times"]
            yield f"{label} {dtype} 4096x4096, times torch", floor, times["torch"]


def small_tensors():
    for log2, floor in SMALL.items():
        for label in FUNCTIONS:
            times = measure(label, "float32", log2, rounds=2 * ROUNDS)["xinit_times"]
            yield f"{label} float32 {'x'.join(map(str, shape_of(log2)))}, times torch", floor, times["torch"]


def places():
    for where, (shape, global_shape, offsets, transposed, floor) in PLACES.items():
        for label in ("uniform_", "normal_"):
            place = {"key": KEY, "window": xinit.Window(global_shape, offsets)}
            w = torch.empty(shape[::-1]).t() if transposed else torch.empty(shape)
            whole = fill(FUNCTIONS[label], torch.empty(global_shape), key=KEY)
            rows, columns = (slice(o, o + n) for o, n in zip(offsets, shape, strict=True))
            if not torch.equal(fill(FUNCTIONS[label], w, **place), whole[rows, columns]):
                raise RuntimeError(f"{label} {where}: not the slice of the whole")
            contiguous = torch.empty(shape)
            timed = interleaved(
                {
                    "contiguous": partial(fill, FUNCTIONS[label], contiguous, key=KEY),
                    "placed": partial(fill, FUNCTIONS[label], w, **place),
                },
                rounds=2 * ROUNDS,
            )
            speed = timed["contiguous"]["median"] / timed["placed"]["median"]
            yield f"{label} {where}, of contiguous", floor, speed


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


def instruction_sets():
    functions, dtypes = ("xavier_uniform_", "kaiming_normal_", "trunc_normal_ ±2"), DTYPES[:2]
    if xinit.build_info()["cpu_isa"] == "avx512":
        # Each twice, in turn; the better run of either, as one that was disturbed is slower.
        runs = [{isa: forced(isa, functions, dtypes) for isa in ("avx512", "avx2")} for _ in range(2)]
        for case in runs[0]["avx2"]:
            speed = {isa: max(r[isa][case]["elements_per_second"]["xinit"] for r in runs) for isa in runs[0]}
            yield f"{' '.join(case)} avx2, of avx512", AVX2, speed["avx2"] / speed["avx512"]
    for case, row in forced("default", functions[:1], DTYPES[:3]).items():
        yield f"{' '.join(case)} baseline, times torch", BASELINE, row["xinit_times"]["torch"]


def check():
    """Whether all floors hold."""
    torch.set_num_threads(min(2, timing.cores()))
    print(timing.describe(timing.machine()))
    failed, bystanders = 0, timing.Bystanders()
    print(f"{'what':<62} {'required':>8} {'reached':>8}")
    for section in (against_torch, small_tensors, places, instruction_sets):
        for what, floor, reached in section():
            failed += reached < floor
            print(f"{what:<62} {floor:>8.2f} {reached:>8.2f} {'FAILED' if reached < floor else 'ok'}", flush=True)
    bystanders.report()
    print(f"{failed} below the floor" if failed else "all hold")
    return not failed


def plot_functions(record, rows, suffix, device):
    """Bars at 4096 x 4096, a panel for each dtype."""
    rows = {(r["function"], r["dtype"]): r for r in rows if r["elements"] == 2**SIZE}
    if not rows:
        return
    labels = [label for label in FUNCTIONS if any(label == f for f, _ in rows)]
    dtypes = [dtype for dtype in DTYPES if any(dtype == d for _, d in rows)]
    title = "Filling a 4096 × 4096 tensor, elements per second"
    size = (1 + 3.6 * len(dtypes), 1.6 + 0.62 * len(labels))
    drawn, axes = timing.figure(title, timing.describe(record["machine"], device), ncols=len(dtypes), figsize=size)
    for ax, dtype in zip(axes[0], dtypes, strict=True):
        speeds = [rows[label, dtype]["elements_per_second"] for label in labels]
        for name, offset, height in (("fill_", 0, 0.84), ("xinit", -0.2, 0.36), ("torch", 0.2, 0.36)):
            ys = [y + offset for y in range(len(labels))]
            colour = "#DDDDDD" if name == "fill_" else timing.COLOURS[name]
            ax.barh(ys, [s[name] for s in speeds], height, color=colour)
        for y, (label, speed) in enumerate(zip(labels, speeds, strict=True)):
            times = rows[label, dtype]["xinit_times"]
            text = f" {times['torch']:.1f} × torch"
            ax.text(speed["xinit"], y - 0.2, text, va="center", fontsize=9, fontweight="bold")
        ax.set_title(dtype)
        ax.invert_yaxis()
        ax.tick_params(left=False)
        ax.set_yticks(range(len(labels)), labels if ax is axes[0][0] else [""] * len(labels))
        ax.xaxis.set_major_formatter(timing.speed_label)
        ax.grid(True, axis="x")
    timing.save(drawn, f"fill_functions{suffix}.png")


def plot_sizes(record, rows, suffix, device):
    """Lines by size, a panel for each kind of distribution, in float32."""
    panels = {}
    for label in ("xavier_uniform_", "kaiming_normal_", "trunc_normal_ ±2"):
        found = sorted(
            (r for r in rows if (r["function"], r["dtype"]) == (label, "float32")), key=lambda r: r["elements"]
        )
        if len(found) > 1:
            panels[label] = found
    if not panels:
        return
    title = "Filling float32 tensors of all sizes, elements per second"
    note = timing.describe(record["machine"], device)
    size = (4.2 * len(panels), 4.4)
    drawn, axes = timing.figure(title, note, ncols=len(panels), sharey=True, figsize=size)
    for ax, (label, found) in zip(axes[0], panels.items(), strict=True):
        elements = [r["elements"] for r in found]
        for name in ("fill_", "xinit", "torch"):
            speeds = [r["elements_per_second"][name] for r in found]
            ax.plot(elements, speeds, color=timing.COLOURS[name], marker="o", markersize=3.5)
            ax.annotate(
                timing.NAMES.get(name, name),
                (elements[-1], speeds[-1]),
                xytext=(0, 6),
                textcoords="offset points",
                ha="right",
                color=timing.COLOURS[name],
                fontweight="bold",
            )
        timing.log_axes(ax, range(4, 29, 4))
        ax.set_title(label)
    timing.save(drawn, f"fill_sizes{suffix}.png")


def plot(record):
    for device in dict.fromkeys(r["device"] for r in record["rows"]):
        rows = [r for r in record["rows"] if r["device"] == device]
        suffix = "" if device == "cpu" else f"_{device}"
        plot_functions(record, rows, suffix, device)
        plot_sizes(record, rows, suffix, device)


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
    record, bystanders = {"machine": timing.machine(args.devices), "rows": []}, timing.Bystanders()
    print(*(timing.describe(record["machine"], device) for device in args.devices), sep="\n")
    print(COLUMNS(*TITLES))
    for device in args.devices:
        for log2 in args.sizes:
            for label in labels:
                for dtype in args.dtypes:
                    row = measure(label, dtype, log2, device, args.against, rounds=args.rounds, budget=3.0)
                    record["rows"].append(row)
                    print_row(row)
    record["machine"]["others"] = bystanders.report()
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
