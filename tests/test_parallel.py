"""Layouts: what every rank fills is what torch's own functions cut out of the whole model's tensors, bit for bit."""

import math
import sys
import types
from itertools import pairwise

import pytest
import torch
from conftest import DTYPES, dtypes, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import xinit
from xinit import Key
from xinit.parallel import cat, interleave, parameter, renamed, stack
from xinit.parallel.layouts import fill_layouts_

KEY = Key(405).fold_in("parallel")
PLAIN = [xinit.uniform(-0.3, 0.7), xinit.normal(0.5, 0.02), xinit.trunc_normal(0.1, 0.5, -0.2, 3), xinit.constant(0.25)]
FANNED = [
    xinit.xavier_uniform(5 / 3),
    xinit.xavier_normal(),
    xinit.kaiming_uniform(0.2, "fan_out"),
    xinit.kaiming_normal(nonlinearity="relu"),
    xinit.variance_scaling(2.0, "fan_avg"),
]
distributions = pytest.mark.parametrize("distribution", PLAIN + FANNED, ids=str)
worlds = pytest.mark.parametrize("world", [1, 2, 4])


def whole(name, shape, distribution, dtype=torch.float32):
    """A parameter of the unsharded model, filled as that model is."""
    tensor = torch.full(shape, torch.nan, dtype=dtype)
    xinit.fill_many_([tensor], [distribution], [KEY.fold_in(name)])
    return tensor


def filled(layout, dtype=torch.float32):
    return layout.fill_(torch.full(layout.shape, torch.nan, dtype=dtype), KEY)


def check_ranks(layout_of, expected, dtype):
    """That rank r fills expected[r]."""
    for rank, tensor in enumerate(expected):
        layout = layout_of(rank)
        assert layout.shape == tuple(tensor.shape)
        assert same(filled(layout, dtype), tensor), rank


@dtypes
@distributions
@worlds
def test_rows_and_columns(dtype, distribution, world):
    shape = (12, 20)
    full = whole("up.weight", shape, distribution, dtype)
    for axis in (0, 1, -1):
        layout = parameter("up.weight", shape, distribution)
        check_ranks(lambda rank, axis=axis: layout.shard(axis, rank, world), full.chunk(world, axis), dtype)  # noqa: B023


@worlds
def test_a_bias_is_cut_as_the_rows_are(world):
    bias = whole("up.bias", (12,), PLAIN[0])
    layout = parameter("up.bias", (12,), PLAIN[0])
    check_ranks(lambda rank: layout.shard(0, rank, world), bias.chunk(world), torch.float32)


@dtypes
@distributions
@worlds
@pytest.mark.parametrize("vocabulary", [31, 32, 33, 65])
def test_a_padded_vocabulary_has_the_fans_of_the_real_one_and_zeros(dtype, distribution, world, vocabulary):
    multiple = 8 * world
    full = whole("embed.weight", (vocabulary, 6), distribution, dtype)
    padded = nn.functional.pad(full, (0, 0, 0, -vocabulary % multiple))
    assert padded.shape[0] % multiple == 0
    layout = parameter("embed.weight", (vocabulary, 6), distribution).pad(0, multiple)
    check_ranks(lambda rank: layout.shard(0, rank, world), padded.chunk(world), dtype)


def megatron_qkv(q, k, v, groups):
    """As Megatron's checkpoint converters fuse the three: (groups, heads of the group, ...), then flat."""
    parts = [part.view(groups, -1, *part.shape[1:]) for part in (q, k, v)]
    return torch.cat(parts, dim=1).flatten(0, 1)


@dtypes
@pytest.mark.parametrize("distribution", FANNED, ids=str)
@pytest.mark.parametrize(("heads", "groups", "world"), [(4, 4, 1), (4, 4, 2), (8, 2, 2), (8, 4, 4), (6, 3, 3)])
def test_fused_attention_has_the_bits_of_the_three(dtype, distribution, heads, groups, world):
    hidden, size = 10, 3
    rows = {"q": heads * size, "k": groups * size, "v": groups * size}
    names = {part: f"layers.0.{part}_proj" for part in rows}
    three = [whole(f"{names[p]}.weight", (n, hidden), distribution, dtype) for p, n in rows.items()]
    parts = [parameter(f"{names[p]}.weight", (n, hidden), distribution) for p, n in rows.items()]
    fused = megatron_qkv(*three, groups)
    check_ranks(lambda rank: interleave(parts, groups, rank, world), fused.chunk(world), dtype)
    biases = [whole(f"{names[p]}.bias", (n,), PLAIN[1], dtype) for p, n in rows.items()]
    parts = [parameter(f"{names[p]}.bias", (n,), PLAIN[1]) for p, n in rows.items()]
    fused = megatron_qkv(*biases, groups)
    check_ranks(lambda rank: interleave(parts, groups, rank, world), fused.chunk(world), dtype)


@dtypes
@worlds
def test_fused_gate_and_up(dtype, world):
    gate, up = (parameter(f"{p}.weight", (16, 6), FANNED[0]) for p in ("gate", "up"))
    tensors = [whole(f"{p}.weight", (16, 6), FANNED[0], dtype) for p in ("gate", "up")]
    expected = [torch.cat(parts) for parts in zip(*(t.chunk(world) for t in tensors), strict=True)]
    check_ranks(lambda rank: cat([gate.shard(0, rank, world), up.shard(0, rank, world)]), expected, dtype)
    check_ranks(lambda rank: interleave([gate, up], world, rank, world), expected, dtype)


@dtypes
@worlds
def test_experts(dtype, world):
    stacked = xinit.kaiming_normal(batch_axis=0, out_axis=1, in_axis=2)
    full = whole("experts.up", (8, 6, 10), stacked, dtype)
    layout = parameter("experts.up", (8, 6, 10), stacked)
    check_ranks(lambda rank: layout.shard(0, rank, world), full.chunk(world), dtype)
    names = [f"experts.{e}.up.weight" for e in range(8)]
    each = 8 // world
    own = torch.stack([whole(name, (6, 10), FANNED[1], dtype) for name in names])
    parts = [parameter(name, (6, 10), FANNED[1]) for name in names]
    check_ranks(lambda rank: stack(parts[rank * each : (rank + 1) * each]), own.chunk(world), dtype)
    # Expert and tensor parallelism at once.
    columns = [part.chunk(2, 2)[1] for part in own.chunk(world)]
    check_ranks(lambda rank: stack(parts[rank * each : (rank + 1) * each]).shard(2, 1, 2), columns, dtype)


PARAMETERS = [
    ("embed", (7, 5), PLAIN[1]),
    ("norm", (5,), xinit.ones()),
    ("up", (9, 5), FANNED[0]),
    ("scale", (), PLAIN[0]),
    ("conv", (4, 3, 2, 2), FANNED[3]),
    ("down", (5, 8), FANNED[4]),
]


@given(
    alignment=st.sampled_from([1, 2, 8, 128]),
    cuts=st.lists(st.integers(0, 10**6), max_size=5),
    dtype=st.sampled_from(DTYPES),
    columns=st.sampled_from([None, 0, 1]),
)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_flat_partitions_across_parameters(alignment, cuts, dtype, columns):
    """Also of a model whose last parameter is a column shard, which no flat range of the whole is."""
    layouts = [parameter(*p) for p in PARAMETERS]
    tensors = [whole(*p, dtype) for p in PARAMETERS]
    if columns is not None:
        layouts[-1], tensors[-1] = layouts[-1].shard(1, columns, 2), tensors[-1].chunk(2, 1)[columns]
    flat = torch.cat([nn.functional.pad(t.flatten(), (0, -t.numel() % alignment)) for t in tensors])
    layout = cat([part.flatten().pad(0, alignment) for part in layouts])
    assert layout.shape == tuple(flat.shape)
    ends = sorted({0, len(flat), *(cut % (len(flat) + 1) for cut in cuts)})
    for begin, end in pairwise(ends):
        part = layout.narrow(0, begin, end - begin)
        assert same(filled(part, dtype), flat[begin:end])
        assert all(sum(p.shape) > 0 for p in part.pieces)
        buffer = torch.full((2 * (end - begin),), torch.nan, dtype=dtype)
        assert same(part.fill_(buffer[::2], KEY), flat[begin:end])
        assert buffer[1::2].isnan().all()


def test_a_flat_range_of_a_whole_parameter_is_one_piece():
    """So that planning does not depend on sizes, nor the speed on where a partition is cut."""
    layout = parameter("w", (30, 4, 5), FANNED[0])
    assert [len(layout.flatten().narrow(0, b, 77).pieces) for b in (0, 13, 400)] == [1, 1, 1]
    assert len(layout.shard(0, 1, 3).flatten().narrow(0, 13, 77).pieces) == 1
    assert len(layout.shard(1, 1, 2).flatten().narrow(0, 13, 80).pieces) == 3


@st.composite
def programs(draw):
    """A layout and the tensor that torch makes in the same way: cut, joined, padded, flattened at random."""
    count = draw(st.integers(1, 3))
    rank = draw(st.integers(1, 3))
    shape = draw(st.lists(st.integers(1, 6), min_size=rank, max_size=rank))
    axis = draw(st.integers(0, rank - 1))
    dtype = draw(st.sampled_from(DTYPES))
    choices = st.sampled_from(PLAIN if rank < 2 else PLAIN + FANNED)
    layouts, tensors = [], []
    for i in range(count):
        own = [*shape[:axis], draw(st.integers(1, 9)), *shape[axis + 1 :]]
        named = f"w{i}", tuple(own), draw(choices)
        layouts.append(parameter(*named))
        tensors.append(whole(*named, dtype))
    layout, tensor = cat(layouts, axis), torch.cat(tensors, axis)
    for step in draw(st.lists(st.sampled_from(["narrow", "pad", "flatten", "cat", "stack", "interleave"]), max_size=5)):
        axis = draw(st.integers(0, tensor.dim() - 1))
        size = tensor.shape[axis]
        if step == "narrow" and size:
            start = draw(st.integers(0, size - 1))
            length = draw(st.integers(1, size - start))
            layout, tensor = layout.narrow(axis, start, length), tensor.narrow(axis, start, length)
        elif step == "pad":
            multiple = draw(st.integers(1, 5))
            extra = [0, 0] * (tensor.dim() - 1 - axis) + [0, -size % multiple]
            layout, tensor = layout.pad(axis, multiple), nn.functional.pad(tensor, extra)
        elif step == "flatten":
            layout, tensor = layout.flatten(), tensor.flatten()
        elif step == "cat":
            layout, tensor = cat([layout, layout], axis), torch.cat([tensor, tensor], axis)
        elif step == "stack" and tensor.dim() < 4 and all(p.extent == p.shape for p in layout.pieces):
            layout, tensor = stack([layout, layout]), torch.stack([tensor, tensor])
        elif step == "interleave":
            groups = max(g for g in (1, 2, 3) if tensor.shape[0] % g == 0)
            parts = [part for group in tensor.chunk(groups) for part in (group, group)]
            layout, tensor = interleave([layout, layout], groups), torch.cat(parts)
    return layout, tensor


@given(programs())
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_layouts_are_cut_and_joined_as_tensors_are(program):
    layout, tensor = program
    assert layout.shape == tuple(tensor.shape)
    assert same(filled(layout, tensor.dtype), tensor)
    assert sum(math.prod(p.shape) for p in layout.pieces) == tensor.numel()  # each element once


def test_any_strides_parameters_and_many_at_once():
    layouts = [parameter("a", (6, 8), FANNED[0]).shard(0, 1, 2), parameter("b", (6, 8), FANNED[1]).shard(1, 1, 2)]
    tensors = [nn.Parameter(torch.empty(8, 3)).t(), nn.Parameter(torch.empty(6, 4))]
    fill_layouts_([t.detach() for t in tensors[:1]] + tensors[1:], layouts, KEY)
    assert same(tensors[0].detach(), whole("a", (6, 8), FANNED[0])[3:])
    assert same(tensors[1].detach(), whole("b", (6, 8), FANNED[1])[:, 4:])
    assert tensors[1]._version == 1
    assert tensors[1].grad_fn is None


def test_digests_of_shards_add_up_to_the_fingerprint_of_the_whole():
    names = {"q": 12, "k": 6, "v": 6}
    parts = [parameter(f"{p}.weight", (n, 10), FANNED[0]) for p, n in names.items()]
    embed = parameter("embed.weight", (33, 10), PLAIN[1]).pad(0, 16)
    flat = cat([embed.flatten(), *(part.shard(1, 1, 2).flatten() for part in parts)])  # with padding in between
    layouts = [flat.narrow(0, b, e - b) for b, e in ((0, 5), (5, 471), (471, flat.shape[0]))]
    layouts.append(interleave([part.shard(1, 0, 2) for part in parts], 3))
    found = sum(layout.digest(filled(layout)) for layout in layouts)
    expected = torch.zeros(2, dtype=torch.int64)
    for name, tensor in [
        *((f"{p}.weight", whole(f"{p}.weight", (n, 10), FANNED[0])) for p, n in names.items()),
        ("embed.weight", whole("embed.weight", (33, 10), PLAIN[1])),
    ]:
        expected += torch.ops.xinit.digest(tensor, Key(0).fold_in(name).words)
    assert torch.equal(found, expected)
    last = filled(layouts[-1])
    last[3, 2] += 1
    assert not torch.equal(layouts[-1].digest(last), layouts[-1].digest(filled(layouts[-1])))


UP = parameter("up.weight", (6, 8), xinit.xavier_normal())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: UP.shard(0, 2, 2), r"shard: rank 2 is not in \[0, 2\)"),
        (lambda: UP.shard(0, -1, 2), r"shard: rank -1 is not in \[0, 2\)"),
        (lambda: UP.shard(0, 0, 0), r"shard: rank 0 is not in \[0, 0\)"),
        (lambda: UP.shard(1, 0, 3), r"shard: dimension 1 of shape \(6, 8\) does not divide by world 3"),
        (lambda: UP.shard(2, 0, 2), "shard: axis 2 is out of range"),
        (lambda: UP.narrow(1, 5, 4), r"narrow: start 5 and length 4 are outside of dimension 1 of shape \(6, 8\)"),
        (lambda: UP.narrow(0, -1, 2), "narrow: start -1"),
        (lambda: UP.narrow(-3, 0, 1), "narrow: axis -3"),
        (lambda: UP.pad(0, 0), "pad: multiple must be at least 1, but found 0"),
        (lambda: interleave([UP], 4), "interleave: dimension 0 .* does not divide by groups 4"),
        (lambda: interleave([UP], 3, 0, 2), "interleave: groups 3 must be a positive multiple of world 2"),
        (lambda: interleave([UP], 2, 2, 2), r"interleave: rank 2 is not in \[0, 2\)"),
        (lambda: cat([]), "cat: no layouts"),
        (lambda: cat([UP, UP.narrow(1, 0, 3)]), r"cat: layouts\[1\] has shape \(6, 3\).*more than dimension 0"),
        (lambda: cat([UP, UP.flatten()]), r"cat: layouts\[1\]"),
        (lambda: stack([UP.shard(1, 0, 2).flatten()]), r"stack: layouts\[0\] is flat"),
        (lambda: stack([]), "no layouts"),
        (lambda: parameter("", (2, 2), PLAIN[0]), "parameter: name is empty"),
        (lambda: parameter("w", (2, -2), PLAIN[0]), r"parameter: w has a size below 0 in shape \(2, -2\)"),
        (lambda: parameter("b", (2,), FANNED[0]), r"parameter: b of shape \(2,\): .*fewer than 2 dimensions"),
    ],
)
def test_what_does_not_fit_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("tensor", "error", "words"),
    [
        (torch.zeros(5, 8), ValueError, r"tensor of shape \(5, 8\) has the layout of up.weight, of shape \(6, 8\)"),
        (torch.zeros(0), ValueError, r"of shape \(0,\) has the layout of up.weight"),
        (torch.zeros(6, 8, dtype=torch.int32), NotImplementedError, r"'Int'[\s\S]*up\.weight"),
        ([1.0], TypeError, "torch.Tensors, but found list"),
    ],
)
def test_an_error_leaves_all_tensors_as_they_were(tensor, error, words):
    good = torch.zeros(6, 8)
    with pytest.raises(error, match=words):
        fill_layouts_([good, tensor], [UP, UP], KEY)
    assert not good.any()
    assert good._version == 0


def test_more_errors_of_filling():
    released = torch.zeros(6, 8)
    released.untyped_storage().resize_(0)  # as ZeRO-3 wrappers leave a parameter
    good = torch.zeros(6, 8)
    with pytest.raises(RuntimeError, match=r"released by a sharding wrapper[\s\S]*up\.weight"):
        fill_layouts_([good, released], [UP, UP], KEY)
    with pytest.raises(ValueError, match="2 tensors take as many layouts, but found 1"):
        fill_layouts_([good, good], [UP], KEY)
    with pytest.raises(TypeError, match=r"key must be an xinit\.Key, but found int"):
        UP.fill_(good, 0)
    with pytest.raises(TypeError, match=r"parameter: w takes an xinit\.Distribution, but found str"):
        parameter("w", (2, 2), "normal")
    assert not good.any()


# Stages of a pipeline.


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, width)


def trunk(layers):
    return nn.ModuleDict({"layers": nn.ModuleList([Block() for _ in range(layers)])})


def initialised(model):
    for name, p in model.named_parameters():
        xinit.normal_(p, key=KEY.fold_in(name))
    return model


@pytest.mark.parametrize("prefix", ["", "model.decoder"])
@pytest.mark.parametrize("cuts", [(0, 5), (0, 2, 5), (0, 1, 2, 3, 4, 5)])
def test_stages_get_the_names_and_the_bits_of_the_whole(prefix, cuts):
    model = trunk(5)
    for part in reversed(prefix.split(".") if prefix else []):
        model = nn.ModuleDict({part: model})
    initialised(model)
    expected, found = dict(model.named_parameters()), {}
    dot = f"{prefix}." * bool(prefix)
    for begin, end in pairwise(cuts):
        stage = trunk(end - begin)
        names = {"": prefix} | {f"layers.{i}": f"{dot}layers.{begin + i}" for i in range(end - begin)}
        view = initialised(renamed(nn.DataParallel(stage), names))
        assert all(isinstance(view.get_submodule(f"{dot}layers.{i}.norm"), nn.LayerNorm) for i in range(begin, end))
        # The very parameters, under their own names in the stage.
        locals_ = dict(stage.named_parameters())
        for name, p in view.named_parameters():
            local = name.removeprefix(dot).replace(f"layers.{name.removeprefix(dot).split('.')[1]}", "layers.{}")
            index = int(name.removeprefix(dot).split(".")[1]) - begin
            assert p is locals_[local.format(index)]
        found |= dict(view.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_stages_may_be_renamed_by_any_map():
    stage = nn.ModuleDict({"head": nn.Linear(4, 9, bias=False), "tail": Block()})
    view = renamed(stage, {"head": "embed", "tail.up": "tail.inner.mlp"})
    assert [name for name, _ in view.named_parameters()] == [
        "embed.weight",
        "tail.norm.weight",
        "tail.norm.bias",
        "tail.inner.mlp.weight",
        "tail.inner.mlp.bias",
    ]
    assert view.embed.weight is stage["head"].weight
    view.embed.weight = nn.Parameter(torch.ones(9, 4))  # as materialising may do
    assert stage["head"].weight is view.embed.weight
    assert [name for name, _ in stage.named_children()] == ["head", "tail"]


def test_names_of_stages_that_do_not_fit():
    stage = trunk(2)
    with pytest.raises(ValueError, match=r"renamed: 'layers\.2' is no module of the ModuleDict"):
        renamed(stage, {"layers.2": "layers.5"})
    with pytest.raises(ValueError, match=r"'layers\.0' and 'layers\.1' would both be 'layers\.1' in the whole"):
        renamed(stage, {"layers.0": "layers.1"})
    with pytest.raises(TypeError, match="renamed: names must be a mapping"):
        renamed(torch.nn.Linear(2, 2), "layers.0")
    with pytest.raises(TypeError, match="renamed: model must be"):
        renamed([stage], {})


@pytest.mark.parametrize(("splits", "refused"), [(None, True), (2, True), (1, False)])
def test_parts_that_others_have_marked(splits, refused, monkeypatch):
    """By Megatron also where it splits nothing, which its own state tells."""
    if splits:
        state = types.ModuleType("megatron.core.parallel_state")
        state.model_parallel_is_initialized = lambda: True
        state.get_tensor_model_parallel_world_size = state.get_expert_model_parallel_world_size = lambda: splits
        monkeypatch.setitem(sys.modules, state.__name__, state)
    model = nn.Linear(4, 4)
    model.weight.tensor_model_parallel, model.weight.partition_dim = True, 1
    model.bias.allreduce = False
    xinit.init_(model, "torch", Key(0))  # one process alone, which does not ask
    if not refused:
        xinit.init_(model, "torch", Key(0), check=True)
        return
    before = xinit.fingerprint(model)
    with pytest.raises(
        RuntimeError, match=r"init_: parameter weight marked by tensor_model_parallel=True as one rank's part"
    ):
        xinit.init_(model, "torch", Key(1), check=True)
    assert xinit.fingerprint(model) == before
    with pytest.raises(RuntimeError, match=r"init_: parameter bias marked by allreduce=False as one rank's part"):
        xinit.init_(model, "torch", Key(1), check=True, skip="weight")
    xinit.init_(model, "torch", Key(1), check=True, skip=["weight", "bias"])
