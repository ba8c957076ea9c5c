"""Gains of any elementwise function: against SciPy's quadrature, by every way in, and what is refused."""

import math
import sys
from enum import Enum
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import xinit
from xinit import Key
from xinit.insight.gains import look_up

KEY = Key(20260101)
NAMES = (
    "gelu", "gelu_tanh", "silu", "mish", "elu", "celu", "relu6", "softplus", "hardswish", "hardtanh", "hardsigmoid",
    "logsigmoid", "softsign", "tanhshrink", "hardshrink", "softshrink", "rrelu",
)  # fmt: skip
# torch has numbers of its own for these names: the functions have what theory says.
FUNCTIONS = (torch.tanh, torch.sigmoid, F.relu, F.selu, F.leaky_relu, torch.sin, torch.erf, torch.abs, torch.exp)
KINKS = (-40, -16, -6, -3, -1, -0.5, 0, 0.5, 1, 3, 6, 16, 40)


def by_scipy(function, kinks=KINKS):
    """1 / sqrt(E[f(z)²]) by QUADPACK, between kinks."""
    integrate = pytest.importorskip("scipy.integrate")

    def density(z):
        return float(function(torch.tensor([z], dtype=torch.float64))) ** 2 * math.exp(-z * z / 2)

    pieces = (integrate.quad(density, a, b, epsabs=1e-13, epsrel=1e-10)[0] for a, b in pairwise(kinks))
    return 1 / math.sqrt(sum(pieces) / math.sqrt(2 * math.pi))


@pytest.mark.parametrize("name", NAMES)
def test_names_have_the_gains_of_scipys_quadrature(name):
    assert xinit.calculate_gain(name) == pytest.approx(by_scipy(look_up(name)[1]), rel=1e-8)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_functions_have_the_gains_of_scipys_quadrature(function):
    assert xinit.calculate_gain(function) == pytest.approx(by_scipy(function), rel=1e-8)


PARAMETERS = [("elu", 0.5), ("celu", 2.0), ("softplus", 3.0), ("hardshrink", 1.3), ("softshrink", 0.7), ("elu", 0)]


@pytest.mark.parametrize(("name", "param"), PARAMETERS)
def test_parameters(name, param):
    with_it = {"alpha": param} if name.endswith("lu") else {"beta": param} if name == "softplus" else {"lambd": param}
    function = partial(getattr(F, name), **with_it)
    kinks = sorted({*KINKS, *([-param, param] if "shrink" in name else [])})
    assert xinit.calculate_gain(name, param) == pytest.approx(by_scipy(function, kinks), rel=1e-8)
    if param:
        assert xinit.kaiming_normal(param, nonlinearity=name) == xinit.kaiming_normal(nonlinearity=function)


def test_closed_forms():
    close = partial(pytest.approx, rel=1e-9)
    gain = xinit.calculate_gain
    assert gain(lambda x: x) == 1
    assert gain(lambda x: x.relu().square()) == close((2 / 3) ** 0.5)  # E z⁴ / 2
    assert gain(torch.erf) == close((2 / math.pi * math.asin(2 / 3)) ** -0.5)  # Williams 1997
    assert gain(torch.sin) == close(((1 - math.exp(-2)) / 2) ** -0.5)
    assert gain(torch.exp) == close(math.exp(-1))
    assert gain(lambda x: x.exp_()) == close(math.exp(-1))  # in place
    assert gain(F.selu) == close(1)  # the fixed point that SELU was made for
    # kinks and steps anywhere: E (z - t)₊² = (1 + t²) Φ(-t) - t φ(t)
    t = 1.2345
    tail = 0.5 * math.erfc(t / math.sqrt(2))
    square = (1 + t * t) * tail - t * math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    assert gain(lambda x: (x - t).relu()) == close(square**-0.5)
    assert gain(lambda x: (x > t).to(x.dtype)) == close(tail**-0.5)
    assert gain(lambda x: x.abs().log()) == close(((math.log(2) + np.euler_gamma) ** 2 / 4 + math.pi**2 / 8) ** -0.5)


def test_one_gain_by_every_way_in():
    key = KEY.fold_in("w")
    weight = partial(torch.empty, 64, 32)
    for kaiming_, kaiming in (
        (xinit.kaiming_normal_, xinit.kaiming_normal),
        (xinit.kaiming_uniform_, xinit.kaiming_uniform),
    ):
        expected = kaiming_(weight(), mode="fan_out", nonlinearity=1.533530441, key=key)
        for nonlinearity in ("gelu", F.gelu, nn.GELU(), lambda x: F.gelu(x), np.float64(1.533530441)):
            filled = kaiming_(weight(), mode="fan_out", nonlinearity=nonlinearity, key=key)
            assert torch.equal(filled, expected)
            xinit.fill_many_([filled.zero_()], [kaiming(mode="fan_out", nonlinearity=nonlinearity)], [key])
            assert torch.equal(filled, expected)
        getattr(torch.ops.xinit, kaiming_.__name__)(filled.zero_(), 1.533530441, "fan_out", "gain", key=key.words)
        assert torch.equal(filled, expected)
        relu = kaiming_(weight(), nonlinearity="relu", key=key)
        assert torch.equal(kaiming_(weight(), nonlinearity=math.sqrt(2), key=key), relu)


def test_torchs_names_keep_torchs_bits_however_they_are_spelled():
    spelled = Enum("Spelled", {"RELU": "relu", "TANH": "tanh"}, type=str)
    assert xinit.calculate_gain(spelled.RELU) == math.sqrt(2)
    assert xinit.calculate_gain(np.str_("tanh")) == 5 / 3
    assert xinit.calculate_gain(torch.tanh) == pytest.approx(1.5925374, rel=1e-7)


def test_a_module_is_known_by_what_it_does_now():
    module = nn.PReLU(init=0.25)
    assert xinit.calculate_gain(module) == pytest.approx(xinit.calculate_gain("leaky_relu", 0.25), rel=1e-9)
    with torch.no_grad():
        module.weight.fill_(0.5)
    assert xinit.calculate_gain(module) == pytest.approx(xinit.calculate_gain("leaky_relu", 0.5), rel=1e-9)
    assert module.weight.dtype == torch.float32
    assert xinit.calculate_gain(nn.RReLU().train()) == xinit.calculate_gain("rrelu")
    assert xinit.calculate_gain(lambda x: x.float().tanh()) == pytest.approx(1.5925374, rel=1e-7)


class Twice(nn.Module):
    def forward(self, x):
        return xinit.kaiming_uniform_(torch.empty_like(x), nonlinearity="mish", key=KEY) + x


CALLABLES = ["gelu", F.gelu, torch.tanh, lambda x: x.relu() ** 2, nn.GELU(), 1.25]


@pytest.mark.parametrize("nonlinearity", CALLABLES, ids=str)
def test_compiled_in_one_graph(nonlinearity):
    def draw(x):
        return xinit.kaiming_normal_(torch.empty_like(x), nonlinearity=nonlinearity, key=KEY)

    x = torch.empty(6, 5)
    torch._dynamo.reset()
    try:
        drawn = torch.compile(draw, fullgraph=True, backend="aot_eager")(x)
    except torch._dynamo.exc.InternalTorchDynamoError as error:
        if isinstance(nonlinearity, nn.Module) and "is not a constant" in str(error):
            pytest.skip("this torch's compiler takes no module as a constant")
        raise
    assert torch.equal(drawn, draw(x))


def test_exported():
    x = torch.ones(4, 3)
    program = torch.export.export(Twice(), (x,))
    assert torch.equal(program.module()(x), Twice()(x))


def test_whatever_goes_on_around_it():
    def fresh(n):  # of which nothing is cached
        return lambda x: (x * n).sin() + x

    expected = [xinit.calculate_gain(fresh(n)) for n in range(2, 8)]
    fakes = pytest.importorskip("torch._subclasses").FakeTensorMode()
    for n, context in enumerate((torch.device("meta"), torch.inference_mode(), torch.no_grad(), fakes), 2):
        sys.modules["xinit.insight.gains"]._gain.cache_clear()
        with context:
            assert xinit.calculate_gain(fresh(n)) == expected[n - 2]
    with xinit.deferred():
        layer = nn.Linear(8, 8)
        xinit.kaiming_normal_(layer.weight, nonlinearity=torch.cos)
    xinit.materialize_(layer, key=KEY)
    alone = xinit.kaiming_normal_(torch.empty(8, 8), nonlinearity=torch.cos, key=KEY.fold_in("weight"))
    assert torch.equal(layer.weight, alone)
    members = torch.vmap(
        lambda x: xinit.kaiming_normal_(x.new_empty(3, 3), nonlinearity=fresh(11)), randomness="different"
    )(torch.arange(2.0))
    assert not torch.equal(*members)


ELEMENTWISE = "it is not elementwise"
REFUSED = [
    ("softmax", ELEMENTWISE),
    ("glu", ELEMENTWISE),
    ("dropout", "an element's value depends on the others, or on chance"),
    ("layer_norm", "it is not a function of one tensor"),
    ("max_pool1d", "it is not a function of one tensor"),
    ("GELU", "Unsupported nonlinearity GELU: gelu is one; "),
    ("gelo", "gelu is one; "),
    ("_in_projection", "name an elementwise function of torch.nn.functional"),
    (lambda x: x - x.mean(), ELEMENTWISE),
    (lambda x: x.cumsum(0), ELEMENTWISE),
    (lambda x: 5, ELEMENTWISE),
    (nn.Softmax(-1), "nonlinearity Softmax: it is not elementwise"),
    (nn.PReLU(3), "it is not a function of one tensor"),
    (nn.PReLU(device="meta"), "PReLU: it cannot be copied"),
    (torch.log, "log: it gives nan at -16"),
    (torch.sqrt, "sqrt: it gives nan at -16"),
    (lambda x: x * 0, "its second moment E.* is 0"),
    (lambda x: 1 / x, "cannot be integrated"),
    (lambda x: torch.exp(x * x / 4), "it grows too fast for a second moment"),
    (-1.0, "is the gain, finite and above 0, but found -1"),
    (float("nan"), "finite and above 0, but found nan"),
    ("gain", "finite and above 0, but found 0"),
]


@pytest.mark.filterwarnings("ignore:Implicit dimension")
@pytest.mark.parametrize(("nonlinearity", "words"), REFUSED, ids=str)
def test_what_has_no_gain_is_refused_before_anything_changes(nonlinearity, words):
    weight, state = torch.ones(3, 3), torch.get_rng_state()
    for call in (
        xinit.calculate_gain,
        partial(xinit.kaiming_normal_, weight, 0, "fan_in"),
        partial(xinit.kaiming_uniform, 0, "fan_in"),
    ):
        with pytest.raises(ValueError, match=words):
            call(nonlinearity)
    assert weight.eq(1).all()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("nonlinearity", [None, [], True, b"relu", nn.GELU, torch.ones(())], ids=str)
def test_what_is_no_nonlinearity(nonlinearity):
    for call in (xinit.calculate_gain, partial(xinit.kaiming_normal_, torch.ones(3, 3), 0, "fan_in")):
        with pytest.raises(ValueError, match=r"Unsupported nonlinearity .*: name an elementwise function of torch"):
            call(nonlinearity)


def test_a_class_is_to_be_made_one_of():
    with pytest.raises(
        ValueError, match=r"nonlinearity <class 'torch\.nn\.modules\.activation\.GELU'>: make one, GELU\(\): name"
    ):
        xinit.calculate_gain(nn.GELU)


def test_a_parameter_where_there_is_none():
    with pytest.raises(ValueError, match=r"nonlinearity gelu has no parameter, but found 0\.5"):
        xinit.calculate_gain("gelu", 0.5)
    with pytest.raises(ValueError, match="nonlinearity tanh has no parameter, but found 2"):
        xinit.kaiming_uniform_(torch.empty(2, 2), 2, nonlinearity=torch.tanh)
