"""Whatever the process does around a fill, and whatever is asked of it."""

import math
import warnings
from itertools import product

import pytest
import torch
from conftest import DTYPES, KEY, laid_out, output, run_python, same
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import xinit
from xinit import Key, Window

SMALL = {
    "uniform": lambda t, s: xinit.uniform_(t, -s, s, key=KEY),
    "normal": lambda t, s: xinit.normal_(t, 0, s, key=KEY),
    "truncated": lambda t, s: xinit.trunc_normal_(t, 0, s, -s, 2 * s, key=KEY),
    "tail": lambda t, s: xinit.trunc_normal_(t, 0, s, 7 * s, 8 * s, key=KEY),
}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("scale", [1e-6, 1e-30, 1e-37, 1e-40])
def test_flushing_subnormals_does_not_matter(kind, scale):
    """A mode of the calling thread that training code sets. Values are subnormal here, or what leads to them is."""

    def fills():
        dtypes = [d for d in DTYPES if d != torch.float16 or scale > 1e-7]  # below, the tail's window has no float16
        return [SMALL[kind](torch.empty(n, dtype=dtype), scale) for n, dtype in product((999, 200_001), dtypes)]

    expected = fills()
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush subnormals")
    try:
        assert (torch.tensor([1e-40]) * 1).item() == 0
        actual = fills()
        assert (torch.tensor([1e-40]) * 1).item() == 0  # the mode is the caller's again
    finally:
        torch.set_flush_denormal(False)
    assert all(map(same, actual, expected))


MEMORY = """
import resource, torch, xinit

def peak():  # getrusage's would be at least that of the process that started this one
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024

def fill():
    for function, view in (
        (xinit.normal_, tensor),
        (xinit.uniform_, tensor.view(2**14, 2**14).t()),
        (xinit.trunc_normal_, tensor.view(torch.bfloat16)[1::3]),
    ):
        function(view[: len(view) // divisor], key=xinit.Key(0))

tensor, divisor = torch.ones(2**28), 2**10
fill()  # starts the threads
divisor = 1
before = peak()
fill()
print(peak() - before)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, hard))
divisor = 16
fill()
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
tensor.clone()
print(peak() - before)
"""


def test_a_fill_allocates_nothing():
    """While 1 GiB is filled, the peak of resident memory grows by less than 32 MiB; 1 MiB of address space suffices."""
    fills, clone = map(int, output(run_python(MEMORY)).split())
    assert fills < 32
    assert clone > 1000  # what is measured would show


EDGES = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    5e-324,
    -5e-324,
    1e-310,
    1e-45,
    1e-40,
    1e-30,
    0.1,
    65504.0,
    65520.0,
    3.4e38,
    -3.4e38,
    3.5e38,
    1e300,
    -1e300,
]
floats = st.one_of(st.floats(-10, 10), st.sampled_from([*EDGES, math.nan, math.inf, -math.inf]), st.floats())
OPS = {
    "uniform_": 2,
    "normal_": 2,
    "trunc_normal_": 4,
    "xavier_uniform_": 1,
    "xavier_normal_": 1,
    "variance_scaling_": 1,
}
LISTED = (TypeError, ValueError, RuntimeError, NotImplementedError)


@st.composite
def calls(draw):
    """A function, its parameters, and where: a shape, a layout in memory, a window, which may not fit."""
    name = draw(st.sampled_from(list(OPS)))
    parameters = draw(st.lists(floats, min_size=OPS[name], max_size=OPS[name]))
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=5)))
    order = draw(st.permutations(range(len(shape))))
    layout = {
        "order": order,
        "step": draw(st.integers(1, 3)),
        "gap": draw(st.integers(0, 2)),
        "offset": draw(st.integers(0, 5)),
    }
    window = None
    if draw(st.booleans()):
        offsets = [draw(st.integers(-1 if draw(st.booleans()) else 0, 2**20)) for _ in shape]
        window = Window(
            [
                o + n + draw(st.integers(-1 if draw(st.booleans()) else 0, 5))
                for o, n in zip(offsets, shape, strict=True)
            ],
            offsets,
        )
    return name, parameters, shape, layout, window


def attempt(name, tensor, *arguments, **place):
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            getattr(xinit, name)(tensor, *arguments, **place)
    except LISTED as error:
        return type(error), str(error)
    return None


PLAIN = {"order": [0], "step": 1, "gap": 0, "offset": 0}


@example(("uniform_", [-1e300, 1e300], (3,), PLAIN, None), torch.float64, 0)
@example(("normal_", [1e300, 1e300], (3,), PLAIN, None), torch.float64, 0)
@example(("trunc_normal_", [0.1, 0.0, 0.1, 1.0], (3,), PLAIN, None), torch.bfloat16, 0)
@example(("trunc_normal_", [0.7, 0.0, 0.7, 1.0], (3,), PLAIN, None), torch.float32, 0)
@given(calls(), st.sampled_from(DTYPES), st.integers(-(2**65), 2**65))
@settings(max_examples=1000, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_any_call_fails_with_nothing_changed_or_keeps_every_rule(call, dtype, seed):
    name, parameters, shape, layout, window = call
    if not -(2**63) <= seed < 2**64:
        with pytest.raises(ValueError, match="seed must be in"):
            Key(seed)
        seed %= 2**64
    place = {"key": Key(seed), "window": window}
    buffer, view = laid_out(shape, dtype, **layout)
    untouched, plain = buffer.clone(), torch.full(shape, -77.0, dtype=dtype)
    generator = torch.get_rng_state()
    outcome = attempt(name, view, *parameters, **place)
    assert attempt(name, plain, *parameters, **place) == outcome
    assert torch.equal(torch.get_rng_state(), generator)
    assert same(view, plain)
    untouched.as_strided(view.shape, view.stride(), view.storage_offset()).copy_(plain)
    assert same(buffer, untouched)
    if outcome is not None:
        assert (plain == -77).all()
        return
    if not all(map(math.isfinite, parameters)):
        assert 0 in shape  # where nothing is drawn, nothing is looked at
        return
    assert not plain.isnan().any()
    if name in ("uniform_", "trunc_normal_"):
        a, b = parameters[-2:]
        values = plain.double()
        assert (((a <= values) & ((values <= b) if name == "trunc_normal_" else (values < b))) | (a == b)).all()
    elif dtype != torch.float16:
        assert plain.isfinite().all() or max(map(abs, parameters)) > 1e36
