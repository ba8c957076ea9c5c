"""The names of torch.nn.init: all are there, with its signatures, and none of them does nothing without a word."""

import inspect
from difflib import get_close_matches
from importlib import import_module

import numpy as np
import pytest
import torch
from conftest import same
from torch import nn

import xinit

INIT = torch.nn.init
PUBLIC = [
    name
    for name in getattr(INIT, "__all__", dir(INIT))
    if not name.startswith("_") and getattr(getattr(INIT, name), "__module__", "") == INIT.__name__
]
OLD = [name for name in PUBLIC if f"{name}_" in PUBLIC]
FACTORIES = [name for name in xinit.__all__ if not name.endswith("_") and f"{name}_" in xinit.__all__]
KEY = xinit.Key(0)


def kept():
    return torch.full((4, 4), 7.0)


def test_what_is_looked_at():
    assert len(PUBLIC) >= 26
    assert {"xavier_uniform", "kaiming_normal", "eye", "dirac", "orthogonal", "sparse", "constant"} <= set(OLD)
    assert {*OLD, "trunc_normal", "variance_scaling", "zeros", "ones"} <= set(FACTORIES)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_with_its_signature(name):
    theirs, ours = inspect.signature(getattr(INIT, name)), inspect.signature(getattr(xinit, name))
    assert name in xinit.__all__
    assert getattr(xinit.init, name) is getattr(xinit, name)
    if name in OLD:
        return  # (*args, **kwargs) with torch
    more = [p for p in ours.parameters.values() if p.name not in theirs.parameters]
    assert all(p.kind is p.KEYWORD_ONLY for p in more)
    kept = [p for p in ours.parameters.values() if p not in more]
    assert [(p.name, p.default, p.kind) for p in kept] == [
        (p.name, p.default, p.kind) for p in theirs.parameters.values()
    ]


def test_the_module_has_no_other_names():
    with pytest.raises(AttributeError, match="no attribute 'materialize_'"):
        getattr(xinit.init, "materialize_")  # noqa: B009


@pytest.mark.parametrize(
    ("module", "name", "meant"),
    [
        (xinit, "kaiming_norml_", "kaiming_normal_"),
        (xinit, "init__", "init_"),
        (xinit.init, "kaiming_unifrom_", "kaiming_uniform_"),
        (xinit, "nn_init", None),
    ],
)
def test_a_typo_is_an_error_from_which_python_guesses(module, name, meant):
    with pytest.raises(AttributeError, match=rf"module '{module.__name__}' has no attribute '{name}'") as error:
        getattr(module, name)
    assert (error.value.name, error.value.obj) == (name, module)
    assert meant is None or get_close_matches(name, dir(module), 1) == [meant]
    with pytest.raises(ModuleNotFoundError, match=rf"No module named 'xinit\.{name}'"):
        import_module(f"xinit.{name}")


@pytest.mark.parametrize(
    "call",
    [
        lambda f, w: f(w),
        lambda f, w: f(w, 0.3),
        lambda f, w: f(w, 0.3, 0.5, None),
        lambda f, w: f(tensor=w),
        lambda f, w: f(w, mean=0.0, std=1.0),
        lambda f, w: f(w, a=-1.0, b=1.0),
        lambda f, w: f(w, gain=2.0),
        lambda f, w: f(w, generator=torch.Generator()),
        lambda f, w: f(torch.nn.Parameter(w)),
    ],
)
@pytest.mark.parametrize("name", sorted({*OLD, *FACTORIES}))
def test_an_old_name_says_which_function_fills(name, call):
    w = kept()
    for module in (xinit, xinit.init) if name in OLD else (xinit,):
        with pytest.raises(TypeError, match=rf"^{name}: .*fills nothing; {name}_ fills a tensor"):
            call(getattr(module, name), w)
    assert (w == 7).all()


@pytest.mark.parametrize(
    "value", ["0.02", None, [0.02], np.ones(3), torch.tensor(0.02), 1j, torch.nn.Linear(2, 2)], ids=type
)
@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        *(("uniform", p) for p in "ab"),
        *(("normal", p) for p in ("mean", "std")),
        *(("trunc_normal", p) for p in ("mean", "std", "a", "b")),
        ("xavier_uniform", "gain"),
        ("xavier_normal", "gain"),
        ("kaiming_uniform", "a"),
        ("kaiming_normal", "a"),
        ("variance_scaling", "scale"),
        ("constant", "value"),
    ],
)
def test_a_factory_takes_numbers(name, parameter, value):
    with pytest.raises(
        TypeError, match=rf"^{name}: {parameter} must be a number, but found .*; {name}_ fills a tensor"
    ):
        getattr(xinit, name)(**{parameter: value})


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.float16(0.5)], ids=type)
def test_numpys_numbers_are_numbers(number):
    assert xinit.normal(std=number) == xinit.normal(std=0.5)
    assert xinit.kaiming_uniform(number) == xinit.kaiming_uniform(0.5)
    assert xinit.constant(np.int64(3)) == xinit.constant(3)
    assert xinit.xavier_normal(in_axis=np.int64(1)) == xinit.xavier_normal()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: xinit.kaiming_normal(mode="bogus"), ValueError, r"Mode bogus not supported, please use one of \['fan_in', 'f"),
        (lambda: xinit.kaiming_uniform(mode="fan_avg"), ValueError, "Mode fan_avg not supported"),
        (lambda: xinit.kaiming_uniform(mode=None), TypeError, "kaiming_uniform: mode must be a string, but found NoneType"),
        (lambda: xinit.kaiming_normal(nonlinearity="gelo"), ValueError, "Unsupported nonlinearity gelo"),
        (lambda: xinit.kaiming_normal(nonlinearity=[]), ValueError, r"Unsupported nonlinearity \[\]"),
        (lambda: xinit.kaiming_normal(float("nan")), ValueError, "negative_slope nan not a valid number"),
        (lambda: xinit.normal(std=-1), RuntimeError, "normal expects std >= 0.0, but found std -1"),
        (lambda: xinit.normal(mean=float("inf")), RuntimeError, "mean is out of bounds"),
        (lambda: xinit.uniform(1, 0), RuntimeError, r"expects to return a \[from, to\) range, but found from=1 > to=0"),
        (lambda: xinit.uniform(0, float("nan")), RuntimeError, "to is out of bounds"),
        (lambda: xinit.trunc_normal(a=1, b=0), ValueError, r"the window \[a, b\] is empty: a=1, b=0"),
        (lambda: xinit.trunc_normal(std=-2), RuntimeError, "normal expects std >= 0.0, but found std -2"),
        (lambda: xinit.trunc_normal(mean=3, std=0), ValueError, "holds none of the normal's mass"),
        (lambda: xinit.xavier_normal(-1), RuntimeError, "normal expects std >= 0.0"),
        (lambda: xinit.xavier_uniform(float("inf")), RuntimeError, "from is out of bounds"),
        (lambda: xinit.variance_scaling(-1), ValueError, "scale must be finite and >= 0, but found -1"),
        (lambda: xinit.variance_scaling(1, "fan"), ValueError, "Mode fan not supported"),
        (lambda: xinit.variance_scaling(1, "fan_in", "cauchy"), ValueError, "Distribution cauchy not supported"),
        (lambda: xinit.constant(float("inf")), RuntimeError, "is out of bounds"),
        (lambda: xinit.xavier_normal(in_axis=1.5), TypeError, "xavier_normal: in_axis must be an axis or a sequence of"),
        (lambda: xinit.xavier_normal(batch_axis="0"), TypeError, "batch_axis must be an axis or a sequence of axes"),
        (lambda: xinit.xavier_normal(groups=1.0), TypeError, "groups must be an integer, but found float"),
        (lambda: xinit.blocks(torch.ones(2), {}), TypeError, "blocks: fused must be a string, but found a tensor"),
        (lambda: xinit.blocks("qkv", torch.ones(2)), TypeError, "blocks: parts must be a mapping, but found a tensor"),
        (lambda: xinit.blocks("qkv", {"q": (4, torch.ones(2))}), TypeError, "part 'q' takes an xinit.Distribution, but"),
        (lambda: xinit.blocks("qkv", {"q": (-4, xinit.zeros())}), ValueError, "the size of part 'q' must be an integer >="),
    ],
)  # fmt: skip
def test_a_factory_refuses_at_its_own_line(make, error, words):
    with pytest.raises(error, match=words) as info:
        make()
    assert info.type is error
    assert "Exception raised from" not in str(info.value)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("normal", {"std": -1.0}),
        ("uniform", {"a": 1.0, "b": 0.0}),
        ("kaiming_normal", {"mode": "bogus"}),
        ("kaiming_uniform", {"nonlinearity": "bogus"}),
        ("xavier_normal", {"gain": -1.0}),
        ("xavier_uniform", {"gain": -1.0}),
    ],
)
def test_in_torchs_words(name, arguments):
    with pytest.raises((RuntimeError, ValueError)) as theirs:
        getattr(INIT, f"{name}_")(torch.empty(1, 1), **arguments)
    with pytest.raises(theirs.type) as ours:
        getattr(xinit, name)(**arguments)
    assert str(ours.value).startswith(str(theirs.value))  # and may say why


def test_numbers_that_come_in_a_tensor_as_torch_takes_them():
    half = torch.tensor(0.5)
    for name, arguments in [
        ("normal_", {"std": half}), ("uniform_", {"b": half}), ("xavier_uniform_", {"gain": half}),
        ("constant_", {"val": half}), ("orthogonal_", {"gain": half}), ("sparse_", {"sparsity": half}),
        ("kaiming_normal_", {"a": None}), ("normal_", {"std": np.float32(0.5)}), ("uniform_", {"b": np.float16(0.5)}),
    ]:  # fmt: skip
        for module in (INIT, xinit):
            assert not (getattr(module, name)(kept(), **arguments) == 7).all()
    assert same(xinit.kaiming_normal_(kept(), None, key=KEY), xinit.kaiming_normal_(kept(), 0.01, key=KEY))


@pytest.mark.parametrize(
    "wrong", [[kept()], nn.Linear(2, 2), nn.Linear(2, 2).parameters(), np.ones((4, 4)), None, 1.0], ids=type
)
@pytest.mark.parametrize("name", sorted({f"{name}_" for name in FACTORIES if name != "blocks"} | {"lecun_normal_"}))
def test_a_function_that_fills_takes_a_tensor(name, wrong):
    required = {"constant_": (0.5,), "sparse_": (0.5,)}.get(name, ())
    with pytest.raises(
        TypeError,
        match=rf"^{name if 'lecun' not in name else 'variance_scaling_'}: tensor must be a torch\.Tensor, but found",
    ):
        getattr(xinit, name)(wrong, *required)


@pytest.mark.parametrize(
    "wrong", [xinit.normal, xinit.normal_, xinit.blocks("a", {"b": (4, xinit.zeros())}), 0.5, "normal"], ids=type
)
def test_many_take_distributions_and_keys(wrong):
    w = kept()
    with pytest.raises(TypeError, match=r"fill_many_: distributions must be of type xinit\.Distribution, but found"):
        xinit.fill_many_([w], [wrong], [KEY])
    with pytest.raises(TypeError, match=r"fill_many_: keys must be of type xinit\.Key, but found int"):
        xinit.fill_many_([w], [xinit.normal()], [0])
    assert (w == 7).all()


def test_a_gain_of_what_is_no_name():
    for module in (INIT, xinit):
        for wrong in (nn.ReLU, None, []):
            with pytest.raises(ValueError, match="Unsupported nonlinearity"):
                module.calculate_gain(wrong)


def test_a_factorys_case_does_not_matter_as_a_functions_does_not():
    w = kept()
    xinit.fill_many_([w], [xinit.kaiming_normal(mode="FAN_OUT")], [KEY])
    assert same(w, xinit.kaiming_normal_(kept(), mode="FAN_OUT", key=KEY))


def test_factories_within_compile():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def fill():
        w = torch.empty(4, 4)
        xinit.fill_many_([w], [xinit.kaiming_normal(mode="fan_out", nonlinearity="relu")], [KEY])
        return w

    assert same(fill(), xinit.kaiming_normal_(kept(), mode="fan_out", nonlinearity="relu", key=KEY))
