"""Which tensors come from which layers: what flows through a model, seen between one layer and the next."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from xinit._torch import ConvNd, NormBase
from xinit.observe.activations import Activation
from xinit.parameters.computed import computed_of

ADDITIONS = frozenset(("add", "add_", "__add__", "__iadd__", "__radd__"))
MULTIPLICATIONS = frozenset(("mul", "mul_", "__mul__", "__imul__", "__rmul__", "multiply"))
NORMS = re.compile(r"(native_)?(layer|rms|batch|group|instance)_norm")
_NORM_TYPE = re.compile(r".*(layer|rms|batch|group|instance)_?norm.*|.*norm(\d?d)?")
_NO_NORM = re.compile(r".*(weight|spectral|response)_?norm")
PRODUCTS = re.compile(
    r"linear|bilinear|conv(_transpose)?[123]d|embedding(_bag)?|lstm|gru|rnn_(tanh|relu)|multi_head_attention_forward|\w+_cell"
)
MATMULS = re.compile(r"__r?matmul__|matmul|mm|bmm|addmm|baddbmm|einsum|_?grouped_mm|tensordot")


@dataclass(slots=True, eq=False)
class Layer:
    """What holds weights: a module, or a parameter that is used outside of one.

    Attributes:
        name: the module's, or the parameter's.
        module: that owns the weights.
        weights: the names in the module, and the parameters.
        calls: how often it has been used.
    """

    name: str
    module: nn.Module
    weights: dict[str, nn.Parameter]
    calls: list[Call] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return type(self.module).__name__

    @property
    def activation(self) -> Activation | None:
        """That follows it, in the first call in which one does."""
        return next((call.activation for call in self.calls if call.activation is not None), None)

    def parameter_name(self, leaf: str) -> str:
        """The full name of one of its weights."""
        if self.name == "(model)":
            return leaf
        return self.name if self.name.rpartition(".")[2] == leaf and len(self.weights) == 1 else f"{self.name}.{leaf}"

    @property
    def is_norm(self) -> bool:
        return is_norm(self.module) and all(p.dim() == 1 for p in self.weights.values())

    @property
    def is_transposed(self) -> bool:
        """Whether its matrix has the inputs where others have the outputs."""
        of_conv = isinstance(self.module, ConvNd) and self.module.transposed
        return of_conv or self.kind == "Conv1D" or any(call.transposed for call in self.calls)

    @property
    def is_embedding(self) -> bool:
        return isinstance(self.module, nn.Embedding | nn.EmbeddingBag)


@dataclass(slots=True, eq=False)
class Call:
    """One use of a layer. Numbers are those of the meter.

    Attributes:
        layer: the layer.
        source: what came in.
        entered: measured of what came in, unless it is of integers.
        left: of what went out, before the activation.
        activation: that follows, if one does before the next layer.
        activated: measured behind it.
        dead: of its units, those that stay below where it lives.
        saturated: of its values, those beyond.
        gradient: of the loss with respect to what went out.
        scale: as a tag's, of what went out.
        units: the size of the axis that has the units.
        transposed: whether the inputs are on the last axis but one of the matrix, for ``x @ w``.
        added: whether something else is added to what comes of it.
    """

    layer: Layer
    source: Tag
    entered: int | None = None
    left: int | None = None
    activation: Activation | None = None
    activated: int | None = None
    dead: int | None = None
    saturated: int | None = None
    gradient: int | None = None
    scale: frozenset[int] = frozenset()
    units: int = 0
    transposed: bool = False
    added: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A sum on a residual path.

    Attributes:
        before: the sum that another branch has been added to; None for the first.
        start: measured of what the first branch was added to.
        value: measured of the sum.
        writers: what was added came from.
        scale: as a tag's, of what was added.
    """

    before: Stream | None
    start: int
    value: int
    writers: frozenset[Call]
    scale: frozenset[int]


@dataclass(frozen=True, slots=True, eq=False)
class Tag:
    """What is known of a tensor.

    Attributes:
        calls: the layers that it comes from, with no other layer in between.
        scale: measured where the signal set out: at the model's input, or an embedding; 1 after a norm. The largest counts.
        stream: the residual sum that it is, if no layer has come after it.
        weight: the layer of which it is a weight, or computed from one, and not from what flows.
    """

    calls: frozenset[Call] = frozenset()
    scale: frozenset[int] = frozenset()
    stream: Stream | None = None
    weight: Layer | None = None


def merged(tags: Iterable[Tag]) -> Tag:
    """Of what is computed from several tensors."""
    known = list(dict.fromkeys(tag for tag in tags if tag.weight is None))
    if len(known) < 2:
        return known[0] if known else Tag()
    streams = [tag.stream for tag in known if tag.stream is not None]
    calls, scale = (frozenset[Any]().union(*sets) for sets in zip(*((t.calls, t.scale) for t in known), strict=True))
    return Tag(calls, scale, streams[0] if streams else None)


def comes_from(tag: Tag, other: Tag) -> bool:
    """Whether one tensor was computed from the other by at least one layer."""
    seen: set[Call] = set()
    left = list(tag.calls - other.calls)
    while left:
        call = left.pop()
        if call.source is other:
            return True
        if call not in seen:
            seen.add(call)
            left += call.source.calls - other.calls
    return False


def paths(streams: Iterable[Stream]) -> list[list[Stream]]:
    """The sums of each residual path, the last one first."""
    streams = list(streams)
    inner = {stream.before for stream in streams}
    found = []
    for stream in streams:
        if stream not in inner:
            sums = [stream]
            while (before := sums[-1].before) is not None:
                sums.append(before)
            found.append(sums)
    return found


def is_norm(module: nn.Module) -> bool:
    """Whether it normalises what goes through it, as its class's name says."""
    name = type(module).__name__.lower()
    return _NORM_TYPE.fullmatch(name) is not None and _NO_NORM.match(name) is None


def layers_of(named: Mapping[str, nn.Module]) -> dict[nn.Module, dict[str, nn.Parameter]]:
    """The modules that hold weights themselves, and these."""
    owned = ((m, {leaf: p for leaf, p in m._parameters.items() if p is not None}) for m in named.values())
    return {module: weights for module, weights in owned if weights}


def computed_in(named: Mapping[str, nn.Module]) -> dict[tuple[nn.Module, str], tuple[nn.Module, str]]:
    """The parameters that stand for weights which are computed from them, as those of ``torch.nn.utils.parametrizations``: from
    where they are to the module whose weight that is, and the weight's name."""
    found = {}
    for module in named.values():
        for name, weight in computed_of(module).items():
            for leaf, parameter in weight.parameters.items():
                if parameter is weight.like:
                    owner, _, last = leaf.rpartition(".")
                    found[module.get_submodule(owner), last] = module, name
    return found


def fans(layer: Layer) -> tuple[int, int] | None:
    """fan_in and fan_out of its first matrix, if it multiplies by one."""
    matrix = next((p for p in layer.weights.values() if p.dim() >= 2), None)
    if matrix is None or layer.is_embedding:
        return None
    shape, module = tuple(matrix.shape), layer.module
    receptive = 1
    for size in shape[2:] if isinstance(module, ConvNd) else ():
        receptive *= size
    if isinstance(module, ConvNd) and module.transposed:
        return shape[0] // module.groups * receptive, shape[1] * receptive
    if isinstance(module, ConvNd):
        return shape[1] * receptive, shape[0] // module.groups * receptive
    rows, columns = shape[-2:]
    return (rows, columns) if layer.is_transposed else (columns, rows)


def unit_axis(layer: Layer, value: Tensor) -> int:
    """The axis of a layer's output that has its units."""
    by_channel = isinstance(layer.module, ConvNd | NormBase | nn.GroupNorm) and value.dim() > 1
    return 1 if by_channel else -1


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from tensors(part)
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        for name in value.__dataclass_fields__:
            yield from tensors(getattr(value, name, None))
