"""Models small enough for tests, their recipes, and the ways to shard them."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

import xinit
from xinit import Key

KEY = Key(2024).fold_in("sharded")

# ---- models ----


class Block(nn.Module):
    def __init__(self, dim, hidden, heads):
        super().__init__()
        self.size = dim // heads
        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.w1, self.w3 = (nn.Linear(dim, hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x):
        y = self.attention_norm(x)
        q, k, v = (w(y).unflatten(-1, (-1, self.size)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.wo(y)
        y = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


class Llama(nn.Module):
    def __init__(self, hidden, vocabulary, layers=2, dim=24, heads=12):
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocabulary, dim, padding_idx=37)
        self.layers = nn.ModuleDict({str(i): Block(dim, hidden, heads) for i in range(layers)})
        self.norm = nn.RMSNorm(dim)
        self.output = nn.Linear(dim, vocabulary, bias=False)

    def forward(self, x):
        x = self.tok_embeddings(x) if self.tok_embeddings is not None else x
        for layer in self.layers.values():
            x = layer(x)
        return x if self.output is None else self.output(self.norm(x))


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 10, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.grouped = nn.Conv2d(10, 20, 3, groups=5, padding=1)
        self.up, self.down = nn.Linear(20, 12), nn.Linear(12, 7)

    def forward(self, x):
        x = F.relu(self.grouped(F.relu(self.norm(self.first(x)))))
        return self.down(F.relu(self.up(x.mean((2, 3)))))


class Orthogonal(nn.Module):
    """What only the whole tells: an orthogonal matrix, and one that is normalised."""

    def __init__(self):
        super().__init__()
        self.square, self.wide = nn.Linear(9, 9), nn.Linear(14, 5, bias=False)
        nn.init.orthogonal_(self.square.weight)
        with torch.no_grad():
            self.wide.weight.div_(self.wide.weight.norm())

    def forward(self, x):
        return self.wide(F.pad(self.square(x), (0, 5)))


def split(name, axis):
    """Blocks that no rank's shard fits: seven rows or columns, and the rest."""

    def blocks(_, parameter, module):
        parts = {"a": (7, xinit.xavier_uniform()), "b": (parameter.shape[axis] - 7, xinit.kaiming_normal())}
        return xinit.blocks(name, parts, axis)

    return blocks


# Fans everywhere, so that a shard's own would show; and blocks, which shards cut.
LLAMA = {
    "*norm.weight": xinit.ones(),
    "tok_embeddings.weight": xinit.normal(0, 0.02),
    "*.wo.weight": xinit.trunc_normal(0, 0.1, -0.2, 0.2),
    "*.w1.weight": split("w1", 0),
    "*.w2.weight": split("w2", 1),
    "*": xinit.variance_scaling(1.0, "fan_avg"),
}
MODELS = {
    "llama": (partial(Llama, 48, 48), LLAMA),
    "uneven": (
        partial(Llama, 42, 50),
        LLAMA,
    ),  # neither 3 nor 4 ranks share out its sizes evenly, apart from the heads'
    "conv": (Conv, "torch"),
    "orthogonal": (Orthogonal, None),
}


def own_init(model, elementwise=True):
    """A Llama's own code, as trainers have it: tied embeddings, stds by depth, a fused weight; and what is not elementwise."""
    model.tok_embeddings.weight = model.output.weight
    for i, layer in enumerate(model.layers.values()):
        for weight in (layer.wk.weight, layer.w1.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        for weight in (layer.w2.weight, layer.w3.weight):
            nn.init.trunc_normal_(weight, std=0.02 / (2 * (i + 1)) ** 0.5)
        for norm in (layer.attention_norm, layer.ffn_norm):
            norm.reset_parameters()
        fuse(layer.wv.weight)
        nn.init.kaiming_normal_(layer.wq.weight)
        with torch.no_grad():
            layer.wq.weight.div_((2 * (i + 1)) ** 0.5)
        if elementwise:
            nn.init.normal_(layer.wo.weight, std=0.1)
        else:
            nn.init.orthogonal_(layer.wo.weight, 1.5)
            with torch.no_grad():
                layer.w3.weight.div_(layer.w3.weight.norm())
    nn.init.ones_(model.norm.weight)
    std = model.output.weight.shape[1] ** -0.5
    nn.init.trunc_normal_(model.output.weight, std=std, a=-3 * std, b=3 * std)
    with torch.no_grad():
        model.output.weight[37].zero_()


def fuse(weight):
    """Two draws, next to each other."""
    rows, *rest = weight.shape
    upper, lower = weight.new_empty(7, *rest), weight.new_empty(rows - 7, *rest)
    nn.init.trunc_normal_(upper, std=0.02)
    nn.init.xavier_uniform_(lower)
    with torch.no_grad():
        weight.copy_(torch.cat([upper.view(1, 7, *rest), lower.view(1, rows - 7, *rest)], dim=1).view(-1, *rest))


def inputs(kind, batch=4):
    generator = torch.Generator().manual_seed(5)
    if kind != "conv":
        tokens = torch.randint(48, (batch, 12 + 1), generator=generator)
        return tokens[:, :-1], tokens[:, 1:]
    return torch.randn(batch, 3, 6, 6, generator=generator), torch.randint(7, (batch,), generator=generator)


def plain(kind):
    build, recipe = MODELS[kind]
    return xinit.init_(build(), recipe, KEY)


def losses(model, kind):
    """Of three steps. Data-parallel ranks see the same batch, so the loss and the mean gradient are those of one process."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    x, y = inputs(kind)
    found = []
    for _ in range(3):
        out = model(x)
        loss = F.cross_entropy(out.flatten(0, -2), y.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


# ---- layouts: each shards a model, whose parameters may be on the meta device ----


def by_fsdp(model, mesh, **options):
    for layer in model.layers.values() if isinstance(model, Llama) else (model.first, model.grouped, model.up):
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def by_tp(model, mesh):
    """Tensor parallel, with sequence parallel norms and an embedding cut by its vocabulary."""
    if isinstance(model, Conv):
        return parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    column, row = ColwiseParallel(input_layouts=Shard(1)), RowwiseParallel(output_layouts=Shard(1))
    plan = {
        "tok_embeddings": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "output": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    for i in model.layers:
        plan |= {f"layers.{i}.{name}": SequenceParallel() for name in ("attention_norm", "ffn_norm")}
        plan |= {f"layers.{i}.{name}": column for name in ("wq", "wk", "wv", "w1", "w3")}
        plan |= {f"layers.{i}.{name}": row for name in ("wo", "w2")}
    return parallelize_module(model, mesh, plan)


def by_both(model, mesh):
    return by_fsdp(by_tp(model, mesh["tp"]), mesh["dp"])


LAYOUTS = {"fsdp": by_fsdp, "tp": by_tp, "fsdp+tp": by_both, "hsdp": by_fsdp}


def mesh_for(layout, world):
    if layout in ("fsdp+tp", "hsdp"):
        return init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    return init_device_mesh("cpu", (world,), mesh_dim_names=("tp" if layout == "tp" else "dp",))


def on_meta(kind):
    with torch.device("meta"):
        return MODELS[kind][0]()


def deferred(kind):
    with xinit.deferred():
        return MODELS[kind][0]()
