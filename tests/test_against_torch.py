"""Beside torch.nn.init: the same distributions, arguments, errors and warnings; and SciPy's laws for random parameters.

Keys and torch's seeds are fixed. Limits: 5 standard errors for a mean or a standard deviation, and the level 1e-4 for a
Kolmogorov-Smirnov test, which ties only make milder.
"""

import inspect
import math
import random
import re
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.stats.distributions import rv_frozen
from torch import Tensor
from torch.nn import init

import xinit
from xinit import Key

LEVEL = 1e-4
SHAPES = {
    "linear": (1024, 1024),
    "rectangular": (256, 4099),
    "conv1d": (512, 700, 3),
    "conv2d": (512, 256, 3, 3),
    "conv3d": (160, 256, 3, 3, 3),
    "depthwise": (21400, 1, 7, 7),
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
WITH_FANS = ["xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"]
DRAWING = ["uniform_", "normal_", "trunc_normal_", *WITH_FANS]


class Case(NamedTuple):
    name: str
    arguments: dict[str, Any]
    law: Callable[[int, int], rv_frozen]  # of fan_in and fan_out

    def __str__(self) -> str:
        return "-".join([self.name, *map(str, self.arguments.values())])

    def draw(self, library: Any, shape: tuple[int, ...], dtype: torch.dtype, **source: Any) -> Tensor:
        return getattr(library, self.name)(torch.empty(shape, dtype=dtype), **self.arguments, **source)


def symmetric(std: float) -> rv_frozen:
    return stats.uniform(-math.sqrt(3) * std, 2 * math.sqrt(3) * std)


def normal(std: float) -> rv_frozen:
    return stats.norm(0, std)


def truncated(a: float, b: float, mean: float = 0, std: float = 1) -> rv_frozen:
    return stats.truncnorm((a - mean) / std, (b - mean) / std, mean, std)


def gain(slope: float) -> float:
    return math.sqrt(2 / (1 + slope**2))


CASES = [
    Case("uniform_", {}, lambda i, o: stats.uniform(0, 1)),
    Case("uniform_", {"a": -0.3, "b": 0.1}, lambda i, o: stats.uniform(-0.3, 0.4)),
    Case("normal_", {"mean": 0.5, "std": 0.2}, lambda i, o: stats.norm(0.5, 0.2)),
    Case("trunc_normal_", {"std": 0.5}, lambda i, o: truncated(-2, 2, 0, 0.5)),
    Case("trunc_normal_", {"a": 0.3, "b": 2.0}, lambda i, o: truncated(0.3, 2)),
    Case("xavier_uniform_", {"gain": 5 / 3}, lambda i, o: symmetric(5 / 3 * math.sqrt(2 / (i + o)))),
    Case("xavier_normal_", {}, lambda i, o: normal(math.sqrt(2 / (i + o)))),
    Case("kaiming_uniform_", {"nonlinearity": "relu"}, lambda i, o: symmetric(math.sqrt(2 / i))),
    Case("kaiming_uniform_", {"a": 0.3, "mode": "fan_out"}, lambda i, o: symmetric(gain(0.3) / math.sqrt(o))),
    Case("kaiming_normal_", {"nonlinearity": "relu"}, lambda i, o: normal(math.sqrt(2 / i))),
    Case("kaiming_normal_", {"a": 0.3, "mode": "fan_out"}, lambda i, o: normal(gain(0.3) / math.sqrt(o))),
]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


# ---- the distributions, at 2^20 elements and more ----


@lru_cache(maxsize=1)
def torchs_draw(index: int, shape: tuple[int, ...]) -> Tensor:
    """In float32, sorted: torch's own 16-bit uniforms have 256 levels on a CPU, and a biased mean."""
    generator = torch.Generator().manual_seed(index)
    return torch.from_numpy(np.sort(CASES[index].draw(init, shape, torch.float32, generator=generator).flatten()))


def within(x: Tensor, law: rv_frozen) -> Tensor:
    """Which values lie in the law's support; the upper bound of a uniform does not."""
    low, high = law.support()
    x = x.double()
    return (x >= low) & ((x < high) if law.dist.name == "uniform" else (x <= high))


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """The two-sample Kolmogorov-Smirnov statistic of sorted samples, looked for at every 64th place."""
    places = y[::64]
    return float(
        np.abs(np.searchsorted(x, places, "right") / x.size - np.searchsorted(y, places, "right") / y.size).max()
    )


def distance_limit(n: int) -> float:
    """For two samples of n each."""
    return math.sqrt(-math.log(LEVEL / 2) / n)


@pytest.mark.parametrize("dtype", [DTYPES[0], *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES[1:])], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("index", range(len(CASES)), ids=map(str, CASES))
def test_mean_std_bounds_and_distribution(index: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    case = CASES[index]
    law = case.law(*fans(shape))
    weights = case.draw(xinit, shape, dtype, key=Key(index).fold_in(str(shape)))
    assert within(weights, law).all()

    n = weights.numel()
    variance, mean = torch.var_mean(weights.double())
    assert abs(mean.item() - law.mean()) / (law.std() / math.sqrt(n)) < 5
    error = law.std() * math.sqrt((law.stats("k") + 2) / (4 * n))
    assert abs(variance.sqrt().item() - law.std()) / error < 5

    # torch's draw, rounded to the dtype and clamped to its values in the interval.
    theirs = torchs_draw(index, shape).to(dtype).float()
    inside = theirs[within(theirs, law)]
    theirs = theirs.clamp(inside[0], inside[-1])
    assert distance(np.sort(weights.float().flatten()), theirs.numpy()) < distance_limit(n)


def test_the_distance_tells_a_std_two_percent_too_wide() -> None:
    theirs = torchs_draw(2, SHAPES["linear"]).numpy()
    wide = 0.5 + 1.02 * (np.random.default_rng(0).permutation(theirs) - 0.5)
    assert distance(np.sort(wide), theirs) > distance_limit(theirs.size)


# ---- random parameters in all numbers of dimensions, against SciPy's laws ----


def random_case(name: str, rng: random.Random) -> Case:
    mean, std, slope = rng.uniform(-3, 3), rng.uniform(0.1, 5), rng.uniform(0.1, 2)
    if name == "uniform_":
        return Case(name, {"a": mean, "b": mean + std}, lambda i, o: stats.uniform(mean, std))
    if name == "normal_":
        return Case(name, {"mean": mean, "std": std}, lambda i, o: stats.norm(mean, std))
    if name == "trunc_normal_":
        a = mean + std * rng.uniform(-3, 2)
        b = a + std * rng.uniform(0.1, 4)
        return Case(name, {"mean": mean, "std": std, "a": a, "b": b}, lambda i, o: truncated(a, b, mean, std))
    law = symmetric if "uniform" in name else normal
    if "xavier" in name:
        return Case(name, {"gain": slope}, lambda i, o: law(slope * math.sqrt(2 / (i + o))))
    mode = rng.choice(["fan_in", "fan_out"])
    return Case(
        name, {"a": slope, "mode": mode}, lambda i, o: law(gain(slope) / math.sqrt(i if mode == "fan_in" else o))
    )


@pytest.mark.parametrize(
    ("name", "dimensions"), [(name, d) for name in DRAWING for d in range(2 if name in WITH_FANS else 1, 6)]
)
def test_random_parameters(name: str, dimensions: int) -> None:
    """5 sets of parameters, up to 20 000 elements each."""
    rng = random.Random(f"{name} {dimensions}")
    for seed in range(5):
        case = random_case(name, rng)
        longest = round(20000 ** (1 / dimensions))
        shape = tuple(rng.randint(longest // 2, longest) for _ in range(dimensions))
        law = case.law(*fans(shape)) if name in WITH_FANS else case.law(0, 0)
        x = case.draw(xinit, shape, torch.float64, generator=torch.Generator().manual_seed(seed)).flatten()
        assert stats.kstest(x.numpy(), law.cdf).pvalue > LEVEL, (case, shape)


# ---- signatures, generators, errors, warnings ----


@pytest.mark.parametrize("name", [*DRAWING, "calculate_gain"])
def test_signature_begins_as_torchs(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(library, name)).parameters.values() for library in (xinit, init))
    assert [(p.name, p.default, p.kind) for p in ours][: len(theirs)] == [(p.name, p.default, p.kind) for p in theirs]


@pytest.mark.parametrize("name", ["_calculate_correct_fan", "_calculate_fan_in_and_fan_out"])
def test_what_does_not_draw_by_key_is_torchs_own(name: str) -> None:
    assert getattr(xinit, name) is getattr(init, name)


@pytest.mark.parametrize("name", DRAWING)
def test_generators(name: str) -> None:
    def draw(generator: torch.Generator | None = None) -> Tensor:
        return getattr(xinit, name)(torch.empty(8, 9), generator=generator)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first, second = draw(), draw()
        torch.manual_seed(1)
        explicit = draw(torch.Generator().manual_seed(2))  # leaves the default one alone
        assert torch.equal(draw(), first)
        assert torch.equal(draw(), second)
    assert torch.equal(explicit, draw(torch.Generator().manual_seed(2)))
    assert not any(map(torch.equal, (first, first, second), (second, explicit, explicit)))


@pytest.mark.parametrize("name", DRAWING)
def test_a_parameter_is_filled_in_place_and_not_recorded(name: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(8, 9))
    assert getattr(xinit, name)(parameter) is parameter
    assert parameter.is_leaf
    assert parameter.requires_grad
    assert parameter.count_nonzero() > 0


BAD: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    *((name, shape, {}) for name in WITH_FANS for shape in [(), (3,)]),
    *((name, (3, 5), {"mode": "fan_sum"}) for name in WITH_FANS[2:]),
    *((name, (3, 5), {"nonlinearity": "bilinear"}) for name in WITH_FANS[2:]),
    *((name, (3, 5), {"a": slope}) for name in WITH_FANS[2:] for slope in (True, "0.1", [0.1])),
    ("uniform_", (3, 5), {"a": 1.0, "b": -1.0}),
    ("uniform_", (3, 5), {"b": math.nan}),
    ("normal_", (3, 5), {"std": -1.0}),
    ("xavier_normal_", (3, 5), {"gain": -1.0}),
    ("xavier_uniform_", (3, 5), {"gain": -1.0}),
]


@pytest.mark.parametrize(("name", "shape", "arguments"), BAD, ids=str)
def test_errors_are_torchs(name: str, shape: tuple[int, ...], arguments: dict[str, Any]) -> None:
    tensor, generator = torch.ones(shape), torch.Generator().manual_seed(0)
    before = generator.get_state()
    with pytest.raises((ValueError, RuntimeError)) as theirs:
        getattr(init, name)(tensor, **arguments)
    with pytest.raises(theirs.type) as ours:
        getattr(xinit, name)(tensor, **arguments, generator=generator)
    if theirs.type is ValueError:
        assert re.match(re.escape(str(theirs.value)) + "(: .*)?$", str(ours.value))  # and may say why
    assert tensor.eq(1).all()
    assert torch.equal(generator.get_state(), before)


NONLINEARITIES = [
    "linear",
    "sigmoid",
    "tanh",
    "relu",
    "leaky_relu",
    "selu",
    *(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3)),
]


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("slope", [None, 0, 1, -2, 0.2, 10.0])
def test_gains_are_torchs(nonlinearity: str, slope: float | None) -> None:
    assert xinit.calculate_gain(nonlinearity, slope) == init.calculate_gain(nonlinearity, slope)


@pytest.mark.parametrize("library", [init, xinit], ids=["torch", "xinit"])
@pytest.mark.parametrize(
    ("nonlinearity", "slope", "message"),
    [(name, None, f"^Unsupported nonlinearity {name}(:|$)") for name in ("bilinear", "ReLU", "")]
    + [("leaky_relu", slope, f"^negative_slope {slope} not a valid number$") for slope in (True, "0.1", {})],
)
def test_gain_errors_are_torchs(library: Any, nonlinearity: str, slope: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        library.calculate_gain(nonlinearity, slope)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (4, 3, 0, 2)])
@pytest.mark.parametrize("name", DRAWING)
def test_without_elements_nothing_is_drawn(name: str, shape: tuple[int, ...]) -> None:
    """With torch's warning of a no-op where a fan is computed: torch gives it for Kaiming alone."""
    tensor, generator = torch.empty(shape), torch.Generator().manual_seed(0)
    before = generator.get_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert getattr(xinit, name)(tensor, generator=generator) is tensor
    no_op = "Initializing zero-element tensors is a no-op"
    assert [str(warning.message)[: len(no_op)] for warning in caught] == [no_op] * (name in WITH_FANS)
    assert torch.equal(generator.get_state(), before)
