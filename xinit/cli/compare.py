"""``xinit compare``: which initialisation keeps a deep network alive, as measured, beside theory."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xinit.cli import one_line
from xinit.insight import compare, training
from xinit.insight.pictures import save


def run(arguments: argparse.Namespace) -> int:
    """Returns 1 if for some activation none of the methods keeps activations and gradients alive, otherwise 0."""
    return _train(arguments) if arguments.train else _compare(arguments)


def _compare(arguments: argparse.Namespace) -> int:
    activations, methods = arguments.activation.split(","), arguments.method.split(",")
    depth, width = arguments.depth, arguments.width
    with one_line("compare"):
        pairs = compare.compare(activations, methods, depth, width, _bar)
    note = (
        f"{depth} layers of {width} units, batches of 64, one seed; dashed: theory, in the limit of great width; "
        "shaded: within a factor of 10"
    )
    if arguments.json:
        print(json.dumps({"depth": depth, "width": width, "pairs": compare.as_dicts(pairs)}))
    else:
        print(f"RMS after {depth} layers of {width} units, forward and back, of 1 at first\n")
        print(f"{compare.as_table(pairs)}\n\n{compare.LEGEND}")
    if arguments.plot:
        with one_line(f"--plot {arguments.plot}"):
            save(compare.draw(pairs, note), arguments.plot)
    alive = {pair.activation for pair in pairs if pair.verdict == "lives"}
    return 0 if alive >= set(activations) else 1


def _train(arguments: argparse.Namespace) -> int:
    """Returns 1 if what the papers showed is not seen again, otherwise 0."""
    with one_line("--train"):
        curves, passed = training.repeat(_bar)
    if arguments.json:
        said = [{"depth": c.depth, "method": c.method, "seed": c.seed, "errors": c.errors} for c in curves]
        print(json.dumps({"curves": said}))
    else:
        print(training.report(curves, passed))
    if arguments.plot:
        path = Path(arguments.plot)
        with one_line(f"--plot {path}"):
            save(training.draw_curves(curves), path)
            save(training.draw_passed(passed), path.with_stem(f"{path.stem}_layers"))
    return 0 if training.as_published(curves, passed) else 1


def _bar(steps: Sequence[Any]) -> Iterable[Any]:
    """The steps, counted on a terminal where there is tqdm, and nothing in a pipe."""
    if not (sys.stderr.isatty() and find_spec("tqdm")):
        return steps
    bar: Iterable[Any] = import_module("tqdm").tqdm(steps, leave=False)
    return bar
