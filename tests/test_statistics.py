"""Whether the draws have the distributions they name, and are independent, by samples large enough to tell.

A check gives z-scores: deviations from theory in standard errors. Keys are fixed, nothing is retried. The file makes
fewer than 2000 comparisons, each two-sided at the level 1e-3 / 2000 (5.03 standard errors), so that a right library
fails for one choice of keys in a thousand. Each check is shown to find planted defects.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pytest
import torch
from scipy import stats
from scipy.stats.distributions import rv_frozen
from torch import Tensor

import xinit
from xinit import Key, Window

LIMIT = stats.norm.isf(1e-3 / 2000 / 2)
N = 1 << 24


class Distribution(NamedTuple):
    fill: Callable[..., Tensor]
    arguments: tuple[float, ...]
    law: rv_frozen
    cdf: Callable[[Tensor], Tensor]  # SciPy's own is slow for 2^24 values
    half_open: bool = False  # the upper bound is never drawn

    def draw(self, size: int, key: Key, dtype: torch.dtype = torch.float64, window: Window | None = None) -> Tensor:
        return self.fill(torch.empty(size, dtype=dtype), *self.arguments, key=key, window=window)

    def standardised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x - mean) / std, and the square of that, itself of mean 0 and std 1."""
        mean, variance, excess = (float(moment) for moment in self.law.stats("mvk"))
        x = (x.double() - mean) / math.sqrt(variance)
        return x, (x.square() - 1) / math.sqrt(excess + 2)


def truncated(a: float, b: float) -> Distribution:
    below, above = stats.norm.cdf(a), stats.norm.sf(b)
    mass = 1 - below - above
    return Distribution(
        xinit.trunc_normal_, (0, 1, a, b), stats.truncnorm(a, b), lambda x: (torch.special.ndtr(x) - below) / mass
    )


UNIFORM = Distribution(xinit.uniform_, (-1, 1), stats.uniform(-1, 2), lambda x: (x + 1) / 2, half_open=True)
NORMAL = Distribution(xinit.normal_, (0, 1), stats.norm(), torch.special.ndtr)
DISTRIBUTIONS = {
    "uniform": UNIFORM,
    "normal": NORMAL,
    "truncated": truncated(-2, 2),
    "lopsided": truncated(-1, 3),
}
distributions = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
# A truncated normal reads the same words as a uniform, in the same order.
one_word_and_two = pytest.mark.parametrize("distribution", [UNIFORM, NORMAL], ids=["uniform", "normal"])


# ---- the checks ----


def score(sf: float, cdf: float) -> float:
    """The standard errors that are as unlikely as what has the upper and lower tail probabilities sf and cdf."""
    return float(stats.norm.isf(sf) if sf < cdf else stats.norm.ppf(cdf))


def chi_square(counts: Tensor, expected: Tensor) -> float:
    statistic, degrees = float(((counts - expected).square() / expected).sum()), len(counts) - 1
    return score(stats.chi2.sf(statistic, degrees), stats.chi2.cdf(statistic, degrees))


def moments(x: Tensor, distribution: Distribution) -> list[float]:
    """Of the means of x, x^2, x^3 and x^4, which together are mean, variance, skew and kurtosis."""
    exact = [1.0, *(float(distribution.law.moment(k)) for k in range(1, 9))]
    x = x.double()
    square = x.square()
    means = [float(power.mean()) for power in (x, square, square * x, square * square)]
    return [
        (mean - exact[k]) / math.sqrt((exact[2 * k] - exact[k] ** 2) / x.numel())
        for k, mean in enumerate(means, start=1)
    ]


def bins(x: Tensor, distribution: Distribution, count: int = 1024) -> list[float]:
    """Of the chi-square over equiprobable bins."""
    places = distribution.cdf(x.double()).mul_(count).long().clamp_(0, count - 1)
    counts = torch.bincount(places, minlength=count)
    return [chi_square(counts, torch.full((count,), x.numel() / count, dtype=torch.float64))]


def lags(x: Tensor, distribution: Distribution, largest: int = 20) -> list[float]:
    """Of the serial correlations of the values and of their squares, at lag 3 and the powers of two up to 2^largest."""
    return [
        float(y[:-lag] @ y[lag:]) / math.sqrt(len(y) - lag)
        for y in distribution.standardised(x)
        for lag in [3, *(1 << k for k in range(largest + 1))]
    ]


def between(rows: Tensor, distribution: Distribution) -> list[float]:
    """Of the correlations between every two rows, of the values and of their squares."""
    pairs = torch.triu_indices(len(rows), len(rows), offset=1).unbind()
    return [z for y in distribution.standardised(rows) for z in ((y @ y.T)[pairs] / math.sqrt(rows.shape[1])).tolist()]


def tails(chunks: Iterable[Tensor], law: rv_frozen, beyond: tuple[float, ...]) -> list[float]:
    """Of the number of values above each threshold, and below its negative. The least threshold comes first."""
    size, counts = 0, [0] * (2 * len(beyond))
    for chunk in chunks:
        size += chunk.numel()
        extreme = chunk[chunk.abs() > beyond[0]]
        above = [int((side > threshold).sum()) for side in (extreme, -extreme) for threshold in beyond]
        counts = [count + more for count, more in zip(counts, above, strict=True)]
    probabilities = [*law.sf(beyond), *law.cdf([-threshold for threshold in beyond])]
    return [
        score(stats.binom.sf(count - 1, size, p), stats.binom.cdf(count, size, p))
        for count, p in zip(counts, probabilities, strict=True)
    ]


def rounded(x: Tensor, distribution: Distribution) -> list[float]:
    """Of the counts of a 16-bit dtype's own values, against the exact probability of rounding to each; and of the mean.

    Values that are expected fewer than 64 times are counted together with their neighbours.
    """
    bits = torch.arange(1 << 15, dtype=torch.int32).to(torch.int16).view(x.dtype)
    finite = bits[bits.isfinite()].double()
    values = torch.cat([-finite[1:].flip(0), finite])  # in order, and at the place: ± its magnitude's bits
    signed = x.view(torch.int16).int()
    places = torch.where(signed < 0, -(signed & 0x7FFF), signed) + len(finite) - 1
    counts = torch.bincount(places, minlength=len(values)).double()

    low, high = distribution.law.support()
    inside = (values >= low) & ((values < high) if distribution.half_open else (values <= high))
    assert counts[~inside].sum() == 0, "a draw left its interval"
    values, counts = values[inside], counts[inside]
    # What would leave the interval by rounding is clamped to its last value, so the outermost cells reach to infinity.
    edges = distribution.cdf((values[1:] + values[:-1]) / 2)
    p = torch.cat([torch.zeros(1), edges, torch.ones(1)]).diff()

    groups = (p.cumsum(0) * len(x) / 64).long()
    groups = torch.unique(groups.clamp(max=groups[-1] - 1), return_inverse=True)[1]  # the last group is not full
    sums = [torch.zeros(int(groups[-1]) + 1).double().index_add(0, groups, y) for y in (counts, p * len(x))]
    mean = float(p @ values)
    error = math.sqrt(float(p @ (values - mean).square()) / len(x))
    return [chi_square(*sums), (float(counts @ values) / len(x) - mean) / error]


def worst(*scores: list[float]) -> float:
    return max(abs(z) for group in scores for z in group)


# ---- the draws ----


@pytest.fixture(scope="module", params=DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def sample(request: pytest.FixtureRequest) -> tuple[Tensor, Distribution]:
    """2^24 draws."""
    return request.param.draw(N, Key(20)), request.param


@pytest.mark.parametrize("check", [moments, bins, lags])
def test_one_draw(sample: tuple[Tensor, Distribution], check: Callable[..., list[float]]) -> None:
    assert worst(check(*sample)) < LIMIT


@pytest.mark.parametrize(
    ("distribution", "beyond"),
    [(NORMAL, (4, 5, 5.5)), (truncated(-6, 6), (4, 5, 5.5)), (UNIFORM, (1 - 2**-12, 1 - 2**-17, 1 - 2**-19))],
    ids=["normal", "truncated", "uniform"],
)
def test_tails(distribution: Distribution, beyond: tuple[float, ...]) -> None:
    """Over 2^26 draws: beyond 4, 5 and 5.5 sigma on either side, 2125, 19 and 1.3 are expected."""
    size, chunk = 1 << 26, 1 << 22
    windows = (Window(global_shape=(size,), offsets=(start,)) for start in range(0, size, chunk))
    chunks = (distribution.draw(chunk, Key(26), torch.float32, window) for window in windows)
    assert worst(tails(chunks, distribution.law, beyond)) < LIMIT


NAMES = [
    f"layers.{layer}.{part}" for layer in range(4096) for part in ("q.weight", "k.weight", "v.weight", "out.weight")
]
KEYS: dict[str, Callable[[int], Key]] = {
    "seeds": Key,
    "streams": lambda i: Key(7, i),
    "integers": Key(7).fold_in,
    "parameters": lambda i: Key(7).fold_in(NAMES[i]),
}
keys = pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)


@one_word_and_two
@keys
def test_draws_of_neighbouring_keys(distribution: Distribution, key: Callable[[int], Key]) -> None:
    """8 keys, 2^20 draws of each."""
    assert worst(between(torch.stack([distribution.draw(1 << 20, key(i)) for i in range(8)]), distribution)) < LIMIT


@one_word_and_two
@keys
def test_draws_of_many_keys_interleaved(distribution: Distribution, key: Callable[[int], Key]) -> None:
    """64 draws of each of 2^14 keys, the first of all keys first: 2^20 draws in a row."""
    x = torch.stack([distribution.draw(64, key(i)) for i in range(1 << 14)], dim=1).flatten()
    assert worst(*(check(x, distribution) for check in (moments, bins)), lags(x, distribution, largest=16)) < LIMIT


@one_word_and_two
def test_shards(distribution: Distribution) -> None:
    """8 shards of one tensor, 2^20 draws each."""
    whole = (8 << 20,)
    shards = [distribution.draw(1 << 20, Key(8), window=Window(whole, (i << 20,))) for i in range(8)]
    assert worst(between(torch.stack(shards), distribution)) < LIMIT


@distributions
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(distribution: Distribution, dtype: torch.dtype) -> None:
    """2^24 draws."""
    assert worst(rounded(distribution.draw(N, Key(16), dtype), distribution)) < LIMIT


# ---- planted defects, each of which a check must find ----


def kaiming_without_root_two() -> list[float]:
    weight = xinit.kaiming_normal_(torch.empty(1024, 1024), nonlinearity="linear", key=Key(0))
    return moments(weight.flatten() / (2 / 1024) ** 0.5, NORMAL)


def fan_of_the_local_shard(window: Window | None = None) -> list[float]:
    shard = xinit.xavier_normal_(torch.empty(256, 1024), key=Key(0), window=window)
    return moments(shard.flatten() / (2 / 2048) ** 0.5, NORMAL)


def sine_for_cosine() -> list[float]:
    return lags(NORMAL.draw(1 << 20, Key(0))[::2].repeat_interleave(2), NORMAL, largest=16)


def sine_for_cosine_up_to_sign() -> list[float]:
    """Uncorrelated: only the squares show it."""
    x = NORMAL.draw(1 << 20, Key(0))
    x[1::2] = x[::2] * UNIFORM.draw(1 << 19, Key(1)).sign()
    return lags(x, NORMAL, largest=16)


def stride_one_too_small(threads: int = 256) -> list[float]:
    """The last draw of each run of `threads` is the first of the next."""
    overlapping = NORMAL.draw(N, Key(0)).as_strided((N // threads, threads), (threads - 1, 1))
    return lags(overlapping.flatten(), NORMAL)


def neighbouring_shards_equal() -> list[float]:
    return between(NORMAL.draw(1 << 20, Key(0)).expand(2, -1), NORMAL)


def endpoint_folded() -> list[float]:
    """What is rounded up to the open bound becomes the other bound, as by a modulus."""
    x = UNIFORM.draw(N, Key(0), torch.float32).bfloat16()
    return rounded(torch.where(x == 1, -1, x), UNIFORM)


def open_bound_redrawn() -> list[float]:
    """What was rounded up to the open bound is drawn anew."""
    x = UNIFORM.draw(N, Key(0), torch.float32).bfloat16()
    return rounded(x[x < 1], UNIFORM)


def rounded_by_truncation() -> list[float]:
    x = NORMAL.draw(N, Key(0), torch.float32)
    return rounded((x.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16), NORMAL)


def levels_of_eight_bits() -> list[float]:
    """As many bits as the dtype has, as if its small values had no more of them than its large ones."""
    return rounded((UNIFORM.draw(N, Key(0)) * 128).floor().div(128).bfloat16(), UNIFORM)


def clamped_for_truncated() -> list[float]:
    return bins(NORMAL.draw(1 << 20, Key(0)).clamp(-2, 2), DISTRIBUTIONS["truncated"])


def tails_two_percent_long() -> list[float]:
    return tails([1.02 * NORMAL.draw(N, Key(0), torch.float32)], NORMAL.law, (4, 5, 5.5))


DEFECTS = [
    kaiming_without_root_two,
    fan_of_the_local_shard,
    sine_for_cosine,
    sine_for_cosine_up_to_sign,
    stride_one_too_small,
    neighbouring_shards_equal,
    endpoint_folded,
    open_bound_redrawn,
    rounded_by_truncation,
    levels_of_eight_bits,
    clamped_for_truncated,
    tails_two_percent_long,
]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_planted_defect_is_found(defect: Callable[[], list[float]]) -> None:
    assert worst(defect()) > LIMIT


def test_the_fan_of_the_whole_is_right() -> None:
    assert worst(fan_of_the_local_shard(Window(global_shape=(1024, 1024), offsets=(256, 0)))) < LIMIT
