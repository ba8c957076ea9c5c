"""``python -m xinit``: ``demo`` initialises two models and measures them, ``plan`` shows how a recipe would, ``info`` says
what this build is."""

from __future__ import annotations

import argparse
import os
import sys
from ast import literal_eval
from importlib import import_module
from typing import Any

import torch
from torch import nn

from xinit import build_info, demo
from xinit.model import plan
from xinit.recipes import RECIPES

PLAN = "print what a recipe would do to each parameter of a model, which is built without memory"
EXAMPLES = """examples:
  python -m xinit plan transformers:LlamaConfig hidden_size=256 num_hidden_layers=4
  python -m xinit plan transformers:GPT2LMHeadModel --recipe gpt2 --only '*.c_proj.*'
  python -m xinit plan torch.nn:Transformer 256 nhead=4
  python -m xinit plan mypackage.models:Net width=64 --recipe mup --all"""


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
    if not path:
        raise ValueError(f"{target} is not of the form package.module:Class")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
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
    model = build(arguments.target, arguments.arguments)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    recipe = arguments.recipe or (kind if kind in RECIPES else "torch")
    shown = plan(model, recipe, only=arguments.only, skip=arguments.skip)
    print(f"{type(model).__name__}, recipe {recipe}\n")
    print(shown if arguments.all else shown.folded())
    return 1 if shown.problems else 0


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", metavar="package.module:Class", help="a model's class, or a transformers configuration's"
    )
    parser.add_argument("arguments", nargs="*", metavar="name=value", help="what to construct it with")
    parser.add_argument("--recipe", choices=RECIPES, help="by default the model's own if there is one, or else torch")
    parser.add_argument("--only", action="append", metavar="GLOB", help="only the parameters with such a name")
    parser.add_argument("--skip", action="append", metavar="GLOB", help="but not those with such a name")
    parser.add_argument("--all", action="store_true", help="a line for each parameter, not one for all layers")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m xinit", description="Weight initialisation for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("info", help="print the version, and what it was built with")
    demo.add_arguments(commands.add_parser("demo", help=demo.SUMMARY, description=demo.SUMMARY))
    raw = argparse.RawDescriptionHelpFormatter
    planner = commands.add_parser("plan", help=PLAN, description=PLAN, epilog=EXAMPLES, formatter_class=raw)
    add_plan_arguments(planner)
    arguments = parser.parse_args()
    if arguments.command == "demo":
        return demo.main(arguments)
    if arguments.command == "plan":
        try:
            return print_plan(arguments)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            planner.error(str(error))
    for name, text in build_info().items():
        print(f"{name:12}{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
