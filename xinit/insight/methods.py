"""Which method suits a layer: by the activation that follows it, and by which of its axes are inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from xinit import distributions
from xinit._torch import ConvNd
from xinit.distributions import Distribution
from xinit.observe.activations import Activation
from xinit.observe.flow import Layer
from xinit.scaling import calculate_gain

_STEP = 10.0  # a slope that belongs to a jump


@dataclass(frozen=True, slots=True)
class Method:
    """A call of one of xinit's functions that make distributions."""

    function: str
    arguments: tuple[Any, ...] = ()
    named: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """As it is written."""
        shown = [*map(_shown, self.arguments), *(f"{name}={_shown(value)}" for name, value in self.named)]
        return f"xinit.{self.function}({', '.join(shown)})"

    @property
    def distribution(self) -> Distribution:
        made: Distribution = getattr(distributions, self.function)(*self.arguments, **dict(self.named))
        return made


def suited(layer: Layer, scale: float = 1.0, own_std: float | None = None) -> Method:
    """For the matrices of a layer: Kaiming where a rectifier follows, Xavier where a saturating function does, and unit variance
    where nothing does; an embedding as its own method has it.

    Args:
        layer: with the calls in which the activation was seen.
        scale: of all that.
        own_std: what the model's own code would draw with.
    """
    if layer.is_embedding:
        return Method("normal", (), (("std", round(own_std or 1.0, 4)),))
    kind = layer.activation
    axes = _axes(layer)
    if scale != 1 or axes:
        gain = _gain(kind) * scale
        return Method("variance_scaling", (round(gain * gain, 4), "fan_in", "normal"), axes)
    if kind is not None and _saturates(kind):
        return Method("xavier_normal", (round(_gain(kind), 4),))
    return Method("kaiming_normal", (), (("nonlinearity", kind.nonlinearity if kind else "linear"),))


def _gain(kind: Activation | None) -> float:
    """What an activation calls for: that it passes on what it gets; or, of one that saturates, gradients, by its slope at zero.
    With torch's 5 / 3 for tanh they grow from layer to layer."""
    if kind is None:
        return 1.0
    return round(1 / kind.slope, 2) if _saturates(kind) and kind.slope < _STEP else calculate_gain(kind.nonlinearity)


def _saturates(kind: Activation) -> bool:
    return not kind.rectifies and math.isfinite(kind.low + kind.high)


def _axes(layer: Layer) -> tuple[tuple[str, Any], ...]:
    """Which axes of its matrix are inputs, outputs, and of no fan, such as that of stacked experts, where torch has others."""
    matrix = next(parameter for parameter in layer.weights.values() if parameter.dim() > 1)
    conv = layer.module if isinstance(layer.module, ConvNd) else None
    axis = matrix.dim() - 2 if conv is None else 0
    inputs, outputs = (axis, axis + 1) if layer.is_transposed else (axis + 1, axis)
    axes = (("in_axis", inputs), ("out_axis", outputs)) if (inputs, outputs) != (1, 0) else ()
    if conv is not None:
        return axes + ((("groups", conv.groups),) if axes and conv.groups > 1 else ())
    return axes + ((("batch_axis", tuple(range(axis)) if axis > 1 else 0),) if axis else ())


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
