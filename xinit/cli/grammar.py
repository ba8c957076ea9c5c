"""The command line's grammar. It knows nothing of torch, so that ``xinit --help``, or a typo, is answered at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from xinit._load import built

STATUS = """\
exit status: 0 if all is well, 1 if problems were found,
2 if the command could not be carried out"""


class Parser(argparse.ArgumentParser):
    """As argparse's, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"xinit: error: {message} (see {self.prog} --help)\n")


class Version(argparse.Action):
    """As argparse's own, with a version that is looked for only when it is asked for."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(
            option_strings, dest, nargs=0, help="print the version, and that of the torch it was built with"
        )

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print("xinit {}, built with torch {}".format(*built()))
        parser.exit()


def target(text: str) -> str:
    """The type of an argument that :func:`xinit.cli.target.build` takes."""
    if not all(text.partition(":")):
        raise argparse.ArgumentTypeError(f"{text} is not of the form package.module:Class")
    return text


def add_model(verb: argparse.ArgumentParser) -> None:
    """``target`` and ``arguments``, for :func:`xinit.cli.target.build`."""
    verb.add_argument(
        "target",
        metavar="package.module:Class",
        type=target,
        help="a model's class, or a transformers configuration's",
    )
    verb.add_argument("arguments", nargs="*", metavar="name=value", help="what to construct it with")


def demo(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--seed", type=int, default=0, help="of the key from which every weight's own is derived")
    verb.add_argument("--device", help="by default cuda if there is a GPU, or else cpu")
    verb.add_argument("--small", action="store_true", help="the same models with few weights")


def bench(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--quick", action="store_true", help="three functions and sizes, in 30 seconds at most")
    verb.add_argument("--device", help="by default cuda if there is a GPU, or else cpu")


def plan(verb: argparse.ArgumentParser) -> None:
    add_model(verb)
    verb.add_argument("--recipe", help="a name; by default the model's own if there is one, or else torch")
    verb.add_argument("--only", action="append", metavar="GLOB", help="only the parameters with such a name")
    verb.add_argument("--skip", action="append", metavar="GLOB", help="but not those with such a name")
    verb.add_argument("--all", action="store_true", help="a line for each parameter, not one for all layers")


def shape(text: str) -> tuple[int, ...]:
    """The type of an argument such as 32x784."""
    sizes = text.split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text} is no shape such as 32x784")
    return tuple(map(int, sizes))


def diagnose(verb: argparse.ArgumentParser) -> None:
    add_model(verb)
    verb.add_argument(
        *("--input", "-i"), action="append", required=True, type=shape, metavar="32x784", help="the shape of a batch"
    )
    verb.add_argument("--tokens", action="store_true", help="of numbers of tokens, not of normal numbers")
    verb.add_argument("--recipe", help="by name, or recommend; by default the model is as its constructor leaves it")
    verb.add_argument("--seed", type=int, default=0, help="of weights and batch")
    verb.add_argument("--forward", action="store_true", help="without gradients")
    verb.add_argument("--plot", metavar="FILE", help="draw activations and gradients by depth")


def compare(verb: argparse.ArgumentParser) -> None:
    activations, methods = "relu,tanh,gelu", "kaiming_normal,xavier_uniform,sqrt_2_fan,torch"
    verb.add_argument("--activation", default=activations, help="names of torch.nn.functional, by default %(default)s")
    verb.add_argument(
        "--method",
        default=methods,
        help="by default %(default)s; there are kaiming_uniform, xavier_normal, lecun_normal and orthogonal too",
    )
    verb.add_argument("--depth", type=int, default=50, help="layers, by default %(default)s")
    verb.add_argument("--width", type=int, default=512, help="units in each, by default %(default)s")
    verb.add_argument("--plot", metavar="FILE", help="draw it: a PNG, SVG or PDF; takes matplotlib")
    verb.add_argument("--json", action="store_true", help="all numbers, by layer")
    verb.add_argument(
        "--train",
        action="store_true",
        help="instead, what He et al. (2015) and Glorot & Bengio (2010) showed, on scikit-learn's digits, in two minutes",
    )


class Verb(NamedTuple):
    """What the command line can be asked to do, by ``run`` of the module of the verb's name in :mod:`xinit.cli`.

    Attributes:
        help: what it does, in a line.
        add: adds its arguments to its parser.
        examples: shell commands, one a line.
        opening: what it is about to do, said before torch is imported, which takes seconds.
    """

    help: str
    add: Callable[[argparse.ArgumentParser], None] = lambda verb: None
    examples: str = ""
    opening: str = ""


VERBS = {
    "info": Verb("print the version, and what it was built with"),
    "demo": Verb(
        "initialise a GPT-2 and a ResNet, and hold each kind of weight against theory, and the time against torch's",
        demo,
        opening="""\
A GPT-2 and a ResNet-50 are initialised, each kind of weight in its own way: by their constructors
and torch.nn.init, and by the same code within xinit.deferred(); then the values are measured.
""",
    ),
    "bench": Verb(
        "time fills on this machine beside torch.nn.init and fill_, in some minutes or, with --quick, half of one",
        bench,
        opening="Fills are timed beside torch.nn.init and fill_, in turn.",
    ),
    "compare": Verb(
        "put methods of initialisation beside each other in deep networks: which keeps activations and gradients alive",
        compare,
        """\
xinit compare
xinit compare --activation relu --depth 30 --plot relu.png
xinit compare --activation silu,mish --method kaiming_normal,orthogonal
xinit compare --train --plot train.png""",
    ),
    "plan": Verb(
        "print what a recipe would do to each parameter of a model, which is built without memory",
        plan,
        """\
xinit plan transformers:LlamaConfig hidden_size=256 num_hidden_layers=4
xinit plan transformers:GPT2LMHeadModel --recipe gpt2 --only '*.c_proj.*'
xinit plan torch.nn:Transformer 256 nhead=4
xinit plan mypackage.models:Net width=64 --recipe mup --all""",
    ),
    "diagnose": Verb(
        "run a model forward and backward, and tell where signals or gradients die, explode or get stuck, and why",
        diagnose,
        """\
xinit diagnose mypackage.models:Net width=64 --input 32x784 --plot net.png
xinit diagnose transformers:GPT2Config n_layer=6 --tokens --input 2x64""",
    ),
}


def parser() -> Parser:
    top = Parser(prog="xinit", description="Weight initialisation for PyTorch.", epilog=STATUS)
    top.add_argument("--version", action=Version)
    verbs = top.add_subparsers(dest="verb", metavar="command", required=True)
    for name, verb in VERBS.items():
        examples = "".join(f"  {line}\n" for line in verb.examples.splitlines())
        epilog = f"examples:\n{examples}\n{STATUS}" if examples else STATUS
        layout = argparse.RawDescriptionHelpFormatter if examples else argparse.HelpFormatter
        added = verbs.add_parser(name, help=verb.help, description=verb.help, epilog=epilog, formatter_class=layout)
        verb.add(added)
    return top


def parse(arguments: list[str]) -> argparse.Namespace:
    """What they ask for: ``verb`` and its arguments. Exits with 0 after help or a version, and with 2 after an error."""
    top = parser()
    if not arguments:
        top.print_help()
        top.exit()
    return top.parse_args(arguments)


def answer() -> None:
    """All that can be said before torch is imported, if this process is the command line."""
    if is_running() and (opening := VERBS[parse(sys.argv[1:]).verb].opening):
        print(opening, flush=True)


def is_running() -> bool:
    """Whether this process was started as ``xinit`` or as ``python -m xinit``, while the package is being imported."""
    if sys.argv[:1] == ["-m"]:  # until Python has found the module that it is to run
        return sys.orig_argv[-len(sys.argv)] in ("xinit", "-mxinit")
    return bool(sys.argv) and Path(sys.argv[0]).name == "xinit"
