"""FSDP2: each rank draws its own shard, without communication, and the model is the one that a single process would have.

torchrun --nproc-per-node 2 examples/fsdp2.py        (on one machine without a network: GLOO_SOCKET_IFNAME=lo)
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import xinit


def build() -> nn.Module:
    return nn.Sequential(*(nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True) for _ in range(4)))


def main(device: str) -> None:
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    with xinit.deferred():  # no rank ever has the whole
        model = build()
    for layer in model:
        fully_shard(layer, mesh=mesh)
    xinit.materialize_(fully_shard(model, mesh=mesh), device, xinit.Key(0), check=True)
    held = sum(p.to_local().numel() for p in model.parameters())
    whole = sum(p.numel() for p in model.parameters())
    print(f"rank {dist.get_rank()} drew {held:,} of {whole:,} numbers: {xinit.fingerprint(model)}", flush=True)
    model(torch.ones(2, 8, 64, device=device)).square().mean().backward()
    if dist.get_rank() == 0:
        alone = xinit.init_(build(), xinit.recipes.torch(), xinit.Key(0))
        print(f"one process, with all of them: {xinit.fingerprint(alone)}")


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    main(device)
    dist.destroy_process_group()
