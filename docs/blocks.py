"""The code of a page, run as it stands, from the repository's root:

    python docs/blocks.py docs/worked.md    # prints what it prints, and draws its pictures

Blocks of Python share one namespace. A block of text shows what the block before it prints; "..." stands for lines left out.
"""

import contextlib
import io
import math
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


class Block(NamedTuple):
    """A fenced block: its language, what stands in it, and the text that the page shows of what it prints."""

    language: str
    code: str
    shown: str = ""


def blocks(page: str) -> list[Block]:
    """Those of a page, in order."""
    found: list[Block] = []
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.M | re.S):
        if language == "text" and found:
            found[-1] = found[-1]._replace(shown=code)
        else:
            found.append(Block(language, code))
    return found


def commands(code: str) -> list[list[str]]:
    """The lines of a shell block, as words, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(block: Block, space: dict[str, object]) -> str:
    """What a block prints. Of the shell's commands xinit's own alone are run, here."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if block.language == "python":
            exec(block.code, space)
        elif block.language == "sh":
            for words in commands(block.code):
                if words[0] == "xinit":
                    _xinit(words)
    return printed.getvalue()


def _xinit(words: list[str]) -> None:
    from xinit.cli import main

    with mock.patch.object(sys, "argv", words):
        main()


def missing(shown: str, printed: str) -> Iterator[str]:
    """Lines of a page that were not printed in this order: words must be the same, and numbers within 10 %."""
    lines = iter(printed.splitlines())
    for line in shown.splitlines():
        if line.strip() not in ("", "...") and not any(_same(line, other) for other in lines):
            yield line
            return


def _same(line: str, other: str) -> bool:
    words, others = ([*_NUMBER.sub("#", text).split()] for text in (line, other))
    numbers, them = (_NUMBER.findall(text) for text in (line, other))
    return words == others and all(
        math.isclose(float(a), float(b), rel_tol=0.1, abs_tol=1e-12) for a, b in zip(numbers, them, strict=True)
    )


if __name__ == "__main__":
    names: dict[str, object] = {}
    for each in blocks(Path(sys.argv[1]).read_text()):
        print(run(each, names), end="", flush=True)
