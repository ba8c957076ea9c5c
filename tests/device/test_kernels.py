"""The compiled CUDA kernels, run: their bits are the CPU's, and each element is stored once, and nothing else."""

import itertools
import mmap
from typing import NamedTuple

import pytest
import torch

import xinit
from device import emulated
from xinit import Key, Window

KEY = Key(2**64 - 3, 77)
NOTHING = torch.empty(0, dtype=torch.uint8)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


class Kind(NamedTuple):
    """A distribution for each kind of kernel."""

    name: str
    fill: object
    distribution: object


KINDS = [
    Kind("uniform", lambda t, **place: xinit.uniform_(t, -1.0, 1.0, **place), xinit.uniform(-1.0, 1.0)),
    Kind("uniform_clamped", lambda t, **place: xinit.uniform_(t, 0.1, 0.7, **place), xinit.uniform(0.1, 0.7)),
    Kind("normal", lambda t, **place: xinit.normal_(t, 0.5, 2.0, **place), xinit.normal(0.5, 2.0)),
    Kind("truncated", xinit.trunc_normal_, xinit.trunc_normal()),
    Kind(
        "tail",
        lambda t, **place: xinit.trunc_normal_(t, 0.0, 1.0, 3.0, 9.0, **place),
        xinit.trunc_normal(0.0, 1.0, 3.0, 9.0),
    ),
]
FEW = [(KINDS[0], torch.float32), (KINDS[2], torch.bfloat16), (KINDS[3], torch.float16)]
ALL = list(itertools.product(KINDS, DTYPES))


def several(few, every):
    """The few by default, and the others as slow ones."""
    chosen = [(k.name, d) for k, d in few]
    rows = [*few, *(row for row in every if (row[0].name, row[1]) not in chosen)]
    marks = [[] if i < len(few) else [pytest.mark.slow] for i in range(len(rows))]
    return [
        pytest.param(*row, marks=mark, id=f"{row[0].name}-{str(row[1])[6:]}")
        for row, mark in zip(rows, marks, strict=True)
    ]


class Layout(NamedTuple):
    """A view of a storage, with guards around it, and which part of a whole it is."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    start: int
    window: Window | None = None

    def make(self, dtype):
        last = self.start + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        storage = (
            torch.zeros(last + 40, dtype=torch.int64)
            .view(torch.uint8)[: (last + 33) * dtype.itemsize]
            .clone()
            .view(dtype)
        )
        return storage, torch.as_strided(storage, self.size, self.stride, self.start)


def row(length, start, window=None):
    return Layout((length,), (1,), start, window)


CONTIGUOUS = [row(n, start) for n in (1, 3, 4, 7, 8, 9, 15, 31, 33, 64, 1000) for start in (0, 1, 2, 3, 5, 8)] + [
    row(9001, 1, Window((20000,), (3,))),
    row(33, 4, Window((2**33,), (2**32 + 5,))),
    row(70, 3, Window((2**62 + 200,), (2**62 + 9,))),
]
WINDOWS = [
    Layout((5, 6), (9, 1), 2),
    Layout((6, 5), (1, 6), 0),
    Layout((3, 4, 5), (40, 10, 2), 3, Window((5, 6, 7), (1, 1, 1))),
    Layout((7, 33), (64, 1), 1, Window((1 << 20, (1 << 38) + 1), ((1 << 20) - 8, (1 << 38) - 40))),
    Layout((2,) * 10, tuple(2**i for i in reversed(range(10))), 0),
    Layout((2,) * 10, (1, 3, 7, 15, 31, 63, 127, 255, 511, 1023), 0, Window((4,) * 10, (1,) * 10)),
    Layout((50, 1), (3, 7), 0, Window((50, 3), (0, 2))),
]


def bytes_of(tensor):
    return tensor.view(torch.uint8)


def check(device, layout, dtype, fill, key=KEY):
    """Fills a tensor on the CPU and one on the device, and compares their storages, and what was stored."""
    expected, on_cpu = layout.make(dtype)
    found, here = layout.make(dtype)
    counts = torch.zeros(found.untyped_storage().nbytes(), dtype=torch.uint8)
    fill(on_cpu, key=key, window=layout.window)
    fill(device.view(here, counts), key=key, window=layout.window)
    assert torch.equal(bytes_of(found), bytes_of(expected)), layout
    once = torch.zeros(found.numel(), dtype=torch.uint8)
    torch.as_strided(once, layout.size, layout.stride, layout.start).fill_(1)
    assert torch.equal(counts, once.repeat_interleave(dtype.itemsize)), layout


def fill_all(device, layouts, dtype, kind):
    """By one block, by few, and by as many as there is work for. Returns the kernels' names."""
    launched = set()
    for layout, blocks in itertools.product(layouts, (1, 7, 6 * 132)):
        device.hold(blocks)
        check(device, layout, dtype, kind.fill)
        launched.update(device.forget())
    return launched


@pytest.mark.parametrize(("kind", "dtype"), several(FEW, ALL))
def test_contiguous_fills(device, kind, dtype):
    launched = fill_all(device, CONTIGUOUS, dtype, kind)
    assert {name.count("fill_contiguous") for name in launched} == {0, 1}  # short rows have no groups


@pytest.mark.parametrize(("kind", "dtype"), several(FEW, ALL))
def test_windows_and_strides(device, kind, dtype):
    assert any("fill_window" in name for name in fill_all(device, WINDOWS, dtype, kind))


# Of parameters that meet a bound at zero, round to it, or are near the ends of float32: -0 < +0 for a GPU's minimum.
EDGES = [
    *((-0.0, 0.0, -1.0, 0.0), (0.0, 1e-44, -1e-43, 0.0), (1e-40, 1e-41, -1e-40, 0.0), (0.0, 0.0, 0.0, 1.0)),
    *((0.0, 1e-44, 0.0, 1e-43), (0.0, 1.0, -1e-45, 1e-45), (0.0, 1e30, -3e38, 3e38), (1.0, 1e-3, 0.0, 1.0)),
]


@pytest.mark.parametrize(
    "dtype", [torch.float16, *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES if d != torch.float16)]
)
def test_edges(device, dtype):
    for mean, std, low, high in EDGES:
        if high > torch.finfo(dtype).max:
            continue
        check(
            device, row(513, 1), dtype, lambda t, p=(mean, std, low, high), **place: xinit.trunc_normal_(t, *p, **place)
        )


@pytest.mark.slow
def test_both_generations_of_gpus_get_the_same_ptx(ptx_text, tmp_path):
    def code(text):
        return [line for line in text.splitlines() if not line.startswith((".target", ".version"))]

    assert code(emulated.kernels_as_ptx(tmp_path, "90")) == code(ptx_text)


@pytest.mark.parametrize("row", FEW, ids=lambda row: row[0].name)
@pytest.mark.parametrize("within", [0, 12])
def test_a_captured_generator_is_read_when_the_graph_is_replayed(device, row, within):
    kind, dtype = row
    seed, offset = torch.tensor([5]), torch.tensor([40])
    for _ in range(3):
        device.capture(seed, offset, within)
        found, expected = torch.zeros(1001, dtype=dtype), torch.zeros(1001, dtype=dtype)
        kind.fill(device.view(found, NOTHING))
        kind.fill(expected, key=Key(int(seed), (int(offset) + within) // 4))
        assert torch.equal(found, expected)
        assert all("fill_window" in name for name in device.forget())
        seed += 1
        offset += 4


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [[9], [9, 2**63 + 1, 7]], ids=["one seed", "three"])
def test_many_fills_in_a_launch_for_each_seed(device, seeds):
    generator = torch.Generator().manual_seed(0)
    layouts = [*CONTIGUOUS, *WINDOWS, row(200_003, 5), row(40_000, 0)]
    order = torch.randperm(len(ALL) * 3, generator=generator).tolist()
    jobs = [(ALL[i % len(ALL)], layouts[i % len(layouts)], Key(seeds[i % len(seeds)], i)) for i in order]
    expected, found, storages, counts = [], [], [], []
    for (_, dtype), layout, _ in jobs:
        expected.append(layout.make(dtype))
        storage, here = layout.make(dtype)
        counts.append(torch.zeros(storage.untyped_storage().nbytes(), dtype=torch.uint8))
        found.append(device.view(here, counts[-1]))
        storages.append(storage)
    rest = (
        [kind.distribution for (kind, _), _, _ in jobs],
        [key for *_, key in jobs],
        [layout.window for _, layout, _ in jobs],
    )
    xinit.fill_many_([tensor for _, tensor in expected], *rest)
    xinit.fill_many_(found, *rest)
    for ((_, dtype), layout, _), storage, (right, _), count in zip(jobs, storages, expected, counts, strict=True):
        assert torch.equal(bytes_of(storage), bytes_of(right)), (dtype, layout)
        once = torch.zeros(storage.numel(), dtype=torch.uint8)
        torch.as_strided(once, layout.size, layout.stride, layout.start).fill_(1)
        assert torch.equal(count, once.repeat_interleave(dtype.itemsize))
    launched = device.forget()
    assert sum("fill_many" in name for name in launched) == len(seeds)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        *(pytest.param(d, marks=pytest.mark.slow) for d in (torch.float64, torch.bfloat16, torch.float8_e5m2)),
    ],
)
@pytest.mark.parametrize("blocks", [1, 3, 6 * 132])
def test_digests(device, dtype, blocks):
    for layout in [row(2500, 1, Window((2503,), (3,))), row(1, 0), *WINDOWS]:
        device.forget()
        device.hold(blocks)
        _, tensor = layout.make(dtype)
        xinit.uniform_(tensor, -1.0, 1.0, key=Key(5))
        place = [] if layout.window is None else [layout.window.global_shape, layout.window.offsets]
        expected = torch.ops.xinit.digest(tensor, KEY.words, *place)
        assert torch.equal(torch.ops.xinit.digest(device.view(tensor, NOTHING), KEY.words, *place), expected), layout


def test_elements_of_threads_that_do_not_run_are_left(device):
    """So that the comparisons above are of what the device has stored."""
    tensor = torch.zeros(100_000)
    device.choose([0, 5])
    xinit.uniform_(device.view(tensor, NOTHING), -1.0, 1.0, key=KEY)
    assert 0 < int((tensor != 0).sum()) < 2000


@pytest.mark.parametrize("row", FEW, ids=lambda row: row[0].name)
def test_more_than_2_to_the_32_elements(device, row):
    """Chosen threads of the whole grid: what they store lies where it belongs, to the last element."""
    kind, dtype = row
    length = 2**32 + 13
    tensor = zeros_without_pages(length, dtype)
    threads = 6 * 132 * 256
    group = 16 // dtype.itemsize
    device.hold(6 * 132)
    device.choose([0, 1, threads - 1])
    kind.fill(device.view(tensor, NOTHING), key=KEY)
    last = (length // group - 1) // threads
    for thread in (0, 1, threads - 1):
        for turn in {0, 1, last // 2, last - 1, last}:
            at = (thread + turn * threads) * group
            if at + group <= length:
                expected = kind.fill(torch.empty(group, dtype=dtype), key=KEY, window=Window((length,), (at,)))
                assert torch.equal(tensor[at : at + group], expected), (thread, turn)
    tail = length // group * group  # the first unit after the groups is the first thread's
    expected = kind.fill(torch.empty(length - tail, dtype=dtype), key=KEY, window=Window((length,), (tail,)))
    assert torch.equal(tensor[tail : tail + 4], expected[:4])
    between = tensor[5 * group : 9 * group]
    assert not between.any()  # other threads'


def zeros_without_pages(length, dtype):
    """Memory that is there once it is written to."""
    return torch.frombuffer(mmap.mmap(-1, length * dtype.itemsize), dtype=dtype)
