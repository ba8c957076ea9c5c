"""Small networks as they are built every day, each with a batch; and some whose faults are known."""

import pytest
import torch
from torch import nn

import xinit


def image(size, channels=3, count=4):
    return xinit.normal_(torch.empty(count, channels, size, size), key=xinit.Key(1))


def batch(*shape):
    return xinit.normal_(torch.empty(shape), key=xinit.Key(1))


def tokens(count=2, length=16):
    return torch.arange(count * length).view(count, length) * 7 % 100


def deep(depth, activation, matrices, width=64):
    """Linear layers of one width, with an activation after each but the head."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())]
    return xinit.init_(
        nn.Sequential(*layers, nn.Linear(width, 10)), {"*.bias": xinit.zeros(), "*": matrices}, xinit.Key(0)
    )


class Block(nn.Module):
    """Of a pre-norm transformer, with torch's attention."""

    heads = 4

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, depth=12, width=64, block=Block):
        super().__init__()
        self.tokens = nn.Embedding(100, width)
        self.blocks = nn.ModuleList(block(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 100)

    def forward(self, x):
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Bottleneck(nn.Module):
    def __init__(self, inputs, inner, stride):
        super().__init__()
        outputs = 4 * inner
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(inputs, inner, 1, bias=False),
                nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
                nn.Conv2d(inner, outputs, 1, bias=False),
            ]
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (inner, inner, outputs))
        self.skip = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            y = y if i == 2 else torch.relu_(y)
        return torch.relu_(y + self.skip(x))


def resnet50():
    """The depths of ResNet-50, an eighth of its width."""
    layers, inputs = [nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)], 8
    for stage, depth in enumerate((3, 4, 6, 3)):
        for i in range(depth):
            inner = 8 << stage
            layers.append(Bottleneck(inputs, inner, 2 if stage and not i else 1))
            inputs = 4 * inner
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))
    kaiming = xinit.kaiming_normal(mode="fan_out", nonlinearity="relu")
    return xinit.init_(
        model,
        [{nn.Conv2d: kaiming, nn.Linear: lambda n, p, m: kaiming if p.dim() > 1 else None}, "torch"],
        xinit.Key(0),
    )


def of_transformers(name, **config):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    return kind(kind.config_class(**config))


SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}


def gpt2(**config):
    return of_transformers("GPT2LMHeadModel", **{"n_layer": 12, "n_embd": 64, "n_head": 4, "vocab_size": 100} | config)


def llama():
    return of_transformers("LlamaForCausalLM", **SMALL, vocab_size=100)


def vit():
    return of_transformers("ViTForImageClassification", **SMALL, image_size=32, patch_size=8)


def seeded(make):
    torch.manual_seed(0)
    return make()


SOUND = {
    "relu": lambda: (deep(30, nn.ReLU, xinit.kaiming_normal(nonlinearity="relu")), batch(64, 64)),
    "tanh": lambda: (deep(20, nn.Tanh, xinit.xavier_normal()), batch(64, 64)),
    "selu": lambda: (deep(30, nn.SELU, xinit.kaiming_normal(nonlinearity="linear")), batch(64, 64)),
    "gelu": lambda: (deep(30, nn.GELU, xinit.kaiming_normal(nonlinearity="gelu")), batch(64, 64)),
    "torch's own": lambda: (
        seeded(lambda: nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))),
        batch(32, 784),
    ),
    "lenet": lambda: (
        seeded(
            lambda: nn.Sequential(
                *(nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),
                *(nn.Flatten(), nn.Linear(256, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
            )
        ),
        image(28, 1, 16),
    ),
    "resnet50": lambda: (resnet50(), image(32)),
    "lstm": lambda: (seeded(lambda: nn.LSTM(32, 64, 2)), batch(20, 4, 32)),
    "post-norm": lambda: (
        seeded(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 6)),
        batch(4, 16, 64),
    ),
    "pre-norm": lambda: (seeded(Transformer), tokens()),
    "gpt2": lambda: (gpt2(), tokens()),
    "llama": lambda: (llama(), tokens()),
    "vit": lambda: (vit(), image(32)),
}
