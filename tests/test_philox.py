"""The words: published answers, an independent implementation, an independent package."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import level, levels, words

from xinit import _C, Key

KNOWN = [
    [int(word, 16) for word in line.split()]
    for line in (Path(__file__).parent / "data" / "philox4x32_10.txt").read_text().splitlines()
    if not line.startswith("#")
]
EDGES = (0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1)
MASK = 2**32 - 1


def philox(counter, key, rounds=10):
    """Philox4x32 from the paper, with Python's own integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(rounds):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def halves(x):
    return x & MASK, x >> 32


def test_there_are_known_answers():
    assert len(KNOWN) == 12
    assert {len(row) for row in KNOWN} == {10}


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: f"{row[0]:x}-{row[2]:x}-{row[4]:x}")
def test_known_answers(row):
    counter, key, expected = row[:4], row[4:6], row[6:]
    assert philox(counter, key) == expected != philox(counter, key, rounds=9)
    c0, c1, c2, c3, k0, k1 = row[:6]
    assert _C.words(k0 | k1 << 32, c0 | c1 << 32, c2 | c3 << 32, 1) == expected


@pytest.mark.parametrize("seed", EDGES)
def test_words_are_the_papers(seed):
    for stream, block in product(EDGES, EDGES):
        assert _C.words(seed, stream, block, 1) == philox(halves(stream) + halves(block), halves(seed))


def test_blocks_carry_across_32_bits():
    first = 2**32 - 3
    expected = [philox((5, 7, *halves(first + i)), (9, 11)) for i in range(6)]
    assert _C.words(9 | 11 << 32, 5 | 7 << 32, first, 6) == [word for block in expected for word in block]


@pytest.mark.parametrize(("seed", "stream", "block"), [(0, 0, 0), (2**63 + 12345, 2**64 - 1, 2**32 - 2), (1, 2**33, 7)])
def test_words_are_randomgens(seed, stream, block):
    randomgen = pytest.importorskip("randomgen")
    # Its counter is one 128-bit number, in which the stream stands below the block, and moves on before the first draw.
    counter = stream | block << 64
    generator = randomgen.Philox(counter=(counter - 1) % 2**128, key=seed, number=4, width=32)
    expected = [w for i in range(1000) for w in _C.words(seed, (counter + i) % 2**64, (counter + i) >> 64, 1)]
    assert generator.random_raw(4 * 1000).tolist() == expected


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63, 2**64 - 1, -1, -(2**63)])
@pytest.mark.parametrize("stream", [0, 1, 2**32 + 1, 2**64 - 1])
def test_element_i_owns_word_i_mod_4_of_block_i_div_4(seed, stream):
    key = Key(seed, stream)
    n = 4 * 333 + 3
    expected = np.array([philox(halves(stream) + halves(i), halves(seed % 2**64)) for i in range(334)], np.uint32)
    assert torch.equal(levels(torch.empty(n), key), level(expected.ravel()[:n]))
    assert (words(range(n), key) == expected.ravel()[:n]).all()
