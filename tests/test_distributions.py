"""Distributions as values: fans by axes, what is left after truncation, blocks."""

import math

import pytest
import torch

import xinit


@pytest.mark.parametrize(
    ("shape", "axes", "fan_in", "fan_out"),
    [
        ((64, 32), {}, 32, 64),
        ((64, 32, 3, 5), {}, 32 * 15, 64 * 15),
        ((32, 64), {"in_axis": 0, "out_axis": 1}, 32, 64),  # x @ w
        ((32, 64), {"in_axis": -2, "out_axis": -1}, 32, 64),
        ((8, 64, 32), {"in_axis": 2, "out_axis": 1, "batch_axes": 0}, 32, 64),  # stacked experts
        ((8, 64, 32), {"in_axis": 2, "out_axis": 1}, 32 * 8, 64 * 8),
        ((32, 64, 3, 3), {"in_axis": 0, "out_axis": 1}, 32 * 9, 64 * 9),  # transposed convolution
        ((64, 8, 3, 3), {"groups": 4}, 8 * 9, 16 * 9),  # grouped convolution: 4 of 8 -> 16
        ((32, 16, 3, 3), {"in_axis": 0, "out_axis": 1, "groups": 4}, 8 * 9, 16 * 9),
        ((16, 4, 32), {"in_axis": (0, 1), "out_axis": 2}, 64, 32),  # heads joined
        ((7, 16, 4, 32), {"in_axis": (1, 2), "out_axis": (3,), "batch_axes": (0,)}, 64, 32),
    ],
)
def test_fans_by_axes(shape, axes, fan_in, fan_out):
    for mode, fan in (("fan_in", fan_in), ("fan_out", fan_out), ("fan_avg", (fan_in + fan_out) / 2)):
        for name in ("normal", "uniform", "truncated_normal"):
            resolved = xinit.variance_scaling(3.0, mode, name, **axes).resolve(shape)
            assert resolved.name == name
            assert not resolved.fan
            assert resolved.std == pytest.approx(math.sqrt(3 / fan), rel=1e-12)
    assert xinit.xavier_normal(2, **axes).resolve(shape).std == pytest.approx(2 * math.sqrt(2 / (fan_in + fan_out)))
    assert xinit.kaiming_uniform(0, "fan_out", "relu", **axes).resolve(shape).std == pytest.approx(
        math.sqrt(2 / fan_out)
    )


def test_what_is_resolved_fills_like_what_is_not():
    key, shape = xinit.Key(1), (24, 12, 3)
    distributions = [xinit.xavier_uniform(1.5), xinit.kaiming_normal(nonlinearity="relu"), xinit.variance_scaling(2)]
    for distribution in distributions:
        a, b = torch.empty(shape), torch.empty(shape)
        xinit.fill_many_([a, b], [distribution, distribution.resolve(shape)], [key, key])
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"in_axis": 2}, "in_axis 2 is out of range"),
        ({"out_axis": -3}, "out_axis -3 is out of range"),
        ({"in_axis": 0}, "out_axis 0 is already in in_axis"),
        ({"batch_axes": -1}, "batch_axes -1 is already in in_axis"),
        ({"groups": 3}, "groups 3 does not divide the size 8"),
        ({"groups": 0}, "groups 0 does not divide"),
    ],
)
def test_axes_that_do_not_fit(axes, words):
    tensor = torch.zeros(8, 4)
    distribution = xinit.xavier_normal(**axes)
    with pytest.raises(ValueError, match=words):
        distribution.resolve((8, 4))
    with pytest.raises(ValueError, match=words):
        xinit.fill_many_([tensor], [distribution], [xinit.Key(0)])
    assert not tensor.any()


def test_a_fan_takes_two_dimensions():
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        xinit.xavier_uniform().resolve((8,))


@pytest.mark.parametrize(
    ("mean", "std", "a", "b"),
    [(0, 1, -2, 2), (1, 2, -1, 8), (0, 1, 1, 3), (0, 1, -5, -2), (0, 1, 7, 8), (3, 0.5, -9, 9)],
)
def test_the_std_of_a_truncated_normal(mean, std, a, b):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.truncnorm.std((a - mean) / std, (b - mean) / std, loc=mean, scale=std)
    assert xinit.trunc_normal(mean, std, a, b).std == pytest.approx(expected, rel=1e-6)


def test_the_std_of_the_others():
    assert xinit.uniform(-1, 2).std == pytest.approx(3 / math.sqrt(12))
    assert xinit.normal(5, 0.25).std == 0.25
    assert xinit.constant(3).std == 0
    assert xinit.trunc_normal(0, 1, 50, 60).std == pytest.approx(1 / 50)
    with pytest.raises(ValueError, match="resolve"):
        _ = xinit.xavier_normal().std
