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
from xinit.insight import pictures

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


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


def log_axes(axes, sizes, every=4):
    """Elements against speed, both logarithmic; every fourth power of 2 is marked, or so."""
    axes.set_xscale("log", base=2)
    exponents = range(4, max(sizes).bit_length(), every)
    axes.set_xticks([2**e for e in exponents], [f"$2^{{{e}}}$" for e in exponents])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(speed_label)
    axes.minorticks_off()
    axes.grid(True)
    axes.set_xlabel("elements")


def speed_label(x, _=None):
    """1e9 -> 1 G, 2e6 -> 2 M."""
    for scale, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if x >= scale:
            return f"{x / scale:g}{prefix}"
    return f"{x:g}"


def save(drawn, name):
    RESULTS.mkdir(parents=True, exist_ok=True)
    pictures.save(drawn, RESULTS / name)
    print(f"written to {RESULTS / name}")
