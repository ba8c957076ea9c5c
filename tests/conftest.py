"""What the tests share: a table of fills, comparison as bits, windows, and Python processes of their own."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import xinit
from xinit import _C, Key, Window

KEY = Key(20240607).fold_in("tests")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# One fill for each kind of loop. The bounds are chosen so that every dtype but float32 has something to clamp.
KINDS = {
    "uniform": partial(xinit.uniform_, a=-0.1, b=0.7),
    "normal": partial(xinit.normal_, mean=0.01, std=0.02),
    "truncated": partial(xinit.trunc_normal_, mean=0.1, std=0.3, a=-0.1, b=0.7),
    "tail": partial(xinit.trunc_normal_, mean=0.0, std=0.1, a=0.7, b=0.9),
}
INTERVALS = {"uniform": (-0.1, 0.7), "truncated": (-0.1, 0.7), "tail": (0.7, 0.9)}
kinds = pytest.mark.parametrize("kind", KINDS)

# The functions that look at fans; all that xinit has are these and three of KINDS.
FAN_FILLS = {
    "xavier_uniform": xinit.xavier_uniform_,
    "xavier_normal": xinit.xavier_normal_,
    "kaiming_uniform": xinit.kaiming_uniform_,
    "kaiming_normal": partial(xinit.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
    "variance_scaling": partial(xinit.variance_scaling_, mode="fan_avg"),
    "lecun_uniform": xinit.lecun_uniform_,
    "lecun_normal": xinit.lecun_normal_,
}
FILLS = KINDS | FAN_FILLS
fills = pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)


@pytest.fixture
def threads():
    """Sets the number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads):
    """For tensors so small that a second thread is only waited for."""
    threads(1)


def bits(tensor):
    return tensor.contiguous().view(getattr(torch, f"int{8 * tensor.element_size()}"))


def same(x, y):
    """Equal shape, dtype and bits; 0 and -0 differ, a NaN equals itself."""
    return x.dtype == y.dtype and torch.equal(bits(x), bits(y))


def words(indices, key=KEY):
    """The words that logical indices own, one block at a time."""
    return np.array([_C.words(key.seed, key.stream, int(i) // 4, 1)[int(i) % 4] for i in indices], np.uint32)


def levels(tensor, key=KEY, **where):
    """Fill, and give back the upper 24 bits of each element's word, signed: U(-2^23, 2^23) is exactly level + 1/2."""
    return (xinit.uniform_(tensor, -(2.0**23), 2.0**23, key=key, **where) - 0.5).long()


def level(words):
    return torch.from_numpy(words.view(np.int32).astype(np.int64) >> 8)


def window(whole, slices):
    """The window that a tensor of the slices' shape is within a whole of that shape."""
    return Window(whole, tuple(s.start for s in slices))


def laid_out(shape, dtype, order=None, step=1, gap=0, offset=0):
    """A buffer of sentinels, and a view in it: dimensions in that order, outermost first, with gaps between them."""
    strides, stride = [0] * len(shape), step
    for d in reversed(order or range(len(shape))):
        strides[d] = stride
        stride = stride * shape[d] + gap
    buffer = torch.full((offset + stride + 64,), -77.0, dtype=dtype)
    return buffer, buffer.as_strided(shape, strides, offset)


def ends(a, b, dtype, closed):
    """The least value of the dtype >= a and the greatest < b (or <= b), from looking at all that might be it."""
    if dtype.itemsize == 2:
        grid = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).double().numpy()
    else:
        near = np.array([a, b]).astype(f"f{dtype.itemsize}")
        grid = np.concatenate([near, np.nextafter(near, -np.inf), np.nextafter(near, np.inf)]).astype(np.float64)
    return grid[grid >= a].min(), grid[(grid <= b) if closed else (grid < b)].max()


def run_python(code, **environment):
    """Start Python on the code, with this xinit and these tests to import."""
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (Path(xinit.__file__).parents[1], here)))
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


ISAS = {"DEFAULT": "baseline", "AVX2": "avx2", "AVX512": "avx512"}


def by_lesser_isas(expression, setup=""):
    """What the expression gives with each instruction set below this process's. Others are left out, because
    ATEN_CPU_CAPABILITY is not checked against the machine."""
    here = torch.backends.cpu.get_cpu_capability()
    if here not in ISAS or here == "DEFAULT":
        pytest.skip(f"there is no instruction set below {here}")
    assert xinit.build_info()["cpu_isa"] == ISAS[here]
    lesser = list(ISAS)[: list(ISAS).index(here)]
    code = f"import json, xinit; {setup}; print(json.dumps([xinit.build_info()['cpu_isa'], {expression}]))"
    runs = [run_python(code, ATEN_CPU_CAPABILITY=isa.lower(), OMP_NUM_THREADS="1") for isa in lesser]
    found = [json.loads(output(run)) for run in runs]
    assert [isa for isa, _ in found] == [ISAS[isa] for isa in lesser]
    return [value for _, value in found]


def output(process, timeout=120):
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out
