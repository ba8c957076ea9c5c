"""``xinit diagnose``: whether signals and gradients come through a model, as it is initialised."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xinit import Key, diagnose, init_, normal_, recommend
from xinit.cli import one_line
from xinit.cli.target import build
from xinit.recipes import RECIPES, Recipe, kaiming, xavier


def run(arguments: argparse.Namespace) -> int:
    """Returns 1 if there are flags, otherwise 0."""
    with one_line(f"--recipe {arguments.recipe}"):
        if arguments.recipe not in (None, "recommend", *RECIPES):
            raise ValueError(f"there is none of that name, but recommend, {', '.join(RECIPES)}")
    with one_line(arguments.target):
        torch.manual_seed(arguments.seed)
        model = build(arguments.target, arguments.arguments, "cpu")
    key = Key(arguments.seed)
    with one_line(f"diagnose {type(model).__name__}"):
        kinds = (key.fold_in(f"input {i}") for i in range(len(arguments.input)))
        inputs = [batch(model, shape, k, arguments.tokens) for shape, k in zip(arguments.input, kinds, strict=True)]
        if arguments.recipe:
            init_(model, recipe_of(arguments.recipe, model, inputs), key)
        report = diagnose(model, *inputs, backward=not arguments.forward)
    print(report)
    if arguments.plot:
        with one_line(f"--plot {arguments.plot}"):
            report.plot(arguments.plot)
    return 0 if report.sound else 1


def recipe_of(name: str, model: nn.Module, inputs: Sequence[Tensor]) -> Recipe:
    """By its name; those that go by what follows each matrix see it in a pass of the batch."""
    if name == "recommend":
        return recommend(model, *inputs)
    seeing = {"kaiming": kaiming, "xavier": xavier}.get(name)
    return seeing(inputs=tuple(inputs)) if seeing else name


def batch(model: nn.Module, shape: tuple[int, ...], key: Key, tokens: bool) -> Tensor:
    """Standard normal, or numbers of tokens, each as often as another, below the size of the model's first embedding."""
    if not tokens:
        return normal_(torch.empty(shape), key=key)
    table = next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)
    if table is None:
        raise ValueError("--tokens: the model has no nn.Embedding")
    generator = torch.Generator().manual_seed(key.stream % 2**63)
    return torch.randint(table.num_embeddings, shape, generator=generator)
