"""A Llama's parameters, and how torch's own engine shards them: what sharded.py measures and verifies."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

from xinit.parallel import renamed


class Shape(NamedTuple):
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def kv(self):
        return self.hidden // self.heads * self.kv_heads


# Grattafiori et al., "The Llama 3 herd of models", 2024, table 3.
LLAMA_8B = Shape(4096, 14336, 32, 32, 8, 128256)
LLAMA_405B = Shape(16384, 53248, 126, 128, 8, 128256)


class Attention(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.q_proj, self.o_proj = (nn.Linear(s.hidden, s.hidden, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(s.hidden, s.kv, bias=False) for _ in range(2))


class FeedForward(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(s.hidden, s.intermediate, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(s.intermediate, s.hidden, bias=False)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(s.hidden), nn.RMSNorm(s.hidden)
        self.attention, self.mlp = Attention(s), FeedForward(s)


class Llama(nn.Module):
    """The layers from `begin` to `end`, counted from 0; the embedding before the first, norm and head after the last."""

    def __init__(self, s, begin=0, end=None):
        super().__init__()
        end = s.layers if end is None else end
        if begin == 0:
            self.embed = nn.Embedding(s.vocabulary, s.hidden)
        self.layers = nn.ModuleList([Block(s) for _ in range(end - begin)])
        if end == s.layers:
            self.norm, self.head = nn.RMSNorm(s.hidden), nn.Linear(s.hidden, s.vocabulary, bias=False)
        self.first = begin


def stages(s, count):
    """[(begin, end)]: as many layers each as can be, where embedding and head count as one layer each."""
    cuts = [round(i * (s.layers + 2) / count) - 1 for i in range(count + 1)]
    return list(pairwise([0, *cuts[1:-1], s.layers]))


def globally(model):
    """The stage under the names of the whole model."""
    return renamed(model, {f"layers.{i}": f"layers.{model.first + i}" for i in range(len(model.layers))})


def shard_tensors(model, mesh):
    """Tensor parallelism: Megatron's columns and rows, the embedding by vocabulary, sequence-parallel norms."""
    columns, rows, norm = ColwiseParallel(), RowwiseParallel(), SequenceParallel()
    plan = {"embed": rows, "norm": norm, "head": columns}
    block = {f"attention.{p}_proj": columns for p in "qkv"} | {"attention.o_proj": rows, "mlp.down_proj": rows}
    block |= {"mlp.gate_proj": columns, "mlp.up_proj": columns, "attention_norm": norm, "mlp_norm": norm}
    parallelize_module(model, mesh, {name: style for name, style in plan.items() if hasattr(model, name)})
    for layer in model.layers:
        parallelize_module(layer, mesh, block)


def shard_fully(model, mesh):
    """FSDP2, layer by layer."""
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def on_meta(shape, dtype, begin=0, end=None):
    with torch.device("meta"):
        return Llama(shape, begin, end).to(dtype)
