"""What a distribution's width follows from: gains, fans, and the axes that make these up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from numbers import Real
from operator import index
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from xinit._torch import constant_when_compiled

TorchNonlinearity = Literal[
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "sigmoid", "tanh",
    "relu", "leaky_relu", "selu",
]  # fmt: skip
Nonlinearity = TorchNonlinearity | str | float | Callable[[Tensor], Tensor]
FanMode = Literal["fan_in", "fan_out"]
ScalingMode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
ScalingDistribution = Literal["truncated_normal", "normal", "uniform"]

Axes = int | Sequence[int]

TORCHS = frozenset(get_args(TorchNonlinearity))


def calculate_gain(nonlinearity: Nonlinearity, param: float | None = None) -> float:
    """The recommended gain for a nonlinearity: ``torch.nn.init.calculate_gain``, for any elementwise function.

    For torch's names it is torch's number. For anything else it is ``1 / sqrt(E[f(z)²])``, z standard normal, which keeps the
    mean square of activations from layer to layer (He et al. 2015), by quadrature, to ten digits. For "tanh", "sigmoid" and
    "selu" torch has other numbers than that, by experience: pass ``torch.tanh``, the function, for the other one.

    Args:
        nonlinearity: one of torch's names: "linear", "conv1d" to "conv3d", "conv_transpose1d" to "conv_transpose3d" or
            "sigmoid" (1), "tanh" (5/3), "relu" (sqrt 2), "leaky_relu" (sqrt(2 / (1 + param²))), "selu" (3/4); the name of another
            elementwise function of ``torch.nn.functional``, such as "gelu", "silu", "mish", or "gelu_tanh"; a function from
            tensor to tensor; a module, in evaluation mode; or a number: the gain itself.
        param: the negative slope of leaky_relu, 0.01 by default; alpha of elu and celu, beta of softplus, lambd of hardshrink and
            softshrink.

    Raises:
        ValueError: if the nonlinearity is none of these, or the function is not elementwise, gives NaN, or has no second moment
            but 0 or infinity; if the parameter is not a number, or the function has none.

    Example:
        >>> import torch, xinit
        >>> round(xinit.calculate_gain("leaky_relu", 0.2), 6), round(xinit.calculate_gain("gelu"), 6)
        (1.38675, 1.53353)
        >>> xinit.calculate_gain(lambda x: x.relu().square())
        0.8164965809
    """
    if not isinstance(nonlinearity, str) or nonlinearity not in TORCHS:
        return gain_of(nonlinearity, param)
    slope = slope_of(0.01 if param is None else param, nonlinearity)
    if not -math.inf < slope < math.inf:  # which torch.compile can trace, as it cannot math.isfinite
        raise ValueError(f"negative_slope {slope} not a valid number")
    gain: Any = torch.nn.init.calculate_gain  # in Python, which torch.compile can trace
    return float(gain(nonlinearity, slope))


def gain_of(nonlinearity: Any, param: float | None) -> float:
    """The gain of what torch has none for. From here on nothing is traced, but for a number, which may vary.

    "gain" is what operators call a number, which they take as the parameter.
    """
    if isinstance(nonlinearity, str) and nonlinearity == "gain":
        nonlinearity = param or 0
    if isinstance(nonlinearity, int | float | Real) and not isinstance(nonlinearity, bool):
        gain = float(nonlinearity)
        if not 0 < gain < math.inf:
            raise ValueError(f"nonlinearity as a number is the gain, finite and above 0, but found {gain}")
        return gain
    return _worked_out_gain(nonlinearity, param)


@constant_when_compiled
def _worked_out_gain(nonlinearity: object, param: float | None) -> float:
    gain: float = import_module("xinit.insight.gains").gain_of(nonlinearity, param)
    return gain


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
