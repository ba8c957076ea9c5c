"""How fast is each function? Against torch.nn.init, fill_ of the same tensor, and others where they are installed: NumPy and JAX,
and on a GPU JAX, the same maths compiled by Inductor, a Triton kernel, and cuRAND through CuPy.

    python benchmarks/fill.py                   # a table: functions x dtypes x sizes x devices
    python benchmarks/fill.py --save --plot     # and benchmarks/results/fill_*.json, *.png
    python benchmarks/fill.py --check           # exits 0 only if the floors below hold, on a quiet machine with two cores
    python benchmarks/fill.py --check --devices cuda    # those of a GPU

Before a row is timed its values are checked: least, greatest, mean and standard deviation against the formula's, and runs of
up to 64 elements bit for bit against float32 values that were filled apart, through windows, and rounded. The others' values
are checked against the formula's too. The contestants then take turns on the same warm memory, JAX after them. What is
printed are medians, and their ratios; "spread" is the widest distance between a contestant's quartile and its median, "others"
the part of the machine's processor time that other processes took meanwhile: a row with more than a few per cent means nothing.
"""

import argparse
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

import fill_plots
import timing
import torch
from contestants import CONTESTANTS, fitting, installed
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
    kind: str  # "uniform", "normal" or "truncated"
    law: Callable[[int, int], tuple[float, ...]]  # of fan_out and fan_in
    jax: Callable[[Any], Any]  # of jax.nn.initializers
    arguments: dict[str, float] = {}  # noqa: RUF012


FUNCTIONS = {
    "xavier_uniform_": Function(
        "xavier_uniform_",
        "uniform",
        lambda o, i: uniform(-math.sqrt(6 / (i + o)), math.sqrt(6 / (i + o))),
        lambda jax: jax.glorot_uniform(1, 0),
    ),
    "xavier_normal_": Function(
        "xavier_normal_",
        "normal",
        lambda o, i: normal(math.sqrt(2 / (i + o))),
        lambda jax: jax.variance_scaling(1, "fan_avg", "normal", 1, 0),
    ),
    "kaiming_uniform_": Function(
        "kaiming_uniform_",
        "uniform",
        lambda o, i: uniform(-math.sqrt(6 / i), math.sqrt(6 / i)),
        lambda jax: jax.he_uniform(1, 0),
    ),
    "kaiming_normal_": Function(
        "kaiming_normal_",
        "normal",
        lambda o, i: normal(math.sqrt(2 / i)),
        lambda jax: jax.variance_scaling(2, "fan_in", "normal", 1, 0),
    ),
    "uniform_": Function("uniform_", "uniform", lambda o, i: uniform(0.0, 1.0), lambda jax: jax.uniform(1.0)),
    "normal_": Function("normal_", "normal", lambda o, i: normal(1.0), lambda jax: jax.normal(1.0)),
    "trunc_normal_ ±2": Function(
        "trunc_normal_",
        "truncated",
        lambda o, i: truncated(0.02, 2.0),
        lambda jax: jax.truncated_normal(0.02, lower=-100.0, upper=100.0),
        arguments={"std": 0.02, "a": -2.0, "b": 2.0},
    ),
    "trunc_normal_ ±0.04": Function(
        "trunc_normal_",
        "truncated",
        lambda o, i: truncated(0.02, 0.04),
        lambda jax: jax.truncated_normal(0.02, lower=-2.0, upper=2.0),
        arguments={"std": 0.02, "a": -0.04, "b": 0.04},
    ),
}
STANDARD = {"uniform": uniform(0.0, 1.0), "normal": normal(1.0)}
DTYPES = ["float32", "bfloat16", "float16", "float64"]
# log2 of the elements of 4096 x 4096, and on a GPU of 16384 x 16384: 512 MiB and more, where 64 MiB are not much more than the
# 50 or 60 MB that its cache holds, which are never written to memory.
SIZE, LARGE = 24, 28


def fill(function, w, **place):
    return getattr(xinit, function.name)(w, **function.arguments, **place)


def rounded(values, dtype, low, high):
    """float32 values in another dtype: the nearest, or the next towards zero where that is not within [low, high]."""
    near = values.to(dtype)
    outside = (near.double() < low) | (near.double() > high)
    return torch.where(outside, torch.nextafter(near, torch.zeros_like(near)), near)


def check_law(who, w, law, slack=0.0):
    """That least, greatest, mean and standard deviation are the law's, give or take so much of its standard deviation."""
    mean, std, low, high = law
    n, total, squares, where = w.numel(), 0.0, 0.0, f"{who} {w.dtype} {tuple(w.shape)}"
    for part in w.reshape(-1).split(2**24):
        values = part.double()
        if not low - slack * std <= values.min().item() <= values.max().item() <= high + slack * std:
            raise RuntimeError(f"{where}: values outside [{low}, {high}]")
        total, squares = total + (values - mean).sum().item(), squares + (values - mean).square().sum().item()
    # Five standard errors; no law here has heavier tails than the normal's.
    errors = {"mean": total / n / std, "std": math.sqrt(squares / n) / std - 1}
    for (name, error), spread in zip(errors.items(), (1.0, math.sqrt(0.5)), strict=True):
        if abs(error) > 5 * spread / math.sqrt(n) + slack:
            raise RuntimeError(f"{where}: {name} is off by {error:.2g} of the standard deviation")


def check_values(function, w):
    """Fill w, and compare with what does not depend on how: the law, and values filled one short run at a time."""
    law = function.law(*w.shape)
    w.fill_(math.nan)  # what a fill leaves out must not pass for an earlier one's values
    fill(function, w, key=KEY)
    check_law(function.name, w, law)
    rows, columns = w.shape
    for row, column in ((0, 0), (rows // 2, (columns - 1) // 3), (rows - 1, max(0, columns - 64))):
        part = torch.empty(1, min(64, columns - column))
        fill(function, part, key=KEY, window=xinit.Window(w.shape, (row, column)))
        if not torch.equal(w[row : row + 1, column : column + 64].cpu(), rounded(part, w.dtype, *law[2:])):
            raise RuntimeError(f"{function.name} {w.dtype} {tuple(w.shape)}: wrong bits at {row}, {column}")


def rivals(function, w, against):
    """{name: fills w, or makes a tensor like it}, all checked, and {name: why it was left out} where that failed."""
    calls, left_out = {}, {}
    for name in against:
        contestant = CONTESTANTS[name]
        if w.device.type not in contestant.devices:
            continue
        try:  # whatever fails in another library, the rest is measured
            call = contestant.make(function, w)
            if call:
                w.fill_(math.nan)
                made = call()
                law = function.law(*w.shape) if contestant.scaled else STANDARD[function.kind]
                # 2 % are for those who draw bfloat16's numbers in steps of 1 / 128, always the lower end.
                check_law(contestant.title, torch.from_dlpack(made) if name == "jax" else w, law, slack=0.02)
                calls[name] = call
        except Exception as error:
            left_out[name] = f"{type(error).__name__}: {str(error)[:500]}"
    return calls, left_out


def measure(label, dtype, log2, device="cpu", against=(), **how):
    """One row: values checked, then times."""
    function, bystanders = FUNCTIONS[label], timing.Bystanders()
    w = torch.empty(shape_of(log2), dtype=getattr(torch, dtype), device=device)
    check_values(function, w)
    calls, left_out = rivals(function, w, against)
    jax = calls.pop("jax", None)
    calls = {
        "xinit": partial(getattr(xinit, function.name), w, **function.arguments),
        "fill_": partial(w.fill_, 1.0),
        "torch": partial(getattr(torch.nn.init, function.name), w, **function.arguments),
    } | calls
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
        **({"left_out": left_out} if left_out else {}),
    }


def print_line(device, cells=None):
    """A row of the table; without cells its head."""
    titles = ["function", "dtype", "elements", "M elements/s", "of fill_", "times torch"]
    titles += [f"times {CONTESTANTS[name].title}" for name in fitting(device)] + ["spread", "others"]
    first, second, *rest = cells or titles
    widths = (max(len(title), 7) for title in titles[2:])
    print(
        f"{first:<20} {second:<9}", *(f"{cell:>{width}}" for cell, width in zip(rest, widths, strict=True)), flush=True
    )


def print_row(row):
    times, device = row["xinit_times"], row["device"]
    cells = [row["function"], row["dtype"], row["elements"], f"{row['elements_per_second']['xinit'] / 1e6:.1f}"]
    cells += [f"{times['fill_']:.1%}"]
    cells += [f"{times[name]:.2f}" if name in times else "" for name in ("torch", *fitting(device))]
    cells += [f"{timing.spread(row['seconds']):.0%}", f"{row['others']:.0%}"]
    print_line(device, cells)
    for name, why in row.get("left_out", {}).items():
        print(f"  {CONTESTANTS[name].title} left out: {why}")


def table(device, labels, dtypes, sizes, against=None, rounds=ROUNDS):
    """Its rows, printed as they come."""
    against = installed(device) if against is None else against
    print(timing.describe(timing.machine([device]), device))
    print_line(device)
    for log2 in sizes:
        for label in labels:
            for dtype in dtypes:
                row = measure(label, dtype, log2, device, against, rounds=rounds, budget=3.0)
                print_row(row)
                yield row


# The floors of --check. Ratios, so that they hold on any machine with AVX-512, and on an H100 or H200.
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
SMALL = {12: 2.0, 4: 1.3}  # times torch.nn.init by log2 of the elements: the whole call from Python
AVX2 = 0.5  # of the speed with AVX-512
BASELINE = 1.0  # times torch.nn.init, uniform
GPU_FLOORS = {  # of fill_'s speed, and times torch.nn.init, at 16384 x 16384
    ("uniform", "float32"): {"fill_": 0.9, "torch": 1.0},
    ("normal", "float32"): {"fill_": 0.85, "torch": 1.15},
    ("truncated", "float32"): {"fill_": 0.6, "torch": 6},
    ("uniform", "bfloat16"): {"fill_": 0.75, "torch": 1.6},
    ("normal", "bfloat16"): {"fill_": 0.45, "torch": 1.15},
    ("truncated", "bfloat16"): {"torch": 6},
}
GPU_SMALL = (12, 4)  # log2 of the elements: there the whole call from Python is no slower than torch.nn.init
PLACES = {  # shape, global shape, offsets, transposed, fraction of the contiguous speed
    "rows of 64": ((32768, 64), (32768, 1024), (0, 64), False, 0.8),
    "rows of 64, odd": ((32768, 64), (32768, 1027), (0, 65), False, 0.8),
    "column shard": ((4096, 512), (4096, 4096), (0, 512), False, 0.8),
    "transposed": ((4096, 4096), (4096, 4096), (0, 0), True, 0.3),
}


def ratios(label, dtype, log2, required, device="cpu", **how):
    row = measure(label, dtype, log2, device, **how)
    for name, floor in required.items():
        against = {"fill_": "of fill_", "torch": "times torch"}[name]
        yield f"{label} {dtype} {'x'.join(map(str, shape_of(log2)))}, {against}", floor, row["xinit_times"][name]


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
    runs = [{isa: forced(isa, fill_plots.BY_SIZE, DTYPES[:2]) for isa in ("avx512", "avx2")} for _ in range(2)]
    for case in runs[0]["avx2"]:
        speed = {isa: max(r[isa][case]["elements_per_second"]["xinit"] for r in runs) for isa in runs[0]}
        yield f"{' '.join(case)} avx2, of avx512", AVX2, speed["avx2"] / speed["avx512"]


def baseline():
    for case, row in forced("default", fill_plots.BY_SIZE[:1], DTYPES[:3]).items():
        yield f"{' '.join(case)} baseline, times torch", BASELINE, row["xinit_times"]["torch"]


def floors():
    """Functions that measure, each for some (what, required, reached)."""
    for label, required in FLOORS.items():
        yield from (partial(ratios, label, dtype, SIZE, {"torch": floor}) for dtype, floor in required.items())
    for log2, floor in SMALL.items():
        yield from (partial(ratios, label, "float32", log2, {"torch": floor}) for label in FUNCTIONS)
    for where in PLACES:
        yield from (partial(placed, label, where) for label in ("uniform_", "normal_"))
    if xinit.build_info()["cpu_isa"] == "avx512":
        yield avx2
    yield baseline


def gpu_floors(device="cuda", log2=LARGE):
    for label in FLOORS:
        for (kind, dtype), required in GPU_FLOORS.items():
            if kind == FUNCTIONS[label].kind:
                yield partial(ratios, label, dtype, log2, required, device)
    for small in GPU_SMALL:
        yield from (partial(ratios, label, "float32", small, {"torch": 1.0}, device, wall=True) for label in FUNCTIONS)


def quietly(measured, bystanders):
    """Its rows, and the others' share meanwhile. What was measured while the machine was busy is measured again."""
    for _ in range(3):
        rows, others = list(measured()), bystanders.share()
        if others < timing.BUSY:
            break
    return rows, others


def check(required, again=4):
    """What was required and reached of all floors, printed as it comes, each with a verdict: ok, FAILED or busy.

    What misses one is measured four times more, and the median of the five counts: what runs beside a virtual machine slows
    memory and not torch.nn.init for seconds on end, and no count of its own tells. What was always busy does not count.
    """
    print(f"{'what':<60} {'required':>8} {'reached':>8} {'others':>6}")
    bystanders, results = timing.Bystanders(), []
    for measured in required:
        runs = [quietly(measured, bystanders)]
        if any(reached < floor for _, floor, reached in runs[0][0]):
            runs += [quietly(measured, bystanders) for _ in range(again)]
        others = max(share for _, share in runs)
        for repeated in zip(*(rows for rows, _ in runs), strict=True):
            what, floor, _ = repeated[0]
            each = [reached for *_, reached in repeated]
            reached, all_of_them = statistics.median(each), ", ".join(f"{ratio:.2f}" for ratio in each)
            verdict = "busy" if others >= timing.BUSY else "FAILED" if reached < floor else "ok"
            results.append({"what": what, "required": floor, "reached": reached, "runs": each, "verdict": verdict})
            note = f" (median of {all_of_them})" if len(runs) > 1 else ""
            print(f"{what:<60} {floor:>8.2f} {reached:>8.2f} {others:>6.0%} {verdict}{note}", flush=True)
    verdicts = [result["verdict"] for result in results]
    print(", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)))
    return results


def check_device(device):
    """Whether all floors of the device hold."""
    torch.set_num_threads(min(2, timing.cores()))
    print(timing.describe(timing.machine([device]), device))
    return all(result["verdict"] == "ok" for result in check(floors() if device == "cpu" else gpu_floors()))


def plot(record):
    for device in dict.fromkeys(r["device"] for r in record["rows"]):
        rows = [r for r in record["rows"] if r["device"] == device]
        pictures = {
            "fill_functions": fill_plots.functions(record, rows, SIZE if device == "cpu" else LARGE, FUNCTIONS, DTYPES),
            "fill_sizes": fill_plots.sizes(record, rows),
        }
        for name, drawn in pictures.items():
            if drawn is not None:
                timing.save(drawn, f"{name}{'' if device == 'cpu' else '_' + device}.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    add("--sizes", nargs="+", type=int, metavar="LOG2", help="powers of two; 24 is 4096 x 4096; by default 4, 6, ...")
    add("--devices", nargs="+", default=devices, choices=devices)
    add("--threads", type=int, default=timing.cores())
    add("--rounds", type=int, default=ROUNDS)
    add(
        "--against",
        nargs="*",
        choices=CONTESTANTS,
        help="besides torch.nn.init and fill_; by default those that are installed",
    )
    add("--json", type=Path, metavar="FILE", help="write everything there")
    add("--save", action="store_true", help="write it to benchmarks/results/fill_<device>.json")
    add("--plot", nargs="?", const=True, metavar="FROM.json", help="draw what was measured now, or what is in a file")
    add("--check", action="store_true", help="exit 0 only if the floors hold")
    args = parser.parse_args()
    if args.check:
        return 0 if all([check_device(device) for device in args.devices]) else 1
    if isinstance(args.plot, str):
        return plot(timing.read(args.plot))
    labels = [label for label in FUNCTIONS if any(label.startswith(name) for name in args.functions)]
    torch.set_num_threads(args.threads)
    record = {"machine": timing.machine(args.devices), "rows": []}
    for device in args.devices:
        sizes = args.sizes or range(4, 27 if device == "cpu" else LARGE + 1, 2)
        record["rows"] += table(device, labels, args.dtypes, sizes, args.against, args.rounds)
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
