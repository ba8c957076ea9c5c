"""Tables of text, as plans and reports print them: numbers to the right, words to the left, a hundred columns at most."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from textwrap import fill, wrap

WIDTH = 100
_LEAST = 20  # columns that words are left, however many other columns there are
_NUMBER = re.compile(r"[-+±~<>≤≥]?(\d([\d.,/]*\d)?(e[-+]?\d+)?( ?[^\s\d.,]{1,4})?|inf|nan)|[-–—]")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], width: int = WIDTH) -> str:
    """Rows of cells under their titles.

    A column of numbers, with or without units of up to four letters, is right-aligned; one that is empty in all rows is left
    out. Where a line would be too long, words of the widest columns go on below, then the longest parts of names lose their
    middle: ``model.layers.{0..31}.post_a…ernorm.weight``. A cell may have several lines.

    Example:
        >>> print(table(("name", "std"), [("q.weight", "0.02"), ("norm.weight", "0")]))
        name          std
        q.weight     0.02
        norm.weight     0
    """
    rows = list(rows)
    columns = [column for column in zip(header, *rows, strict=True) if any(column[1:]) or not rows]
    numeric = [all(_NUMBER.fullmatch(cell) for cell in cells if cell) and bool(cells) for _, *cells in columns]
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    words = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    over = sum(widths) + 2 * (len(widths) - 1) - width
    for floors in [max(_LEAST, longest) for longest in words], [_LEAST] * len(words):
        while over > 0:
            spare = [0 if n else w - floor for n, w, floor in zip(numeric, widths, floors, strict=True)]
            if max(spare) <= 0:
                break
            widths[max(range(len(widths)), key=lambda i: (spare[i] > 0, widths[i]))] -= 1
            over -= 1
    lines = []
    for row in zip(*columns, strict=True):
        cells = [_fitted(cell, width) for cell, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            aligned = zip(parts, numeric, widths, strict=True)
            lines.append("  ".join(f"{part:{'>' if right else '<'}{size}}" for part, right, size in aligned).rstrip())
    return "\n".join(lines)


def _fitted(cell: str, width: int) -> list[str]:
    """Its lines, none of them longer than that."""
    lines = []
    for line in cell.split("\n"):
        words = " ".join(shortened(word, width) for word in line.split(" "))
        lines += [line] if len(line) <= width else wrap(words, width, break_on_hyphens=False)
    return lines


def paragraph(text: str) -> str:
    """What a table has below it: set in from the left, its words not broken, for they may be code."""
    return fill(
        text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def shortened(name: str, width: int) -> str:
    """A name in that many characters, if it can be: long parts lose their middle, then the first parts go; numbers stay.

    Example:
        >>> shortened("model.layers.{0..31}.post_attention_layernorm.weight", 40)
        'model.layers.{0..31}.post…norm.weight'
        >>> shortened("model.layers.{0..31}.post_attention_layernorm.weight", 32)
        '….{0..31}.post…norm.weight'
    """
    parts = re.split(r"\.(?!\.?\d+})", name)
    for i in sorted(range(len(parts)), key=lambda i: -len(parts[i])):
        if len(name) > width and len(parts[i]) > 11:  # or it would gain too little
            parts[i] = f"{parts[i][:4]}…{parts[i][-4:]}"
            name = ".".join(parts)
    for i in range(len(parts) - 2):
        if len(name) > width and parts[i].strip("{.}0123456789"):
            parts[i] = "…"
            name = re.sub(r"…(\.…)+", "…", ".".join(parts))
    return name


def fold(rows: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """One row, with the number of them before it, for all that differ only by numbers in their first cells, which are names.

    Example:
        >>> fold([("layers.0.weight", "ones"), ("layers.1.weight", "ones"), ("head.weight", "ones")])
        [('2', 'layers.{0..1}.weight', 'ones'), ('1', 'head.weight', 'ones')]
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, *cells in rows:
        parts = tuple(None if part.isdigit() else part for part in name.split("."))
        groups.setdefault((parts, *cells), []).append(name)
    return [(str(len(names)), _range(names), *map(str, cells)) for (_, *cells), names in groups.items()]


def _range(names: Sequence[str]) -> str:
    """The names as one, with the ranges of their numbers."""
    parts = []
    for column in zip(*(name.split(".") for name in names), strict=True):
        numbers = sorted({int(part) for part in column}) if column[0].isdigit() else []
        parts.append(f"{{{numbers[0]}..{numbers[-1]}}}" if len(numbers) > 1 else column[0])
    return ".".join(parts)
