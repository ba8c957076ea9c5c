"""Keys: values that name a stream of random words."""

from __future__ import annotations

import operator
import sys
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch

from xinit import _C
from xinit._torch import constant_when_compiled

_LIMIT, _HALF = 1 << 64, 1 << 63


def _unsigned(name: str, value: SupportsIndex, least: int) -> int:
    numpys = not isinstance(value, int) and type(value).__name__ in ("bool", "bool_")  # an index, before NumPy 2.3
    if numpys or isinstance(value, bool):
        raise TypeError(f"Key: {name} must be an int, but found {value!r} of type bool")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"Key: {name} must be an int, but found {value!r} of type {type(value).__name__}") from None
    if not least <= number < _LIMIT:
        raise ValueError(f"Key: {name} must be in [{least}, 2**64), but found {number}")
    return number % _LIMIT


def _signed(number: int) -> int:
    return number if number < _HALF else number - _LIMIT


@constant_when_compiled
def _fold(seed: int, stream: int, data: str | int) -> int:
    return _C.fold_in(seed, stream, data)


@constant_when_compiled
def _name_words(name: str) -> tuple[int, ...]:
    """The number of its bytes, and these, eight a word: as an operator's key takes a name that is to be folded in."""
    data = name.encode()
    starts = range(0, len(data), 8)
    return len(data), *(int.from_bytes(data[i : i + 8].ljust(8, b"\0"), sys.byteorder, signed=True) for i in starts)


@dataclass(frozen=True, slots=True)
class Key:
    """The name of one endless row of random words: a seed and a stream, both unsigned 64-bit integers.

    A key is a value: equal keys give equal weights, on any device, in any order, however often they are used. Use one key
    for each tensor, derived by :meth:`fold_in`.

    Args:
        seed: an integer in [-2**63, 2**64); a negative one means its two's complement, as for ``torch.manual_seed``.
        stream: an integer in [0, 2**64).

    Raises:
        TypeError: if an argument is not an integer (a bool is not).
        ValueError: if it is out of range.

    Example:
        >>> import torch, xinit
        >>> key = xinit.Key(0).fold_in("layers.0.weight")
        >>> w = xinit.normal_(torch.empty(3, 5), key=key)
        >>> torch.equal(xinit.normal_(torch.empty(3, 5), key=key), w)
        True
    """

    seed: int
    stream: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("seed", self.seed, -(1 << 63)), ("stream", self.stream, 0)):
            # isinstance, because torch.compile understands neither type() nor __class__ of a number that varies
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LIMIT:
                object.__setattr__(self, name, _unsigned(name, value, least))

    def fold_in(self, data: str | SupportsIndex) -> Key:
        """A new key for a part of what this one names: a parameter by its name, a layer or an expert by its number.

        The new stream is the little-endian 8-byte BLAKE2b digest of seed, stream and data; strings and integers never
        meet. The order of folding matters.

        Args:
            data: a string, or an integer in [0, 2**64).

        Raises:
            TypeError: if ``data`` is neither.
            ValueError: if the integer is out of range.

        Example:
            >>> import xinit
            >>> xinit.Key(0).fold_in("weight")
            Key(seed=0, stream=5545109141820079266)
        """
        if not isinstance(data, str) and (
            not isinstance(data, int) or isinstance(data, bool) or not 0 <= data < _LIMIT
        ):
            data = _unsigned("data", data, 0)
        if torch.compiler.is_compiling():
            return _Folded(self, data)
        return _key(self.seed, _C.fold_in(self.seed, self.stream, data))

    @staticmethod
    def drawn(generator: torch.Generator) -> Key:
        """The key that one draw from a generator gives, as each of xinit's functions takes one without a ``key``.

        On a CPU the seed is one 64-bit draw. On CUDA it is the generator's, the stream is its offset / 4, and the offset
        advances by 4.

        Example:
            >>> import torch, xinit
            >>> key = xinit.Key.drawn(torch.Generator().manual_seed(0))
            >>> w = xinit.normal_(torch.empty(3), generator=torch.Generator().manual_seed(0))
            >>> torch.equal(w, xinit.normal_(torch.empty(3), key=key))
            True
        """
        if generator.device.type == "cpu":
            seed = torch.empty((), dtype=torch.int64, device="cpu").random_(-_HALF, None, generator=generator)
            return Key(int(seed))
        offset = generator.get_offset()
        generator.set_offset(offset + 4)
        return Key(generator.initial_seed(), offset // 4)

    @property
    def words(self) -> tuple[int, ...]:
        """(seed, stream) as the signed 64-bit integers that ``torch.ops.xinit`` takes."""
        return _signed(self.seed), _signed(self.stream)


def _key(seed: int, stream: int) -> Key:
    """Of words that need no check: a model's parameters are many."""
    key: Key = object.__new__(Key)
    _seed.__set__(key, seed)
    _stream.__set__(key, stream)
    return key


_slots: Any = Key
_seed, _stream = _slots.seed, _slots.stream


class _Folded(Key):
    """A key that a compiled function folds: from another one with each call, so that the operators are left to fold it."""

    __slots__ = ("data", "of")
    of: Key
    data: str | int

    def __init__(self, of: Key, data: str | int) -> None:
        object.__setattr__(self, "of", of)
        object.__setattr__(self, "data", data)

    @property
    def seed(self) -> int:
        return self.of.seed

    @property
    def stream(self) -> int:
        # index: torch.compile makes numbers that vary between calls symbols, which no digest can take, but not an index
        data = self.data if isinstance(self.data, str) else operator.index(self.data)
        return _fold(operator.index(self.of.seed), operator.index(self.of.stream), data)

    @property
    def words(self) -> tuple[int, ...]:
        folded = _name_words(self.data) if isinstance(self.data, str) else (-1, _signed(self.data))
        return *self.of.words, *folded

    # Returned, it is the key that it stands for.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and (self.seed, self.stream) == (other.seed, other.stream)

    __hash__ = Key.__hash__

    def __repr__(self) -> str:
        return repr(Key(self.seed, self.stream))

    def __reduce__(self) -> tuple[type[Key], tuple[int, int]]:
        return Key, (self.seed, self.stream)
