"""What each of two processes does for test_ranks.py: models in shards are diagnosed, and scaled, as whole ones are."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import xinit

KEY = xinit.Key(0)


def whole():
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.LayerNorm(64), nn.Linear(64, 10))
    return xinit.init_(model, "kaiming", KEY)


def tensor_parallel(mesh):
    return parallelize_module(whole(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def fully_sharded(mesh):
    model = whole()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model


def same(report, other, *leave):
    measured = {"weight_std", "in_rms", "out_rms", "out_mean", "post_rms", "grad_rms"} - {*leave}
    for row, twin in zip(report.rows, other.rows, strict=True):
        for name in measured:
            value, expected = getattr(row, name), getattr(twin, name)
            assert (value is None) == (expected is None), (row.name, name)
            if value is not None:
                assert abs(value - expected) <= 1e-4 * max(abs(expected), 0.01), (row.name, name, value, expected)


def main(rank):
    mesh = init_device_mesh("cpu", (2,))
    x = xinit.normal_(torch.empty(32, 64), key=xinit.Key(1))
    mine = x[16 * rank : 16 * (rank + 1)]  # of data that FSDP's ranks share out
    report = xinit.diagnose(whole(), x)

    reduced, reduce = [], dist.all_reduce
    dist.all_reduce = lambda tensor, *args, **kwargs: reduced.append(tensor.numel()) or reduce(tensor, *args, **kwargs)
    same(report, xinit.diagnose(tensor_parallel(mesh), x))
    dist.all_reduce = reduce
    assert len(reduced) == 1, reduced
    assert reduced[0] < 200

    model = fully_sharded(mesh)
    same(report, xinit.diagnose(model, mine), "grad_rms")  # each rank projects its own outputs
    assert all(parameter.grad is None for parameter in model.parameters())
    model(mine).sum().backward()  # it still works
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert dict(xinit.recommend(model, mine)) == dict(xinit.recommend(whole(), x))

    scaled = xinit.lsuv_(whole(), x, key=KEY)
    for model, batch in ((fully_sharded(mesh), mine), (tensor_parallel(mesh), x)):
        xinit.lsuv_(model, batch, key=KEY)
        for parameter, expected in zip(model.parameters(), scaled.parameters(), strict=True):
            found = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            assert torch.allclose(found, expected, atol=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=int(sys.argv[2]), world_size=2)
    main(int(sys.argv[2]))
    dist.destroy_process_group()
