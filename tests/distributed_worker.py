"""What tests/test_distributed.py runs: real processes, forked from this one, that go through the cases of their number.

    python distributed_worker.py FOLDER [CASE]

writes FOLDER/WORLD.json, from each case's name to nothing, or to what went wrong on the ranks.
"""

import copy
import json
import operator
import os
import sys
import traceback
import warnings
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from inspect import getsource
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from conftest import FILLS, same
from sharded_models import (
    KEY,
    LAYOUTS,
    LLAMA,
    MODELS,
    Conv,
    by_fsdp,
    deferred,
    inputs,
    losses,
    mesh_for,
    on_meta,
    own_init,
    plain,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from torch.multiprocessing.spawn import ProcessException

import xinit
from xinit import Key
from xinit.parameters import writes

CASES = {}
WORLDS = (4, 3, 2, 1)


def case(*worlds, **parameters):
    def register(function):
        for world in worlds:
            name = "-".join([function.__name__, *map(str, parameters.values())])
            CASES[f"{world}:{name}"] = partial(function, **parameters)
        return function

    return register


def locals_of(model):
    return [p._local_tensor if isinstance(p, DTensor) else p for p in model.parameters()]


def collectives():
    """How many the process groups have begun."""
    return sum(group._get_sequence_number_for_group() for group in dist.distributed_c10d._world.pg_map)


class Watched:
    """Counts the collectives of the process groups themselves and of what CommDebugMode sees, and the elements filled at once."""

    def __enter__(self):
        self.mode, self.elements, self.fill = CommDebugMode(), 0, writes.fill_many_
        writes.fill_many_ = self.count
        self.mode.__enter__()
        self.before = collectives()
        return self

    def __exit__(self, *error):
        self.collectives = max(collectives() - self.before, self.mode.get_total_counts())
        self.mode.__exit__(*error)
        writes.fill_many_ = self.fill

    def count(self, tensors, *rest):
        self.elements += sum(tensor.numel() for tensor in tensors if not tensor.is_meta)
        self.fill(tensors, *rest)


def init_quietly(model, kind):
    """Initialised without a collective, each element that this rank holds once, but for the embedding's row of padding."""
    for local in locals_of(model):
        local.detach().fill_(float("nan"))
    with Watched() as watched:
        xinit.init_(model, MODELS[kind][1], KEY)
    assert watched.collectives == 0
    held = sum(local.numel() for local in locals_of(model))
    assert held <= watched.elements <= held + (0 if kind == "conv" else 24), (watched.elements, held)
    return model


def assert_equal_models(sharded, whole, message=""):
    expected = dict(whole.named_parameters())
    for name, parameter in sharded.named_parameters():
        full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        assert same(full.detach(), expected[name].detach()), (message, name, parameter)


def assert_close(found, expected):
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=2e-5, atol=1e-6)


def raises(kind, *needles):
    class Context:
        def __enter__(self):
            return self

        def __exit__(self, found, error, trace):
            assert isinstance(error, kind), f"expected {kind}, found {error!r}"
            for needle in needles:
                assert needle in str(error), (needle, str(error))
            return True

    return Context()


# ---- cases ----


def accepted(mesh, where):
    """torch 2.11 refuses split factors that come of no mesh."""
    if not any(isinstance(placement, _StridedShard) for placement in where):
        return True
    try:
        distribute_tensor(torch.zeros(6, 6), mesh, where, src_data_rank=None).full_tensor()
    except ValueError:
        return False
    return True


def placements(world):
    for mesh, where in all_placements(world):
        if accepted(mesh, where):
            yield mesh, where


def all_placements(world):
    flat = [
        [Shard(0)],
        [Shard(1)],
        [Replicate()],
        [_StridedShard(0, split_factor=3)],
        [_StridedShard(1, split_factor=2)],
    ]
    yield from ((init_device_mesh("cpu", (world,)), where) for where in flat)
    if world == 4:
        square = init_device_mesh("cpu", (2, 2))
        for where in (
            [Shard(0), Shard(0)],
            [Shard(0), Shard(1)],
            [Shard(1), Shard(0)],
            [Replicate(), Shard(1)],
            [Shard(0), Replicate()],
            [_StridedShard(0, split_factor=2), Shard(0)],
            [_StridedShard(1, split_factor=3), Shard(0)],
        ):
            yield square, where


@case(*WORLDS)
def every_function(world):
    for mesh, where in placements(world):
        for shape, dtype in ((13, 7), torch.float32), ((3, 5), torch.bfloat16), ((2, 6, 3), torch.float64):
            for name, fill in FILLS.items():
                whole = fill(torch.empty(shape, dtype=dtype), key=KEY)
                sharded = distribute_tensor(torch.zeros(shape, dtype=dtype), mesh, where, src_data_rank=None)
                sharded.requires_grad_()
                before, local = sharded._version, sharded._local_tensor._version
                with Watched() as watched:
                    assert fill(sharded, key=KEY) is sharded
                assert watched.collectives == 0
                assert sharded._version > before
                assert sharded._local_tensor._version > local or not sharded._local_tensor.numel()
                assert same(sharded.detach().full_tensor(), whole), (name, shape, where)


@case(*WORLDS)
def every_function_by_generator(world):
    for mesh, where in placements(world):
        for shape in (13, 7), (3, 5), (0, 5):
            if 0 in shape and any(isinstance(placement, _StridedShard) for placement in where):
                continue
            for fill in (FILLS["normal"], FILLS["uniform"]):
                whole, ours, default = (torch.Generator().manual_seed(3) for _ in range(3))
                expected = fill(torch.empty(shape), generator=whole)
                sharded = distribute_tensor(torch.zeros(shape), mesh, where, src_data_rank=None)
                assert same(fill(sharded, generator=ours).full_tensor(), expected), (shape, where)
                assert torch.equal(ours.get_state(), whole.get_state()), (shape, where)
                state = torch.get_rng_state()
                torch.set_rng_state(default.get_state())
                sharded.zero_()
                assert same(fill(sharded).full_tensor(), expected), (shape, where)
                assert torch.equal(torch.get_rng_state(), whole.get_state())
                torch.set_rng_state(state)


@case(*WORLDS)
def constants_and_identities(world):
    for mesh, where in placements(world):
        for shape in (13, 7), (3, 6), (6, 2, 3), (4, 4, 3, 3):
            fills = [partial(xinit.constant_, val=0.5), xinit.ones_, xinit.zeros_]
            fills += [xinit.eye_] if len(shape) == 2 else [xinit.dirac_, partial(xinit.dirac_, groups=2)]
            for fill in fills:
                whole = fill(torch.full(shape, 7.0))
                sharded = distribute_tensor(torch.full(shape, 7.0), mesh, where, src_data_rank=None).requires_grad_()
                local, version = sharded._local_tensor.shape, sharded._version
                with Watched() as watched:
                    assert fill(sharded) is sharded
                assert watched.collectives == 0
                assert sharded._version > version
                assert sharded._local_tensor.shape == local
                assert same(sharded.detach().full_tensor(), whole), (fill, shape, where)


@case(*WORLDS)
def orthogonal_and_sparse(world):
    """From a key, from a generator, and from the default one, which advances on all ranks alike."""
    for mesh, where in placements(world):
        for shape, dtype in ((13, 7), torch.float32), ((3, 5), torch.bfloat16), ((4, 3, 3), torch.float64):
            fills = [xinit.orthogonal_, xinit.delta_orthogonal_ if len(shape) > 2 and shape[0] >= shape[1] else None]
            fills += [partial(xinit.sparse_, sparsity=0.4)] if len(shape) == 2 else []
            for fill in filter(None, fills):
                for given in {"key": KEY}, {"generator": torch.Generator()}, {}:
                    for generator in given.get("generator"), torch.default_generator:
                        if generator is not None:
                            generator.manual_seed(3)
                    whole = fill(torch.full(shape, 7.0, dtype=dtype), **given)
                    after = torch.get_rng_state()
                    for generator in given.get("generator"), torch.default_generator:
                        if generator is not None:
                            generator.manual_seed(3)
                    zeros = torch.zeros(shape, dtype=dtype)
                    sharded = distribute_tensor(zeros, mesh, where, src_data_rank=None).requires_grad_()
                    with Watched() as watched:
                        assert fill(sharded, **given) is sharded
                    assert "key" not in given or watched.collectives == 0
                    assert same(sharded.detach().full_tensor(), whole), (fill, shape, where, given)
                    assert torch.equal(torch.get_rng_state(), after)
        # Each rank seeded otherwise: the first one's numbers, on all.
        torch.manual_seed(dist.get_rank())
        sharded = distribute_tensor(torch.zeros(9, 5), mesh, where, src_data_rank=None)
        matrix = xinit.orthogonal_(sharded).full_tensor()
        torch.testing.assert_close(matrix.T @ matrix, torch.eye(5))
        assert ((xinit.sparse_(sharded, 0.5).full_tensor() == 0).sum(0) == 5).all()


@case(2, 4, layout="fsdp")
@case(2, layout="tp")
@case(4, layout="fsdp+tp")
def matrices_by_recipe(world, layout):
    """Of a model in shards, as of one that is not."""
    recipe = [{"layers.*.w?.weight": xinit.orthogonal(0.5), "output.weight": xinit.sparse(0.75)}, LLAMA]
    model = LAYOUTS[layout](on_meta("uneven"), mesh_for(layout, world)).to_empty(device="cpu")
    whole = xinit.init_(on_meta("uneven").to_empty(device="cpu"), recipe, KEY)
    with Watched() as watched:
        xinit.init_(model, recipe, KEY)
    assert watched.collectives == 0
    assert_equal_models(model, whole)
    assert xinit.fingerprint(model) == xinit.fingerprint(whole)


@case(1, 2, 3)
def views(world):
    """Each either writes what the whole's values are there, or is an error on all ranks: never nothing."""
    mesh = init_device_mesh("cpu", (world,))
    cuts = {
        "rows": lambda t: t[2:5],
        "columns": lambda t: t[:, 1:3],
        "row": lambda t: t[0],
        "column": lambda t: t[:, 3],
        "transposed": lambda t: t.t(),
        "transposed rows": lambda t: t.t()[1:3],
        "flat": lambda t: t.view(-1),
        "two rows as one": lambda t: t.view(3, 8),
        "half": lambda t: t.chunk(2)[1],
        "diagonal": lambda t: t.diagonal(),
        "all": lambda t: t[:],
        "rows of rows": lambda t: t[1:5][1:3],
        "more dimensions": lambda t: t.unsqueeze(0),
    }
    fills = {
        "normal_": lambda t: xinit.normal_(t, key=KEY),
        "uniform_": xinit.uniform_,
        "fill_many_": lambda t: xinit.fill_many_([t], [xinit.normal()], [KEY]),
        "constant_": lambda t: xinit.constant_(t, 3.0),
        "eye_": lambda t: xinit.eye_(t) if t.dim() == 2 else xinit.zeros_(t),
    }
    lost = set()
    for where in [Shard(0)], [Shard(1)], [Replicate()]:
        for name, cut in cuts.items():
            for fill in fills.values():
                whole = torch.full((6, 4), 7.0)
                base = distribute_tensor(whole, mesh, where)
                torch.manual_seed(3)
                state = torch.get_rng_state()
                try:
                    view = cut(base)
                except RuntimeError:
                    continue  # torch's own
                problem = ""
                try:
                    fill(view)
                except (RuntimeError, ValueError) as error:
                    problem = str(error)
                if not problem:
                    torch.manual_seed(3)
                    fill(cut(whole))
                    assert same(base.full_tensor(), whole), (name, where)
                    continue
                assert "lost" in problem or "local tensor has shape" in problem, (name, where, problem)
                assert torch.equal(torch.get_rng_state(), state)
                assert (base.full_tensor() == 7).all()
                lost.add((name, *where))
    if world == 1:
        return
    assert {("rows", Shard(0)), ("columns", Shard(1)), ("diagonal", Shard(0))} <= lost
    assert not {("columns", Shard(0)), ("rows", Shard(1)), ("transposed", Shard(0))} & lost
    assert not any(where == Replicate() for _, where in lost)


@case(*WORLDS)
def ranks_seeded_differently(world):
    """Without a key all take that of the mesh's first rank, and each generator moves on by one draw."""
    fills = xinit.normal_, xinit.orthogonal_, partial(xinit.sparse_, sparsity=0.5)
    for (mesh, where), fill in product(placements(world), fills):
        ours, alone = (torch.Generator().manual_seed(3 + dist.get_rank()) for _ in range(2))
        expected = fill(torch.empty(6, 6), generator=torch.Generator().manual_seed(3))
        sharded = distribute_tensor(torch.zeros(6, 6), mesh, where, src_data_rank=None)
        with Watched() as watched:
            fill(sharded, generator=ours)
        assert same(sharded.full_tensor(), expected), (fill, where)
        assert (watched.collectives > 0) == (world > 1)
        fill(torch.empty(6, 6), generator=alone)
        assert torch.equal(ours.get_state(), alone.get_state())


@case(2, layout="fsdp")
@case(4, layout="hsdp")
@case(4, layout="fsdp+tp")
def deferred_without_a_key(world, layout):
    torch.manual_seed(11)
    whole = xinit.materialize_(deferred("llama"))
    model = LAYOUTS[layout](deferred("llama"), mesh_for(layout, world))
    torch.manual_seed(11 + dist.get_rank())
    xinit.materialize_(model)
    assert_equal_models(model, whole)
    assert xinit.fingerprint(model) == xinit.fingerprint(whole)


@case(4)
def replicas_that_differ(world):
    for layout, name in ("hsdp", "layers.1.wo.weight"), ("tp", "norm.weight"):
        model = LAYOUTS[layout](on_meta("llama"), mesh_for(layout, world)).to_empty(device="cpu")
        xinit.init_(model, LLAMA, KEY)
        assert xinit.fingerprint(model) == xinit.fingerprint(plain("llama"))
        parameter = dict(model.named_parameters())[name]
        local = parameter._local_tensor if isinstance(parameter, DTensor) else parameter.detach()
        if dist.get_rank() == 3:
            local.view(-1)[-1] += 1
        with raises(
            RuntimeError, "fingerprint", name if layout == "tp" or dist.get_rank() in (1, 3) else "other ranks"
        ):
            xinit.fingerprint(model)
    hsdp = LAYOUTS["hsdp"](on_meta("llama"), mesh_for("hsdp", world)).to_empty(device="cpu")
    xinit.init_(hsdp, LLAMA, KEY.fold_in(dist.get_rank() // 2))  # a key for each replica, as a seed of the rank's gives
    with raises(RuntimeError, "should hold the same of", "layers.0.wq.weight"):
        xinit.fingerprint(hsdp)


@case(2, 4)
def verified(world):
    """Each rank what it holds; all are told."""
    model = by_fsdp(deferred("uneven"), mesh_for("fsdp", world))
    xinit.materialize_(model, key=KEY)
    assert {row.state for row in xinit.verify(model, KEY, deferred("uneven")).rows} == {"drawn"}
    name, parameter = next((name, p) for name, p in model.named_parameters() if p.dim() > 1)
    if dist.get_rank() == 1:
        with torch.no_grad():
            parameter.to_local().view(-1)[3] = torch.nan
    found = xinit.verify(model, KEY, deferred("uneven"))
    assert found.names("corrupt") == [name]
    assert found.names("trained") == found.names("unknown") == []
    init_quietly(model, "uneven")
    with Watched() as watched:
        assert {row.state for row in xinit.verify(model, KEY, LLAMA).rows} == {"drawn"}
    assert watched.collectives == 1


@case(3, 4)
def a_mesh_of_some_ranks(world):
    """What is on ranks 0 and 1 alone asks nothing of the others, which make the same calls, up to a collective of them all."""
    mesh = DeviceMesh("cpu", [0, 1])
    inside = dist.get_rank() < 2
    sharded = distribute_tensor(torch.zeros(6, 4), mesh, [Shard(0)], src_data_rank=None)
    ours, alone = (torch.Generator().manual_seed(5 + dist.get_rank()) for _ in range(2))
    expected = xinit.normal_(torch.empty(6, 4), generator=torch.Generator().manual_seed(5))
    assert xinit.normal_(sharded, generator=ours) is sharded
    if inside:
        assert same(sharded.full_tensor(), expected)
    xinit.normal_(torch.empty(1), generator=alone)
    assert torch.equal(ours.get_state(), alone.get_state())
    xinit.fill_many_([sharded], [xinit.normal()], [KEY])

    def on_mesh(model):
        def cut(name, module, mesh):
            for leaf, parameter in module.named_parameters(recurse=False):
                module.register_parameter(leaf, nn.Parameter(distribute_tensor(parameter, mesh, [Shard(0)])))

        return distribute_module(model, mesh, cut)

    torch.manual_seed(7)
    by_seed = xinit.materialize_(deferred("uneven"))
    for make, whole in (
        (lambda: xinit.init_(on_mesh(MODELS["uneven"][0]()), LLAMA, KEY, check=True), plain("uneven")),
        (lambda: xinit.materialize_(on_mesh(deferred("uneven")), "cpu"), by_seed),
    ):
        torch.manual_seed(7 + dist.get_rank())
        model = make()
        if inside:
            assert_equal_models(model, whole)
        assert xinit.fingerprint(model) == (xinit.fingerprint(whole) if inside else "0" * 32)
        dist.barrier()
        assert xinit.fingerprint(model, group=dist.group.WORLD) == xinit.fingerprint(whole)


@case(2, 4)
def many_at_once(world):
    mesh = init_device_mesh("cpu", (world,))
    shards = [distribute_tensor(torch.zeros(9, 5), mesh, [Shard(d)]) for d in (0, 1)] + [torch.zeros(3, 2)]
    what = [xinit.kaiming_normal(), xinit.xavier_uniform(), xinit.normal()]
    keys = [KEY.fold_in(i) for i in range(3)]
    xinit.fill_many_(shards, what, keys)
    wholes = [torch.empty(9, 5), torch.empty(9, 5), torch.empty(3, 2)]
    xinit.fill_many_(wholes, what, keys)
    for shard, whole in zip(shards, wholes, strict=True):
        assert same(shard.full_tensor() if isinstance(shard, DTensor) else shard, whole)
    with raises(ValueError, "tensor 1 is a DTensor", "window"):
        windows = [None, xinit.Window((9, 5), (0, 0)), None]
        xinit.fill_many_(shards, what, keys, windows)


@case(1, 2, 3, 4, layout="fsdp", kind="uneven")
@case(3, 4, layout="fsdp", kind="conv")
@case(2, 4, layout="tp", kind="uneven")
@case(4, layout="fsdp+tp", kind="uneven")
@case(4, layout="hsdp", kind="uneven")
def initialised_on_meta(world, layout, kind):
    model = LAYOUTS[layout](on_meta(kind), mesh_for(layout, world))
    model = init_quietly(model.to_empty(device="cpu"), kind)
    whole = plain(kind)
    assert_equal_models(model, whole)
    assert xinit.fingerprint(model) == xinit.fingerprint(whole)


@case(1, 2, 3, 4, layout="fsdp", kind="llama")
@case(3, 4, layout="fsdp", kind="conv")
@case(2, 3, 4, layout="tp", kind="llama")
@case(2, layout="tp", kind="conv")
@case(4, layout="fsdp+tp", kind="llama")
@case(4, layout="fsdp+tp", kind="conv")
@case(4, layout="hsdp", kind="llama")
def trained(world, layout, kind):
    build, _ = MODELS[kind]
    torch.manual_seed(world)  # whatever the constructor draws
    model = LAYOUTS[layout](build(), mesh_for(layout, world))
    init_quietly(model, kind)
    whole = plain(kind)
    assert_equal_models(model, whole)
    assert xinit.fingerprint(model) == xinit.fingerprint(whole)
    assert_close(losses(model, kind), losses(whole, kind))
    # After a forward pass alone, FSDP2's outermost parameters are gathered: it is the shards that are filled.
    model(inputs(kind)[0])
    init_quietly(model, kind)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    assert_equal_models(model, plain(kind), "again")


@case(2, 3)
def data_parallel(world):
    model = nn.parallel.DistributedDataParallel(MODELS["conv"][0]())
    init_quietly(model, "conv")
    whole = plain("conv")
    assert_equal_models(model.module, whole)
    assert xinit.fingerprint(model) == xinit.fingerprint(whole)
    assert_close(losses(model, "conv"), losses(whole, "conv"))


class Masked(nn.Module):
    """Nobody but its constructor knows the buffer."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.register_buffer("mask", torch.tril(torch.ones(8, 8)))


@case(2, layout="fsdp")
@case(2, layout="tp")
def built_for_real_then_sharded(world, layout):
    """Its parameters are others since, to which nothing was written in place; nor was it to those of to_empty, which may have got
    memory that held weights before: of both a warning says so, but only what surely is raw is called unwritten."""

    def shard(model):
        if layout == "fsdp":
            return fully_shard(model, mesh=mesh_for("fsdp", world))
        return parallelize_module(model, mesh_for("tp", world), {"up": ColwiseParallel(), "down": RowwiseParallel()})

    with torch.device("meta"):
        empty = Masked()
    empty = shard(empty).to_empty(device="cpu")
    for local in locals_of(empty):
        local.data.view(torch.uint8).fill_(77)
    for model, unset in (shard(Masked()), set()), (empty, {"mask", "up.bias", "down.bias"}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            xinit.init_(model, "torch", KEY, skip="*.bias")
        said = " ".join(str(warning.message) for warning in caught)
        assert "buffer mask, which nothing has written to" in said, said
        assert "parameters up.bias, down.bias, skipped" in said, said
        assert {name for name, _ in xinit.audit(model)} == unset
        if not unset:
            assert torch.equal(model.mask, torch.tril(torch.ones(8, 8)))


@case(2, kind="weight_norm")
@case(2, kind="spectral_norm")
@case(2, kind="orthogonal")
def parametrized_then_sharded(world, kind):
    """As if it had been initialised before it was sharded; by a hook, an error on all ranks."""

    def made(norm):
        model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 6))
        norm(model[0])
        return model

    def sharded(norm):
        return fully_shard(made(norm), mesh=mesh_for("fsdp", world))

    norm = getattr(nn.utils.parametrizations, kind)
    whole = xinit.init_(made(norm), "torch", KEY)
    before = collectives()  # CommDebugMode of torch 2.13 does not bear a module that is called alone
    model = xinit.init_(sharded(norm), "torch", KEY)
    assert collectives() == before
    assert_equal_models(model, whole)
    assert xinit.fingerprint(model, buffers=True) == xinit.fingerprint(whole, buffers=True)
    x = torch.arange(12.0).view(2, 6)
    assert_close(model.eval()(x).tolist(), whole.eval()(x).tolist())
    if kind != "orthogonal":
        with raises(NotImplementedError, "0.weight is computed by a hook from 0.weight_", "and sharded"):
            xinit.init_(sharded(getattr(nn.utils, kind)), "torch", KEY)


@case(4)
def pipeline(world):
    """Two stages by hand, each a part of the model under its global names, each over two data-parallel ranks."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    stage = mesh.get_local_rank("pp")
    model = on_meta("uneven")
    del model.layers[str(1 - stage)]
    if stage == 0:
        model.norm = model.output = None
    else:
        model.tok_embeddings = None
    by_fsdp(model, mesh["dp"]).to_empty(device="cpu")
    with Watched() as watched:
        xinit.init_(model, LLAMA, KEY)
    assert watched.collectives == 0
    whole = plain("uneven")
    assert_equal_models(model, whole)
    assert xinit.fingerprint(model, group=dist.group.WORLD) == xinit.fingerprint(whole)
    assert xinit.fingerprint(model) != xinit.fingerprint(whole)  # of the stage alone
    local = by_fsdp(on_meta("llama"), mesh["dp"]).to_empty(device="cpu")  # each stage with names of its own
    xinit.init_(local, LLAMA, KEY)
    with raises(ValueError, "fingerprint", "(0, 1) and (2, 3)", "tok_embeddings.weight", "renamed"):
        xinit.fingerprint(local, group=dist.group.WORLD)
    xinit.init_(model, LLAMA, KEY, check=True)  # the names of the other stage are others
    if stage == 0:
        local.output = None
    with raises(
        ValueError, "init_: ranks 0 and 2 do not hold the same parameters, but each a tok_embeddings.weight", "renamed"
    ):
        xinit.init_(local, LLAMA, KEY, check=True)
    # The ranks of the same number exchange activations and their gradients.
    x, y = inputs("uneven")
    other = int(mesh.mesh[1 - stage, mesh.get_local_rank("dp")])
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.2), []
    for _ in range(3):
        if stage == 0:
            out = model(x)
            dist.send(out.detach(), other)
            gradient = torch.empty_like(out)
            dist.recv(gradient, other)
            out.backward(gradient)
        else:
            hidden = torch.empty(*x.shape, 24)
            dist.recv(hidden, other)
            loss = F.cross_entropy(model(hidden.requires_grad_()).flatten(0, -2), y.flatten())
            loss.backward()
            dist.send(hidden.grad, other)
            found.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    expected = losses(whole, "uneven")
    if stage == 1:
        assert_close(found, expected)


@case(4)
def checkpoints_saved(world):
    for layout in "fsdp", "fsdp+tp":
        model = LAYOUTS[layout](on_meta("uneven"), mesh_for(layout, world)).to_empty(device="cpu")
        init_quietly(model, "uneven")
        dcp.save(get_model_state_dict(model), checkpoint_id=FOLDER / f"checkpoint-{layout}")


@case(1, 2, 3)
def checkpoints_loaded(world):
    for layout in "fsdp", "fsdp+tp":
        model = by_fsdp(on_meta("uneven"), mesh_for("fsdp", world)).to_empty(device="cpu")
        state = get_model_state_dict(model)
        dcp.load(state, checkpoint_id=FOLDER / f"checkpoint-{layout}")
        fresh = by_fsdp(on_meta("uneven"), mesh_for("fsdp", world)).to_empty(device="cpu")
        init_quietly(fresh, "uneven")
        assert xinit.fingerprint(model) == xinit.fingerprint(fresh)
        assert all(map(same, locals_of(model), locals_of(fresh)))


@case(1, 2, 3, 4, layout="fsdp", kind="uneven")
@case(3, 4, layout="fsdp", kind="conv")
@case(2, 4, layout="tp", kind="uneven")
@case(4, layout="fsdp+tp", kind="llama")
@case(4, layout="hsdp", kind="uneven")
@case(3, layout="whole", kind="orthogonal")
def deferred_then_sharded(world, layout, kind):
    whole = xinit.materialize_(deferred(kind), key=KEY)
    mesh = mesh_for(layout, world)
    model = deferred(kind)
    model = fully_shard(model, mesh=mesh) if layout == "whole" else LAYOUTS[layout](model, mesh)
    parameters = list(model.parameters())
    frozen = parameters[1].requires_grad_(False)
    frozen.told = "something"
    assert all(parameter.is_meta for parameter in parameters)
    with Watched() as watched:
        assert xinit.materialize_(model, "cpu", KEY) is model
    assert watched.collectives == 0
    assert all(map(operator.is_, parameters, model.parameters()))
    assert frozen.told == "something"
    assert [parameter.requires_grad for parameter in parameters] == [p is not frozen for p in parameters]
    if kind != "orthogonal":
        held = sum(local.numel() for local in locals_of(model))
        assert held - 100 < watched.elements <= held + 24, (watched.elements, held)
    frozen.requires_grad_()
    assert_equal_models(model, whole)
    assert xinit.fingerprint(model) == xinit.fingerprint(whole)
    assert not xinit.audit(model)
    if kind in ("llama", "conv") or layout == "fsdp":
        assert_close(losses(model, kind), losses(whole, kind))


def row_of_zeros(weight):
    with torch.no_grad():
        weight[5].zero_()


# What is done to a parameter after its context; the whole is to have it done too.
CHANGES = {
    "normal_": lambda m: nn.init.normal_(m.output.weight, std=5.0),
    "normal_ of xinit": lambda m: xinit.normal_(m.output.weight, std=5.0),
    "the data scaled": lambda m: m.output.weight.data.mul_(0.5),
    "scaled by detach": lambda m: m.output.weight.detach().mul_(0.5),
    "a row": lambda m: row_of_zeros(m.output.weight),
    "other data": lambda m: setattr(m.output.weight, "data", m.output.weight.data * 3),
    "another parameter": lambda m: setattr(m.output, "weight", nn.Parameter(m.output.weight.detach().clone().fill_(2))),
    "in half precision": lambda m: m.bfloat16(),
    "in another context": lambda m: within(lambda: nn.init.ones_(m.output.weight)),
}
# What the whole does not know of, or is not done on the meta device: that is said.
UNSEEN = {
    "written to": {
        "the local tensor": lambda m: m.output.weight._local_tensor.fill_(1),
        "to_local()": lambda m: m.output.weight.to_local().data.mul_(2),
        "before it took its place": lambda m: setattr(m.output, "weight", nn.Parameter(others(m).normal_())),
    },
    "nothing is known of": {"copied from another": lambda m: setattr(m.output, "weight", together(m))},
    "before the model is sharded": {"orthogonal_ of xinit": lambda m: xinit.orthogonal_(m.output.weight)},
}
# torch 2.11's draw on the meta device too, later ones do nothing there.
(UNSEEN["before the model is sharded"] if "is_meta" in getsource(nn.init.orthogonal_) else CHANGES).update(
    {
        "trunc_normal_": lambda m: nn.init.trunc_normal_(m.output.weight),
        "orthogonal_": lambda m: nn.init.orthogonal_(m.output.weight),
    }
)


def within(change):
    with xinit.deferred():
        change()


def others(model):
    weight = model.output.weight
    local, shape = weight._local_tensor.clone(), {"shape": weight.shape, "stride": weight.stride()}
    return DTensor.from_local(local, weight.device_mesh, weight.placements, run_check=False, **shape)


def together(model):
    return nn.Parameter(torch.cat([model.output.weight.detach(), others(model)]))


def redistributed(weight):
    """Whether torch can cut a row of it: 2.11 refuses that of strided shards, as it does to join them."""
    try:
        weight.detach()[5]
    except ValueError as error:
        return "shard_order" not in str(error)
    return True


@case(2, layout="fsdp")
@case(2, layout="tp")
@case(4, layout="fsdp+tp")
def done_to_shards(world, layout):
    def sharded(copied):
        model = LAYOUTS[layout](deferred("uneven"), mesh_for(layout, world))
        return copy.deepcopy(model) if copied else model

    left_out = set() if redistributed(sharded(False).output.weight) else {"a row", "copied from another"}
    assert not left_out or layout == "fsdp+tp"
    for copied in (False, True) if layout == "tp" else (False,):
        for name, change in CHANGES.items():
            if name in left_out:
                continue
            model, whole = sharded(copied), deferred("uneven")
            change(model)
            change(whole)
            xinit.materialize_(whole, key=KEY)
            assert_equal_models(xinit.materialize_(model, key=KEY), whole, name)
            assert type(model.output.weight) is DTensor
            assert isinstance(model.output.weight, nn.Parameter)
            assert type(model.output._parameters) is dict
        for message, changes in UNSEEN.items():
            for name, change in changes.items():
                if name in left_out:
                    continue
                model = sharded(copied)
                with raises(RuntimeError, "output.weight" if "model" not in message else "deferred", message):
                    change(model)
                    xinit.materialize_(model, key=KEY)
    twin = copy.deepcopy(sharded(False)) if layout == "tp" else None
    if twin is not None:  # what is done to one of two is not done to the other
        model = sharded(False)
        twin = copy.deepcopy(model)
        nn.init.ones_(twin.output.weight)
        assert xinit.materialize_(model, key=KEY).output.weight.to_local().std() > 0
        assert (xinit.materialize_(twin, key=KEY).output.weight.to_local() == 1).all()


@case(2)
def untied(world):
    """parallelize_module makes two parameters of a tied one."""

    def build():
        with xinit.deferred():
            model = MODELS["uneven"][0]()
            model.output.weight = model.tok_embeddings.weight
        return model

    mesh = mesh_for("tp", world)
    whole = xinit.materialize_(build(), key=KEY)
    model = LAYOUTS["tp"](build(), mesh)
    assert model.output.weight is not model.tok_embeddings.weight
    xinit.materialize_(model, key=KEY)
    assert model.output.weight is model.tok_embeddings.weight
    assert_equal_models(model, whole)
    assert_close(losses(model, "uneven"), losses(whole, "uneven"))

    model = LAYOUTS["tp"](build(), mesh)
    model.output.weight = nn.Parameter(model.output.weight.redistribute(placements=[Replicate()]))
    with raises(
        RuntimeError, "tok_embeddings.weight and output.weight were one parameter", "Shard(dim=0)", "Replicate()"
    ):
        xinit.materialize_(model, key=KEY)
    assert all(parameter.is_meta for parameter in model.parameters())
    model = build()
    for part in model.tok_embeddings, model.output, model:
        fully_shard(part, mesh=mesh)
    with raises(RuntimeError, "were one parameter", "before fully_shard"):
        xinit.materialize_(model, key=KEY)


@case(1, 3, layout="fsdp")
@case(2, layout="tp")
def emptied_shards(world, layout):
    """Those of to_empty(), also where FSDP2 pads them."""
    model = LAYOUTS[layout](deferred("uneven"), mesh_for(layout, world)).to_empty(device="cpu")
    for name, problem in xinit.audit(model):
        assert problem == "has memory by to_empty(), but no values", name
    empty = {name for name, p in model.named_parameters() if isinstance(p, DTensor) and not p._local_tensor.numel()}
    assert {name for name, p in model.named_parameters()} - empty == set(dict(xinit.audit(model)))
    with raises(RuntimeError, "leave it out"):
        xinit.materialize_(model, key=KEY)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    assert not xinit.audit(model)


def resident(what):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if what in line)


@case(4)
def memory(world):
    """Beyond its shards, 64 MiB of 256, a rank needs no twentieth of them."""
    if not Path("/proc/self/clear_refs").exists():
        return
    shard = 64 * 1024
    with xinit.deferred():
        model = nn.Sequential(*(nn.Linear(2048, 4096, bias=False) for _ in range(8)))
    others = nn.Sequential(*(nn.Linear(2048, 4096, bias=False, device="meta") for _ in range(8)))
    for each in model, others:
        for layer in each:
            fully_shard(layer, mesh=mesh_for("fsdp", world))
        fully_shard(each, mesh=mesh_for("fsdp", world))
    xinit.init_(xinit.materialize_(deferred("conv"), "cpu", KEY), "torch", KEY)  # what that imports is no part of it
    for fill in (
        lambda: xinit.materialize_(model, "cpu", KEY),
        lambda: xinit.init_(others.to_empty(device="cpu"), "torch", KEY),
    ):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
        before = resident("VmRSS")
        fill()
        assert shard <= resident("VmHWM") - before + 1024 <= 1.05 * shard, (before, resident("VmHWM"))
    with xinit.deferred():
        model = nn.Sequential(*(nn.Linear(1024, 2048, bias=False) for _ in range(32)))
        for layer in model:  # what is done again, a whole parameter at a time
            nn.init.orthogonal_(layer.weight[:8])
    fully_shard(model, mesh=mesh_for("fsdp", world))
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    xinit.materialize_(model, "cpu", KEY)  # some of it in what the models before have left
    assert resident("VmHWM") - before <= 2 * shard, (before, resident("VmHWM"))


@case(2)
def tied_and_in_bfloat16(world):
    def build():
        model = MODELS["uneven"][0]()
        model.output.weight = model.tok_embeddings.weight
        return model.bfloat16()

    with xinit.deferred():
        model, whole = build(), build()
    by_fsdp(model, mesh_for("fsdp", world))
    xinit.materialize_(model, "cpu", KEY)
    xinit.materialize_(whole, "cpu", KEY)
    for _ in range(2):
        assert model.output.weight is model.tok_embeddings.weight
        assert model.output.weight.dtype == torch.bfloat16
        assert_equal_models(model, whole)
        assert xinit.fingerprint(model) == xinit.fingerprint(whole)
        for each in model, whole:
            xinit.init_(each, LLAMA, KEY)


@case(2)
def deferred_keys(world):
    def sharded():
        return by_fsdp(deferred("llama"), mesh_for("fsdp", world))

    model = sharded()
    with Watched() as watched, raises(ValueError, "materialize_: the ranks have different keys"):
        xinit.materialize_(model, "cpu", KEY.fold_in(dist.get_rank()), check=True)
    assert watched.collectives == 1
    assert all(parameter.is_meta for parameter in model.parameters())
    xinit.materialize_(model, "cpu", KEY, check=True)
    torch.manual_seed(7)
    by_seed = xinit.materialize_(sharded())
    torch.manual_seed(7)
    assert_equal_models(by_seed, xinit.materialize_(deferred("llama")))
    with raises(RuntimeError, "layers.0.wq.weight", "meta"):
        xinit.materialize_(by_fsdp(on_meta("llama"), mesh_for("fsdp", world)))
    with xinit.deferred():
        inside = by_fsdp(Conv(), mesh_for("fsdp", world))
    with raises(RuntimeError, "first.weight", "shard a model after the context"):
        xinit.materialize_(inside)


@case(2)
def offloaded(world):
    mesh = mesh_for("fsdp", world)
    policy = CPUOffloadPolicy(pin_memory=False)
    model = by_fsdp(deferred("llama"), mesh, offload_policy=policy)
    xinit.materialize_(model, "cpu", KEY)
    whole = xinit.materialize_(deferred("llama"), key=KEY)
    assert_equal_models(model, whole)
    assert_close(losses(model, "llama"), losses(whole, "llama"))
    model = by_fsdp(on_meta("llama"), mesh, offload_policy=policy).to_empty(device="cpu")
    init_quietly(model, "llama")
    whole = plain("llama")
    assert_equal_models(model, whole)
    assert_close(losses(model, "llama"), losses(whole, "llama"))


@case(2, 4)
def keys_compared(world):
    model = by_fsdp(on_meta("llama"), mesh_for("fsdp", world)).to_empty(device="cpu")
    before = [local.clone() for local in locals_of(model)]
    for key in KEY.fold_in(dist.get_rank()), Key(dist.get_rank() << 40), Key(3, int(dist.get_rank() == 1)):
        with raises(ValueError, "init_: the ranks have different keys", f"rank {dist.get_rank()} has", "Nothing"):
            xinit.init_(model, LLAMA, key, check=True)
    assert all(map(same, before, locals_of(model)))
    with Watched() as watched:
        xinit.init_(model, LLAMA, KEY, check=True)
    assert watched.collectives == 1
    assert_equal_models(model, plain("llama"))
    with raises(ValueError, "different keys"):
        xinit.init_(Conv(), "torch", KEY.fold_in(dist.get_rank()), check=True)


def split_by_hand():
    """Megatron's way: a part of a weight under the name of the whole."""
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.LayerNorm(4))
    model[0].weight.tensor_model_parallel, model[0].weight.partition_dim = True, 0
    model[1].weight.tensor_model_parallel, model[1].weight.partition_dim = False, -1
    return model


class Layer(nn.Linear):
    def __init__(self, number):
        super().__init__(4, 4)
        self.layer_number = number


@case(2)
def parts_under_one_name(world):
    """Would get the same values on every rank."""
    rank = dist.get_rank()
    with xinit.deferred():
        late = split_by_hand()
    for model, start in (split_by_hand(), partial(xinit.init_, recipe="torch")), (late, xinit.materialize_):
        with raises(RuntimeError, "parameter 0.weight marked by tensor_model_parallel=True", "shard(dim, rank, world)"):
            start(model, key=KEY)
    del late[0].weight.tensor_model_parallel
    xinit.materialize_(late, key=KEY)

    experts = nn.ModuleList([nn.Linear(4, 4)])  # as DeepSpeed marks its
    experts[0].weight.allreduce, experts[0].weight.group_name = False, "ep_size_2"
    with raises(RuntimeError, "parameter 0.weight marked by allreduce=False"):
        xinit.init_(experts, "torch", KEY)
    experts[0].weight.group_name = "ep_size_1"
    xinit.init_(experts, "torch", KEY)

    stage = nn.ModuleList([Layer(2 * rank + 1 + i) for i in range(2)])
    if rank == 0:
        xinit.init_(stage, "torch", KEY)
    else:
        with raises(RuntimeError, "init_: 0 has layer_number 3", "renamed"):
            xinit.init_(stage, "torch", KEY)
    with xinit.deferred():
        late = nn.ModuleList([Layer(2 * rank + 1 + i) for i in range(2)])
    with raises(RuntimeError, "materialize_: 0 has layer_number 3") if rank else nullcontext():
        xinit.materialize_(late, key=KEY, check=True)
    names = {str(i): str(2 * rank + i) for i in range(2)}
    xinit.init_(xinit.parallel.renamed(stage, names), "torch", KEY, check=True)

    shards = nn.Embedding(5 - rank, 4)  # what nothing marks, but is not the same
    with raises(
        ValueError, "ranks 0 and 1 do not hold the same", "each a weight, of shapes (5, 4) and (4, 4)", "Nothing"
    ):
        xinit.init_(shards, "torch", KEY, check=True)
    with xinit.deferred():
        stage = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4) if rank else nn.Tanh())
    with raises(ValueError, "ranks 0 and 1", "each a 0.weight", "renamed"):
        xinit.materialize_(stage, key=KEY, check=True)


@case(2)
def what_is_wrong(world):
    mesh = init_device_mesh("cpu", (2,))
    partial_sum = DTensor.from_local(torch.zeros(4, 4), mesh, [Partial()], run_check=False)
    with raises(ValueError, "Partial", "mesh dimension 0", "redistribute"):
        xinit.normal_(partial_sum, key=KEY)
    shard = distribute_tensor(torch.zeros(4, 4), mesh, [Shard(0)])
    with raises(ValueError, "window"):
        xinit.normal_(shard, key=KEY, window=xinit.Window((4, 4), (0, 0)))
    uneven = DTensor.from_local(
        torch.zeros(1 if dist.get_rank() else 3, 4), mesh, [Shard(0)], run_check=False, shape=(4, 4), stride=(4, 1)
    )
    with raises(ValueError, "local tensor has shape", "dimension 0 differs"):
        xinit.normal_(uneven, key=KEY)
    released = distribute_tensor(torch.zeros(4, 4), mesh, [Shard(0)])
    released._local_tensor.untyped_storage().resize_(0)
    with raises(RuntimeError, "released"):
        xinit.normal_(released, key=KEY)
    state = torch.get_rng_state()
    for tensor in partial_sum, uneven, released:
        with raises((ValueError, RuntimeError)):
            xinit.normal_(tensor)
        assert torch.equal(torch.get_rng_state(), state), "a refused draw has advanced the generator"
    larger = DeviceMesh("cpu", torch.arange(4), _init_backend=False, _rank=dist.get_rank())
    with raises(ValueError, "has 4 ranks, but the process group 2"):
        xinit.normal_(DTensor.from_local(torch.zeros(1, 4), larger, [Shard(0)], run_check=False), key=KEY)
    # A model is told which parameter, and left as it was.
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(partial_sum)
    before = model[0].weight.detach().clone()
    with raises(ValueError, "1.weight", "Partial"):
        xinit.init_(model, "torch", KEY)
    with raises(ValueError, "1.weight", "Partial"):
        xinit.fingerprint(model)
    model[1].weight = nn.Parameter(released)
    with raises(RuntimeError, "1.weight", "released"):
        xinit.init_(model, "torch", KEY)
    assert same(model[0].weight.detach(), before)
    with raises(NotImplementedError, "FullyShardedDataParallel", "before"):
        xinit.init_(FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu")), "torch", KEY)


@case(4)
def meshes_beside_each_other(world):
    """Parameters on either dimension of a mesh, and on none."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = plain("llama")
    whole = xinit.fingerprint(model)
    for i, module in enumerate(model.layers.values()):
        for weight in (module.w1, module.wo):
            submesh = mesh["dp" if i else "tp"]
            weight.weight = nn.Parameter(distribute_tensor(weight.weight.detach(), submesh, [Shard(i)]))
    assert xinit.fingerprint(model) == whole
    xinit.init_(model, LLAMA, KEY.fold_in("other"))
    assert xinit.fingerprint(model) != whole
    xinit.init_(model, LLAMA, KEY)
    assert xinit.fingerprint(model) == whole
    if dist.get_rank() == 3:  # what is cut over tp alone is there once for each dp
        model.layers["0"].w1.weight._local_tensor[0, 0] += 1
    with raises(RuntimeError, "layers.0.w1.weight" if dist.get_rank() in (1, 3) else "other ranks"):
        xinit.fingerprint(model)


# ---- a model's own code ----


def by_own_code(model, **options):
    """The values of a model's own code, unsharded."""
    with xinit.deferred():
        whole = model()
        own_init(whole, **options)
    return xinit.materialize_(whole, key=KEY)


@case(4, 2, 1)
def own_code(world):
    """After to_empty(), on whatever mesh, unchanged: the bits of the whole, no collective, and each element once."""
    for kind, elementwise in product(("llama", "uneven"), (True, False)):
        expected = by_own_code(MODELS[kind][0], elementwise=elementwise)
        for layout, shard in LAYOUTS.items():
            if (layout in ("fsdp+tp", "hsdp") and world != 4) or (kind == "uneven" and layout != "fsdp"):
                continue
            model = shard(on_meta(kind), mesh_for(layout, world)).to_empty(device="cpu")
            for local in locals_of(model):
                local.detach().fill_(float("nan"))
            torch.manual_seed(dist.get_rank())
            with Watched() as watched, xinit.accelerate(key=KEY, model=model) as left:
                own_init(model, elementwise)
            assert not left
            assert watched.collectives == 0
            if elementwise:
                held = sum(local.numel() for local in locals_of(model))
                assert watched.elements <= held + 24, (watched.elements, held)
            assert_equal_models(model, expected, (kind, layout))
            assert xinit.fingerprint(model) == xinit.fingerprint(expected)


def local_rows(weight):
    local = weight.to_local() if isinstance(weight, DTensor) else weight
    local.detach().normal_(0, 3)


def look(weight):
    """At what is here, and at a row of all of it, where torch can cut one: 2.11 cannot from strided shards."""
    (weight.to_local() if isinstance(weight, DTensor) else weight).tolist()
    if not any(isinstance(placement, _StridedShard) for placement in getattr(weight, "placements", ())):
        weight[2, 3].item()


OWN = {
    "normal_": lambda w: w.normal_(),
    "twice": lambda w: (w.normal_(), w.uniform_(-1, 1)),
    "kaiming_uniform_": lambda w: nn.init.kaiming_uniform_(w),
    "data": lambda w: w.data.uniform_(),
    "to_local": local_rows,
    "detach": lambda w: w.detach().normal_(),
    "rows": lambda w: (w.zero_(), w[1:3].normal_(), w[-1].fill_(2)),
    "columns": lambda w: (w.normal_(), w.data[:, 1:4].uniform_()),
    "transposed": lambda w: w.t().normal_(),
    "factor": lambda w: (w.normal_(), w.mul_(0.3)),
    "mask": lambda w: (w.normal_(), w.mul_(torch.rand_like(w) < 0.5)),
    "by a part of itself": lambda w: (w.normal_(), w.add_(w[:1] * 2)),
    "by its norm": lambda w: (w.uniform_(), w.div_(w.norm())),
    "xinit": lambda w: xinit.kaiming_normal_(w),
    "orthogonal rows": lambda w: (w.zero_(), nn.init.orthogonal_(w[1:3]), nn.init.orthogonal_(w[3:5], gain=2)),
    "sparse columns": lambda w: (w.zero_(), nn.init.sparse_(w[:, 1:3], 0.5)),
    "its values times": lambda w: (w.normal_(), setattr(w, "data", w.data * 0.5)),
    "exponential_": lambda w: w.exponential_(),
    "another key": lambda w: (w.normal_(), xinit.orthogonal_(w, key=KEY.fold_in("another"))),
    "looked at": lambda w: (w.uniform_(), look(w), w[1:3].zero_(), w.mul_(2)),
}


@case(4, 3, 2, 1)
def own_code_of_one(world):
    """Every way to draw into a sharded parameter."""
    for mesh, where in placements(world):
        for name, draw in OWN.items():
            for shape in (13, 7), (5, 6):
                whole = nn.Module()
                whole.w = nn.Parameter(torch.zeros(shape))
                sharded = nn.Module()
                sharded.w = nn.Parameter(distribute_tensor(torch.zeros(shape), mesh, where, src_data_rank=None))
                for model in whole, sharded:
                    with torch.no_grad(), xinit.accelerate(key=KEY, model=model):
                        draw(model.w)
                assert same(sharded.w.detach().full_tensor(), whole.w.detach()), (name, where, shape)


@case(4, 2)
def own_code_by_generators(world):
    """Without a key: as each of xinit's functions, from a key that all ranks take from the first one's generator."""
    for mesh, where in placements(world):
        for name in "uniform_", "normal_", "trunc_normal_":
            drawn = []
            for init in torch.nn.init, xinit:
                torch.manual_seed(dist.get_rank())
                sharded = distribute_tensor(torch.zeros(13, 7), mesh, where, src_data_rank=None)
                with xinit.accelerate() as left:
                    getattr(init, name)(sharded)
                    sharded.mul_(2)
                assert not left
                drawn.append(sharded.full_tensor())
            torch.manual_seed(0)  # of the first rank
            whole = getattr(xinit, name)(torch.empty(13, 7)).mul_(2)
            assert same(drawn[0], whole), (name, where)
            assert same(drawn[1], whole), (name, where)
    with warnings.catch_warnings(record=True) as caught, xinit.accelerate():
        warnings.simplefilter("always")
        distribute_tensor(torch.zeros(13, 7), mesh, where, src_data_rank=None).bernoulli_(0.5)
    assert any("bernoulli_" in str(warning.message) for warning in caught)


@case(4, 2)
def own_code_refused(world):
    """An error, and nothing is changed."""
    mesh = init_device_mesh("cpu", (world,))

    def model_of(*where):
        model = nn.Module()
        model.v = nn.Parameter(torch.zeros(4))
        local = torch.zeros(3, 5)
        model.w = nn.Parameter(DTensor.from_local(local, mesh, where or [Shard(0)], run_check=False))
        return model

    def refused(kind, needle, body, model):
        with torch.no_grad(), raises(kind, needle), xinit.accelerate(key=KEY, model=model):
            nn.init.normal_(model.v)
            body(model)
        assert not any(local.any() for local in locals_of(model))

    refused(ValueError, "w: the placement", lambda model: model.w.normal_(), model_of(Partial()))
    refused(ValueError, "from a generator", lambda m: m.w.normal_(generator=torch.Generator()), model_of())
    refused(RuntimeError, "local tensor of w", lambda m: m.w.to_local().copy_(torch.randn(3, 5)), model_of())
    refused(RuntimeError, "takes a key", lambda m: xinit.orthogonal_(m.w), model_of())
    refused(RuntimeError, "made of sharded parameters", lambda m: (m.w.normal_() * 2).sum().item(), model_of())
    model = model_of()
    view = model.w.detach().view(-1, 5)[:, :3]
    refused(RuntimeError, "before the context", lambda m: view.normal_(), model)
    model = model_of()
    with raises(RuntimeError, "other tensors than when the context began"), xinit.accelerate(key=KEY, model=model):
        nn.init.normal_(model.v)
        model.w = nn.Parameter(model.w.detach().redistribute(mesh, [Replicate()]))
    assert not model.v.any()


# ---- processes ----


def work(rank, world, chosen, queue):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    store = f"file://{FOLDER}/rendezvous-{world}"
    dist.init_process_group("gloo", store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    for name in chosen:
        try:
            CASES[name](world)
            problem = ""
        except BaseException:
            problem = f"rank {rank}:\n{traceback.format_exc()}"
        problems = [""] * world
        dist.all_gather_object(problems, problem)
        if rank == 0:
            queue[name] = "\n".join(filter(None, problems))
            (FOLDER / f"{world}.json").write_text(json.dumps(queue))
        if any(problems) and not all(problems):
            break  # the ranks may be out of step
    dist.destroy_process_group()


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    torch.set_num_threads(1)
    for world in WORLDS:
        chosen = [name for name in CASES if name.startswith(f"{world}:") and (len(sys.argv) < 3 or sys.argv[2] in name)]
        try:
            torch.multiprocessing.start_processes(work, (world, chosen, {}), nprocs=world, start_method="fork")
        except ProcessException:
            traceback.print_exc()  # the cases that are left are missing from the answers
