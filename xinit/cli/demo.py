"""``xinit demo``: a GPT-2 and a ResNet built deferred, each kind of layer beside what theory asks of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from importlib.util import find_spec
from math import inf, sqrt
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import xinit
from xinit.cli import one_line

ROUNDS = 3  # of each way in turn; the best counts
LIMIT = 5.0  # standard errors


class Rule(NamedTuple):
    """How a kind of weight is initialised, and the standard deviation that this should give."""

    names: str  # a pattern
    kind: str
    method: str  # of torch.nn.init
    arguments: tuple[float | str, ...]
    std: Callable[[int, int], float]  # of fan_in and fan_out
    kurtosis: float  # for the standard error of a measured std; 0 for a constant


def xavier(fan_in: int, fan_out: int) -> float:
    return sqrt(2 / (fan_in + fan_out))


NORMAL, UNIFORM, TRUNCATED = 3.0, 1.8, 2.3655
RULES = (  # the first that fits
    Rule("*.tokens.weight", "tokens", "normal_", (0, 0.02), lambda i, o: 0.02, NORMAL),
    # Truncated at 2 std, 0.87963 of the std is left.
    Rule("*.positions.weight", "positions", "trunc_normal_", (0, 0.02, -0.04, 0.04), lambda i, o: 0.0175925, TRUNCATED),
    Rule("*.qkv.weight.?", "attn qkv", "xavier_uniform_", (), xavier, UNIFORM),
    Rule("*.out.weight", "attn out", "xavier_normal_", (), xavier, NORMAL),
    Rule("*.up.weight", "MLP up", "xavier_normal_", (), xavier, NORMAL),
    # After GELU, which passes on about as much as ReLU.
    Rule("*.down.weight", "MLP down", "kaiming_normal_", (0, "fan_in", "relu"), lambda i, o: sqrt(2 / i), NORMAL),
    Rule("*.conv*.weight", "conv", "kaiming_normal_", (0, "fan_out", "relu"), lambda i, o: sqrt(2 / o), NORMAL),
    Rule("*.head.weight", "head", "kaiming_uniform_", (0, "fan_in", "linear"), lambda i, o: sqrt(1 / i), UNIFORM),
    Rule("*norm*.weight", "norm", "ones_", (), lambda i, o: 0.0, 0.0),
    Rule("*.bias", "bias", "zeros_", (), lambda i, o: 0.0, 0.0),
)
SIZES = ((50257, 768, 12, 1024), (64, (3, 4, 6, 3), 1000))
SMALL_SIZES = ((1024, 64, 2, 128), (8, (1, 1), 10))


def transformer(vocabulary: int, width: int, depth: int, context: int) -> nn.Module:
    """The weights of a GPT-2; its head is tied to ``tokens``."""

    def block() -> nn.Module:
        attention = {"norm1": nn.LayerNorm(width), "qkv": nn.Linear(width, 3 * width), "out": nn.Linear(width, width)}
        mlp = {"norm2": nn.LayerNorm(width), "up": nn.Linear(width, 4 * width), "down": nn.Linear(4 * width, width)}
        return nn.ModuleDict(attention | mlp)

    tables = {"tokens": nn.Embedding(vocabulary, width), "positions": nn.Embedding(context, width)}
    blocks = nn.ModuleList(block() for _ in range(depth))
    return nn.ModuleDict(tables | {"blocks": blocks, "norm": nn.LayerNorm(width)})


def resnet(width: int, depths: tuple[int, ...], classes: int) -> nn.Module:
    """The weights of a bottleneck ResNet; with group norms, which have no buffers."""

    def conv(name: str, inputs: int, outputs: int, size: int) -> dict[str, nn.Module]:
        norm = nn.GroupNorm(min(32, outputs), outputs)
        return {f"conv{name}": nn.Conv2d(inputs, outputs, size, bias=False), f"norm{name}": norm}

    layers, inputs = conv("", 3, width, 7), width
    for stage, depth in enumerate(depths):
        inner, outputs = width << stage, 4 * width << stage
        for i in range(depth):
            block = {**conv("1", inputs, inner, 1), **conv("2", inner, inner, 3), **conv("3", inner, outputs, 1)}
            layers[f"stage{stage}_{i}"] = nn.ModuleDict(block | ({} if i else conv("_skip", inputs, outputs, 1)))
            inputs = outputs
    return nn.ModuleDict({**layers, "head": nn.Linear(inputs, classes)})


def weights(model: nn.Module) -> Iterable[tuple[str, Tensor, Rule]]:
    """Every weight with its name and rule. A fused qkv is three weights: the fans are those of each."""
    for name, parameter in model.named_parameters():
        fused = name.endswith("qkv.weight")
        for part, tensor in enumerate(parameter.detach().chunk(3 if fused else 1)):
            full = f"{name}.{'qkv'[part]}" if fused else name
            yield full, tensor, next(rule for rule in RULES if fnmatchcase(full, rule.names))


def build(small: bool) -> nn.Module:
    """Both models, by constructors that know nothing of xinit, and the weights by ``torch.nn.init``."""
    gpt2, resnet50 = SMALL_SIZES if small else SIZES
    model = nn.ModuleDict({"gpt2": transformer(*gpt2), "resnet": resnet(*resnet50)})
    for _, tensor, rule in weights(model):
        getattr(torch.nn.init, rule.method)(tensor, *rule.arguments)
    return model


def build_deferred(small: bool, device: str, key: xinit.Key) -> nn.Module:
    """The same, each weight drawn once, from the key of its name."""
    with xinit.deferred():
        model = build(small)
    bar = sys.stderr.isatty() and find_spec("tqdm") is not None
    xinit.materialize_(model, device, key, progress=bar)
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return model


def report(rule: Rule, tensors: list[Tensor]) -> tuple[list[str], bool]:
    """One row of the table, and whether the measured standard deviation is as it should be."""
    count = sum(tensor.numel() for tensor in tensors)
    fans = torch.nn.init._calculate_fan_in_and_fan_out(tensors[0]) if rule.kurtosis else (0, 0)
    mean, theory = float(rule.method == "ones_"), rule.std(*fans)
    # About the mean of theory: a mean gone astray is a deviation too.
    squares = sum(float(torch.linalg.vector_norm(tensor - mean, dtype=torch.float64)) ** 2 for tensor in tensors)
    measured, error = sqrt(squares / count), theory * sqrt(max(rule.kurtosis - 1, 0) / (4 * count))
    deviation = (measured - theory) / error if error else inf if measured else 0.0
    good = abs(deviation) <= LIMIT
    shapes = ["x".join(map(str, shape)) for shape in sorted({tuple(tensor.shape) for tensor in tensors})]
    return [
        rule.kind,
        " ".join([rule.method.rstrip("_"), *(str(argument) for argument in rule.arguments if argument)]),
        str(len(tensors)),
        shapes[0] if len(shapes) == 1 else f"{shapes[0]}..{shapes[-1]}",
        f"{fans[0]}/{fans[1]}" if rule.kurtosis else "",
        f"{theory:.6f}",
        f"{measured:.6f}",
        f"{deviation:+.2f} se" if error else "",
        "ok" if good else "OFF",
    ], good


def run(arguments: argparse.Namespace) -> int:
    """Print table, times and fingerprint. Returns 1 if a standard deviation is not what it should be, otherwise 0."""
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with one_line(f"--device {arguments.device}"):
        torch.empty(0, device=arguments.device)
    with one_line(f"--seed {arguments.seed}"):
        key = xinit.Key(arguments.seed)
    theirs = ours = inf
    for _ in range(ROUNDS):
        start = perf_counter()
        build(arguments.small)
        middle = perf_counter()
        model = build_deferred(arguments.small, arguments.device, key)
        theirs, ours = min(theirs, middle - start), min(ours, perf_counter() - middle)

    groups: dict[Any, tuple[Rule, list[Tensor]]] = {}  # by kind and shape; constants by kind
    for _, tensor, rule in weights(model):
        groups.setdefault((rule.kind, rule.kurtosis and tensor.shape), (rule, []))[1].append(tensor)
    rows, good = zip(*(report(*group) for group in groups.values()), strict=True)
    header = ["kind", "method", "count", "shape", "fan in/out", "theory", "measured", "deviation", ""]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        cells = [f"{cell:{'<<>>>>>><'[i]}{widths[i]}}" for i, cell in enumerate(row)]
        print("  ".join(cells).rstrip())

    elements = sum(parameter.numel() for parameter in model.parameters())
    print(f"\n{elements:,} elements on {arguments.device}: deferred and materialised in {ours:.4f} s")
    print(f"plain constructors and torch.nn.init, on the CPU: {theirs:.4f} s, {theirs / ours:.2f} times as long")
    print(f"fingerprint {xinit.fingerprint(model)}")
    return 0 if all(good) else 1
