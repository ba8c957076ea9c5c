"""What does a rank's share of a model cost, and is it the right one? For Llama 3.1 405B on 16 384 ranks, on one machine.

    python benchmarks/sharded.py [--save] [--rank R]    # ownership, then one rank's real plan; benchmarks/results/sharded.json
    torchrun --nproc-per-node 4 benchmarks/sharded.py --verify     # every layout's weights are those of one process

Torch's own engine shards the model on the meta device, FSDP2 over tensor parallelism over a pipeline, in a process group of that
size whose collectives do nothing. For each kind of parameter the boxes of all ranks are laid over each other: every element must
have one owner, or as many as the mesh dimensions that replicate it say. Random shards are compared with torch's own computation of
shapes and offsets. Then one rank's shards get their memory and their values, with the address space capped at 5 % above them, and the
time is compared with that of filling as many bytes of one tensor. A row is void if others took the processor meanwhile. The plan is
that of as many parameters without anything to fill.
"""

import argparse
import gc
import math
import os
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median

# An arena for each thread would reserve addresses that the cap counts.
os.environ.setdefault("MALLOC_ARENA_MAX", "1")

import timing
import torch
import torch.distributed as dist
from llama import LLAMA_405B, Shape, globally, on_meta, shard_fully, shard_tensors, stages
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

import xinit
from xinit.sharding import local_boxes

KEY = xinit.Key(405)
MESH = (16, 128, 8)
NAMES = ("pipeline", "fsdp", "tensor")
MOST_MEMORY = 1.05  # of the shard's bytes
MOST_PLANNING = 50e-6  # seconds a parameter
SAMPLE = 24  # ranks, all of whose parameters are compared with torch
COLUMNS = "{:<16} {:>16} {:<38} {:>9} {:>7} {:>18}".format
TITLES = ("parameter", "shape", "placements over (fsdp, tensor)", "copies", "pieces", "largest shard")


def join(rank):
    """The mesh as that rank sees it. Nothing is ever sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", rank=rank, world_size=math.prod(MESH), store=FakeStore())
    return init_device_mesh("cpu", MESH, mesh_dim_names=NAMES)


def stage_of(shape, mesh, dtype=torch.bfloat16):
    """The rank's stage, sharded by torch, on the meta device."""
    model = on_meta(shape, dtype, *stages(shape, MESH[0])[mesh["pipeline"].get_local_rank()])
    shard_tensors(model, mesh["tensor"])
    shard_fully(model, mesh["fsdp"])
    return model


def kind(name):
    """A parameter's name without the number of its layer: those of a kind have one shape and one placement."""
    return ".".join(part for part in name.split(".") if not part.isdigit()).removesuffix(".weight")


def owners(shape, mesh, placements):
    """How often each element is owned, by all coordinates of the mesh: the least, the most; and of the shards what is printed.

    Exactly: between neighbouring edges of all the boxes nothing changes, so that one cell of a grid stands for all elements
    between them.
    """
    boxes, elements, most, pieces = Counter(), 0, 0, 0
    for index in range(math.prod(mesh)):
        found = local_boxes(shape, mesh, (index // mesh[1], index % mesh[1]), placements)
        boxes.update((box.offsets, box.shape) for box in found)
        size = sum(math.prod(box.shape) for box in found)
        elements, most, pieces = elements + size, max(most, size), max(pieces, len(found))
    edges = [
        sorted({0, size} | {edge for at, extent in boxes for edge in (at[d], at[d] + extent[d])})
        for d, size in enumerate(shape)
    ]
    if any(axis[0] < 0 or axis[-1] > size for axis, size in zip(edges, shape, strict=True)):
        raise RuntimeError(f"a box of {shape} by {placements} is outside of it")
    cells = [{edge: i for i, edge in enumerate(axis)} for axis in edges]
    counts = torch.zeros([len(axis) - 1 for axis in edges], dtype=torch.int32)
    for (at, extent), copies in boxes.items():
        counts[tuple(slice(c[a], c[a + n]) for c, a, n in zip(cells, at, extent, strict=True))] += copies
    return int(counts.min()), int(counts.max()), elements, most, pieces


def ownership(shape):
    """One record for each kind of parameter, and the sum over all ranks of what they own."""
    kinds, names = {}, []
    for stage in range(MESH[0]):
        rank = stage * MESH[1] * MESH[2]
        for name, p in globally(stage_of(shape, join(rank))).named_parameters():
            names.append(name)
            known = kinds.setdefault(kind(name), (tuple(p.shape), p.device_mesh.shape, p.placements))
            assert known == (tuple(p.shape), p.device_mesh.shape, p.placements), name
    whole = [name for name, _ in on_meta(shape, torch.bfloat16).named_parameters()]
    assert sorted(names) == sorted(whole), "the stages' names are not the model's"
    each, total, rows = Counter(map(kind, names)), 0, []
    print(COLUMNS(*TITLES))
    for name, (size, mesh, placements) in kinds.items():
        least, most, elements, largest, pieces = owners(size, mesh, placements)
        copies = math.prod(n for n, placement in zip(mesh, placements, strict=True) if placement.is_replicate())
        said = ", ".join(map(str, placements))
        print(COLUMNS(name.removeprefix("layers."), " x ".join(map(str, size)), said, copies, pieces, f"{largest:,}"))
        if (least, most) != (copies, copies) or elements != copies * math.prod(size):
            raise RuntimeError(f"elements of {name} have {least} to {most} owners, not {copies}")
        total += each[name] * elements // copies
        rows.append({"parameter": name, "shape": size, "placements": said, "copies": copies, "count": each[name]})
    print(f"{len(names)} parameters, {total:,} elements: each owned once by the ranks of its stage, or by all its copies")
    return {"kinds": rows, "parameters": len(names), "elements": total}


def compare(shape, count):
    """Random ranks' shapes, offsets and numbers of elements with torch's own; the number of shards."""
    ranks, compared = random.Random(405).sample(range(math.prod(MESH)), count), 0
    for rank in ranks:
        mesh = join(rank)
        for name, p in stage_of(shape, mesh).named_parameters():
            local, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
            boxes = local_boxes(p.shape, p.device_mesh.shape, p.device_mesh.get_coordinate(), p.placements)
            assert tuple(p.to_local().shape) == local, (rank, name)
            assert sum(math.prod(box.shape) for box in boxes) == math.prod(local), (rank, name)
            assert not boxes or boxes[0].offsets == offset, (rank, name)
            compared += 1
    print(f"{compared} shards of {count} random ranks: shapes and offsets are torch's")
    return compared


def status(field):
    """Bytes, of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def capped(call, size):
    """Seconds, and bytes of memory at the peak above what there was, of a call that may have `size` bytes of addresses."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before, free = status("VmRSS"), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + size, free[1]))
    try:
        begin = time.perf_counter()
        result = call()
        return time.perf_counter() - begin, status("VmHWM") - before, result
    finally:
        resource.setrlimit(resource.RLIMIT_AS, free)


def bytes_of(model):
    return sum(p.to_local().nbytes for p in model.parameters())


def fill(model):
    """What a training script does."""
    model.to_empty(device="cpu")
    return xinit.init_(globally(model), "llama", KEY)


def planning(mesh, runs=5):
    """Seconds a parameter, of a model with as many parameters as the whole has, and hardly an element."""
    small = Shape(1024, 1024, LLAMA_405B.layers, 64, 64, 1024)
    model = stage_whole(small, mesh)
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        xinit.init_(globally(model), "llama", KEY)
        times.append(time.perf_counter() - begin)
    return median(times) / len(list(model.parameters())), len(list(model.parameters()))


def stage_whole(shape, mesh):
    model = on_meta(shape, torch.bfloat16)
    shard_tensors(model, mesh["tensor"])
    shard_fully(model, mesh["fsdp"])
    return model.to_empty(device="cpu")


def one_rank(shape, rank, rounds):
    """The record of one rank's real plan."""
    mesh = join(rank)
    fill(stage_of(Shape(1024, 1024, 16, 64, 64, 1024), mesh))  # what is imported and cached once is no rank's share
    size = bytes_of(stage_of(shape, mesh))
    one = torch.empty(size // 2, dtype=torch.bfloat16)
    bystanders, floors, runs, peaks = timing.Bystanders(), [], [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        xinit.normal_(one, std=0.02, key=KEY)
        floors.append(time.perf_counter() - begin)
        model = stage_of(shape, mesh)
        seconds, peak, _ = capped(lambda model=model: fill(model), int(MOST_MEMORY * size))
        runs.append(seconds)
        peaks.append(peak)
        del model
    del one
    others = bystanders.share()
    plan, parameters = planning(mesh)
    record = {
        "rank": rank,
        "coordinate": list(mesh.get_coordinate()),
        "bytes": size,
        "seconds": {"init_": median(runs), "normal_": median(floors)},
        "bytes_per_second": size / median(floors),
        "memory": max(peaks) / size,
        "planning": plan,
        "parameters": parameters,
        "others": round(others, 3),
    }
    where = ", ".join(f"{name} {i}" for name, i in zip(NAMES, record["coordinate"], strict=True))
    print(f"rank {rank} ({where}): {size:,} bytes of bfloat16")
    print(f"  one tensor as large, normal_      {1e3 * median(floors):8.1f} ms  {size / median(floors) / 1e9:6.2f} GB/s")
    print(f"  to_empty and init_ of the stage   {1e3 * median(runs):8.1f} ms  {size / median(runs) / 1e9:6.2f} GB/s")
    print(f"  memory at the peak                {record['memory']:8.2%} of the shards, at most {MOST_MEMORY:.0%}")
    print(f"  planning, of {parameters} parameters    {1e6 * plan:8.1f} µs each, at most {1e6 * MOST_PLANNING:.0f}")
    print(f"  others meanwhile                  {others:8.0%}{' of the processor: void' * (others > timing.BUSY)}")
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--verify", action="store_true", help="under torchrun: compare every layout with one process")
    add("--rank", type=int, default=5 * 1024 + 17 * 8 + 3, help="whose shards are really filled")
    add("--rounds", type=int, default=5)
    add("--save", action="store_true", help="write it to benchmarks/results/sharded.json")
    args = parser.parse_args()
    if args.verify:
        import layouts

        return layouts.verify()
    if not 0 <= args.rank < math.prod(MESH):
        parser.error(f"rank {args.rank} is not in [0, {math.prod(MESH)})")
    record = {"machine": timing.machine(), "mesh": dict(zip(NAMES, MESH, strict=True))}
    print(timing.describe(record["machine"]))
    print(f"{' x '.join(f'{name} {n}' for name, n in record['mesh'].items())}: {math.prod(MESH)} ranks")
    record["ownership"] = ownership(LLAMA_405B)
    record["compared"] = compare(LLAMA_405B, SAMPLE)
    record["rank"] = one_rank(LLAMA_405B, args.rank, args.rounds)
    if args.save:
        timing.write(record, timing.RESULTS / "sharded.json")
    return int(record["rank"]["memory"] > MOST_MEMORY or record["rank"]["planning"] > MOST_PLANNING)


if __name__ == "__main__":
    sys.exit(main())
