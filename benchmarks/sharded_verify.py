"""sharded.py --verify: every layout of a small Llama has the fingerprint of one process, and each rank fills its shards alone."""

import math
import os
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from llama import Llama, Shape, globally, on_meta, shard_fully, shard_tensors, stages
from memory import capped
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode

import xinit
from xinit import fill
from xinit.parallel import cat, interleave, parameter
from xinit.parallel.layouts import fill_layouts_

SHAPE = Shape(512, 1408, 4, 8, 4, 8200)  # 20 M parameters
DTYPE = torch.float32
KEY = xinit.Key(5)
MATRIX, EMBEDDING, NORM = xinit.xavier_normal(), xinit.normal(std=0.02), xinit.ones()
RECIPE = {"*norm.weight": NORM, "embed.weight": EMBEDDING, "*": MATRIX}
MOST_MEMORY = 1.05  # of the shard's bytes
COLUMNS = "{:<46} {:<34} {:>12} {:>10} {:>12} {:>8}".format
TITLES = ("layout", "fingerprint", "filled", "of model", "collectives", "memory")


def collectives():
    """How many this rank has taken part in: every process group numbers its own."""
    return sum(group._get_sequence_number_for_group() for group in dist.distributed_c10d._world.pg_map)


@contextmanager
def counted():
    """{"filled": elements that xinit fills, "collectives": calls of torch's} within it.

    From below: materialize_ works outside of all dispatch modes, and so of CommDebugMode, which counts nonetheless.
    """
    counts, original, before = Counter(), fill._fill_many_, collectives()

    def count_and_fill(tensors, *arguments):
        counts["filled"] += sum(tensor.numel() for tensor in tensors if not tensor.is_meta)
        original(tensors, *arguments)

    fill._fill_many_ = count_and_fill
    try:
        with CommDebugMode() as communication:
            yield counts
    finally:
        fill._fill_many_ = original
    counts["collectives"] = max(collectives() - before, communication.get_total_counts())


class Case(NamedTuple):
    """One layout: on the rank's part of the model, what is measured, what it should fill, and its halves of the fingerprint.

    The halves of all ranks add up to the model's: of several that have the same, one counts and the others are 0.
    """

    build: Callable[[], Any]
    fill: Callable[[Any], Any]
    elements: Callable[[Any], int]
    digest: Callable[[Any], tuple[int, int]]
    reference: str = "recipe"


def halves(fingerprint):
    return int(fingerprint[:16], 16), int(fingerprint[16:], 16)


def by_torch(mesh, deferred=False):
    """Sharded by torch over the mesh dimensions that there are."""
    names = mesh.mesh_dim_names

    def build():
        part = 0, SHAPE.layers
        if "pipeline" in names:
            part = stages(SHAPE, mesh["pipeline"].size())[mesh["pipeline"].get_local_rank()]
        if deferred:
            with xinit.deferred():
                model = Llama(SHAPE, *part)
        else:
            model = on_meta(SHAPE, DTYPE, *part)
        if "tensor" in names:
            shard_tensors(model, mesh["tensor"])
        if "fsdp" in names:
            shard_fully(model, mesh["fsdp"])
        return model

    def fill(model):
        if deferred:
            xinit.materialize_(globally(model) if "pipeline" in names else model, "cpu", KEY)
        else:
            model.to_empty(device="cpu")
            xinit.init_(globally(model), RECIPE, KEY)

    def digest(model):
        found = halves(xinit.fingerprint(globally(model)))  # of the stage, on all its ranks
        others = [name for name in names if name != "pipeline"]
        return found if all(mesh[name].get_local_rank() == 0 for name in others) else (0, 0)

    def elements(model):
        return sum(p.to_local().numel() for p in model.parameters())

    return Case(build, fill, elements, digest, "constructor" if deferred else "recipe")


def megatron(s, begin, end, rank, world):
    """[(layout, whether every tensor-parallel rank has the same)]: the layers from begin to end, fused as Megatron does."""
    found = []

    def p(name, rows, columns):
        return parameter(f"{name}.weight", (rows, columns), EMBEDDING if name == "embed" else MATRIX)

    def norm(name):
        found.append((parameter(f"{name}.weight", (s.hidden,), NORM), True))

    if begin == 0:
        found.append((p("embed", s.vocabulary, s.hidden).pad(0, 128 * world).shard(0, rank, world), False))
    for i in range(begin, end):
        at, mlp = f"layers.{i}.attention", f"layers.{i}.mlp"
        norm(f"{at}_norm")
        norm(f"{mlp}_norm")
        qkv = [p(f"{at}.{x}_proj", rows, s.hidden) for x, rows in (("q", s.hidden), ("k", s.kv), ("v", s.kv))]
        found.append((interleave(qkv, s.kv_heads, rank, world), False))
        found.append((p(f"{at}.o_proj", s.hidden, s.hidden).shard(1, rank, world), False))
        gate_up = [p(f"{mlp}.{x}_proj", s.intermediate, s.hidden).shard(0, rank, world) for x in ("gate", "up")]
        found.append((cat(gate_up), False))
        found.append((p(f"{mlp}.down_proj", s.hidden, s.intermediate).shard(1, rank, world), False))
    if end == s.layers:
        norm("norm")
        found.append((p("head", s.vocabulary, s.hidden).pad(0, 128 * world).shard(0, rank, world), False))
    return found


def unfused(ranks, begin, end):
    """{name: tensor} of a stage, from the tensors of all its tensor-parallel ranks: as Megatron's modules take them apart."""
    s, found, each = SHAPE, {}, iter(zip(*ranks, strict=True))
    head, groups = s.hidden // s.heads, s.kv_heads
    if begin == 0:
        found["embed"] = torch.cat(next(each))[: s.vocabulary]
    for i in range(begin, end):
        attention, mlp = f"layers.{i}.attention", f"layers.{i}.mlp"
        found[f"{attention}_norm"], found[f"{mlp}_norm"] = next(each)[0], next(each)[0]
        qkv = torch.cat(next(each)).view(groups, -1, s.hidden).split((s.heads // groups * head, head, head), dim=1)
        found |= {f"{attention}.{x}_proj": part.flatten(0, 1) for x, part in zip("qkv", qkv, strict=True)}
        found[f"{attention}.o_proj"] = torch.cat(next(each), dim=1)
        halves = zip(*(tensor.chunk(2) for tensor in next(each)), strict=True)
        found |= {f"{mlp}.{x}_proj": torch.cat(half) for x, half in zip(("gate", "up"), halves, strict=True)}
        found[f"{mlp}.down_proj"] = torch.cat(next(each), dim=1)
    if end == s.layers:
        found["norm"], found["head"] = next(each)[0], torch.cat(next(each))[: s.vocabulary]
    return {f"{name}.weight": tensor for name, tensor in found.items()}


def by_layouts(mesh, alignment=128):
    """Sharded without DTensor: Megatron's tensor parallelism, pipeline stages, and flat ZeRO partitions of what they leave."""
    at = {name: (mesh[name].get_local_rank(), mesh[name].size()) for name in mesh.mesh_dim_names}
    rank, world = at.get("tensor", (0, 1))
    stage, count = at.get("pipeline", (0, 1))
    part, parts = at.get("zero", (0, 1))

    def build():
        layouts = megatron(SHAPE, *stages(SHAPE, count)[stage], rank, world)
        if parts > 1:  # one buffer of what tensor-parallel ranks have alike, and one of what they do not
            flat = [
                [layout.flatten().pad(0, alignment) for layout, same in layouts if same == alike] for alike in (1, 0)
            ]
            layouts = [(cat(each).pad(0, parts).shard(0, part, parts), i == 0) for i, each in enumerate(flat)]
        return {"layouts": layouts}

    def fill(model):
        model["tensors"] = [torch.empty(layout.shape, dtype=DTYPE) for layout, _ in model["layouts"]]
        fill_layouts_(model["tensors"], [layout for layout, _ in model["layouts"]], KEY)

    def elements(model):
        return sum(math.prod(layout.shape) for layout, _ in model["layouts"])

    def unpartitioned(flat, layouts):
        """The tensors of one tensor-parallel rank, from its buffers of what is the same on all, and of what is not."""
        at, tensors = [0, 0], []
        for layout, same in layouts:
            size = math.prod(layout.shape)
            tensors.append(flat[not same][at[same] : at[same] + size].view(layout.shape))
            at[same] += size + -size % alignment
        return tensors

    def digest(model):
        total = torch.zeros(2, dtype=torch.int64)
        for (layout, same), tensor in zip(model["layouts"], model["tensors"], strict=True):
            if rank == 0 or not same:
                total += layout.digest(tensor)
        # That the digests add up says that values and names agree; that all is where Megatron looks for it, only this does.
        gathered = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(((stage, rank, part), model["tensors"]), gathered)
        if gathered is not None:
            found, whole = dict(gathered), {}
            for index, where in enumerate(stages(SHAPE, count)):
                ranks = [[found[index, r, p] for p in range(parts)] for r in range(world)]
                if parts > 1:
                    flat = [[torch.cat(buffers) for buffers in zip(*each, strict=True)] for each in ranks]
                    ranks = [unpartitioned(f, megatron(SHAPE, *where, r, world)) for r, f in enumerate(flat)]
                else:
                    ranks = [each[0] for each in ranks]
                whole |= unfused(ranks, *where)
            plain = on_meta(SHAPE, DTYPE)
            plain.load_state_dict(whole, assign=True)
            model["whole"] = xinit.fingerprint(plain)
        return tuple(half % 2**64 for half in total.tolist())

    return Case(build, fill, elements, digest)


def references():
    """The fingerprints of one process."""
    model = on_meta(SHAPE, DTYPE).to_empty(device="cpu")
    with xinit.deferred():
        other = Llama(SHAPE)
    return {
        "recipe": xinit.fingerprint(xinit.init_(model, RECIPE, KEY)),
        "constructor": xinit.fingerprint(xinit.materialize_(other, "cpu", KEY)),
    }


def measure(case):
    """This rank's figures."""
    case.fill(case.build())  # what is imported and cached once is no rank's share
    model = case.build()
    _, peak, _ = capped(lambda: case.fill(model))
    expected, halves_found = case.elements(model), case.digest(model)
    model = case.build()
    with counted() as counts:
        case.fill(model)
    again = case.digest(model)
    return {
        "halves": halves_found,
        "filled": counts["filled"],
        "expected": expected,
        "collectives": counts["collectives"],
        "memory": peak / (expected * DTYPE.itemsize),
        "whole": model.get("whole") if isinstance(model, dict) else None,
        "repeats": again == halves_found,
    }


def verify():
    """The exit status: 1 if anything differs."""
    if "RANK" not in os.environ:
        raise SystemExit("--verify runs under torchrun: torchrun --nproc-per-node 4 benchmarks/sharded.py --verify")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        return _verify(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _verify(rank, world):
    if world != 4:
        raise SystemExit(f"--verify takes 4 ranks, but found {world}")

    def mesh(**dims):
        return init_device_mesh("cpu", tuple(dims.values()), mesh_dim_names=tuple(dims))

    cases = {
        "FSDP2 (4)": by_torch(mesh(fsdp=4)),
        "FSDP2 (4), deferred": by_torch(mesh(fsdp=4), deferred=True),
        "TP (4)": by_torch(mesh(tensor=4)),
        "TP (4), deferred": by_torch(mesh(tensor=4), deferred=True),
        "FSDP2 x TP (2, 2)": by_torch(mesh(fsdp=2, tensor=2)),
        "FSDP2 x TP (2, 2), deferred": by_torch(mesh(fsdp=2, tensor=2), deferred=True),
        "PP x FSDP2 (2, 2)": by_torch(mesh(pipeline=2, fsdp=2)),
        "PP x FSDP2 (2, 2), deferred": by_torch(mesh(pipeline=2, fsdp=2), deferred=True),
        "PP x TP (2, 2)": by_torch(mesh(pipeline=2, tensor=2)),
        "PP x TP (2, 2), deferred": by_torch(mesh(pipeline=2, tensor=2), deferred=True),
        "without DTensor: Megatron TP (4)": by_layouts(mesh(tensor=4)),
        "without DTensor: PP x Megatron TP (2, 2)": by_layouts(mesh(pipeline=2, tensor=2)),
        "without DTensor: ZeRO (4)": by_layouts(mesh(zero=4)),
        "without DTensor: ZeRO x Megatron TP (2, 2)": by_layouts(mesh(zero=2, tensor=2)),
    }
    with counted() as counts:
        dist.all_reduce(torch.zeros(1))
    assert counts["collectives"] == 1, f"one all-reduce was counted as {counts}"
    box = [references() if rank == 0 else None]
    dist.broadcast_object_list(box)
    parameters = sum(p.numel() for p in on_meta(SHAPE, DTYPE).parameters())
    if rank == 0:
        print(f"{world} processes, {parameters:,} elements of {DTYPE}; what a rank filled: the most")
        print(COLUMNS(*TITLES))
        for name, fingerprint in box[0].items():
            print(COLUMNS(f"one process, {name}", fingerprint, f"{parameters:,}", "100.0%", "", ""))
    failures = []
    for name, case in cases.items():
        mine = measure(case)  # an error ends this rank, and torchrun then the others
        ranks = [None] * world
        dist.all_gather_object(ranks, mine)
        total = [sum(r["halves"][i] for r in ranks) % 2**64 for i in (0, 1)]
        fingerprint, most = "".join(f"{half:016x}" for half in total), max(r["filled"] for r in ranks)
        calls, memory = sum(r["collectives"] for r in ranks), max(r["memory"] for r in ranks)
        problems = ["another fingerprint"] * (fingerprint != box[0][case.reference])
        problems += ["another arrangement"] * (ranks[0]["whole"] not in (None, box[0][case.reference]))
        problems += ["other values the second time"] * (not all(r["repeats"] for r in ranks))
        problems += ["elements that are no shard's"] * any(r["filled"] != r["expected"] for r in ranks)
        problems += ["collectives"] * bool(calls) + ["memory"] * (memory > MOST_MEMORY)
        row = (name, fingerprint, f"{most:,}", f"{most / parameters:.1%}", calls, f"{memory:.1%}")
        if rank == 0:
            print(COLUMNS(*row) + "".join(f"  <- {problem}" for problem in problems), flush=True)
        failures += problems
    if rank == 0:
        print(f"{len(failures)} differences" if failures else "all equal")
    return bool(failures)
