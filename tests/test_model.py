"""Whole models: a parameter's bits depend on key, name, shape and distribution, and on nothing else; plans and fingerprints."""

import io
import math
import sys
import warnings
from contextlib import redirect_stderr
from functools import partial

import pytest
import torch
from conftest import same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import xinit
from xinit import Key

pytestmark = pytest.mark.usefixtures("one_thread")
KEY = Key(20262).fold_in("model")
RECIPE = {"*.bias": xinit.uniform(-1, 1), "*": xinit.xavier_normal()}


def tensors(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def layers(*names, width=6):
    return nn.ModuleDict({name: nn.Linear(width, width) for name in names})


def assert_equal_bits(left, right):
    assert left.keys() == right.keys()
    assert all(same(left[name], right[name]) for name in left)


# ---- bits ----


def test_each_parameter_has_the_bits_that_its_name_alone_gives():
    model = xinit.init_(layers("a", "b"), RECIPE, KEY)
    for name, parameter in model.named_parameters():
        fill = xinit.uniform_ if name.endswith("bias") else xinit.xavier_normal_
        arguments = (-1, 1) if name.endswith("bias") else ()
        assert same(parameter.detach(), fill(torch.empty(parameter.shape), *arguments, key=KEY.fold_in(name)))
        assert parameter.requires_grad
        assert parameter.is_leaf


def test_the_calls_of_the_documentation_work_as_written():
    model, key = layers("layer", "lm_head"), xinit.Key(0)
    assert xinit.init_(model, recipe="llama", key=xinit.Key(0)) is model
    recipe = {
        "*.bias": xinit.zeros(),
        "lm_head.weight": xinit.normal(std=0.02),
        "*": xinit.kaiming_normal(nonlinearity="relu"),
    }
    xinit.init_(model, recipe=recipe, key=key)
    assert same(
        model.lm_head.weight.detach(), xinit.normal_(torch.empty(6, 6), std=0.02, key=key.fold_in("lm_head.weight"))
    )
    assert not model.layer.bias.any()


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 9)), min_size=1, unique_by=lambda x: x[0]),
    st.randoms(),
)
def test_company_and_order_change_nothing(shapes, random):
    def model(chosen):
        return nn.ParameterDict({name: torch.empty(size, 3) for name, size in chosen})

    whole = tensors(xinit.init_(model(shapes), {"*": xinit.normal()}, KEY))
    some = random.sample(shapes, random.randint(1, len(shapes)))
    part = tensors(xinit.init_(model(some), {"*": xinit.normal()}, KEY))
    assert_equal_bits(part, {name: whole[name] for name in part})


def test_a_layer_inserted_before_changes_no_other():
    before = tensors(xinit.init_(layers("a", "c"), RECIPE, KEY))
    after = tensors(xinit.init_(layers("a", "b", "c"), RECIPE, KEY))
    assert_equal_bits(before, {name: after[name] for name in before})
    assert not same(after["b.weight"], after["a.weight"])


def test_another_key_or_name_changes_every_bit_of_luck():
    first = xinit.init_(layers("a"), RECIPE, KEY).a.weight
    assert not torch.isclose(first, xinit.init_(layers("a"), RECIPE, Key(1)).a.weight, rtol=1e-4).any()
    assert not torch.isclose(first, xinit.init_(layers("b"), RECIPE, KEY).b.weight, rtol=1e-4).any()


def checkpointed(model):
    wrapper = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    return wrapper.checkpoint_wrapper(model)


def compiled_inside(model):
    model["a"] = torch.compile(model["a"], backend="eager")
    return model


def in_fabric(model):
    fabric = pytest.importorskip("lightning.fabric")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fabric.Fabric(accelerator="cpu", devices=1).setup(model)


def offloaded(model):
    wrapper = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    return wrapper.offload_wrapper(model)


class Wrapper(nn.Module):
    """As those of packages that are not here name their part."""

    def __init__(self, part, model):
        super().__init__()
        self.add_module(part, model)


WRAPPERS = {
    "Fabric": in_fabric,
    "Fabric of compile": lambda model: in_fabric(torch.compile(model, backend="eager")),
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "offload": offloaded,
    "FlattenParamsWrapper": partial(Wrapper, "_fpw_module"),
    "DataParallel": nn.DataParallel,
    "compile": partial(torch.compile, backend="eager"),
    "compile inside": compiled_inside,
    "checkpoint": checkpointed,
    "several": lambda model: nn.DataParallel(torch.compile(checkpointed(model), backend="eager")),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_change_no_bit_and_no_name(wrap):
    plain, wrapped = xinit.init_(layers("a", "b"), RECIPE, KEY), wrap(layers("a", "b"))
    assert xinit.init_(wrapped, RECIPE, KEY) is wrapped
    for one, other in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert same(one.detach(), other.detach())
    assert [row.name for row in xinit.plan(wrapped, RECIPE).rows] == [name for name, _ in plain.named_parameters()]
    assert xinit.fingerprint(wrapped) == xinit.fingerprint(plain)


@pytest.mark.parametrize(
    ("kind", "arguments"), [(nn.Linear, (4, 3)), (nn.Embedding, (5, 4)), (nn.BatchNorm1d, (4,)), (nn.Conv2d, (3, 4, 2))]
)
def test_layers_of_skip_init_are_as_others(kind, arguments):
    empty, full = torch.nn.utils.skip_init(kind, *arguments), kind(*arguments)
    for model in (empty, full):
        xinit.init_(model, "torch", KEY)
    assert xinit.fingerprint(empty, buffers=True) == xinit.fingerprint(full, buffers=True)
    for one, other in zip(empty.parameters(), full.parameters(), strict=True):
        assert same(one.detach(), other.detach())


def test_dtype_and_memory_layout_keep_the_values():
    plain = xinit.init_(layers("a"), RECIPE, KEY)
    other = layers("a").to(torch.bfloat16)
    other.a.weight.data = other.a.weight.data.t()
    xinit.init_(other, RECIPE, KEY)
    assert not other.a.weight.is_contiguous()
    assert torch.equal(other.a.weight, plain.a.weight.bfloat16())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 6, padding_idx=2)
        self.head = nn.Linear(6, 8, bias=False)
        self.head.weight = self.embed.weight


def test_a_tied_parameter_is_drawn_once_under_its_first_name():
    recipe = {"head.*": xinit.ones(), "*": xinit.normal()}
    model = xinit.init_(Tied(), recipe, KEY)
    expected = xinit.normal_(torch.empty(8, 6), key=KEY.fold_in("embed.weight"))
    expected[2] = 0  # the padding row
    assert same(model.head.weight.detach(), expected)
    (row,) = xinit.plan(model, recipe).rows
    assert (row.name, row.tied, row.method) == ("embed.weight", ("head.weight",), "normal, row 2 zero")
    before = model.embed.weight.detach().clone()
    xinit.init_(model, {"*": xinit.ones()}, KEY, skip="head.*")
    assert same(model.embed.weight.detach(), before)
    xinit.init_(model, {"*": xinit.ones()}, KEY, only="head.weight")
    assert model.embed.weight.sum() == 7 * 6


# ---- blocks: fused as unfused ----

XAVIER, RELU = xinit.xavier_uniform, partial(xinit.kaiming_normal, nonlinearity="relu")


class Weights(nn.Module):
    """Parameters under dotted names."""

    def __init__(self, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            *path, leaf = name.split("__")
            at = self
            for part in path:
                at.add_module(part, getattr(at, part, None) or nn.Module())
                at = getattr(at, part)
            at.register_parameter(leaf, nn.Parameter(torch.full(shape, math.nan)))


FUSED = {
    # the fused parameter, its blocks' names and sizes, the axis, and the options of the distributions
    "qkv of a Linear": ("attn__qkv__weight", (24, 10), {"q": 12, "k": 8, "v": 4}, 0, {}),
    "qkv of x @ w": ("attn__c_attn__weight", (10, 36), {"q": 12, "k": 12, "v": 12}, 1, {"in_axis": 0, "out_axis": 1}),
    "attention of torch": (
        "in_proj_weight",
        (18, 6),
        {"q_proj_weight": 6, "k_proj_weight": 6, "v_proj_weight": 6},
        0,
        {},
    ),
    "gate and up of experts": (
        *("mlp__experts__gate_up", (3, 16, 5), {"gate": 8, "up": 8}, 1),
        {"batch_axis": 0, "out_axis": 1, "in_axis": 2},
    ),
    "convolutions": ("conv__fused__weight", (12, 3, 3, 3), {"one": 8, "two": 4}, 0, {"groups": 2}),
    "last axis": ("w", (7, 9), {"one": 1, "two": 8}, -1, {"in_axis": 0, "out_axis": 1}),
}


@pytest.mark.parametrize(("name", "shape", "sizes", "axis", "options"), FUSED.values(), ids=FUSED)
def test_a_fused_parameter_has_the_bits_of_the_unfused_ones(name, shape, sizes, axis, options):
    """Each block from a distribution of its own, whose fans are those of the block."""
    component = next(
        part for part in name.split("__") if part in ("qkv", "c_attn", "in_proj_weight", "gate_up", "fused", "w")
    )
    kinds = [XAVIER(**options), RELU(mode="fan_out", **options), xinit.trunc_normal(std=0.5)]
    what = dict(zip(sizes, kinds, strict=False))
    parts = {part: (size, what[part]) for part, size in sizes.items()}
    fused = xinit.init_(Weights(**{name: shape}), {"*": xinit.blocks(component, parts, axis)}, KEY)

    at = axis % len(shape)
    unfused = {
        "__".join(part if c == component else c for c in name.split("__")): (*shape[:at], size, *shape[at + 1 :])
        for part, size in sizes.items()
    }
    by_name = {f"*{part}*": distribution for part, distribution in what.items()}
    by_name = dict(sorted(by_name.items(), key=lambda item: -len(item[0])))
    pieces = xinit.init_(Weights(**unfused), by_name, KEY)
    assert same(next(fused.parameters()).detach(), torch.cat([p.detach() for p in pieces.parameters()], axis))
    row = xinit.plan(fused, {"*": xinit.blocks(component, parts, axis)}).rows[0]
    assert all(f"{part}: " in row.method for part in sizes) or ", ".join(sizes) in row.method


def test_blocks_that_do_not_fit_are_listed():
    model = Weights(a__qkv__weight=(9, 4), b__qkv__weight=(10, 4), c__weight=(9, 4))
    blocks = xinit.blocks("qkv", {"q": (3, XAVIER()), "kv": (6, XAVIER())})
    with pytest.raises(
        ValueError, match=r"2 of 3 parameters(.|\n)*b\.qkv\.weight \(10, 4\): .*10(.|\n)*c\.weight .*'qkv'"
    ):
        xinit.init_(model, {"*": blocks}, KEY)
    assert model.a.qkv.weight.isnan().all()


# ---- a part of the model ----


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 4)


MIXED = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "layers.2.weight", "layers.2.bias"]
MIXED += ["norm.weight", "norm.bias", "head.weight", "head.bias"]
SELECTIONS = [
    ({"only": "layers.1.*"}, MIXED[2:4]),
    ({"only": ("layers.1.*", "head.bias")}, [*MIXED[2:4], "head.bias"]),
    ({"only": nn.LayerNorm}, MIXED[6:8]),
    ({"only": lambda name, parameter, module: parameter.dim() == 2}, [*MIXED[:6:2], "head.weight"]),
    ({"skip": "*.bias"}, MIXED[::2]),
    ({"skip": ["layers.*", nn.LayerNorm]}, MIXED[8:]),
    ({"only": "layers.*", "skip": "*.0.*"}, MIXED[2:6]),
    ({"only": "*.weight", "skip": lambda name, parameter, module: "layers" in name}, ["norm.weight", "head.weight"]),
]


@pytest.mark.parametrize(("selection", "names"), SELECTIONS)
def test_a_part_gets_the_bits_that_it_gets_in_the_whole_and_the_rest_keeps_its_own(selection, names):
    recipe = {"norm.weight": xinit.normal(), "*.bias": xinit.uniform(), "*": xinit.xavier_normal()}
    whole = tensors(xinit.init_(Mixed(), recipe, KEY))
    model = xinit.init_(Mixed(), recipe, Key(3))
    old = tensors(model)
    xinit.init_(model, recipe, KEY, **selection)
    assert_equal_bits(tensors(model), {name: (whole if name in names else old)[name] for name in old})
    plan = xinit.plan(model, recipe, **selection)
    assert [row.name for row in plan.rows] == names
    assert plan.kept == len(MIXED) - len(names)


def test_patterns_at_the_top_and_what_matches_nothing():
    linear = nn.Linear(3, 2)
    assert [row.std for row in xinit.plan(linear, {"*.bias": xinit.zeros(), "*": xinit.normal()}).rows] == [1, 0]
    for option in ("only", "skip"):
        for use in (xinit.plan, partial(xinit.init_, key=KEY)):
            with pytest.raises(ValueError, match=rf"{option}='\*\.wieght' matches none of the model's 10 parameters"):
                use(Mixed(), "torch", **{option: ["*.bias", "*.wieght"]})
    assert xinit.plan(Mixed(), {"layer.*": xinit.ones(), "*": xinit.zeros()}).unused == ("layer.*",)
    assert (
        xinit.plan(Mixed(), {"head.*": xinit.zeros()}, only="head.*").problems == ()
    )  # only what is chosen must match


# ---- errors: everything is checked before anything changes ----


def unchanged(model, words, error=ValueError, recipe=None, **options):
    before = tensors(model) if not any(p.is_meta for p in model.parameters()) else {}
    with pytest.raises(error, match=words) as caught:
        xinit.init_(model, recipe or {"*": xinit.normal()}, options.pop("key", KEY), **options)
    for name, value in before.items():
        assert same(dict(model.named_parameters())[name].detach(), value)
    return str(caught.value)


def test_parameters_that_nothing_matches_are_all_listed():
    model = Mixed()
    text = unchanged(model, r"init_: 8 of 10 parameters cannot be initialised", recipe={nn.LayerNorm: xinit.ones()})
    for name, parameter in model.named_parameters():
        line = f"\n  {name} {tuple(parameter.shape)}: no pattern matches it; it belongs to a Linear"
        assert (line in text) == (not name.startswith("norm"))
    plan = xinit.plan(model, {nn.LayerNorm: xinit.ones()})
    assert [row.name for row in plan.problems] == [name for name in MIXED if not name.startswith("norm")]
    assert all(row.problem == "no pattern matches it; it belongs to a Linear" for row in plan.problems)
    assert "8 parameters CANNOT be initialised" in str(plan)


def test_distributions_that_do_not_fit_are_all_listed():
    recipe = {"head.*": xinit.zeros(), "*": xinit.kaiming_normal()}
    text = unchanged(Mixed(), r"5 of 10 parameters", recipe=recipe)
    for name in [*MIXED[1:6:2], *MIXED[6:8]]:
        assert (
            f"\n  {name} (6,): Fan in and fan out can not be computed for tensor with fewer than 2 dimensions" in text
        )


def test_parameters_without_memory():
    with torch.device("meta"):
        model = Mixed()
    unchanged(
        model, r"parameters layers\.0\.weight, .* and 5 more on the meta device.*to_empty.*materialize_", RuntimeError
    )
    with pytest.raises(RuntimeError, match="meta device"):
        xinit.fingerprint(model)
    assert xinit.plan(model, "torch").problems == ()
    model = Mixed()
    model.head.weight.data = torch.empty(0)
    for use in (partial(unchanged, error=RuntimeError), lambda model, words: pytest.raises(RuntimeError, match=words)):
        use(model, r"parameter head\.weight without elements: has a sharding wrapper released")
    released = Mixed()
    released.head.bias.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"parameter head\.bias without elements"):
        xinit.init_(released, {"*": xinit.normal()}, KEY)
    with pytest.raises(RuntimeError, match=r"fingerprint: parameter head\.bias without elements"):
        xinit.fingerprint(released)
    xinit.init_(released, "torch", KEY, skip="head.bias")


def test_other_parameters_that_cannot_be_filled():
    model = Mixed()
    model.head.bias = nn.Parameter(torch.zeros(4, dtype=torch.int32), requires_grad=False)
    unchanged(
        model,
        r"head\.bias has dtype torch\.int32; supported are float32, float64, float16, bfloat16",
        NotImplementedError,
    )
    with pytest.raises(NotImplementedError, match=r"fingerprint: parameter head\.bias has dtype torch\.int32"):
        xinit.fingerprint(model)
    (row,) = xinit.plan(model, "torch").problems
    assert (row.name, row.problem) == ("head.bias", "nothing can be drawn of dtype torch.int32: skip= it")
    model = Mixed()
    model.head.weight = nn.Parameter(torch.zeros(4, 6).to_sparse())
    with pytest.raises(NotImplementedError, match=r"head\.weight has layout torch\.sparse_coo"):
        xinit.init_(model, "torch", KEY)
    model = Mixed()
    model.head.bias = nn.Parameter(TwoTensor(torch.zeros(4), torch.zeros(4)))  # a wrapper as DTensor is
    for use in (partial(xinit.init_, recipe="torch", key=KEY), xinit.fingerprint):
        with pytest.raises(NotImplementedError, match=r"head\.bias is a TwoTensor; supported are plain tensors"):
            use(model)
    model = Mixed()
    model.head.weight = nn.Parameter(model.layers[0].weight.data)
    unchanged(model, r"layers\.0\.weight and head\.weight are two parameters, but share their memory")
    rows = model.layers[0].weight.data
    for part in rows[1:], rows[:, 1:], rows.mT[2:]:
        model.head.weight = nn.Parameter(part)
        unchanged(model, r"layers\.0\.weight and head\.weight are two parameters, but share their memory")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that lazy modules may change
        lazy = nn.Sequential(nn.LazyLinear(3))
    for use in (xinit.plan, partial(xinit.init_, key=KEY)):
        with pytest.raises(ValueError, match=r"parameters 0\.weight, 0\.bias of lazy modules have no shape yet"):
            use(lazy, "torch")
    twins = nn.ModuleDict({"a": nn.Linear(2, 2), "module": nn.ModuleDict({"a": nn.Linear(2, 2)})})
    unchanged(twins, r"init_: two parameters are both called a\.weight, apart from wrappers' parts")
    last = layers("a", "b")
    recipe = {"b.bias": xinit.Distribution("normal", (0.0, -1.0)), "*": xinit.normal()}
    unchanged(last, r"std", RuntimeError, recipe=recipe)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(3), "torch", KEY), "init_: model must be a torch.nn.Module, but found Tensor"),
        ((nn.Linear(2, 2), "torch", 0), "init_: key must be an xinit.Key, but found int"),
        ((nn.Linear(2, 2), "torch", None), "init_: key must be an xinit.Key, but found NoneType"),
    ],
)
def test_wrong_types(arguments, words):
    with pytest.raises(TypeError, match=words):
        xinit.init_(*arguments)
    with pytest.raises(TypeError, match="init_: a pattern must be"):
        xinit.init_(nn.Linear(2, 2), "torch", KEY, only=3)


@pytest.mark.parametrize(
    "value", [xinit.zeros, xinit.normal, xinit.normal_, nn.init.normal_, xinit.orthogonal, xinit.ones_]
)
def test_a_function_in_a_distributions_place(value):
    name = value.__name__
    words = rf"init_: the recipe's '\*' has the function {name}, which .*, such as xinit\.{name.rstrip('_')}\(\.\.\.\)"
    unchanged(nn.Linear(2, 2), words, TypeError, {"*": value})
    unchanged(nn.Linear(2, 2), words, TypeError, [{"nothing": xinit.zeros()}, {"*": value}, "torch"])


def test_a_model_without_parameters_is_left_as_it_is():
    assert str(xinit.plan(xinit.init_(nn.ReLU(), "torch", KEY), "torch")).endswith("0 parameters, 0 elements, 0 B")
    assert xinit.fingerprint(nn.ReLU()) == "0" * 32


# ---- plans ----


def test_a_plan_draws_nothing_and_changes_nothing():
    model, state = Mixed(), torch.get_rng_state()
    before, versions = tensors(model), [p._version for p in model.parameters()]
    str(xinit.plan(model, "torch"))
    xinit.plan(model, "llama").folded()
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal_bits(tensors(model), before)
    assert [p._version for p in model.parameters()] == versions


def test_a_plan_prints_as_a_table():
    model = nn.ModuleDict(
        {"layers": nn.ModuleList(nn.Linear(64, 96, bias=False) for _ in range(3)), "tied": Tied().half()}
    )
    model["odd"] = nn.PReLU()
    recipe = {
        "layers.2.*": xinit.blocks("2", {"q": (64, XAVIER()), "kv": (32, RELU())}),
        nn.Linear: RELU(mode="fan_out"),
        nn.Embedding: xinit.trunc_normal(std=0.02, a=-0.04, b=0.04),
        "*.bias": xinit.zeros(),
    }
    assert str(xinit.plan(model, recipe)) == "\n".join(
        [
            "name                      shape     dtype    method                                              std",
            "layers.0.weight           (96, 64)  float32  kaiming_normal fan_out gain sqrt(2)               0.144",
            "layers.1.weight           (96, 64)  float32  kaiming_normal fan_out gain sqrt(2)               0.144",
            "layers.2.weight           (96, 64)  float32  q: xavier_uniform; kv: kaiming_normal fan_in      0.144",
            "                                             gain sqrt(2)",
            "tied.embed.weight         (8, 6)    float16  trunc_normal ±0.04, row 2 zero                   0.0176",
            "  tied: tied.head.weight",
            "",
            "5 parameters, 18,481 elements, 72.1 KiB",
            "nothing came to '*.bias'",
            "1 parameter CANNOT be initialised:",
            "  odd.weight (1,): no pattern matches it; it belongs to a PReLU",
        ]
    )
    folded = xinit.plan(model, recipe, skip="odd.*").folded().splitlines()
    assert folded[1].split()[:2] == ["2", "layers.{0..1}.weight"]
    assert [folded[i].index(name) for i, name in enumerate(("name", "layers", "layers.2"))] == [7] * 3
    assert folded[-2:] == ["1 parameter left as it is", "nothing came to '*.bias'"]


METHODS = [
    (xinit.constant(0.25), "constant 0.25", 0),
    (xinit.ones(), "ones", 0),
    (xinit.uniform(-0.5, 0.5), "uniform ±0.5", 1 / math.sqrt(12)),
    (xinit.uniform(0, 1), "uniform [0, 1)", 1 / math.sqrt(12)),
    (xinit.normal(0.5, 0.1), "normal mean 0.5", 0.1),
    (xinit.trunc_normal(0.5, 0.1, 0, 1), "trunc_normal mean 0.5 [0, 1]", 0.1),
    (xinit.xavier_normal(5 / 3), "xavier_normal gain 5/3", 5 / 3 / math.sqrt(14)),
    (xinit.variance_scaling(), "truncated_normal fan_in", 1 / math.sqrt(12)),
    (
        xinit.kaiming_uniform(nonlinearity="relu", in_axis=0, out_axis=2, batch_axis=1),
        "kaiming_uniform fan_in gain sqrt(2), in 0, out 2, batch 1",
        math.sqrt(2 / 8),
    ),
    (xinit.blocks("w", {"q": (4, XAVIER()), "k": (4, XAVIER())}), "q, k: xavier_uniform", math.sqrt(2 / 20)),
    (xinit.kaiming_normal(nonlinearity="linear", groups=4), "kaiming_normal fan_in, groups 4", 1 / math.sqrt(12)),
]


@pytest.mark.parametrize(("distribution", "method", "std"), METHODS, ids=[method for _, method, _ in METHODS])
def test_a_row_says_method_and_std(distribution, method, std):
    (row,) = xinit.plan(nn.ParameterDict({"w": torch.empty(8, 6, 2)}), {"*": distribution}).rows
    assert (row.name, row.shape, row.dtype, row.method) == ("w", (8, 6, 2), torch.float32, method)
    assert row.std == pytest.approx(std, rel=1e-3)


# ---- fingerprints ----


@pytest.fixture
def model():
    return xinit.init_(Mixed(), {"*": xinit.normal()}, KEY)


def renamed(model, **names):
    children = {names.get(name, name): child for name, child in model.named_children()}
    return nn.ModuleDict(children)


def test_a_fingerprint_is_32_digits_whatever_the_order_the_layout_and_the_wrapper(model):
    expected = xinit.fingerprint(model)
    assert len(expected) == 32
    assert int(expected, 16) > 2**64
    reordered = nn.ModuleDict(dict(reversed(list(model.named_children()))))
    assert list(tensors(reordered)) != list(tensors(model))
    assert xinit.fingerprint(reordered) == expected
    model.head.weight.data = model.head.weight.data.t().contiguous().t()
    model.layers[0].weight.data = torch.cat([model.layers[0].weight.data] * 2, 1)[:, :6]
    assert not model.head.weight.is_contiguous()
    assert xinit.fingerprint(model) == expected
    assert xinit.fingerprint(nn.DataParallel(model)) == expected


@pytest.mark.parametrize("name", ["layers.0.weight", "norm.bias", "head.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_one_bit_changes_a_fingerprint(model, name, dtype):
    model = model.to(dtype)
    before, seen = xinit.fingerprint(model), set()
    bits = model.get_parameter(name).data.view(getattr(torch, f"int{8 * dtype.itemsize}")).view(-1)
    for bit in range(8 * dtype.itemsize - 1):
        bits[3] ^= 1 << bit
        seen.add(xinit.fingerprint(model))
        bits[3] ^= 1 << bit
    assert xinit.fingerprint(model) == before
    assert len(seen | {before}) == 8 * dtype.itemsize


def test_swaps_names_signs_and_dtypes_change_a_fingerprint(model):
    changes = [
        xinit.fingerprint(model),
        xinit.fingerprint(renamed(model, head="tail")),
        xinit.fingerprint(renamed(model)),
    ]
    assert changes.pop() == changes[0]
    with torch.no_grad():
        first, second = model.layers[0].weight, model.layers[1].weight
        first.data, second.data = second.data, first.data
        changes.append(xinit.fingerprint(model))
        first.data, second.data = second.data, first.data
        model.head.bias.data = model.head.bias.data.flip(0)
        changes.append(xinit.fingerprint(model))
        model.norm.bias.zero_()
        changes.append(xinit.fingerprint(model))
        model.norm.bias.neg_()  # -0
        changes.append(xinit.fingerprint(model))
        model.norm.bias.data = model.norm.bias.data.bfloat16()
        changes.append(xinit.fingerprint(model))
        model.norm.bias = None
        changes.append(xinit.fingerprint(model))
    assert len(set(changes)) == len(changes)


def test_a_tied_parameter_counts_once_under_its_first_name():
    tied = xinit.init_(Tied(), "torch", KEY)
    untied = nn.ModuleDict({"embed": nn.Embedding(8, 6)})
    untied["embed"].weight = tied.embed.weight
    assert xinit.fingerprint(tied) == xinit.fingerprint(untied)


def test_a_fingerprint_is_the_sum_of_its_parameters(model):
    sums = torch.zeros(2, dtype=torch.int64)
    for name, parameter in model.named_parameters():
        sums += torch.ops.xinit.digest(parameter, Key(0).fold_in(name).words)
    assert xinit.fingerprint(model) == "".join(f"{value % 2**64:016x}" for value in sums.tolist())


# ---- bars ----


def test_bars_count_bytes_and_change_nothing(model):
    other, error = Mixed(), io.StringIO()
    with redirect_stderr(error):
        xinit.init_(other, {"*": xinit.normal()}, KEY, progress=True)
        assert xinit.fingerprint(other, progress=True) == xinit.fingerprint(model)
    assert "init_: 100%" in error.getvalue()
    assert "fingerprint: 100%" in error.getvalue()


def test_a_bar_takes_tqdm(model, monkeypatch):
    for module in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, module, None)
    before = tensors(model)
    with pytest.raises(ImportError, match="init_: progress=True takes tqdm, which is not installed"):
        xinit.init_(model, "torch", KEY, progress=True)
    assert_equal_bits(tensors(model), before)
    with pytest.raises(ImportError, match="fingerprint: progress=True takes tqdm, which is not installed"):
        xinit.fingerprint(model, progress=True)
    xinit.fingerprint(model)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "construct",
    [
        lambda: nn.Linear(4, 0),
        lambda: nn.Linear(0, 2),
        lambda: nn.Conv2d(3, 0, 1),
        lambda: nn.LayerNorm((0,)),
        lambda: nn.Embedding(0, 3),
        lambda: nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 4)),
    ],
)
def test_layers_without_elements(construct):
    """As LW-DETR has them."""
    model = construct()
    plan = xinit.plan(model, "torch")
    assert not plan.problems
    assert str(plan)
    assert xinit.init_(model, "torch", KEY) is model
    assert xinit.fingerprint(model) == xinit.fingerprint(xinit.init_(construct(), "torch", KEY))
    with torch.no_grad():
        model.zero_ = nn.Parameter(torch.empty(0))
    with pytest.raises(RuntimeError, match=r"parameter zero_ without elements"):
        xinit.init_(nn.ParameterDict({"zero_": torch.empty(0)}), {"*": xinit.ones()}, KEY)


def test_what_zero_leaves_is_no_empty_layer():
    model = nn.Linear(4, 0)
    model.bias.ds_id = 0  # as deepspeed marks its own
    with pytest.raises(RuntimeError, match="parameter bias without elements: has a sharding wrapper released"):
        xinit.init_(model, "torch", KEY)


def test_a_misspelt_glob_is_named():
    model = layers("a", "b")
    for recipe in ({"c.*": xinit.ones(), "*": xinit.zeros()}, [{"*.wieght": xinit.ones()}, "torch"]):
        with pytest.warns(
            UserWarning, match=r"init_: the recipe's '(c\.\*|\*\.wieght)' matches none of the model's 4 parameters"
        ):
            xinit.init_(model, recipe, KEY)
    recipe = {"*.bias": xinit.zeros(), "a.*": xinit.ones(), "a.weight": xinit.zeros(), "*": xinit.normal()}
    xinit.init_(model, recipe, KEY, only="b.*")
    xinit.init_(nn.ModuleDict({"a": nn.Linear(2, 2, bias=False)}), recipe, KEY)


def test_an_audit_has_a_row_for_a_lazy_parameter():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    rows = xinit.audit(lazy)
    assert [name for name, _ in rows][:4] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert all("lazy" in problem for _, problem in rows)
    lazy(torch.ones(2, 5))
    assert xinit.audit(lazy) == []


def test_a_parameter_that_is_empty_by_its_shape_is_no_released_one():
    model = nn.Linear(3, 4)
    model.tokens = nn.Parameter(torch.zeros(1, 0, 3))
    before = xinit.fingerprint(model)
    xinit.init_(model, {"*": xinit.normal()}, KEY)
    assert model.weight.std() > 0.5
    assert xinit.fingerprint(model) != before


def test_parts_of_one_memory_are_parameters_of_their_own():
    model, other = (nn.Sequential(*(nn.Linear(4, 6) for _ in range(3))) for _ in range(2))
    torch.nn.utils.vector_to_parameters(torch.randn(90), model.parameters())
    both = torch.randn(6, 8)
    model[0].weight, model[2].weight = nn.Parameter(both[:, 4:]), nn.Parameter(both[:, :4])
    for each in model, other:
        xinit.init_(each, "torch", KEY)
    assert xinit.fingerprint(model) == xinit.fingerprint(other)
