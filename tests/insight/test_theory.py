"""Mean-field theory: against closed forms, published values, SciPy's quadrature, and networks of width 4096."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import xinit
from xinit import Key
from xinit.insight.gains import aside
from xinit.insight.theory import Moments

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT2 = math.sqrt(2)


def test_relu():
    """He et al. 2015: a layer multiplies both mean squares by half of weight_std²."""
    for std, factor in ((ROOT2, 1.0), (1.0, 0.5), (2.0, 2.0), (math.sqrt(2 / 3), 1 / 3)):
        found = xinit.theory("relu", std, depth=40)
        assert found.chi == pytest.approx(factor)
        assert found.growth == pytest.approx(factor)
        assert found.activations == pytest.approx([factor ** (n / 2) for n in range(41)])
        assert found.gradients == pytest.approx([factor ** (n / 2) for n in range(40, -1, -1)])
        assert found.q == (0 if factor < 1 else pytest.approx(2) if factor == 1 else math.inf)
        assert found.correlation == 1
    assert found.gradient_depth == pytest.approx(1 / math.log(3))
    with_bias = xinit.theory("relu", 1.0, 0.6)
    assert with_bias.q == pytest.approx(0.36 / (1 - 0.5))
    assert with_bias.mean == pytest.approx(math.sqrt(with_bias.q / (2 * math.pi)))


def erf_square(q):
    """E erf(√q z)², the arcsine kernel's diagonal: Williams 1997."""
    return 2 / math.pi * math.asin(2 * q / (1 + 2 * q))


@pytest.mark.parametrize(("std", "bias"), [(1.5, 0.5), (3.0, 0.1), (1.2, 0.3), (0.7, 0.8)])
def test_erf_has_the_arcsine_kernel(std, bias):
    found = xinit.theory(torch.erf, std, bias)
    weight = std**2
    assert found.q == pytest.approx(weight * erf_square(found.q) + bias**2, rel=1e-9)
    # E erf'(√q z)² = 4/π / sqrt(1 + 4 q)
    assert found.chi == pytest.approx(weight * 4 / math.pi / math.sqrt(1 + 4 * found.q), rel=1e-9)
    c, q = found.correlation, found.q
    assert weight * 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q)) + bias**2 == pytest.approx(c * q, rel=1e-6)
    assert (c < 0.999) == (found.chi > 1)
    there = weight * 4 / math.pi / math.sqrt((1 + 2 * q) ** 2 - (2 * q * c) ** 2)  # the slope of that map
    assert found.signal_depth == pytest.approx(1 / abs(math.log(there)), rel=1e-4)


@pytest.mark.parametrize("std", [1.2, 1.5, 3.0])
def test_tanh_and_odd_functions_make_inputs_orthogonal(std):
    assert xinit.theory("tanh", std).correlation == 0


def test_selu_has_its_fixed_point():
    """Klambauer et al. 2017: mean 0 and variance 1."""
    found = xinit.theory("selu", 1.0)
    assert found.q == pytest.approx(1, rel=1e-9)
    assert found.mean == pytest.approx(0, abs=1e-9)


def test_published_critical_points():
    assert xinit.critical("relu") == pytest.approx((ROOT2, 0))
    assert xinit.critical("tanh") == pytest.approx((1, 0))
    assert xinit.critical("linear") == pytest.approx((1, 0))
    assert xinit.critical("leaky_relu", param=0.2) == pytest.approx((xinit.calculate_gain("leaky_relu", 0.2), 0))
    assert xinit.critical(torch.erf) == pytest.approx((math.sqrt(math.pi) / 2, 0))
    # Roberts, Yaida & Hanin 2022, section 5.3.4: weight_std² and bias_std².
    for name, squares in (("gelu", (1.98305826, 0.17292239)), ("silu", (1.98800468, 0.55514317))):
        assert [std**2 for std in xinit.critical(name)] == pytest.approx(squares, abs=2e-8)


@pytest.mark.parametrize("bias", [0.05, 1.0])
def test_tanhs_critical_line(bias):
    """Poole et al. 2016: from (1, 0) on; its two equations by SciPy's quadrature."""
    integrate = pytest.importorskip("scipy.integrate")
    std, same = xinit.critical("tanh", bias)
    assert same == pytest.approx(bias)
    found = xinit.theory("tanh", std, bias)

    def mean(of):
        density = lambda z: of(math.sqrt(found.q) * z) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # noqa: E731
        return integrate.quad(density, -12, 12, epsrel=1e-10, limit=200)[0]

    assert std**2 * mean(lambda x: math.tanh(x) ** 2) + bias**2 == pytest.approx(found.q, rel=1e-8)
    assert std**2 * mean(lambda x: math.cosh(x) ** -4) == pytest.approx(1, rel=1e-8)


@pytest.mark.parametrize("bias", [0, 0.2])
@pytest.mark.parametrize("function", [F.elu, F.hardtanh, F.selu], ids=lambda f: f.__name__)
def test_at_critical_points_gradients_keep(function, bias):
    std, bias = xinit.critical(function, bias)
    assert xinit.theory(function, std, bias).chi == pytest.approx(1, abs=1e-9)
    assert xinit.theory(function, std * 1.01, bias).chi > 1
    assert xinit.theory(function, std * 0.99, bias).chi < 1


def test_what_has_no_critical_point():
    for arguments, words in (
        (("relu", 0.2), r"relu with bias_std=0\.2 has no point where χ₁ = 1 and activations come to rest; without"),
        (("gelu", 0.0), "gelu with bias_std=0 has no point"),
        (("gelu", 0.2), r"gelu with bias_std=0\.2 has no point"),  # but one that repels
        (("sigmoid",), "sigmoid has no point where"),
    ):
        with pytest.raises(ValueError, match=words):
            xinit.critical(*arguments)


@pytest.mark.parametrize(
    ("nonlinearity", "q"), [("gelu", 0.01), ("gelu", 30.0), (F.softshrink, 0.3), ("relu6", 40.0), ("hardswish", 900.0)]
)
def test_moments_at_any_variance(nonlinearity, q):
    """Kinks lie elsewhere then: against the mean over 200,001 quantiles' densities, by the trapezoid rule."""
    z = torch.linspace(-9, 9, 1_800_001, dtype=torch.float64)
    with aside():
        moments = Moments(nonlinearity)
        found = moments(q)
        f, slope = moments._with_slope(z * math.sqrt(q))
        change = (moments(q * 1.0001).square - moments(q / 1.0001).square) / (q * 1.0001 - q / 1.0001)
    weights = torch.exp(-z.square() / 2) * 1e-5 / math.sqrt(2 * math.pi)
    expected = [float((weights * values).sum()) for values in (f, f.square(), slope.square())]
    assert found[:3] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert found.change == pytest.approx(change, rel=1e-6)
    assert moments.square(q) == pytest.approx(found.square, rel=1e-12)


WIDTH = 4096
NETWORKS = [("relu", 1.0, 0.0), ("tanh", 5 / 3, 1.0), ("gelu", 1.5, 0.8), (torch.erf, 2.0, 0.1)]


@pytest.mark.parametrize(("nonlinearity", "std", "bias"), NETWORKS, ids=str)
def test_a_wide_network_does_as_theory_says(nonlinearity, std, bias, one_thread):
    depth, key = 4, Key(1)
    function = {"relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu}.get(nonlinearity, nonlinearity)
    x = [xinit.normal_(torch.empty(8, WIDTH), key=key.fold_in("x")).requires_grad_()]
    weight = torch.empty(WIDTH, WIDTH)
    for layer in range(depth):
        xinit.kaiming_normal_(weight, nonlinearity=std, key=key.fold_in(layer))
        biases = xinit.normal_(torch.empty(WIDTH), std=bias, key=key.fold_in(f"bias {layer}"))
        x.append(function(torch.addmm(biases, x[-1], weight.clone().T)))
    found = xinit.theory(nonlinearity, std, bias, depth)
    rms = [float(t.detach().square().mean().sqrt()) for t in x]
    # Of 8 * 4096 values, correlated by their weights: 4 layers' means of squares scatter by about 2 %.
    np.testing.assert_allclose(rms, found.activations, rtol=0.05)
    gradients = torch.autograd.grad((x[-1] * torch.randn_like(x[-1])).sum(), x)
    np.testing.assert_allclose([float(g.square().mean().sqrt()) for g in gradients], found.gradients, rtol=0.07)


def test_bad_input():
    for arguments, words in (
        (("relu", -1.0), "weight_std must be finite and at least 0, but found -1"),
        (("relu", 1.0, math.nan), "bias_std must be finite and at least 0, but found nan"),
        (("relu", 1.0, 0.0, -1), "depth must be finite and at least 0, but found -1"),
        ((lambda x: (x > 0).to(x.dtype), 1.0), "autograd cannot differentiate it"),
        ((lambda x: x.abs().sqrt(), 1.0), "cannot be integrated"),
        (("softmax", 1.0), "it is not elementwise"),
    ):
        with pytest.raises(ValueError, match=words), pytest.warns() if "softmax" in arguments else torch.no_grad():
            xinit.theory(*arguments)
    with pytest.raises(ValueError, match="one number: give one of them"):
        xinit.theory("relu", 1.0, gain=2.0)
    with pytest.raises(ValueError, match="critical: bias_std must be finite and at least 0, but found -1"):
        xinit.critical("relu", -1)


def test_it_says_so_in_words():
    text = str(xinit.theory("tanh", 5 / 3))
    assert "settle, q* = 1.18" in text
    assert "grow by a factor of 1.1 a layer, χ₁ = 1.21" in text
    assert "correlation of 0, within about 12 layers" in text
    assert "keep their RMS" in str(xinit.theory("relu"))
    assert xinit.theory("relu") == xinit.theory("relu", gain=ROOT2)


def test_growing_depth_is_one_orbit():
    shallow, deep = (xinit.theory("silu", depth=n) for n in (2, 6))
    assert deep.activations[:3] == shallow.activations
    assert deep.activations[-1] > 1
