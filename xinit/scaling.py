"""What a distribution's width follows from: gains, fans, and the axes that make these up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import Any, Literal

import torch
from torch import Tensor

Nonlinearity = Literal[
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "sigmoid", "tanh",
    "relu", "leaky_relu", "selu",
]  # fmt: skip
FanMode = Literal["fan_in", "fan_out"]
ScalingMode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
ScalingDistribution = Literal["truncated_normal", "normal", "uniform"]

Axes = int | Sequence[int]


def calculate_gain(nonlinearity: Nonlinearity, param: float | None = None) -> float:
    """The recommended gain for a nonlinearity, as ``torch.nn.init.calculate_gain``.

    Args:
        nonlinearity: "linear", "conv1d" to "conv3d", "conv_transpose1d" to "conv_transpose3d" or "sigmoid" (1), "tanh" (5/3),
            "relu" (sqrt 2), "leaky_relu" (sqrt(2 / (1 + param²))) or "selu" (3/4).
        param: the negative slope of leaky_relu, 0.01 by default.

    Raises:
        ValueError: if the nonlinearity is another one, or the slope not a number.

    Example:
        >>> import xinit
        >>> round(xinit.calculate_gain("leaky_relu", 0.2), 6)
        1.38675
    """
    slope = slope_of(0.01 if param is None else param, nonlinearity)
    if not -math.inf < slope < math.inf:  # which torch.compile can trace, as it cannot math.isfinite
        raise ValueError(f"negative_slope {slope} not a valid number")
    gain: Any = torch.nn.init.calculate_gain  # in Python, which torch.compile can trace
    return float(gain(nonlinearity, slope))


def slope_of(a: Any, nonlinearity: str) -> float:
    """The negative slope, checked as torch checks it: only where it is used."""
    if nonlinearity != "leaky_relu":
        return 0.0
    if a is None:
        return 0.01
    if isinstance(a, bool) or not isinstance(a, (int, float)):
        raise ValueError(f"negative_slope {a} not a valid number")
    return float(a)


def axes_of(op: str, argument: str, value: Axes) -> tuple[int, ...]:
    """One axis or several, as a tuple."""
    try:
        return tuple(map(index, value)) if isinstance(value, Sequence) else (index(value),)
    except TypeError:
        found = "a tensor" if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"{op}: {argument} must be an axis or a sequence of axes, but found {found}") from None
