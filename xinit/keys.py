"""Keys: values that name a stream of random words."""

from __future__ import annotations

import hashlib
import operator
from dataclasses import dataclass
from typing import SupportsIndex

import torch

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


@constant_when_compiled
def _folded(seed: int, stream: int, data: str | int) -> int:
    head = seed.to_bytes(8, "little") + stream.to_bytes(8, "little")
    tail = b"s" + data.encode() if isinstance(data, str) else b"i" + data.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(head + tail, digest_size=8).digest(), "little")


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
        meet. The order of folding matters. Under ``torch.compile`` the new key is a constant, so that a function which folds
        another one is compiled anew, and with ``fullgraph`` refused after torch's ``recompile_limit``, of 8: fold keys that vary
        before the call, and pass the new ones.

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
        # index: torch.compile makes numbers that vary between calls symbols, which no digest can take, but not an index
        seed, stream = operator.index(self.seed), operator.index(self.stream)
        return Key(seed, _folded(seed, stream, data if isinstance(data, str) else _unsigned("data", data, 0)))

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
    def words(self) -> tuple[int, int]:
        """(seed, stream) as the signed 64-bit integers that ``torch.ops.xinit`` takes."""
        seed, stream = self.seed, self.stream
        return seed if seed < _HALF else seed - _LIMIT, stream if stream < _HALF else stream - _LIMIT
