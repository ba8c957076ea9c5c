"""``xinit demo``: a GPT-2 and a ResNet built deferred, each kind of layer beside what theory asks of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from math import inf, sqrt
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import xinit
from xinit._torch import fans_of
from xinit.cli import one_line
from xinit.parameters.table import table

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
    xinit.materialize_(model, device, key)
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return model


class Measured(NamedTuple):
    """Of the tensors of one kind and shape: the standard deviations, and how many standard errors they are apart."""

    theory: float
    std: float
    errors: float


def measured(rule: Rule, tensors: list[Tensor]) -> Measured:
    count = sum(tensor.numel() for tensor in tensors)
    fans = fans_of(tensors[0]) if rule.kurtosis else (0, 0)
    mean, theory = float(rule.method == "ones_"), rule.std(*fans)
    # About the mean of theory: a mean gone astray is a deviation too.
    squares = sum(float(torch.linalg.vector_norm(tensor - mean, dtype=torch.float64)) ** 2 for tensor in tensors)
    std, error = sqrt(squares / count), theory * sqrt(max(rule.kurtosis - 1, 0) / (4 * count))
    return Measured(theory, std, (std - theory) / error if error else inf if std else 0.0)


def line(rule: Rule, shapes: dict[Any, list[Tensor]]) -> tuple[list[str], bool]:
    """Of the table, for all weights of a kind, and whether each of their shapes is as it should be."""
    found = sorted(measured(rule, tensors) for tensors in shapes.values())
    worst = max((each.errors for each in found), key=abs)
    ends = found if len(found) == 1 else (found[0], found[-1]) if rule.kurtosis else found[:1]
    digits = 6 if len(ends) == 1 else 4
    arguments = (str(argument) for argument in rule.arguments if argument not in (0, "fan_in"))
    return [
        rule.kind,
        " ".join([rule.method.rstrip("_"), *arguments]),
        str(sum(map(len, shapes.values()))),
        "x".join(map(str, next(iter(shapes)))) if len(shapes) == 1 else f"{len(shapes)} shapes",
        "..".join(f"{each.theory:.{digits}f}" for each in ends),
        "..".join(f"{each.std:.{digits}f}" for each in ends),
        f"{worst:+.2f}" if rule.kurtosis else "",
        "ok" if abs(worst) <= LIMIT else "OFF",
    ], abs(worst) <= LIMIT


LEGEND = f"""\
theory, measured: standard deviations; of several shapes, the least and the largest
se: how far they are apart, in standard errors of the measured one; of several shapes, the farthest
OFF: farther than {LIMIT:g}, or a constant that is not one"""


def run(arguments: argparse.Namespace) -> int:
    """Print table, times and fingerprint. Returns 1 if a standard deviation is not what it should be, otherwise 0."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with one_line(f"--device {device}"):
        torch.empty(0, device=device)
    with one_line(f"--seed {arguments.seed}"):
        key = xinit.Key(arguments.seed)
    build_deferred(True, device, key)  # what is imported on first use is no part of the time
    theirs = ours = inf
    for number in range(1, ROUNDS + 1):
        print(f"round {number} of {ROUNDS}: torch.nn.init ", end="", flush=True)
        start = perf_counter()
        build(arguments.small)
        middle = perf_counter()
        print(f"{middle - start:.2f} s, xinit ", end="", flush=True)
        model = build_deferred(arguments.small, device, key)
        end = perf_counter()
        print(f"{end - middle:.2f} s", flush=True)
        theirs, ours = min(theirs, middle - start), min(ours, end - middle)

    kinds: dict[str, tuple[Rule, dict[Any, list[Tensor]]]] = {}
    for _, tensor, rule in weights(model):
        kinds.setdefault(rule.kind, (rule, {}))[1].setdefault(tuple(tensor.shape), []).append(tensor)
    elements = sum(parameter.numel() for parameter in model.parameters())
    lines, good = zip(*(line(*kind) for kind in kinds.values()), strict=True)
    print(f"\n{table(('kind', 'method', 'count', 'shape', 'theory', 'measured', 'se', ''), lines)}\n\n{LEGEND}\n")
    print(f"{elements:,} elements, best of {ROUNDS}: by torch.nn.init on the CPU in {theirs:.3f} s,")
    print(f"within deferred() by xinit on {device} in {ours:.3f} s, {theirs / ours:.1f} times as fast")
    print(f"fingerprint {xinit.fingerprint(model)}")
    return 0 if all(good) else 1
