"""Keys are values, and folding is the contract's digest."""

import copy
import hashlib
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

import xinit
from xinit import Key


def folded(seed, stream, tag, payload):
    data = seed.to_bytes(8, "little") + stream.to_bytes(8, "little") + tag + payload
    return Key(seed, int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little"))


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("stream", [0, 7, 2**64 - 1])
@pytest.mark.parametrize(
    "data",
    [*("", "weight", "läyer.0", "0"), 0, 1, 2**63, 2**64 - 1, np.int64(5), np.uint64(2**64 - 1)]
    + [n * "w" for n in (110, 111, 112, 238, 239, 240, 1000)],  # with the 17 bytes before them: blocks of 128
    ids=lambda data: f"{len(data)} w" if data and isinstance(data, str) and data[:2] == "ww" else repr(data),
)
def test_fold_in(seed, stream, data):
    tag, payload = (b"s", data.encode()) if isinstance(data, str) else (b"i", int(data).to_bytes(8, "little"))
    assert Key(seed, stream).fold_in(data) == folded(seed, stream, tag, payload)


def test_folds_do_not_meet():
    key = Key(0)
    data = ["", "a", "b", "ab", "0", "1", "00", 0, 1, 48, 97, "a.b", *range(100, 200), *map(str, range(100, 200))]
    folds = [key.fold_in(d) for d in data] + [key.fold_in("a").fold_in("b"), key.fold_in("b").fold_in("a"), key]
    assert len(set(folds)) == len(folds)
    assert key.fold_in("a") != Key(1).fold_in("a")
    assert key.fold_in(int.from_bytes(b"weight\0\0", "little")) != key.fold_in(
        "weight\0\0"
    )  # the payloads are the same bytes


@pytest.mark.parametrize("seed", [-1, -2, -(2**63), -(2**32)])
def test_negative_seeds_are_twos_complement(seed):
    assert Key(seed) == Key(seed + 2**64)
    assert Key(seed).seed == seed + 2**64
    assert Key(seed).fold_in("x") == Key(seed + 2**64).fold_in("x")


@pytest.mark.parametrize("seed", [0, 5, 2**63 - 1, 2**63, 2**64 - 1])
def test_the_ops_take_signed_words(seed):
    words = Key(seed, seed).words
    assert all(-(2**63) <= w < 2**63 and w % 2**64 == seed for w in words)
    expected = xinit.uniform_(torch.empty(9), key=Key(seed, seed))
    torch.ops.xinit.uniform_(actual := torch.empty(9), key=words)
    assert torch.equal(actual, expected)


def test_a_key_is_a_value():
    key = Key(3, stream=4)
    assert key == Key(3, 4) == Key(seed=3, stream=4)
    assert (key.seed, key.stream) == (3, 4)
    assert hash(key) == hash(Key(3, 4))
    assert {key, Key(3, 4), Key(4, 3), Key(3)} == {Key(3, 4), Key(4, 3), Key(3, 0)}
    assert key != (3, 4)
    assert eval(repr(key)) == key
    assert all(
        duplicate(key) == key for duplicate in (copy.copy, copy.deepcopy, lambda k: pickle.loads(pickle.dumps(k)))
    )
    with pytest.raises(FrozenInstanceError):
        key.seed = 5
    with pytest.raises((AttributeError, TypeError)):
        key.other = 5
    assert key == Key(3, 4)


@pytest.mark.parametrize(
    "integer", [np.int8(7), np.int64(7), np.uint64(7), torch.tensor(7)], ids=lambda i: type(i).__name__
)
def test_what_counts_as_an_integer(integer):
    assert Key(integer, integer) == Key(7, 7)
    assert type(Key(integer).seed) is int
    assert Key(0).fold_in(integer) == Key(0).fold_in(7)


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), 1.0, np.float64(1), 1j, None, b"x", (1,), torch.tensor(1.0)], ids=repr
)
@pytest.mark.parametrize("of", ["seed", "stream", "data"])
def test_what_does_not(of, value):
    with pytest.raises(TypeError, match=rf"Key: {of} must be an int, but found .* of type {type(value).__name__}"):
        make(of, value)


@pytest.mark.parametrize(("of", "least"), [("seed", -(2**63)), ("stream", 0), ("data", 0)])
def test_the_range(of, least):
    for value in (least - 1, 2**64, 2**65, -(2**65), 10**400):
        with pytest.raises(ValueError, match=rf"Key: {of} must be in \[{least}, 2\*\*64\), but found {value}"):
            make(of, value)
    assert make(of, least) != make(of, 2**64 - 1)


def make(of, value):
    return Key(0).fold_in(value) if of == "data" else Key(**{"seed": 0, of: value})


def test_strings_are_for_fold_in():
    for of in ("seed", "stream"):
        with pytest.raises(TypeError, match="must be an int, but found '0' of type str"):
            make(of, "0")
