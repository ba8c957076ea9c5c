"""``xinit bench``: how fast this machine fills tensors, beside ``torch.nn.init`` and ``fill_``. benchmarks/fill.py says more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from math import sqrt
from time import perf_counter
from typing import Any

import torch

import xinit
from xinit.cli import one_line
from xinit.cli.timing import BUSY, Bystanders, Call, Timed, describe, interleaved, machine, shape_of, spread
from xinit.parameters.table import table

FUNCTIONS: dict[str, dict[str, Any]] = {
    "xavier_uniform_": {},
    "kaiming_normal_": {"nonlinearity": "relu"},
    "trunc_normal_": {"std": 0.02, "a": -0.04, "b": 0.04},
    "kaiming_uniform_": {"nonlinearity": "relu"},
    "xavier_normal_": {},
    "uniform_": {},
    "normal_": {},
}
QUICK = 15.0  # seconds, after which no line is begun
LIMIT = 6.0  # standard errors


def cases(quick: bool) -> Iterator[tuple[str, str, int]]:
    """Function, dtype, and log2 of the elements."""
    for dtype in ("float32", "bfloat16"):
        for log2 in (10, 16, 22) if quick else (4, 10, 16, 20, 24):
            for function in [*FUNCTIONS][: 3 if quick else None]:
                yield function, dtype, log2


def measure(function: str, dtype: str, log2: int, device: str, quick: bool) -> tuple[Timed, int]:
    """Times of each contestant, on the same memory.

    Raises:
        RuntimeError: if xinit's values are not of their distribution.
    """
    w = torch.empty(shape_of(log2), dtype=getattr(torch, dtype), device=device)
    ours = partial(getattr(xinit, function), w, **FUNCTIONS[function])
    law = getattr(xinit, function.rstrip("_"))(**FUNCTIONS[function]).resolve(w.shape)
    ours()
    about = (w.double() - (0.5 if function == "uniform_" else 0)).square().mean().sqrt().item()
    # A normal's; others' standard errors are smaller. Rounding to bfloat16 adds less than that.
    if abs(about / law.std - 1) > LIMIT * sqrt(0.5 / w.numel()) + 1e-3:
        raise RuntimeError(f"{function} of {dtype}: standard deviation {about:.4g}, not {law.std:.4g}")
    contestants: dict[str, Call] = {
        "xinit": ours,
        "torch": partial(getattr(torch.nn.init, function), w, **FUNCTIONS[function]),
        "fill_": partial(w.fill_, 1.0),
    }
    return interleaved(contestants, device, budget=0.25 if quick else 2.0), w.numel()


def duration(seconds: float) -> str:
    """In three digits."""
    scale, unit = next((s, u) for s, u in ((1e6, "µs"), (1e3, "ms"), (1, "s")) if seconds * s < 999.5 or s == 1)
    return f"{seconds * scale:.{2 if seconds * scale < 9.995 else 1 if seconds * scale < 99.95 else 0}f} {unit}"


def run(arguments: argparse.Namespace) -> int:
    """Returns 1 if values are not of their distribution, otherwise 0."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with one_line(f"--device {device}"):
        torch.empty(0, device=device)
    print(f"{describe(machine([device]), device)}\n", flush=True)
    lines, start, bystanders = [], perf_counter(), Bystanders()
    todo = list(cases(arguments.quick))
    for i, (function, dtype, log2) in enumerate(todo):
        if arguments.quick and perf_counter() - start > QUICK:
            break
        if sys.stderr.isatty():
            print(f"\r{i} of {len(todo)}", end="\r", file=sys.stderr, flush=True)
        try:
            timed, elements = measure(function, dtype, log2, device, arguments.quick)
        except RuntimeError as error:
            print(f"xinit: error: {error}", file=sys.stderr)
            return 1
        times = {name: each["median"] for name, each in timed.items()}
        lines.append(
            [
                function,
                dtype,
                f"{elements:,}",
                *map(duration, times.values()),
                f"{times['torch'] / times['xinit']:.2f}",
                f"{times['fill_'] / times['xinit']:.0%}",
                f"{spread(timed):.0%}",
            ]
        )
    header = ("function", "dtype", "elements", "xinit", "torch", "fill_", "times torch", "of fill_", "spread")
    print(table(header, lines))
    print("\nmedians of calls in turn, on the same warm memory. times torch: as fast as torch.nn.init;")
    print("of fill_: of the speed of a constant; spread: the widest distance of a quartile from its median")
    if len(lines) < len(todo):
        print(f"{len(todo) - len(lines)} of {len(todo)} lines are left out, for the time they would take")
    if (others := bystanders.share()) > BUSY:
        print(f"other processes took {others:.0%} of the processors' time: ratios may be off, and times are")
    return 0
