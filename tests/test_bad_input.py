"""Bad input: the error, in torch's words where torch has them, and nothing changed."""

import math
import re
import warnings
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from conftest import DTYPES, KEY, same

import xinit
from xinit import Window

ALL = [
    "uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_",
    "variance_scaling_", "lecun_uniform_", "lecun_normal_",
]  # fmt: skip
FANS = ALL[3:]
KAIMING = ["kaiming_uniform_", "kaiming_normal_"]
UNIFORM, NORMAL, TRUNC, SCALING = [["uniform_"], ["normal_"], ["trunc_normal_"], ["variance_scaling_"]]
NAN, INF = math.nan, math.inf
GENERATOR = torch.Generator().manual_seed(5)


def plain(shape=(3, 4), dtype=torch.float32):
    return torch.full(shape, 7, dtype=dtype)


def double():
    return plain(dtype=torch.float64)


def half():
    return plain(dtype=torch.float16)


def brain():
    return plain(dtype=torch.bfloat16)


def released():
    tensor = plain()
    tensor.untyped_storage().resize_(0)
    return tensor


def short():
    tensor = plain()
    tensor.untyped_storage().resize_(47)
    return tensor


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch._empty_affine_quantized((3, 4), scale=1, zero_point=0, dtype=torch.qint8)


def inference():
    with torch.inference_mode():
        return plain()


TORCHS = object()  # instead of words to match: torch.nn.init's own, for the same call

# functions, tensor, keyword arguments, error, words
ROWS = [
    # the tensor
    (ALL, lambda: [1.0], {}, TypeError, "tensor must be a torch.Tensor, but found list"),
    (ALL, lambda: None, {}, TypeError, "tensor must be a torch.Tensor, but found NoneType"),
    *(
        (ALL, lambda dtype=dtype: plain(dtype=dtype), {}, NotImplementedError, "supported are Float, Double, Half")
        for dtype in (torch.int8, torch.int64, torch.uint8, torch.uint16, torch.bool, torch.float8_e8m0fnu)
    ),
    (ALL, quantized, {}, NotImplementedError, "Quantized"),
    (ALL, lambda: plain().to_sparse(), {}, NotImplementedError, "Sparse"),
    (ALL, lambda: plain((3, 1)).expand(3, 4), {}, RuntimeError, "more than one element of the written-to tensor"),
    (ALL, lambda: plain((1, 1)).expand(3, 4), {}, RuntimeError, "more than one element of the written-to tensor"),
    (ALL, released, {}, RuntimeError, "needs 48 bytes, but its storage has 0: was it released"),
    (ALL, short, {}, RuntimeError, "needs 48 bytes, but its storage has 47"),
    (ALL, inference, {}, RuntimeError, "inference tensor"),
    (FANS[:2], lambda: plain((5,)), {}, ValueError, TORCHS),
    (FANS[:4], lambda: plain(()), {}, ValueError, TORCHS),
    (FANS, lambda: plain((5,)), {}, ValueError, "computed for tensor with fewer than 2 dimensions"),
    # bounds, mean and std
    (UNIFORM, plain, {"a": 1.0, "b": 0.5}, RuntimeError, TORCHS),
    *((UNIFORM, make, {"a": a, "b": b}, RuntimeError, TORCHS)
      for make in (plain, double, half, brain)
      for a, b in ((NAN, 1.0), (0.0, NAN), (-INF, 0.0), (0.0, INF), (NAN, NAN))),
    (UNIFORM, half, {"a": 0.0, "b": 65505.0}, RuntimeError, TORCHS),
    (UNIFORM, plain, {"a": -1e39, "b": 1.0}, RuntimeError, TORCHS),
    (UNIFORM, brain, {"a": 0.0, "b": 3.4e38}, RuntimeError, TORCHS),
    (UNIFORM, double, {"a": 0.0, "b": 1e300}, RuntimeError, "to is out of bounds"),  # values are float32's, widened
    (UNIFORM, brain, {"a": 0.999, "b": 1.0}, ValueError, "holds no value of the tensor's dtype"),
    (UNIFORM, plain, {"a": 1 + 1e-9, "b": 1 + 2e-9}, ValueError, "holds no value of the tensor's dtype"),
    (NORMAL, plain, {"std": -1.0}, RuntimeError, TORCHS),
    (NORMAL, plain, {"std": -1e-300}, RuntimeError, TORCHS),
    (NORMAL, plain, {"std": NAN}, RuntimeError, TORCHS),
    (TRUNC, plain, {"std": -1.0}, RuntimeError, "normal expects std >= 0.0, but found std -1"),
    (TRUNC, plain, {"std": NAN}, RuntimeError, "normal expects std >= 0.0, but found std nan"),
    *((NORMAL + TRUNC, make, {name: value}, RuntimeError, f"{name} is out of bounds for .* received {name}=")
      for make, most in ((plain, 3.5e38), (double, 1e39), (half, 65505), (brain, 3.4e38))
      for name, values in (("std", (INF, most)), ("mean", (NAN, INF, -INF, most, -most))) for value in values),
    *((TRUNC, plain, {"a": a, "b": b}, RuntimeError, "[ab] is out of bounds for float")
      for a, b in ((NAN, 1.0), (0.0, NAN), (-INF, 0.0), (0.0, INF), (-1e39, 0.0))),
    (TRUNC, double, {"a": 0.0, "b": 1e300}, RuntimeError, "b is out of bounds"),
    (TRUNC, plain, {"a": 1.0, "b": 0.5}, ValueError, r"the window \[a, b\] is empty: a=1, b=0.5"),
    (TRUNC, plain, {"a": 1.0, "b": 1.0}, ValueError, r"the window \[a, b\] is empty: a=1, b=1"),
    (TRUNC, plain, {"mean": 3.0, "std": 0.0}, ValueError, "holds none of the normal's mass"),
    (TRUNC, brain, {"a": 0.997, "b": 0.999}, ValueError, "holds no value of the tensor's dtype"),
    *((UNIFORM, plain, {name: value}, TypeError, f"Expected a value of type 'float' for argument '{name}'")
      for name in "ab" for value in ("1", None, 1j, [1.0], 10**400)),
    (FANS[:2], plain, {"gain": "relu"}, TypeError, "Expected a value of type 'float' for argument 'gain'"),
    # gains, modes, nonlinearities, slopes
    (FANS[:1], plain, {"gain": NAN}, RuntimeError, TORCHS),
    (FANS[:1], plain, {"gain": INF}, RuntimeError, TORCHS),
    (FANS[:1], plain, {"gain": -1.0}, RuntimeError, TORCHS),
    (["xavier_normal_"], plain, {"gain": NAN}, RuntimeError, TORCHS),
    (["xavier_normal_"], plain, {"gain": -1.0}, RuntimeError, TORCHS),
    (["xavier_normal_"], plain, {"gain": INF}, RuntimeError, "std is out of bounds for float"),
    (["xavier_normal_"], half, {"gain": 1e6}, RuntimeError, "std is out of bounds for c10::Half"),
    *((KAIMING, plain, {"mode": mode}, ValueError, TORCHS) for mode in ("fan", "fan_avg", "")),
    (KAIMING, plain, {"mode": None}, TypeError, "Expected a value of type 'str' for argument 'fan_mode'"),
    (KAIMING, plain, {"nonlinearity": "gelo"}, ValueError, TORCHS),
    *((KAIMING, plain, {"a": slope}, ValueError, TORCHS) for slope in ("0", True, 1j, [0])),
    (KAIMING, plain, {"a": NAN}, (RuntimeError, ValueError), "nan"),  # torch finds the bound or std that comes of it
    (KAIMING, plain, {"a": INF}, (RuntimeError, ValueError), "inf"),  # torch fills with zeros
    (SCALING, plain, {"scale": -1.0}, ValueError, "scale must be finite and >= 0, but found -1"),
    (SCALING, plain, {"scale": NAN}, ValueError, "scale must be finite and >= 0, but found nan"),
    (SCALING, plain, {"scale": INF}, ValueError, "scale must be finite and >= 0, but found inf"),
    (SCALING, plain, {"mode": "fan"}, ValueError, "Mode fan not supported"),
    (SCALING, plain, {"distribution": "cauchy"}, ValueError, "Distribution cauchy not supported, please use one of"),
    # key, generator, window
    (ALL, plain, {"key": KEY, "generator": GENERATOR}, ValueError, "key and generator exclude each other"),
    *((ALL, plain, {"key": k}, TypeError, "key must be an xinit.Key, but found") for k in (0, (0, 0), "weight", True)),
    *((ALL, plain, {"generator": g}, TypeError, r"Expected a value of type 'Optional\[Generator\]'") for g in (0, KEY)),
    *((ALL, plain, {"window": w}, TypeError, "window must be an xinit.Window, but") for w in (((3, 4), (0, 0)), 0)),
    *(
        (ALL, plain, {"key": KEY, "window": Window(whole, at)}, ValueError, rf"is outside .* in dimension {dimension}")
        for whole, at, dimension in [
            ((2, 4), (0, 0), 0), ((3, 3), (0, 0), 1), ((9, 9), (7, 0), 0), ((9, 9), (6, 6), 1), ((9, 9), (0, -1), 1),
            ((9, -9), (0, 0), 1), ((9, 9), (2**63 - 1, 0), 0), ((9, 2**63 - 1), (0, 2**63 - 1), 1),
            ((9, 9), (-(2**63), 0), 0), ((0, 9), (0, 0), 0),
        ]
    ),
    *((ALL, plain, {"key": KEY, "window": Window((9,) * n, (0,) * n)}, ValueError, f"the window has {n} dimensions")
      for n in (0, 1, 3)),
    (ALL, plain, {"key": KEY, "window": Window((2**32,) * 2, (0, 0))}, ValueError, "more than 2.63 elements at dim"),
    (ALL, plain, {"key": KEY, "window": Window((9.5, 9), (0, 0))}, TypeError, "Expected a value of type"),
    (ALL, plain, {"key": KEY, "window": Window((9, 9), ("0", 0))}, TypeError, "Expected a value of type"),
    (ALL, plain, {"key": KEY, "window": Window((9, 2**64), (0, 0))}, TypeError, "Expected a value of type"),
]  # fmt: skip
if torch.cuda.is_available():
    ROWS.append(
        (ALL, plain, {"generator": torch.Generator("cuda")}, RuntimeError, "Expected a 'cpu' device type for generator")
    )


def through_op(name, tensor, arguments):
    """The same call one layer down."""
    if name.startswith("lecun_"):
        distribution = {"lecun_normal_": "truncated_normal", "lecun_uniform_": "uniform"}[name]
        name, arguments = "variance_scaling_", {"distribution": distribution, **arguments}
    arguments = {{"mode": "fan_mode"}.get(k, k): v for k, v in arguments.items()}
    if "key" in arguments:
        arguments["key"] = arguments["key"].words
    if (window := arguments.pop("window", None)) is not None:
        arguments |= {"global_shape": window.global_shape, "offsets": window.offsets}
    getattr(torch.ops.xinit, name)(tensor, **arguments)


def through_function(name, tensor, arguments):
    getattr(xinit, name)(tensor, **arguments)


def state(tensor):
    """All bytes of the tensor's memory, its version, and the generators'."""
    generators = torch.get_rng_state(), GENERATOR.get_state()
    if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
        return generators
    storage = (tensor._values() if tensor.is_sparse else tensor).untyped_storage()
    memory = torch.empty(0, dtype=torch.uint8).set_(storage).clone()
    return *generators, memory, torch.tensor(0 if tensor.is_inference() else tensor._version)


def check(call, name, tensor, arguments, error, words):
    before = state(tensor)
    with pytest.raises(error, match=words) as info:
        call(name, tensor, arguments)
    assert info.type in (error if isinstance(error, tuple) else (error,))
    assert all(map(torch.equal, state(tensor), before))


CASES = [
    # Without addresses, so that parallel processes collect the same tests.
    pytest.param(
        name, *row, id=re.sub(" object at 0x[0-9a-f]+| ", "", f"{name}-{row[0].__name__.strip('<>')}-{row[1]}")
    )
    for names, *row in ROWS
    for name in names
]


@pytest.mark.parametrize(("name", "make", "arguments", "error", "words"), CASES)
def test_the_error_and_nothing_changed(name, make, arguments, error, words):
    if words is TORCHS:
        with pytest.raises(error) as info:
            getattr(torch.nn.init, name)(make(), **arguments)
        words = "^" + re.escape(str(info.value))
    calls = [through_function]
    if error is not TypeError and not isinstance(arguments.get("a"), (str, bool, complex, list)):
        calls.append(through_op)
    for call in calls:
        check(call, name, make(), arguments, error, words)
        if not arguments.keys() & {"key", "generator"}:
            check(call, name, make(), {**arguments, "generator": GENERATOR}, error, words)
        if make in (plain, double, half, brain):
            check(call, name, make().to("meta"), arguments, error, words)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"key": [1]}, ValueError, r"key is \(seed, stream\), but found 1 numbers"),
        ({"key": [1, 2, 3]}, ValueError, r"key is \(seed, stream\), but found 3 numbers"),
        ({"key": [0, 2**63]}, RuntimeError, "Expected a value of type"),
        ({"global_shape": [9, 9]}, ValueError, "takes global_shape and offsets, but found only global_shape"),
        ({"offsets": [0, 0]}, ValueError, "takes global_shape and offsets, but found only offsets"),
        ({"global_shape": [9, 9], "offsets": [0]}, ValueError, "the window has 2 dimensions and 1 offsets"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "variance_scaling_"])
def test_what_only_an_op_can_be_given(name, arguments, error, words):
    tensor = plain()
    check(lambda *_: getattr(torch.ops.xinit, name)(tensor, **arguments), name, tensor, arguments, error, words)


@pytest.mark.parametrize("shapes", [((3, 4), (0,)), ((), (0,)), ((3,), ())], ids=str)
def test_a_window_of_two_ranks(shapes):
    with pytest.raises(ValueError, match=r"Window: global_shape .* has \d dimensions, but offsets .* has \d"):
        Window(*shapes)


@pytest.mark.parametrize("gain", [xinit.calculate_gain, torch.nn.init.calculate_gain], ids=["xinit", "torch"])
def test_gains(gain):
    for arguments, words in [
        (("gelo",), "Unsupported nonlinearity gelo"),
        (("leaky_relu", "x"), "negative_slope x not a valid number"),
        (("leaky_relu", True), "negative_slope True not a valid number"),
    ]:
        with pytest.raises(ValueError, match=words):
            gain(*arguments)


TOO_FEW = "Fan in and fan out can not be computed for tensor with fewer than 2 dimensions"


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_no_elements(name, shape):
    """torch's warning for all that look at fans, none for the others; and never anything drawn."""
    for arguments, dtype in product(({}, {"generator": GENERATOR}, {"key": KEY}), DTYPES):
        tensor = torch.empty(shape, dtype=dtype)
        before = state(tensor)[:2]
        warns = pytest.warns(UserWarning, match="^Initializing zero-element tensors is a no-op")
        with warns if name in FANS else nullcontext():
            assert getattr(xinit, name)(tensor, **arguments) is tensor
        assert all(map(torch.equal, state(tensor)[:2], before))


@pytest.mark.parametrize("name", FANS)
def test_no_elements_and_no_fans(name):
    """torch looks at Kaiming's elements first, and at the fans of all others."""
    fan_first = not name.startswith("kaiming")
    for arguments in {}, {"key": KEY}:
        with pytest.raises(ValueError, match=TOO_FEW) if fan_first else pytest.warns(UserWarning, match="no-op"):
            getattr(xinit, name)(torch.empty(0), **arguments)
        with pytest.raises(ValueError, match=TOO_FEW):
            getattr(xinit, name)(torch.empty(()), **arguments)
    if hasattr(torch.nn.init, name):
        with pytest.raises(ValueError, match=TOO_FEW) if fan_first else pytest.warns(UserWarning, match="no-op"):
            getattr(torch.nn.init, name)(torch.empty(0))


@pytest.mark.parametrize("name", ALL)
def test_a_dimension_of_size_1_may_have_any_stride(name):
    for strides in ((0, 1, 0), (1, 1, 99), (5, 1, 0)):
        buffer = torch.full((12,), 7.0)
        view = buffer.as_strided((1, 5, 1), strides)
        expected = getattr(xinit, name)(torch.empty(1, 5, 1), key=KEY)
        assert same(getattr(xinit, name)(view, key=KEY), expected)
        assert (buffer[5:] == 7).all()
