"""The ops in torch's world: schemas, fake and meta tensors, compilation, export, autograd, torch.nn.init's names."""

import inspect

import numpy as np
import pytest
import torch
from conftest import KEY, dtypes, fills, same
from torch._subclasses.fake_tensor import FakeTensorMode

import xinit
from xinit import _C, Key, Window

OPS = {
    "uniform_": ("float a=0., float b=1.", {"a": -1.0, "b": 2.0}),
    "normal_": ("float mean=0., float std=1.", {"mean": 1.0, "std": 0.5}),
    "trunc_normal_": ("float mean=0., float std=1., float a=-2., float b=2.", {"a": 3.0, "b": 5.0}),
    "xavier_uniform_": ("float gain=1.", {"gain": 2.0}),
    "xavier_normal_": ("float gain=1.", {}),
    "kaiming_uniform_": ('float a=0., str fan_mode="fan_in", str nonlinearity="leaky_relu"', {"nonlinearity": "relu"}),
    "kaiming_normal_": ('float a=0., str fan_mode="fan_in", str nonlinearity="leaky_relu"', {"fan_mode": "fan_out"}),
    "variance_scaling_": (
        'float scale=1., str fan_mode="fan_in", str distribution="truncated_normal", '
        "int[] in_axis=[1], int[] out_axis=[0], int[] batch_axis=[], int groups=1",
        {"distribution": "normal", "in_axis": [0], "out_axis": [-1]},
    ),
}
COMMON = (
    "Generator? generator=None, SymInt[]? key=None, SymInt[]? global_shape=None, SymInt[]? offsets=None, "
    "int batch_dims=0"
)


def overload(name):
    return getattr(torch.ops.xinit, name).default


@pytest.mark.parametrize("name", OPS)
def test_schema(name):
    twin = name.removesuffix("_")
    for op, tensor, result in (name, "Tensor(a!)", "()"), (twin, "Tensor", "Tensor"):
        schema = overload(op)._schema
        assert str(schema) == f"xinit::{op}({tensor} self, {OPS[name][0]}, *, {COMMON}) -> {result}"
        assert schema.is_mutable == (op == name)
        assert {torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag} <= set(overload(op).tags)


PLAIN = {
    "uniform_": (-1.0, 2),
    "normal_": (1.0, 0.5),
    "trunc_normal_": (0, 1, -2.5, 1.0),
    "xavier_uniform_": (2.0,),
    "xavier_normal_": (),
    "kaiming_uniform_": (0.1, "fan_out", "leaky_relu"),
    "kaiming_normal_": (0.0, "fan_in", "relu"),
    "variance_scaling_": (2.0, "fan_avg", "normal"),
}


@pytest.mark.parametrize("name", OPS)
def test_plain_calls(name):
    """The short way from Python gives what torch.ops gives, and leaves to it whatever is not plain, untouched."""
    call, parameters = _C.calls[name], PLAIN[name]
    w, parameter = torch.empty(4, 6), torch.nn.Parameter(torch.empty(4, 6))
    expected = overload(name.removesuffix("_"))(w, *parameters, key=Key(2**64 - 1, 2**63).words)
    assert all(call(t, parameters, None, 2**64 - 1, 2**63) and same(t.detach(), expected) for t in (w, parameter))
    assert parameter._version == 1
    drawn = overload(name.removesuffix("_"))(w, *parameters, generator=torch.Generator().manual_seed(3))
    assert call(w, parameters, torch.Generator().manual_seed(3))
    assert same(w, drawn)

    class Subclass(torch.Tensor):
        pass

    state, before = torch.get_rng_state(), w.clone()
    wider = torch.empty(4, 6, requires_grad=True)
    for t in (None, [w], w.as_subclass(Subclass), FakeTensorMode().from_tensor(w), wider, torch.empty(0, 6)):
        assert not call(t, parameters, None)
    for odd in (True, 1j, np.float64(1), torch.tensor(1.0), 10**400, "\ud800", None, []):
        assert not call(w, (odd,), None)
    assert not call(w, parameters, object())
    with torch.device("cpu"):  # a mode that sees functions
        assert not call(w, parameters, None)
    assert same(w, before)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(NotImplementedError, match=f'^"{name}" not implemented for'):  # as torch.ops says it
        call(torch.empty(4, 6, dtype=torch.int64), parameters, None)


def test_there_are_no_other_ops():
    names = {s.name.removeprefix("xinit::") for s in torch._C._jit_get_all_schemas() if s.name.startswith("xinit::")}
    fills = {*OPS, "fill_many_"}
    assert names == fills | {name.removesuffix("_") for name in fills} | {"digest"}


@pytest.mark.parametrize("name", OPS)
def test_twins(name):
    """A new tensor like the one given, with what the op in place would have written there."""
    for tensor in (torch.zeros(4, 6), torch.zeros(6, 4, dtype=torch.bfloat16).t(), torch.zeros(8, 18)[::2, ::3]):
        before = tensor.clone()
        for place in {}, {"global_shape": [9, 20], "offsets": [1, 2]}:
            new = overload(name.removesuffix("_"))(tensor, **OPS[name][1], key=[1, -2], **place)
            assert torch.equal(tensor, before)
            overload(name)(filled := tensor.clone(), **OPS[name][1], key=[1, -2], **place)
            assert same(new, filled)
            assert new.stride() == torch.empty_like(tensor).stride()


def test_many_twins():
    tensors, arguments = (
        [torch.zeros(3, 4), torch.zeros(5)],
        (["normal(0, 1)", "constant(3)"], [1, 2, 3, 4], []),
    )
    new = torch.ops.xinit.fill_many(tensors, *arguments)
    assert not any(tensor.any() for tensor in tensors)
    torch.ops.xinit.fill_many_(tensors, *arguments)
    assert all(map(same, new, tensors))


def test_batch_dims():
    """A stack is one array; fans are those of a member."""
    one, stack = xinit.kaiming_uniform_(torch.empty(4, 6), key=KEY), torch.empty(2, 3, 4, 6)
    torch.ops.xinit.kaiming_uniform_(stack, key=KEY.words, batch_dims=2)
    assert same(stack[0, 0], one)
    assert same(stack, xinit.uniform_(torch.empty_like(stack), -1, 1, key=KEY))
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match=r"batch_dims must be in \[0, 4\]"):
            torch.ops.xinit.kaiming_uniform_(stack, batch_dims=wrong)
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        torch.ops.xinit.kaiming_uniform_(stack, batch_dims=3)


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name):
    place = {"global_shape": [9, 20], "offsets": [1, 2]}
    for tensor, arguments in (
        (torch.zeros(4, 6), {}),
        (torch.zeros(6, 4, dtype=torch.bfloat16).t(), OPS[name][1]),
        (torch.zeros(8, 18, dtype=torch.float64)[::2, ::3], OPS[name][1] | place),
        (torch.zeros(4, 6, requires_grad=True), {}),
    ):
        for op in name, name.removesuffix("_"):
            torch.library.opcheck(overload(op), (tensor,), {**arguments, "key": [1, -2]})


def test_opcheck_of_many():
    for op in "fill_many_", "fill_many":
        arguments = ["uniform(1, fan_avg)", "constant(2)"], [1, 2, 3, 4], ["a", "b"]
        torch.library.opcheck(overload(op), ([torch.zeros(3, 4), torch.zeros(2, 3).t()], *arguments))


@fills
@dtypes
def test_fake_and_meta_tensors(fill, dtype):
    for tensor in (
        torch.empty(3, 4, dtype=dtype, device="meta"),
        FakeTensorMode().from_tensor(torch.empty(3, 4, dtype=dtype)),
    ):
        for arguments in ({}, {"key": KEY}, {"key": KEY, "window": Window((9, 9), (3, 4))}):
            assert fill(tensor, **arguments) is tensor
    assert tensor.shape == (3, 4)


def test_a_model_of_fake_parameters():
    """Each was said to share its memory with the one before: a fake tensor has none. It is left as a meta tensor is."""
    with FakeTensorMode():
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        assert xinit.init_(model, "torch", KEY) is model
    real = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    assert str(xinit.plan(model, "torch")) == str(xinit.plan(real, "torch"))


# ---- compilation ----


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_with_a_key(dynamic):
    def step(x, name):
        key = KEY.fold_in(name)
        xinit.normal_(x, key=key)
        xinit.uniform_(x[1:3], 5, 6, key=key.fold_in(0), window=Window((9, x.shape[1]), (1, 0)))
        return x.t(), xinit.xavier_uniform_(torch.empty_like(x), key=key)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((4, 5), (40, 3)):
        x, y = torch.zeros(shape), torch.zeros(shape)
        assert all(map(same, compiled(x, "a"), step(y, "a")))
        assert same(x, y)
    assert not same(compiled(x, "b")[1], compiled(x, "a")[1])


def test_compiled_with_the_default_generator():
    """Each call draws afresh, and what eager would have drawn."""

    def step(x):
        xinit.kaiming_normal_(x)
        return xinit.uniform_(torch.empty_like(x))

    compiled = torch.compile(step, fullgraph=True)
    with torch.random.fork_rng(devices=[]):
        runs = []
        for f in (step, compiled):
            torch.manual_seed(3)
            x, y = torch.zeros(4, 5), torch.zeros(4, 5)
            runs.append([f(x), x, f(y), y, torch.get_rng_state()])
    assert all(map(same, *runs))
    assert len({t.sum().item() for t in runs[1][:4]}) == 4


class Model(torch.nn.Module):
    def forward(self, x):
        return xinit.trunc_normal_(torch.empty_like(x), key=Key(1)) + xinit.kaiming_uniform_(x.clone(), key=Key(2))


@pytest.mark.parametrize("dynamic", [False, True])
def test_exported(dynamic):
    shapes = ({0: torch.export.Dim("rows", min=2, max=100)},) if dynamic else None
    program = torch.export.export(Model(), (torch.empty(8, 4),), dynamic_shapes=shapes)
    assert "xinit.trunc_normal_" in program.graph_module.code
    for rows in (8, 33) if dynamic else (8,):
        x = torch.zeros(rows, 4)
        assert same(program.module()(x), Model()(x))
        assert same(program.run_decompositions().module()(x), Model()(x))
        assert (x == 0).all()


# ---- autograd ----


@fills
def test_the_very_tensor_one_version_on(fill):
    tensor = torch.empty(4, 5)
    for _ in range(2):
        version = tensor._version
        assert fill(tensor) is tensor
        assert tensor._version == version + 1
    view = tensor[1:, ::2]
    assert fill(view, key=KEY) is view
    assert (view._version, tensor._version) == (version + 2, version + 2)


@fills
def test_a_parameter_stays_a_leaf(fill):
    parameter = torch.nn.Parameter(torch.zeros(4, 5))
    assert fill(parameter, key=KEY) is parameter
    assert (parameter.is_leaf, parameter.requires_grad, parameter.grad_fn) == (True, True, None)
    assert same(parameter.detach(), fill(torch.empty(4, 5), key=KEY))
    (parameter * 3).sum().backward()
    assert (parameter.grad == 3).all()


@fills
def test_nothing_is_recorded(fill):
    leaf = torch.ones(4, 5, requires_grad=True)
    result = leaf * 2
    node = result.grad_fn
    assert fill(result, key=KEY).grad_fn is node
    saved = leaf.exp()
    fill(saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


@fills
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes(fill, mode):
    expected, parameter = fill(torch.empty(4, 5), key=KEY), torch.nn.Parameter(torch.zeros(4, 5))
    with mode():
        assert same(fill(torch.empty(4, 5), key=KEY), expected)
        version = parameter._version
        fill(parameter, key=KEY)
        assert parameter._version == version + 1
    assert same(parameter.detach(), expected)
    assert torch.is_grad_enabled()


# ---- in torch.nn.init's place ----

NAMES = [n for n in torch.nn.init.__all__ if f"{n}_" not in torch.nn.init.__all__]  # uniform is deprecated for uniform_


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    """torch's parameters first, with the same names and defaults; ours are by keyword alone, and None by default."""
    theirs = list(inspect.signature(getattr(torch.nn.init, name)).parameters.values())
    ours = list(inspect.signature(getattr(xinit, name)).parameters.values())
    for mine, torchs in zip(ours, theirs, strict=False):
        assert (mine.name, mine.kind, mine.default) == (torchs.name, torchs.kind, torchs.default)
    assert len(ours) >= len(theirs)
    assert all((p.kind, p.default) == (p.KEYWORD_ONLY, None) for p in ours[len(theirs) :])


def test_names():
    assert len(NAMES) >= 15
    assert set(NAMES) <= set(xinit.__all__)
    assert all(callable(getattr(xinit, name)) and getattr(xinit, name).__doc__ for name in NAMES)
    assert all(hasattr(xinit, name) for name in xinit.__all__)


def test_what_torch_code_passes_works_here():
    """By position and by keyword, with integers, None and NumPy's numbers: the same distribution comes out."""
    generator = torch.Generator().manual_seed(1)
    for call in (
        lambda i, t: i.uniform_(t, -1, 1, generator),
        lambda i, t: i.uniform_(t, a=-0.5, b=0.5, generator=None),
        lambda i, t: i.normal_(t, 0, 1, generator),
        lambda i, t: i.trunc_normal_(t, 0, 1, -2, 2, generator),
        lambda i, t: i.xavier_uniform_(t, i.calculate_gain("relu"), generator),
        lambda i, t: i.xavier_normal_(t, gain=i.calculate_gain("tanh", None)),
        lambda i, t: i.kaiming_uniform_(t, 5**0.5, "fan_out", "leaky_relu", generator),
        lambda i, t: i.kaiming_normal_(t, mode="fan_out", nonlinearity="relu"),
        lambda i, t: i.kaiming_normal_(t, np.float64(0.1)),
        lambda i, t: i.constant_(t, 3),
        lambda i, t: i.orthogonal_(t),
    ):
        tensors = torch.zeros(60, 70), torch.zeros(60, 70)
        for init, tensor in zip((xinit, torch.nn.init), tensors, strict=True):
            assert call(init, tensor) is tensor
        assert torch.isclose(*(t.std() for t in tensors), rtol=0.1)
