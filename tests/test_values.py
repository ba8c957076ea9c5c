"""From words to values: the contract's formulas in NumPy, on 2^20 words in every one of 2^16 strata, and both ends."""

import math

import numpy as np
import pytest
import torch
from conftest import DTYPES, FAN_FILLS, bits, dtypes, ends, same
from conftest import words as words_at
from scipy.special import log_ndtr, ndtr, ndtri, ndtri_exp

import xinit
from xinit import _C, Key, Window

KEY = Key(0)
N = 2**20
# Where Key(0) has the words at which something could end, wrap or become infinite: at an even index and at an odd one.
EXTREMES = {
    0x00000000: (2994328740, 1485971301),
    0x00000001: (336682600, 2906480751),
    0x7FFFFFFF: (1190866456, 1661851009),
    0x80000000: (14574268442, 10455682509),
    0xFFFFFFFF: (1558931130, 10472801097),
}
BLOCKS = [index // 4 for pair in EXTREMES.values() for index in pair]
WORDS = np.concatenate([_C.words(0, 0, 0, N // 4), *(_C.words(0, 0, block, 1) for block in BLOCKS)]).astype(np.uint32)


def sample(fill, dtype=torch.float32, **parameters):
    """The values of a fill that belong to WORDS."""
    parts = [fill(torch.empty(N, dtype=dtype), key=KEY, **parameters)]
    for block in BLOCKS:
        where = Window((2**40, 4), (block, 0))
        parts.append(fill(torch.empty(1, 4, dtype=dtype), key=KEY, window=where, **parameters).flatten())
    return torch.cat(parts)


def fma(x, y, z):
    """x y + z, rounded once: the product is exact in float64, and a sum rounded to odd can be rounded again."""
    x, y, z = (np.asarray(v, np.float32).astype(np.float64) for v in (x, y, z))
    p = x * y
    s = p + z
    t = s - p
    error = (p - (s - t)) + (z - t)
    inexact_to_even = (error != 0) & (s.view(np.int64) & 1 == 0)
    return np.where(inexact_to_even, np.nextafter(s, np.copysign(np.inf, error)), s).astype(np.float32)


def uniform(a, b):
    half, mid = (b - a) / 2, (a + b) / 2
    scale = np.float32(half) * np.float32(2**-23)
    return scale, np.float32(mid + half * 2**-24)


def normal():
    """z of each word, in float64 on the contract's binary32 u and v."""
    w0, w1 = WORDS[0::2], WORDS[1::2]
    u = fma((w0 >> 1).astype(np.float32), 2**-31, 2**-32).astype(np.float64)
    v = w1.view(np.int32).astype(np.float32).astype(np.float64) * 2.0**-32
    r = np.sqrt(-2 * np.log(u))
    return np.stack([r * np.cos(2 * np.pi * v), r * np.sin(2 * np.pi * v)], 1).ravel()


def truncated(alpha, beta):
    """The standard quantile, each from its nearer end, so that nothing cancels."""
    u = (WORDS + 0.5) * 2.0**-32
    if beta < 0:
        return -upper(1 - u, -beta, -alpha)
    if alpha > 0:
        return upper(u, alpha, beta)
    mass = ndtr(beta) - ndtr(alpha)
    below, above = ndtr(alpha) + u * mass, ndtr(-beta) + (1 - u) * mass
    return np.where(below < above, ndtri(below), -ndtri(above))


def upper(u, near, far):
    rest = np.exp(log_ndtr(-far) - log_ndtr(-near))
    return -ndtri_exp(log_ndtr(-near) + np.log1p(-u * (1 - rest)))


def test_the_words_reach_everywhere():
    assert np.unique(WORDS >> 16).size == 2**16
    for word, indices in EXTREMES.items():
        assert words_at(indices, KEY).tolist() == [word, word]
        assert {index % 2 for index in indices} == {0, 1}


def test_fma_rounds_once():
    assert fma(1 + 2**-23, 1 - 2**-23, -1) == -(2.0**-46)
    # The product is 2^-24 + 2^-60: above the tie between 1 and its neighbour, on it when rounded to float64 in between.
    x, y = 1 + 2**-12, 2**-24 * (1 - 2**-12 + 2**-24)
    assert np.float32(x * y + 1) == 1
    assert fma(x, y, 1) == 1 + 2**-23


UNIFORMS = [
    (0, 1), (-1, 1), (-0.1, 0.1), (0.1, 0.3), (-3, 5.5), (1e-3, 1e3), (100, 101), (-1e-5, 1e-5), (0.99, 1), (1, 1.01),
    (-2, -1),
]  # fmt: skip
UNIFORMS_32 = [
    (-1e-30, 1e-30),
    (-1e-37, 1e-37),
    (0, 3.4e38),
    (-3e38, 3e38),
    (1, 1 + 2**-22),
    (-1e-45, 1e-45),
    (1e30, 1.1e30),
]


@pytest.mark.parametrize(
    ("dtype", "a", "b"),
    [(d, *ab) for d in DTYPES for ab in UNIFORMS] + [(d, *ab) for d in DTYPES if d.itemsize > 2 for ab in UNIFORMS_32],
    ids=str,
)
def test_uniform(dtype, a, b):
    scale, shift = uniform(a, b)
    exact = torch.from_numpy(fma(WORDS.view(np.int32) >> 8, scale, shift)).to(dtype)
    low, high = ends(a, b, dtype, closed=False)
    values = sample(xinit.uniform_, dtype, a=a, b=b)
    assert same(values, exact.clamp(low, high))
    assert (values.double() >= a).all()
    assert (values.double() < b).all()
    assert dtype.itemsize > 2 or values.max() == high  # b, to which the largest draws round, becomes its neighbour


@pytest.mark.parametrize(("a", "b"), UNIFORMS + UNIFORMS_32)
def test_uniform_plan(a, b):
    plan = _C.uniform(a, b, "float32")
    assert (plan["scale"], plan["shift"]) == uniform(a, b)


@pytest.mark.parametrize("bound", [1, 0.1, 3.7e-3, 2.5e4])
def test_a_symmetric_uniform_is_exactly_symmetric(bound):
    values = sample(xinit.uniform_, a=-bound, b=bound)
    unit = np.float32(bound) * np.float32(2**-23)
    assert values.min() == -values.max() == -fma(2**23 - 1, unit, unit / 2)
    assert 0 < values.abs().min() <= unit


def test_normal():
    exact, z = normal(), sample(xinit.normal_).double().numpy()
    assert (np.abs(z - exact) <= 1e-6 * np.maximum(1, np.abs(exact))).all()
    assert np.abs(z).max() <= math.sqrt(64 * math.log(2)) * (1 + 1e-6)
    assert np.abs(exact).max() > 5  # the tails were looked at


@pytest.mark.parametrize(
    ("mean", "std"), [(0, 0.02), (1.5, 0.3), (-2, 0), (3, 1e-9), (0, 1e-40), (1e30, 1e30), (0.1, 0.7)]
)
def test_normal_scales_and_shifts_with_one_rounding(mean, std):
    z = sample(xinit.normal_).numpy()
    plan = _C.normal(mean, std)
    assert (plan["scale"], plan["shift"]) == (np.float32(std), np.float32(mean))
    assert same(sample(xinit.normal_, mean=mean, std=std), torch.from_numpy(fma(np.float32(std), z, np.float32(mean))))


WITHIN_6_SIGMA = [
    (0, 1, -2, 2), (0, 0.02, -0.04, 0.04), (0, 1, -1, 3), (0, 1, -6, 6), (0, 1, -1e-3, 1e-3), (0, 1, 0, 10),
    (0, 1, -8, 8), (0.3, 0.5, 0.3, 9), (0, 1, 0.5, 40), (0, 1, -40, -0.5), (0, 1, 2, 5), (0, 1, -5.9, -5),
    (0, 1, 5.5, 7),
    (0, 1, -7, -5.99), (0, 1, -3e38, 3e38), (0, 1, 1, 1.001), (-0.5, 2, -0.7, 1), (0, 1, -1e-9, 2),
    (0, 1e-20, -1e-20, 2e-20),
]  # fmt: skip
BEYOND_6_SIGMA = [
    (0, 1, 6, 7), (0, 1, 7, 9), (0, 1, -9, -7), (0, 1, 6, 3e38), (0, 1, 30, 31), (0, 1, -1001, -1000),
    (0, 1, 6.5, 6.5001), (3, 0.1, 5, 6), (0, 1e-3, -1, -0.9), (0, 1e-30, 0.5, 0.6),
]  # fmt: skip


def descent(x):
    """By how much x, which grows with the word, falls at most. Neighbours may come out swapped by rounding."""
    x = x[np.argsort(WORDS)]
    return (np.maximum.accumulate(x) - x).max()


def errors(mean, std, a, b):
    x = sample(xinit.trunc_normal_, mean=mean, std=std, a=a, b=b).double().numpy()
    assert ((a <= x) & (x <= b)).all()
    exact = mean + std * truncated((a - mean) / std, (b - mean) / std)
    # Rounding the result, and the bound or mean that it is reckoned from, is no error of the quantile's.
    return x, np.abs(x - exact) - np.spacing(np.abs(x).astype(np.float32))


@pytest.mark.parametrize(("mean", "std", "a", "b"), WITHIN_6_SIGMA)
def test_truncated_normal(mean, std, a, b):
    x, error = errors(mean, std, a, b)
    assert error.max() <= 2e-6 * std
    assert descent(x) <= 5e-7 * std


@pytest.mark.parametrize(("mean", "std", "a", "b"), BEYOND_6_SIGMA)
def test_truncated_normal_in_a_far_tail(mean, std, a, b):
    x, error = errors(mean, std, a, b)
    nearest = min(abs(a - mean), abs(b - mean)) / std
    assert error.max() <= 3e-3 * std * 6 / nearest  # std / nearest is the scale on which the tail falls off
    assert descent(x) <= np.spacing(np.abs(x).max().astype(np.float32))


def test_truncated_normal_has_no_atoms_at_its_bounds():
    x = sample(xinit.trunc_normal_, a=-1, b=1)[:N]
    assert max((x == end).sum() for end in (-1, 1)) <= 2


@dtypes
@pytest.mark.parametrize(
    ("mean", "std", "a", "b"),
    [(0, 1, -2, 2), (0.1, 0.5, 0.1, 0.7), (0, 0.1, 0.7, 0.9), (0, 0.1, -0.9, -0.7), (0, 1, 0.3, 0.301)],
)
def test_truncated_normal_never_leaves_its_interval(dtype, mean, std, a, b):
    values, single = (sample(xinit.trunc_normal_, d, mean=mean, std=std, a=a, b=b) for d in (dtype, torch.float32))
    low, high = ends(a, b, dtype, closed=True)
    assert (values.double() >= a).all()
    assert (values.double() <= b).all()
    inside = torch.tensor(True)
    if dtype == torch.float64:  # its ends are wider: it may keep what float32 clamped
        inside = (single > single.min()) & (single < single.max())
    assert torch.equal(values[inside], single.to(dtype).clamp(low, high)[inside])


@dtypes
def test_a_constant_stays_in_the_interval(dtype):
    """std = 0 with the mean at a bound, where rounding to the dtype could step over it."""
    for value in (0.1, 0.3, 0.7, -0.1, -0.7, 1 / 3):
        assert same(
            xinit.uniform_(torch.empty(5, dtype=dtype), value, value, key=KEY), torch.full((5,), value).to(dtype)
        )
        for a, b in ((value, value + 1), (value - 1, value)):
            values = xinit.trunc_normal_(torch.empty(5, dtype=dtype), value, 0, a, b, key=KEY).double()
            assert ((a <= values) & (values <= b)).all(), (a, b)


@dtypes
@pytest.mark.parametrize("where", [1, -1])
def test_a_std_too_small_for_the_window_gives_the_nearer_bound(dtype, where):
    a, b = sorted((where * 1.0, where * 2.0))
    for std in (1e-30, 1e-310, 5e-324):
        assert (xinit.trunc_normal_(torch.empty(9, dtype=dtype), 0, std, a, b, key=KEY) == where).all()


GAINS = {
    "linear": 1, "conv1d": 1, "conv_transpose3d": 1, "sigmoid": 1, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 0.75,
    "leaky_relu": math.sqrt(2 / (1 + 0.01**2)),
}  # fmt: skip


def test_gains():
    for name, gain in GAINS.items():
        assert xinit.calculate_gain(name) == gain == torch.nn.init.calculate_gain(name)
    for slope in (0, 1, -0.5, 0.2, 3):
        expected = torch.nn.init.calculate_gain("leaky_relu", slope)
        assert math.isclose(xinit.calculate_gain("leaky_relu", slope), expected, rel_tol=1e-15)


def uniform_of(std):
    return xinit.uniform_, (-math.sqrt(3) * std, math.sqrt(3) * std)


def normal_of(std):
    return xinit.normal_, (0, std)


def truncated_of(std):
    std = std / 0.87962566103423978  # of a standard normal truncated to +-2: sqrt(1 - 2 * 2 phi(2) / (2 Phi(2) - 1))
    return xinit.trunc_normal_, (0, std, -2 * std, 2 * std)


# function, its arguments, the std that the papers give for fans (i, o), the distribution
FAMILY = [
    ("xavier_uniform_", {}, lambda i, o: math.sqrt(2 / (i + o)), uniform_of),
    ("xavier_uniform_", {"gain": 5 / 3}, lambda i, o: 5 / 3 * math.sqrt(2 / (i + o)), uniform_of),
    ("xavier_normal_", {}, lambda i, o: math.sqrt(2 / (i + o)), normal_of),
    ("xavier_normal_", {"gain": 0.5}, lambda i, o: 0.5 * math.sqrt(2 / (i + o)), normal_of),
    ("kaiming_uniform_", {}, lambda i, o: math.sqrt(2 / i), uniform_of),
    ("kaiming_uniform_", {"a": math.sqrt(5)}, lambda i, o: math.sqrt(1 / 3 / i), uniform_of),
    ("kaiming_uniform_", {"nonlinearity": "relu"}, lambda i, o: math.sqrt(2 / i), uniform_of),
    ("kaiming_uniform_", {"nonlinearity": "relu", "mode": "fan_out"}, lambda i, o: math.sqrt(2 / o), uniform_of),
    ("kaiming_normal_", {"a": 0.2}, lambda i, o: math.sqrt(2 / 1.04 / i), normal_of),
    ("kaiming_normal_", {"nonlinearity": "tanh", "mode": "fan_out"}, lambda i, o: 5 / 3 / math.sqrt(o), normal_of),
    ("kaiming_normal_", {"nonlinearity": "selu", "a": 0.3}, lambda i, o: 0.75 / math.sqrt(i), normal_of),
    ("variance_scaling_", {}, lambda i, o: math.sqrt(1 / i), truncated_of),
    ("variance_scaling_", {"scale": 2.0, "mode": "fan_out"}, lambda i, o: math.sqrt(2 / o), truncated_of),
    (
        "variance_scaling_",
        {"mode": "fan_avg", "distribution": "uniform"},
        lambda i, o: math.sqrt(2 / (i + o)),
        uniform_of,
    ),
    ("variance_scaling_", {"scale": 0.1, "distribution": "normal"}, lambda i, o: math.sqrt(0.1 / i), normal_of),
    ("lecun_uniform_", {}, lambda i, o: math.sqrt(1 / i), uniform_of),
    ("lecun_normal_", {}, lambda i, o: math.sqrt(1 / i), truncated_of),
]


@pytest.mark.parametrize(("name", "arguments", "std", "of"), FAMILY)
@pytest.mark.parametrize("shape", [(30, 50), (64, 3, 7, 7), (5, 11, 3), (1, 1), (2, 3, 1, 5, 4)], ids=str)
def test_the_family_is_one_formula(name, arguments, std, of, shape):
    fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    fill, parameters = of(std(fan_in, fan_out))
    values = getattr(xinit, name)(torch.empty(shape), key=KEY, **arguments)
    expected = fill(torch.empty(shape), *parameters, key=KEY)
    # The formulas may differ in the last bit of double, hence by a bit or two of float32 where that tips a rounding.
    assert (bits(values) - bits(expected)).abs().max() <= 2
    if fill is xinit.uniform_:
        assert values.abs().max() < parameters[1]


def test_every_fan_fill_is_in_the_family():
    assert {f"{name}_" for name in FAN_FILLS} == {name for name, *_ in FAMILY}


@pytest.mark.parametrize("distribution", ["truncated_normal", "normal", "uniform"])
def test_a_scale_of_zero_gives_zeros(distribution):
    """As torch's std=0, and as JAX."""
    assert not xinit.variance_scaling_(torch.ones(3, 4), 0.0, distribution=distribution).any()
    xinit.fill_many_([w := torch.ones(3, 4)], [xinit.variance_scaling(0.0, distribution=distribution)], [KEY])
    assert not w.any()


ZEROS_AT_BOUNDS = [(-0.0, 0.0, -1.0, 0.0), (0.0, 1e-44, -1e-43, 0.0), (1e-40, 1e-41, -1e-40, 0.0)]  # mean, std, a, b


@pytest.mark.parametrize("parameters", ZEROS_AT_BOUNDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_zero_at_a_bound_has_the_bounds_sign(dtype, parameters):
    for shape in (999,), (33, 5):
        values = xinit.trunc_normal_(torch.empty(shape, dtype=dtype), *parameters, key=KEY)
        assert not values[values == 0].signbit().any()


@pytest.mark.parametrize(
    ("dtype", "least"),
    [(torch.float16, 2**-24), (torch.bfloat16, 2**-133), (torch.float8_e4m3fn, 2**-9), (torch.float8_e5m2, 2**-16)],
    ids=str,
)
def test_what_rounds_to_zero_at_a_bound_has_the_bounds_sign(dtype, least):
    """Down to half the least value that is not zero, which is rounded to even."""
    for shape in (4099,), (65, 63):
        values = xinit.trunc_normal_(torch.empty(shape, dtype=dtype), 0.0, least, -3 * least, 0.0, key=KEY).float()
        assert 0.2 < (values == 0).float().mean() < 0.6
        assert not values[values == 0].signbit().any()
        assert (values <= 0).all()
        assert (values < 0).any()


@dtypes
def test_a_constant_keeps_the_sign_of_zero(dtype):
    for value in (-0.0, 0.0):
        tensors = torch.empty(1001, dtype=dtype), torch.empty(40, 30, dtype=dtype).t()
        xinit.fill_many_(tensors, [xinit.constant(value)] * 2, [KEY, KEY])
        for tensor in tensors:
            assert same(tensor, torch.full_like(tensor, value))
