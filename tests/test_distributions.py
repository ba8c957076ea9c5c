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
        ((8, 64, 32), {"in_axis": 2, "out_axis": 1, "batch_axis": 0}, 32, 64),  # stacked experts
        ((8, 64, 32), {"in_axis": 2, "out_axis": 1}, 32 * 8, 64 * 8),
        ((32, 64, 3, 3), {"in_axis": 0, "out_axis": 1}, 32 * 9, 64 * 9),  # transposed convolution
        ((64, 8, 3, 3), {"groups": 4}, 8 * 9, 16 * 9),  # grouped convolution: 4 of 8 -> 16
        ((32, 16, 3, 3), {"in_axis": 0, "out_axis": 1, "groups": 4}, 8 * 9, 16 * 9),
        ((16, 4, 32), {"in_axis": (0, 1), "out_axis": 2}, 64, 32),  # heads joined
        ((7, 16, 4, 32), {"in_axis": (1, 2), "out_axis": (3,), "batch_axis": (0,)}, 64, 32),
    ],
)
def test_fans_by_axes(shape, axes, fan_in, fan_out):
    modes = {
        "fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2, "fan_geo_avg": math.sqrt(fan_in * fan_out)
    }  # fmt: skip
    for mode, fan in modes.items():
        for name in ("normal", "uniform", "truncated_normal"):
            distribution = xinit.variance_scaling(3.0, mode, name, **axes)
            resolved = distribution.resolve(shape)
            assert resolved.name == name
            assert not resolved.fan
            assert resolved.std == pytest.approx(math.sqrt(3 / fan), rel=1e-12)
            key, tensor = xinit.Key(3), torch.empty(shape)
            xinit.fill_many_([tensor], [distribution], [key])
            assert torch.equal(xinit.variance_scaling_(torch.empty(shape), 3.0, mode, name, key=key, **axes), tensor)
    assert xinit.xavier_normal(2, **axes).resolve(shape).std == pytest.approx(2 * math.sqrt(2 / (fan_in + fan_out)))
    assert xinit.kaiming_uniform(0, "fan_out", "relu", **axes).resolve(shape).std == pytest.approx(
        math.sqrt(2 / fan_out)
    )


@pytest.mark.parametrize(
    ("shape", "axes", "fan_in", "fan_out"),
    [
        ((12,), {"in_axis": 0, "out_axis": ()}, 12, 1),
        ((12,), {"in_axis": (), "out_axis": -1}, 1, 12),
        ((12,), {"in_axis": (), "out_axis": 0, "groups": 4}, 1, 3),
        ((12,), {"in_axis": (), "out_axis": ()}, 12, 12),  # the receptive field of one channel
        ((12,), {"in_axis": (), "out_axis": (), "batch_axis": 0}, 1, 1),
        ((12,), {"in_axis": 0}, 1, 1),  # both, which cancels
        ((12,), {"in_axis": -1, "out_axis": -1}, 1, 1),
        ((), {"in_axis": (), "out_axis": ()}, 1, 1),
    ],
)
def test_fans_of_a_vector(shape, axes, fan_in, fan_out):
    for mode, fan in (("fan_in", fan_in), ("fan_out", fan_out), ("fan_geo_avg", math.sqrt(fan_in * fan_out))):
        assert xinit.variance_scaling(2.0, mode, **axes).resolve(shape).std == pytest.approx(math.sqrt(2 / fan))
        expected = math.sqrt(2 / fan) / 0.87962566103423978 * 2
        w = xinit.variance_scaling_(torch.empty(shape), 2.0, mode, key=xinit.Key(0), **axes)
        assert w.abs().max() <= expected


def test_axes_of_a_function():
    w, key = torch.empty(8, 64, 24), xinit.Key(0)
    axes = {"in_axis": 2, "out_axis": 1, "batch_axis": 0}
    for given in (axes, {name: [axis] for name, axis in axes.items()}):
        xinit.variance_scaling_(w, 1.0, "fan_in", "uniform", key=key, **given)
        assert w.abs().max() == pytest.approx(math.sqrt(3 / 24), rel=1e-3)
        older = {name.replace("batch_axis", "batch_axes"): axis for name, axis in given.items()}
        again = xinit.variance_scaling_(torch.empty(8, 64, 24), 1.0, "fan_in", "uniform", key=key, **older)
        assert torch.equal(again, w)
        assert xinit.xavier_normal(**older) == xinit.xavier_normal(**given)
    grouped = xinit.variance_scaling_(torch.empty(64, 8, 3), 1.0, "fan_out", "uniform", key=key, groups=4)
    assert grouped.abs().max() == pytest.approx(math.sqrt(3 / 48), rel=1e-2)
    # of the whole, where the tensor is a part
    part = torch.empty(2, 64, 24)
    window = xinit.Window((8, 64, 24), (3, 0, 0))
    assert torch.equal(xinit.variance_scaling_(part, 1.0, "fan_in", "uniform", key=key, window=window, **axes), w[3:5])
    for bad, error, words in [
        ({"in_axis": 3}, ValueError, "in_axis 3 is out of range"),
        ({"in_axis": 0}, ValueError, "out_axis 0 is already in in_axis"),
        (
            {"in_axis": 1.5},
            TypeError,
            "variance_scaling_: in_axis must be an axis or a sequence of axes, but found 1.5",
        ),
        ({"groups": 5}, ValueError, "groups 5 does not divide the size 8"),
    ]:
        with pytest.raises(error, match=words):
            xinit.variance_scaling_(w, **bad)
    with xinit.deferred():
        module = torch.nn.Linear(24, 64)
        module.weight = torch.nn.Parameter(torch.empty(8, 64, 24))
        xinit.variance_scaling_(module.weight, 1.0, "fan_in", "uniform", **axes)
    xinit.materialize_(module, key=key)
    twin = torch.empty(8, 64, 24)
    xinit.variance_scaling_(twin, 1.0, "fan_in", "uniform", key=key.fold_in("weight"), **axes)
    assert torch.equal(module.weight, twin)


def test_a_scale_of_zero():
    for distribution in ("truncated_normal", "normal", "uniform"):
        assert not xinit.variance_scaling_(torch.ones(3, 4), 0.0, "fan_in", distribution).any()
        assert xinit.variance_scaling(0.0, "fan_in", distribution).resolve((3, 4)).std == 0


def test_geometric_means_have_a_name():
    distribution = xinit.variance_scaling(1.0, "fan_geo_avg", "normal")
    model = torch.nn.Linear(4, 9, bias=False)
    assert xinit.plan(model, {"*": distribution}).rows[0].method == "normal fan_geo_avg"
    assert xinit.plan(model, {"*": distribution}).rows[0].std == pytest.approx(1 / math.sqrt(6))


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
        ({"batch_axis": -1}, "batch_axis -1 is already in in_axis"),
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
