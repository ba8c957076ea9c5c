"""Timing of calls that take turns, and the machine they were timed on: what ``xinit bench`` and the benchmarks share."""

from __future__ import annotations

import math
import os
import platform
import time
import timeit
from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

import xinit

ROUNDS = 11
BUSY = 0.05  # of the machine's processor time taken by others: then a figure means nothing


Call = Callable[..., Any]
Timed = dict[str, dict[str, Any]]


def seconds(call: Call, calls: int, device: str, wall: bool = False) -> float:
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
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    timer.timeit(calls)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / calls


def calls_for(call: Call, device: str, wall: bool = False, least: float = 8e-3) -> tuple[int, float]:
    """How many calls last long enough to be timed. They warm up, too."""
    calls = 1
    while (once := seconds(call, calls, device, wall)) * calls < least:
        calls = min(10 * calls, math.ceil(1.2 * least / once))
    return calls, once


def interleaved(
    contestants: dict[str, Call],
    device: str = "cpu",
    rounds: int = ROUNDS,
    budget: float = math.inf,
    fresh: Callable[[], torch.Tensor] | None = None,
    wall: bool = False,
) -> Timed:
    """{name: {median, quartiles, runs}}, in seconds a call, of functions that take turns, so that drift hits all alike.

    One that would take longer than the budget, in seconds, takes part in fewer rounds, evenly spread, but in three at
    least. With `fresh`, each run is one call with a new tensor that this makes; otherwise the calls take nothing.
    """
    plan = {}
    for name, call in contestants.items():
        calls, once = (1, 0.0) if fresh else calls_for(call, device, wall)
        plan[name] = call, calls, max(3, int(min(rounds, budget / (once * calls or 1))))
    times: dict[str, list[float]] = {name: [] for name in plan}
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


def spread(timed: Timed) -> float:
    """The widest distance between a quartile and the median, as a fraction of it."""
    return max(abs(float(quartile / t["median"] - 1)) for t in timed.values() for quartile in t["quartiles"])


class Bystanders:
    """What part of the machine's processor time others take, so that it is known which figures mean nothing."""

    def __init__(self) -> None:
        self.then = self.now()

    @staticmethod
    def now() -> tuple[int, int, float]:
        """Clock ticks: all, unused, and our own, with our children's."""
        ticks = [int(n) for n in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
        return sum(ticks), ticks[3] + ticks[4], sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK")

    def share(self) -> float:
        """Since it was last asked."""
        before, self.then = self.then, self.now()
        total, unused, own = (b - a for a, b in zip(before, self.then, strict=True))
        return max(0.0, (total - unused - own) / max(1, total))


def cores() -> int:
    return len(os.sched_getaffinity(0))


def cpu_model() -> str:
    """As the kernel names it; hypervisors hide the rest of the name, so family and model are said too."""
    lines = (line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    info = {name.strip(): value[0].strip() for name, *value in lines if value}
    if "model name" not in info:
        return platform.machine()
    return f"{info['model name']} (family {info['cpu family']}, model {info['model']})"


def machine(devices: Iterable[str] = ("cpu",)) -> dict[str, Any]:
    """What figures depend on, for their record."""
    build = xinit.build_info()
    versions: dict[str, str | None] = {"python": platform.python_version()}
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


def describe(machine: dict[str, Any], device: str = "cpu") -> str:
    """One line."""
    if device != "cpu":
        return f"{machine['gpu']}, torch {machine['versions']['torch']}, {machine['date']}"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)} on {machine['cores']} cores"
    return f"{machine['cpu']}, {machine['isa']}, {threads}, torch {machine['versions']['torch']}, {machine['date']}"


def shape_of(log2: int) -> tuple[int, int]:
    """As near to a square as 2^log2 elements can be."""
    return 2 ** (log2 - log2 // 2), 2 ** (log2 // 2)
