"""A generator stands for a key: its next 64 bits are the seed. One draw for a fill, whatever is filled."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import FILLS, KINDS, dtypes, fills, levels, output, run_python, same
from torch._subclasses.fake_tensor import FakeTensorMode

import xinit
from xinit import Key, Window


@pytest.fixture(autouse=True)
def default_generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        yield torch.default_generator


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def next_key(generator):
    """The key that the next fill takes, and the generator's state after it; the generator itself stays."""
    twin = torch.Generator()
    twin.set_state(generator.get_state())
    seed = torch.empty((), dtype=torch.int64).random_(-(2**63), None, generator=twin).item()
    return Key(seed), twin.get_state()


@fills
@dtypes
def test_a_generator_is_a_key(fill, dtype, default_generator):
    for given in (seeded(), None):
        generator = given or default_generator
        for shape in ((3, 5), (70, 1001)):
            key, state = next_key(generator)
            values = fill(torch.empty(shape, dtype=dtype), generator=given)
            assert same(values, fill(torch.empty(shape, dtype=dtype), key=key))
            assert torch.equal(generator.get_state(), state)


@fills
def test_a_generator_is_passed_on(fill, default_generator):
    before, generator = default_generator.get_state(), seeded()
    first, second = (fill(torch.empty(4, 5), generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(default_generator.get_state(), before)
    assert torch.equal(fill(torch.empty(4, 5), generator=seeded()), first)
    torch.manual_seed(5)
    assert torch.equal(fill(torch.empty(4, 5)), first)


@fills
def test_a_key_draws_nothing(fill, default_generator):
    before = default_generator.get_state()
    fill(torch.empty(4, 5), key=Key(1))
    assert torch.equal(default_generator.get_state(), before)


@dtypes
def test_one_draw_whatever_is_filled(dtype, default_generator):
    _, expected = next_key(default_generator)
    before = default_generator.get_state()
    parts = Window((10, 7), (4, 0))
    for tensor, window in (
        (torch.empty(1, dtype=dtype), None),
        (torch.empty((), dtype=dtype), None),
        (torch.empty(400_001, dtype=dtype), None),
        (torch.empty(300, 400, dtype=dtype).t()[::2], None),
        (torch.empty((2,) * 12, dtype=dtype).permute(11, 0, 10, 1, 9, 2, 8, 3, 7, 4, 6, 5), None),
        (torch.empty(3, 7, dtype=dtype), parts),
        (torch.empty(0, 7, dtype=dtype), parts),  # the rank whose shard is empty keeps in step with the others
    ):
        for fill in KINDS.values():
            default_generator.set_state(before)
            fill(tensor, window=window)
            assert torch.equal(default_generator.get_state(), expected)


@pytest.mark.parametrize("make", ["empty", "meta", "fake"])
def test_nothing_to_fill_draws_nothing(make, default_generator):
    generator, before = seeded(), default_generator.get_state()
    for fill in (KINDS if make == "empty" else FILLS).values():
        for given in (None, generator):
            if make == "fake":
                with FakeTensorMode():
                    fill(torch.empty(3, 4), generator=given)
            else:
                fill(torch.empty(0, 4) if make == "empty" else torch.empty(3, 4, device="meta"), generator=given)
    assert torch.equal(default_generator.get_state(), before)
    assert torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize("default", [True, False])
def test_threads_on_one_generator_never_draw_the_same_words(default):
    """And all together draw what one thread would have drawn."""
    n = 300

    def draws(workers):
        torch.manual_seed(8)
        generator = None if default else seeded(8)
        with ThreadPoolExecutor(workers) as pool:
            fills = pool.map(
                lambda _: xinit.uniform_(torch.empty(128), -(2.0**23), 2.0**23, generator=generator), range(n)
            )
            return [tuple(block) for fill in fills for block in fill.view(-1, 4).tolist()]

    alone, together = draws(1), draws(4)
    assert len(set(alone)) == len(alone) == n * 32
    assert sorted(alone) == sorted(together)


def test_generators_do_not_draw_what_they_drew():
    """The blocks of a script of calls: no two the same, which 96 bits of each would show."""
    blocks = []
    for shape in ((4,), (16,), (1000,), (5, 8), (4,), (100_000,), (4,)):
        key, _ = next_key(torch.default_generator)
        xinit.normal_(torch.empty(shape))
        blocks += map(tuple, levels(torch.empty(shape), key).view(-1, 4).tolist())
    assert len(set(blocks)) == len(blocks)


FORK = """
import os, signal, torch, xinit
torch.set_num_threads(2)
fill = lambda: xinit.normal_(torch.empty(1_000_003), key=xinit.Key(0)).numpy().tobytes()
expected = fill()
pid = os.fork()
if pid == 0:
    signal.alarm(10)
    os._exit(0 if fill() == expected else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_child_forked_after_the_threads_started_fills_too():
    """OpenMP's pool does not survive a fork; a child that waits for it is killed by its alarm, and exits with -14."""
    assert output(run_python(FORK, OMP_NUM_THREADS="2")).strip() == "0"
