"""What does a rank's share of a model cost, and is it the right one? For Llama 3.1 405B on 16 384 ranks, on one machine.

    python benchmarks/sharded.py [--save] [--rank R]    # ownership, then one rank's real plan; benchmarks/results/sharded.json
    torchrun --nproc-per-node 4 benchmarks/sharded.py --verify     # every layout's weights are those of one process

Torch's own engine shards the model on the meta device, FSDP2 over tensor parallelism over a pipeline, in a process group of that
size, whose collectives do nothing. One rank's shards get their memory and values, with the address space capped at 5 % above
them, and the time is compared with that of filling as many bytes of one new tensor; if others took the processor meanwhile, the
times mean nothing. Planning is what init_, and what the layouts of xinit.parallel, take for as many parameters as the whole model
has, with hardly an element each. Then, for each kind of parameter, the boxes of all ranks are laid over each other: every element
must have one owner, or as many as there are copies by the mesh dimensions that replicate it. Random shards are compared with
torch's own computation of shapes and offsets.
"""

import argparse
import math
import random
import sys
import time
from collections import Counter
from statistics import median

import timing
import torch
import torch.distributed as dist
from llama import LLAMA_405B, Shape, globally, on_meta, shard_fully, shard_tensors, stages
from memory import capped
from sharded_verify import megatron, verify
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

import xinit
from xinit.dtensor import local_boxes
from xinit.parallel import cat
from xinit.parallel.layouts import fill_layouts_

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
    print(
        f"{len(names)} parameters, {total:,} elements: each owned once by the ranks of its stage, or by all its copies"
    )
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


def bytes_of(model):
    return sum(p.to_local().nbytes for p in model.parameters())


def fill(model):
    """What a training script does."""
    model.to_empty(device="cpu")
    return xinit.init_(globally(model), "llama", KEY)


def planning(mesh, runs=7):
    """Processor seconds a parameter, of a model with as many as the whole has, and hardly an element each on a rank."""
    tiny = Shape(1024, 1024, LLAMA_405B.layers, 64, 64, 1024)
    model = on_meta(tiny, torch.bfloat16)
    shard_tensors(model, mesh["tensor"])
    shard_fully(model, mesh["fsdp"])
    model.to_empty(device="cpu")
    count, tensor, zero = len(list(model.parameters())), mesh["tensor"].get_local_rank(), mesh["fsdp"].get_local_rank()
    small = Shape(64, 64, tiny.layers, 8, 8, 64)
    empties = [torch.empty(layout.shape) for layout, _ in megatron(small, 0, small.layers, tensor, MESH[2])]

    def fused():
        fill_layouts_(empties, [layout for layout, _ in megatron(small, 0, small.layers, tensor, MESH[2])], KEY)

    def flat():
        whole = cat([layout.flatten() for layout, _ in megatron(small, 0, small.layers, tensor, MESH[2])])
        part = whole.pad(0, MESH[1]).shard(0, zero, MESH[1])
        part.fill_(torch.empty(part.shape), KEY)

    ways = {
        "init_ of DTensors": lambda: xinit.init_(model, "llama", KEY),
        "renamed": lambda: globally(model),
        "layouts, fused by Megatron": fused,
        "layouts, flat by ZeRO": flat,
    }
    times = {way: [] for way in ways}
    for _ in range(runs):
        for way, call in ways.items():
            begin = time.process_time()
            call()
            times[way].append((time.process_time() - begin) / count)
    return count, {way: median(each) for way, each in times.items()}


def one_rank(shape, rank, rounds):
    """The record of one rank's real plan."""
    mesh = join(rank)
    fill(stage_of(Shape(1024, 1024, 16, 64, 64, 1024), mesh))  # what is imported and cached once is no rank's share
    size = bytes_of(stage_of(shape, mesh))
    bystanders, floors, runs, peaks = timing.Bystanders(), [], [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        xinit.normal_(torch.empty(size // 2, dtype=torch.bfloat16), std=0.02, key=KEY)
        floors.append(time.perf_counter() - begin)
        model = stage_of(shape, mesh)
        seconds, peak, _ = capped(lambda model=model: fill(model), int(MOST_MEMORY * size))
        runs.append(seconds)
        peaks.append(peak)
        del model
    others = bystanders.share()
    parameters, plans = planning(mesh)
    record = {
        "rank": rank,
        "coordinate": list(mesh.get_coordinate()),
        "bytes": size,
        "seconds": {"init_": median(runs), "normal_": median(floors)},
        "bytes_per_second": size / median(floors),
        "memory": max(peaks) / size,
        "planning": plans,
        "parameters": parameters,
        "others": round(others, 3),
    }
    where = ", ".join(f"{name} {i}" for name, i in zip(NAMES, record["coordinate"], strict=True))
    print(f"rank {rank} ({where}): {size:,} bytes of bfloat16")
    print(
        f"  one tensor as large, normal_      {1e3 * median(floors):8.1f} ms  {size / median(floors) / 1e9:6.2f} GB/s"
    )
    print(f"  to_empty and init_ of the stage   {1e3 * median(runs):8.1f} ms  {size / median(runs) / 1e9:6.2f} GB/s")
    print(f"  memory at the peak                {record['memory']:8.2%} of the shards, at most {MOST_MEMORY:.0%}")
    for way, each in plans.items():
        print(
            f"  {f'planning, {way}':<34}{1e6 * each:8.1f} µs a parameter of {parameters}, at most {1e6 * MOST_PLANNING:.0f}"
        )
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
        return verify()
    if not 0 <= args.rank < math.prod(MESH):
        parser.error(f"rank {args.rank} is not in [0, {math.prod(MESH)})")
    record = {"machine": timing.machine(), "mesh": dict(zip(NAMES, MESH, strict=True))}
    print(timing.describe(record["machine"]))
    print(f"{' x '.join(f'{name} {n}' for name, n in record['mesh'].items())}: {math.prod(MESH)} ranks")
    record["rank"] = one_rank(LLAMA_405B, args.rank, args.rounds)  # first, while the process is small
    record["ownership"] = ownership(LLAMA_405B)
    record["compared"] = compare(LLAMA_405B, SAMPLE)
    if args.save:
        timing.write(record, timing.RESULTS / "sharded.json")
    return int(record["rank"]["memory"] > MOST_MEMORY or max(record["rank"]["planning"].values()) > MOST_PLANNING)


if __name__ == "__main__":
    sys.exit(main())
