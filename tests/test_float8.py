"""float8: the float32 value to nearest even, saturated, clamped; no NaN, and no -0 where there is none."""

import math

import numpy as np
import pytest
import torch
from conftest import INTERVALS, KEY, KINDS, Window, by_lesser_isas, laid_out
from torch import nn

import xinit
from xinit import _C, Key

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
dtypes = pytest.mark.parametrize("dtype", FLOAT8, ids=str)
kinds = pytest.mark.parametrize("kind", KINDS)
CODES = {dtype: 4 + i for i, dtype in enumerate(FLOAT8)}  # in a digest


def codes(tensor):
    return tensor.contiguous().view(torch.uint8)


def grid(dtype):
    """The finite values in their order, without -0, and the code of each."""
    every = torch.arange(256, dtype=torch.uint8)
    values = every.view(dtype).double().numpy()
    kept = [i for i in np.argsort(values, kind="stable") if np.isfinite(values[i]) and i != 0x80]
    return values[kept], np.array(kept)


def rounded(x, dtype):
    """The codes of float32 values, from looking at all values there are: the nearest, of two the one with the even code."""
    x = np.asarray(x, np.float64)
    values, code = grid(dtype)
    above = np.clip(np.searchsorted(values, x), 1, len(values) - 1)
    low, high = values[above - 1], values[above]
    up = (x - low > high - x) | ((x - low == high - x) & (code[above] % 2 == 0))
    found = code[np.where(up, above, above - 1)]
    if "fnuz" not in str(dtype):
        found = np.where((found == 0) & np.signbit(x), 0x80, found)
    return torch.from_numpy(found.astype(np.uint8))


@dtypes
def test_every_bfloat16_and_its_neighbours_in_float32_are_rounded_right(dtype):
    """As constants, which reach the rounding as they are; the oracle itself agrees with torch's cast."""
    most = torch.finfo(dtype).max
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).float()
    every = every[every.abs() <= most].numpy()
    near = np.concatenate([every, np.nextafter(every, np.float32(np.inf)), np.nextafter(every, -np.float32(np.inf))])
    near = near[np.abs(near) <= most]
    expected = rounded(near, dtype)
    assert torch.equal(expected, codes(torch.from_numpy(near).to(dtype)))
    tensor = torch.empty(len(near), dtype=dtype)
    for start in range(0, len(near), 1 << 14):
        parts = list(tensor[start : start + (1 << 14)].split(1))
        values = near[start : start + (1 << 14)].tolist()
        xinit.fill_many_(parts, [xinit.constant(value) for value in values], [KEY] * len(parts))
    assert torch.equal(codes(tensor), expected)


@dtypes
@pytest.mark.parametrize("std", [2.0**-20, 2.0**-12, 2.0**-7, 0.02, 1.0, 33.3, 239.0])
def test_it_is_the_float32_value_rounded_and_saturated(dtype, std):
    tensor = xinit.normal_(torch.empty(200, 301, dtype=dtype), std / 3, std, key=KEY)
    wide = xinit.normal_(torch.empty(200, 301), std / 3, std, key=KEY)
    assert torch.equal(codes(tensor).flatten(), rounded(wide.numpy().ravel(), dtype))
    assert tensor.float().isfinite().all()
    if std > 200 and torch.finfo(dtype).max < 500:
        assert (wide.abs() > torch.finfo(dtype).max).any()


@dtypes
@kinds
def test_no_draw_leaves_its_interval(dtype, kind):
    tensor = KINDS[kind](torch.empty(300, 311, dtype=dtype), key=KEY).double()
    wide = KINDS[kind](torch.empty(300, 311), key=KEY).double()
    values, _ = grid(dtype)
    if kind in INTERVALS:
        a, b = INTERVALS[kind]
        inside = values[(values >= a) & ((values < b) if kind == "uniform" else (values <= b))]
        assert tensor.aminmax() == (inside.min(), inside.max())
        expected = rounded(wide.clamp(inside.min(), inside.max()).numpy().ravel(), dtype).view(dtype).double()
    else:
        expected = rounded(wide.numpy().ravel(), dtype).view(dtype).double()
    assert torch.equal(tensor.flatten(), expected)


@dtypes
@kinds
def test_layouts_windows_and_threads_do_not_matter(dtype, kind, threads):
    whole = KINDS[kind](torch.empty(61, 83, dtype=dtype), key=KEY)
    for count in (1, 3):
        threads(count)
        for order, step, gap, offset in ([1, 0], 1, 0, 0), ([0, 1], 2, 3, 1), ([0, 1], 1, 5, 3):
            buffer = torch.full((2 * 61 * 83 * 2 + 999,), 0x55, dtype=torch.uint8)
            _, like = laid_out(whole.shape, torch.float32, order, step, gap, offset)
            view = buffer.view(dtype).as_strided(like.shape, like.stride(), like.storage_offset())
            outside = buffer.clone()
            KINDS[kind](view, key=KEY)
            assert torch.equal(codes(view), codes(whole))
            outside.as_strided(view.shape, view.stride(), view.storage_offset()).copy_(codes(whole))
            assert torch.equal(buffer, outside)
    part = KINDS[kind](torch.empty(9, 40, dtype=dtype), key=KEY, window=Window(whole.shape, (50, 42)))
    assert torch.equal(codes(part), codes(whole[50:59, 42:82].clone()))


def drawn():
    """Codes of all kinds, by dtype; and their digests."""
    found = []
    for dtype in FLOAT8:
        for fill in KINDS.values():
            tensor = fill(torch.empty(37, 53, dtype=dtype), key=KEY)
            found.append([codes(tensor).tolist(), torch.ops.xinit.digest(tensor, KEY.words).tolist()])
    return found


def test_the_instruction_set_does_not_matter():
    found = by_lesser_isas("t.drawn()", "import test_float8 as t")
    assert found == [drawn()] * len(found)


def test_the_digest_is_that_of_the_codes():
    words = np.array(_C.words(KEY.seed, KEY.stream, 0, 1), np.uint64)
    u = np.uint64
    for dtype, code in CODES.items():
        tensor = xinit.normal_(torch.empty(1000, dtype=dtype), key=KEY)
        h = (words[0] | words[1] << u(32)) + u(code) + np.arange(1000, dtype=u) * u(0x9E3779B97F4A7C15)
        h = (h ^ h >> u(30)) * u(0xBF58476D1CE4E5B9) ^ codes(tensor).numpy().astype(u)
        h = (h ^ h >> u(32)) * u(0x94D049BB133111EB)
        h ^= h >> u(31)
        assert torch.ops.xinit.digest(tensor, KEY.words)[0] == np.array(h.sum(), u).view(np.int64)


@dtypes
def test_errors_before_anything_changes(dtype):
    tensor, most = torch.ones(8, dtype=dtype), torch.finfo(dtype).max
    for fill in (
        lambda: xinit.normal_(tensor, std=most + 1),
        lambda: xinit.uniform_(tensor, 0.0, 2 * most),
        lambda: xinit.fill_many_([tensor], [xinit.constant(-most - 1)], [KEY]),
    ):
        with pytest.raises(RuntimeError, match="is out of bounds"):
            fill()
    with pytest.raises(ValueError, match="holds no value of the tensor's dtype"):
        xinit.uniform_(tensor, 1.01, 1.02)
    assert torch.equal(tensor.float(), torch.ones(8))
    assert xinit.normal_(torch.empty(3, dtype=dtype, device="meta")).is_meta


@dtypes
def test_signs_of_zeros(dtype):
    zeros = torch.empty(5, dtype=dtype)
    xinit.fill_many_([zeros], [xinit.constant(-0.0)], [KEY])
    assert (codes(zeros) == (0 if "fnuz" in str(dtype) else 0x80)).all()
    tiny = xinit.normal_(torch.empty(999, dtype=dtype), std=1e-12, key=KEY)
    assert set(codes(tiny).tolist()) == ({0} if "fnuz" in str(dtype) else {0, 0x80})


@dtypes
def test_models(dtype):
    model = nn.Sequential(nn.Linear(6, 5)).to(dtype)
    xinit.init_(model, {"*.bias": xinit.zeros(), "*": xinit.kaiming_normal()}, Key(2))
    expected = xinit.kaiming_normal_(torch.empty(5, 6, dtype=dtype), key=Key(2).fold_in("0.weight"))
    assert torch.equal(codes(model[0].weight.detach()), codes(expected))
    before = xinit.fingerprint(model)
    with torch.no_grad():
        codes(model[0].weight.detach())[0, 0] ^= 1
    assert xinit.fingerprint(model) != before
    assert str(dtype).removeprefix("torch.") in str(xinit.plan(model, "torch"))


class Quantized(nn.Module):
    """A weight drawn in float32 and then cast, as checkpoints of float8 have it."""

    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter((torch.randn(7, 9) * 0.5).to(dtype), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(1, dtype=dtype), requires_grad=False)


@dtypes
def test_deferred(dtype):
    with xinit.deferred() as plan:
        model = Quantized(dtype)
    assert "normal" in str(plan)
    xinit.materialize_(model, key=Key(4))
    expected = xinit.normal_(torch.empty(7, 9, dtype=dtype), std=0.5, key=Key(4).fold_in("weight"))
    assert torch.equal(codes(model.weight), codes(expected))
    assert model.scale.float().item() == 1


@pytest.mark.parametrize("count", [4, 1 << 15])  # what is small is not put off
def test_what_torch_refuses_within_deferred_is_refused_at_its_line(count):
    with xinit.deferred():
        kept = torch.empty(count, dtype=torch.float8_e4m3fn).fill_(300.0)
        for tensor in torch.empty(count, dtype=torch.float8_e4m3fnuz), nn.Linear(count, 1, dtype=torch.float16).weight:
            with pytest.raises(RuntimeError, match="without overflow"):
                tensor.data.fill_(300.0 if tensor.dtype.itemsize == 1 else 1e6)
    assert (kept.float() == 288).all()  # the nearest


@dtypes
def test_the_mean_and_the_variance_are_right(dtype):
    n, std = 1 << 20, 3.0
    values = xinit.normal_(torch.empty(n, dtype=dtype), std=std, key=KEY).double()
    step = 2.0 ** -(4 if "e4m3" in str(dtype) else 3)  # half a unit in the last place, relative, at most
    assert abs(values.mean()) < 5 * std / math.sqrt(n)
    assert abs(values.square().mean() / std**2 - 1) < 5 * math.sqrt(2 / n) + step**2
