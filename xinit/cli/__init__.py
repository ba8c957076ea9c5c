"""The command line: ``xinit``, or ``python -m xinit``.

A verb is a line in :data:`xinit.cli.grammar.VERBS`, which is read before torch is imported, and a module of its name here, whose
``run`` takes what was parsed and returns the exit status. It is imported when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from xinit.cli.grammar import parse


def main() -> int:
    """Run the verb that was asked for, and give its exit status."""
    arguments = parse(sys.argv[1:])
    try:
        status: int = import_module(f"xinit.cli.{arguments.verb}").run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # its reader has seen enough: nothing more may be written, nor said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


@contextmanager
def one_line(doing: str) -> Iterator[None]:
    """Ends the process with status 2, and what went wrong where: what is named on the command line is the user's own code."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]  # torch adds a stack
        print(f"xinit: error: {doing}: {reason or type(error).__name__}", file=sys.stderr)
        sys.exit(2)
