"""The command line's grammar. It knows nothing of torch, so that ``xinit --help``, or a typo, is answered at once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from xinit._load import built

DEMO = "build a GPT-2 and a ResNet deferred; print what comes out beside theory, and the time of the plain constructors"
PLAN = "print what a recipe would do to each parameter of a model, which is built without memory"
INFO = "print the version, and what it was built with"
STATUS = "exit status: 0 if all is well, 1 if problems were found, 2 if the command could not be carried out"
EXAMPLES = """examples:
  xinit plan transformers:LlamaConfig hidden_size=256 num_hidden_layers=4
  xinit plan transformers:GPT2LMHeadModel --recipe gpt2 --only '*.c_proj.*'
  xinit plan torch.nn:Transformer 256 nhead=4
  xinit plan mypackage.models:Net width=64 --recipe mup --all"""


class Version(argparse.Action):
    """As argparse's own, with a version that is looked for only when it is asked for."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(
            option_strings, dest, nargs=0, help="print the version, and that of the torch it was built with"
        )

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print("xinit {}, built with torch {}".format(*built()))
        parser.exit()


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="xinit", description="Weight initialisation for PyTorch.", epilog=STATUS)
    top.add_argument("--version", action=Version)
    commands = top.add_subparsers(dest="command", metavar="command")
    commands.add_parser("info", help=INFO, description=INFO, epilog=STATUS)

    demo = commands.add_parser("demo", help=DEMO, description=DEMO, epilog=STATUS)
    demo.add_argument("--seed", type=int, default=0, help="of the key from which every weight's own is derived")
    demo.add_argument("--device", help="by default cuda if there is a GPU, or else cpu")
    demo.add_argument("--small", action="store_true", help="the same models with few weights")

    plan = commands.add_parser(
        "plan", help=PLAN, description=PLAN, epilog=f"{EXAMPLES}\n\n{STATUS}", formatter_class=raw
    )
    plan.add_argument(
        "target", metavar="package.module:Class", help="a model's class, or a transformers configuration's"
    )
    plan.add_argument("arguments", nargs="*", metavar="name=value", help="what to construct it with")
    plan.add_argument("--recipe", help="a name; by default the model's own if there is one, or else torch")
    plan.add_argument("--only", action="append", metavar="GLOB", help="only the parameters with such a name")
    plan.add_argument("--skip", action="append", metavar="GLOB", help="but not those with such a name")
    plan.add_argument("--all", action="store_true", help="a line for each parameter, not one for all layers")
    return top


def parse(arguments: list[str]) -> argparse.Namespace:
    """Exits with 0 after help or a version, and with 2 after an error."""
    top = parser()
    if not arguments:
        top.print_help()
        top.exit()
    parsed = top.parse_args(arguments)
    if parsed.command == "plan" and not all(parsed.target.partition(":")):
        top.error(f"{parsed.target} is not of the form package.module:Class")
    return parsed


def is_running() -> bool:
    """Whether this process was started as ``xinit`` or as ``python -m xinit``, while the package is being imported."""
    if sys.argv[:1] == ["-m"]:  # until Python has found the module that it is to run
        return sys.orig_argv[-len(sys.argv)] in ("xinit", "-mxinit")
    return bool(sys.argv) and Path(sys.argv[0]).name == "xinit"
