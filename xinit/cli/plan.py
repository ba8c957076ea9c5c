"""``xinit plan``: what a recipe would do to each parameter of a model."""

from __future__ import annotations

import argparse

from xinit import plan
from xinit.cli import one_line
from xinit.cli.target import build
from xinit.recipes import RECIPES


def run(arguments: argparse.Namespace) -> int:
    """Returns 1 if there are parameters that cannot be initialised, otherwise 0."""
    with one_line(f"--recipe {arguments.recipe}"):
        if arguments.recipe not in (None, *RECIPES):
            raise ValueError(f"there is none of that name, but {', '.join(RECIPES)}")
    with one_line(arguments.target):
        model = build(arguments.target, arguments.arguments)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    recipe = arguments.recipe or (kind if kind in RECIPES else "torch")
    with one_line(f"plan of {type(model).__name__}"):
        shown = plan(model, recipe, only=arguments.only, skip=arguments.skip)
    print(f"{type(model).__name__}, recipe {recipe}\n")
    print(shown if arguments.all else shown.folded())
    return 1 if shown.problems else 0
