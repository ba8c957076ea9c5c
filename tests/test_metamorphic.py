"""What must not matter to the values, one by one: every comparison is of bits."""

import hashlib
from functools import partial
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from conftest import (
    DTYPES,
    FAN_FILLS,
    FILLS,
    INTERVALS,
    KEY,
    KINDS,
    bits,
    by_lesser_isas,
    dtypes,
    ends,
    kinds,
    laid_out,
    level,
    levels,
    same,
    window,
)

import xinit
from xinit import _C, Window


def filled(fill, *shape, dtype=torch.float32, key=KEY, **where):
    return fill(torch.empty(shape, dtype=dtype), key=key, **where)


# ---- parts ----

# Where each dimension of a shape is cut: evenly, unevenly, into empty parts, amid blocks; into rows, columns, meshes.
CUTS = {
    "chunks": [(0, 1, 2, 5, 8, 64, 64, 131, 1000, 4099)],
    "even rows": [(0, 16, 32, 48), (0, 1031)],
    "uneven rows": [(0, 1, 1, 23, 37), (0, 53)],
    "columns": [(0, 37), (0, 0, 5, 8, 9, 300)],
    "mesh": [(0, 7, 30, 31), (0, 3, 4, 20, 67)],
    "blocks of four": [(0, 4, 8), (0, 4, 12, 16), (0, 8, 16)],
    "odd everywhere": [(0, 1, 3), (0, 2, 5), (0, 3, 4, 7), (0, 65, 131)],
    "large rows": [(0, 1, 3), (0, 100003)],
}


def boxes(cuts):
    return product(*([slice(*ends) for ends in pairwise(cut)] for cut in cuts))


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@kinds
@dtypes
def test_a_shard_is_a_slice_of_the_whole(kind, dtype, cuts):
    whole = tuple(cut[-1] for cut in cuts)
    values = filled(KINDS[kind], *whole, dtype=dtype)
    for box in boxes(cuts):
        shape = [s.stop - s.start for s in box]
        assert same(filled(KINDS[kind], *shape, dtype=dtype, window=window(whole, box)), values[box])


@pytest.mark.parametrize("name", FAN_FILLS)
@pytest.mark.parametrize("cuts", [CUTS["uneven rows"], CUTS["mesh"], CUTS["odd everywhere"]])
def test_a_shards_fans_are_those_of_the_whole(name, cuts):
    whole = tuple(cut[-1] for cut in cuts)
    values = filled(FAN_FILLS[name], *whole)
    for box in boxes(cuts):
        shape = [s.stop - s.start for s in box]
        assert same(filled(FAN_FILLS[name], *shape, window=window(whole, box)), values[box])


@kinds
@dtypes
def test_a_prefix_does_not_know_the_length(kind, dtype):
    values = filled(KINDS[kind], 100_003, dtype=dtype)
    for n in (*range(1, 71), 255, 4097, 65_537):
        assert same(filled(KINDS[kind], n, dtype=dtype), values[:n])


# Base just below a power of two, so that the window crosses it; or beyond all that 32 bits of index or block can hold.
@pytest.mark.parametrize(
    ("whole", "offsets", "shape"),
    [(w, o, s) for power in (31, 32, 34) for w, o, s in [
        ((2**20, 2**16), (2 ** (power - 16) - 1, 0), (2, 2**16)),
        ((2**20, 2**16), (2 ** (power - 16) - 1, 2**16 - 21), (3, 21)),
        ((2**40,), (2**power - 999,), (2001,)),
    ]] + [
        ((2**31, 2**31), (2**31 - 2, 2**31 - 6), (2, 6)),
        ((8, 2**31), (0, 5), (8, 3)),
        ((2**61 + 3, 2), (2**61, 1), (3, 1)),
    ],
    ids=str,
)  # fmt: skip
def test_windows_with_a_large_base(whole, offsets, shape):
    where = Window(whole, offsets)
    base = sum(o * int(np.prod(whole[d + 1 :], dtype=object)) for d, o in enumerate(offsets))
    rows = [base] if len(whole) == 1 else [base + row * whole[1] for row in range(shape[0])]
    expected = [
        np.array(_C.words(KEY.seed, KEY.stream, row // 4, shape[-1] // 4 + 2), np.uint32)[row % 4 :][: shape[-1]]
        for row in rows
    ]
    assert torch.equal(levels(torch.empty(shape), window=where), level(np.stack(expected)).view(shape))


@kinds
def test_pairs_and_blocks_hold_together_at_a_large_base(kind):
    """From an even start and from an odd one, the same places have the same values."""
    whole, row = (2**30, 2**10), 2**24 - 1
    values = filled(KINDS[kind], 2, 2**10, window=Window(whole, (row, 0)))
    for column in (1, 2, 3, 1021):
        part = filled(KINDS[kind], 2, 2**10 - column, window=Window(whole, (row, column)))
        assert same(part, values[:, column:])


# ---- machine ----


@kinds
@dtypes
def test_threads_do_not_matter(kind, dtype, threads):
    def fills():
        transposed = torch.empty(997, 401, dtype=dtype).t()
        return filled(KINDS[kind], 300_007, dtype=dtype), KINDS[kind](transposed, key=KEY)

    threads(1)
    expected = fills()
    for n in (2, 3, 8):
        threads(n)
        assert all(map(same, fills(), expected)), n


def digest():
    """Of every kind, dtype and layout, and of parameters at the edge, for this process's instruction set."""
    tensors = [
        fill(laid_out(LAYOUT_SHAPE, dtype, **layout)[1], key=KEY)
        for fill, dtype, layout in product(KINDS.values(), DTYPES, LAYOUTS.values())
    ]
    for std, a, b in ((1e-310, 1, 2), (1e-310, -2, -1), (1, 6, 3e38), (1e-38, -1e-38, 1e-38), (0, -1, 1)):
        tensors += [
            filled(xinit.trunc_normal_, 999, dtype=dtype, std=std, a=a, b=b) for dtype in (torch.float32, torch.float64)
        ]
    tensors += [filled(xinit.uniform_, 999, dtype=dtype, a=-1e-7, b=1e-7) for dtype in DTYPES]
    tensors += [filled(xinit.normal_, 999, dtype=dtype, std=6e4) for dtype in DTYPES]
    return hashlib.blake2b(b"".join(bits(t).numpy().tobytes() for t in tensors), digest_size=16).hexdigest()


def test_the_instruction_set_does_not_matter():
    found = by_lesser_isas("t.digest()", "import test_metamorphic as t")
    assert found == [digest()] * len(found)


# ---- memory ----

LAYOUT_SHAPE = (2, 3, 37, 131)
LAYOUTS = {
    "contiguous": {},
    "unaligned": {"offset": 3},
    "every other": {"step": 2},
    "channels last": {"order": (0, 2, 3, 1)},
    "transposed": {"order": (3, 2, 1, 0)},
    "rows swapped": {"order": (1, 0, 2, 3), "offset": 1},
    "gaps": {"gap": 1, "offset": 5},
    "all of it": {"order": (2, 0, 3, 1), "step": 3, "gap": 2, "offset": 7},
}


def check_layout(fill, shape, dtype, **layout):
    buffer, view = laid_out(shape, dtype, **layout)
    around = torch.ones(buffer.shape, dtype=torch.bool)
    around.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(False)
    assert same(fill(view, key=KEY), filled(fill, *shape, dtype=dtype))
    assert (buffer[around] == -77).all()
    assert around.sum() == buffer.numel() - view.numel()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@kinds
@dtypes
def test_the_memory_layout_does_not_matter(kind, dtype, layout):
    check_layout(KINDS[kind], LAYOUT_SHAPE, dtype, **layout)


@pytest.mark.parametrize("shape", [(509, 331), (2, 40_009), (40_009, 2), (1, 9), (3, 3)], ids=str)
@pytest.mark.parametrize(
    "layout", [{"order": (1, 0)}, {"order": (1, 0), "step": 2, "gap": 1}, {"step": 2, "offset": 1}], ids=str
)
@kinds
def test_matrices_transposed_and_sliced(kind, shape, layout):
    for dtype in (torch.float32, torch.bfloat16):
        check_layout(KINDS[kind], shape, dtype, **layout)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 3, 2, 3, 2, 2, 3, 2, 2, 3, 2), {"order": (3, 1, 5, 10, 0, 7, 2, 9, 4, 8, 6)}),
        ((3,) * 9, {"gap": 1, "offset": 1}),
        ((2,) * 14, {"order": tuple(range(0, 14, 2)) + tuple(range(13, 0, -2))}),
        ((1, 2, 1, 3) * 4, {"order": tuple(range(15, -1, -1)), "gap": 1}),
        ((), {"offset": 1}),
        ((1,) * 20, {"offset": 3}),
    ],
    ids=lambda x: f"{len(x)}-d",
)
@kinds
def test_many_dimensions(kind, shape, layout):
    for dtype in (torch.float32, torch.float16):
        check_layout(KINDS[kind], shape, dtype, **layout)


@kinds
def test_a_shard_laid_out_otherwise(kind):
    """Window and strides at once."""
    whole, box = (60, 7, 50), (slice(11, 40), slice(2, 7), slice(5, 48))
    _, view = laid_out((29, 5, 43), torch.bfloat16, order=(2, 0, 1), step=2, gap=1, offset=1)
    assert same(
        KINDS[kind](view, key=KEY, window=window(whole, box)), filled(KINDS[kind], *whole, dtype=torch.bfloat16)[box]
    )


# ---- dtype ----


@kinds
@dtypes
def test_the_dtype_only_rounds(kind, dtype):
    single, values = filled(KINDS[kind], 10**6), filled(KINDS[kind], 10**6, dtype=dtype)
    rounded = single.to(dtype)
    if kind in INTERVALS:
        clamped = [ends(*INTERVALS[kind], d, closed=kind != "uniform") for d in (torch.float32, dtype)]
        if dtype == torch.float64:  # float32's own ends may lie within float64's: what they clamped is not known
            inside = (single > clamped[0][0]) & (single < clamped[0][1])
            assert inside.float().mean() > 0.99
            values, rounded = values[inside], rounded[inside]
        rounded = rounded.clamp(*clamped[1])
    assert same(values, rounded)


# ---- order and compilation ----


def test_the_order_of_fills_does_not_matter():
    names = ["embed", "layers.0.weight", "layers.1.weight", "head"]

    def fills(names):
        return {name: filled(KINDS["normal"], 33, key=KEY.fold_in(name)) for name in names}

    forwards, backwards, alone = fills(names), fills(names[::-1]), fills(["head"])
    assert all(same(forwards[name], backwards[name]) for name in names)
    assert same(alone["head"], forwards["head"])
    assert len({tuple(values.tolist()) for values in forwards.values()}) == len(names)


def test_compiled_is_eager():
    where = Window((9, 40), (2, 3))

    def fills():
        out = [torch.empty(5, 37, dtype=dtype) for _ in FILLS for dtype in DTYPES]
        calls = [partial(fill, window=where) for fill in FILLS.values() for _ in DTYPES]
        return [call(tensor, key=KEY) for call, tensor in zip(calls, out, strict=True)]

    compiled = torch.compile(fills, fullgraph=True)
    assert all(map(same, compiled(), fills()))
