"""``xinit``, or ``python -m xinit``: ``demo`` initialises two models and measures them, ``plan`` shows how a recipe would,
``info`` says what this build is. Errors of the user's are told in one line."""

from __future__ import annotations

import argparse
import os
import sys
from ast import literal_eval
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from xinit import Key, build_info
from xinit.cli import demo
from xinit.cli.grammar import parse
from xinit.models.apply import plan
from xinit.recipes import RECIPES


@contextmanager
def one_line(doing: str) -> Iterator[None]:
    """Ends the process with status 2, and what went wrong where: what is named on the command line is the user's own code."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]  # torch adds a stack
        print(f"xinit: error: {doing}: {reason or type(error).__name__}", file=sys.stderr)
        sys.exit(2)


def value(text: str) -> Any:
    """A Python literal, or else the text itself."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def build(target: str, arguments: list[str]) -> nn.Module:
    """The model that ``package.module:Class`` makes of its arguments, on the meta device.

    Of a transformers model class, the arguments are those of its configuration; a configuration makes the model that the Auto
    classes choose for it.
    """
    module, _, path = target.partition(":")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.path.append(os.getcwd())  # which python -m has there, and a script has not
    made: Any = import_module(module)
    for part in path.split("."):
        made = getattr(made, part)
    named = {name: value(text) for name, equals, text in (a.partition("=") for a in arguments) if equals}
    unnamed = [value(argument) for argument in arguments if "=" not in argument]
    with torch.device("meta"):
        if getattr(made, "config_class", None):  # transformers', of a model
            return made(made.config_class(*unnamed, **named))  # type: ignore[no-any-return]
        made = made(*unnamed, **named)
        return made if isinstance(made, nn.Module) else from_config(made)


def from_config(config: Any) -> nn.Module:
    """The model of a transformers configuration, with its head if there is a usual one."""
    if not hasattr(config, "model_type"):
        raise ValueError(f"{type(config).__name__} is neither a torch.nn.Module nor a transformers configuration")
    transformers: Any = import_module("transformers")
    kinds = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageClassification")
    usual = (getattr(transformers, kind) for kind in kinds)
    auto = next((auto for auto in usual if type(config) in auto._model_mapping), transformers.AutoModel)
    model: nn.Module = auto.from_config(config)
    return model


def print_plan(arguments: argparse.Namespace) -> int:
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


def show_demo(arguments: argparse.Namespace) -> int:
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with one_line(f"--device {arguments.device}"):
        torch.empty(0, device=arguments.device)
    with one_line(f"--seed {arguments.seed}"):
        Key(arguments.seed)
    return demo.main(arguments)


def print_info(arguments: argparse.Namespace) -> int:
    for name, text in build_info().items():
        print(f"{name:12}{text}")
    return 0


COMMANDS = {"demo": show_demo, "plan": print_plan, "info": print_info}


def main() -> int:
    arguments = parse(sys.argv[1:])
    try:
        status = COMMANDS[arguments.command](arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # its reader has seen enough: nothing more may be written, nor said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
