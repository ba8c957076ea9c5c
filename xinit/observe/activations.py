"""What an elementwise function does to large values of either sign, found out by calling it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xinit.scaling import calculate_gain

_REACH, _STEP = 40.0, 1 / 64  # of the values that a function is tried with
_FLAT = 0.05  # of the steepest slope: what a gradient hardly comes through


@dataclass(frozen=True, slots=True)
class Activation:
    """An elementwise function.

    Attributes:
        name: torch's, if it is one of torch's functions, or else its class's.
        low: below this value the slope is under 5 % of the steepest; -inf if there is none such.
        high: and above this one.
        slope: at zero.
        rectifies: whether it gives about 0 below ``low``, so that a unit which stays there is dead.
        call: the function.
    """

    name: str
    low: float
    high: float
    slope: float
    rectifies: bool
    call: Callable[[Tensor], Tensor]

    @property
    def nonlinearity(self) -> str | float:
        """What the argument of that name is given: a name, or the gain of what has none."""
        try:
            calculate_gain(self.name)
        except ValueError:
            return round(calculate_gain(self.call), 4)
        return self.name


def probe(call: Callable[[Tensor], Tensor], name: str) -> Activation | None:
    """What kind of activation that is; None if it is not elementwise, linear, random, or not to be called with a vector."""
    grid = _grid()
    try:
        values = call(grid.clone())
        turned = call(grid.flip(0)).flip(0)
        part = call(grid[100:200].clone())
        beside_zero = call(torch.tensor((-1.0, 1.0), device="cpu") / 1024)
    except Exception:
        return None
    if not isinstance(values, Tensor) or values.shape != grid.shape or not values.isfinite().all():
        return None
    if not (torch.allclose(values, turned, atol=1e-5) and torch.allclose(values[100:200], part, atol=1e-5)):
        return None
    slopes = values.double().diff() / _STEP
    steepest = slopes.abs().max()
    near = slopes[(grid[:-1].abs() <= 1)].abs().max()
    if steepest == 0 or bool((slopes - slopes[0]).abs().max() < 1e-4 * steepest):
        return None
    if near > 0:  # that of a square grows without bound, and is no measure of what is flat
        steepest = torch.minimum(steepest, 2 * near)
    live = (slopes.abs() >= _FLAT * steepest).nonzero().flatten()
    first, last = int(live[0]), int(live[-1])
    low = -math.inf if first == 0 else float(grid[first])
    high = math.inf if last == len(slopes) - 1 else float(grid[last + 1])
    at_zero, lowest = float(values[len(grid) // 2]), float(values[0])
    rectifies = low > -math.inf and (math.isinf(high) or (abs(at_zero) < 1e-3 and abs(lowest) < 1e-3))
    slope = 512 * abs(float(beside_zero[1] - beside_zero[0]))
    return Activation(_known_as(values) or name, low, high, slope or 1.0, rectifies, call)


def self_gated(x: Tensor, result: Tensor) -> Activation | None:
    """The activation, such as ``x * sigmoid(x)``, that has made a result of x, or of 2 x; None if that is no such one."""
    some, found = (tensor.detach().flatten()[:1024].float().cpu() for tensor in (x, result))
    for activation in _self_gated():
        for scale in 1, 2:
            if some.any() and torch.allclose(
                activation.call(scale * some), found, rtol=0.02, atol=1e-3 * float(found.abs().max())
            ):
                return activation
    return None


@cache
def _self_gated() -> list[Activation]:
    named: dict[str, Any] = {function.__name__: function for function in (F.silu, F.gelu, F.mish, F.hardswish)}
    named["quick_gelu"] = lambda x: x * torch.sigmoid(1.702 * x)
    return [found for name, call in named.items() if (found := probe(call, name)) is not None]


def _grid() -> Tensor:
    return torch.arange(-_REACH, _REACH + _STEP, _STEP, dtype=torch.float32, device="cpu")


def _known_as(values: Tensor) -> str | None:
    return next((name for name, known in _known().items() if torch.allclose(values, known, atol=1e-5)), None)


@cache
def _known() -> dict[str, Tensor]:
    grid = _grid()
    tanh_gelu = {"gelu_tanh": F.gelu(grid, approximate="tanh")}
    return {function.__name__: function(grid) for function in _NAMED} | tanh_gelu


_NAMED: tuple[Any, ...] = (
    *(F.relu, F.gelu, F.silu, F.mish, torch.tanh, torch.sigmoid, F.elu, F.selu, F.leaky_relu, F.relu6),
    *(F.hardtanh, F.hardswish, F.hardsigmoid, F.softplus, F.softsign, F.tanhshrink, F.logsigmoid),
)

# The functions that are activations wherever they come, by name; others are looked for in modules of their own alone.
NAMES = frozenset(
    name + suffix
    for name in (
        *(
            "relu",
            "relu6",
            "gelu",
            "silu",
            "mish",
            "tanh",
            "sigmoid",
            "elu",
            "selu",
            "celu",
            "leaky_relu",
            "rrelu",
            "prelu",
        ),
        *("hardtanh", "hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid", "tanhshrink", "softshrink"),
        *("hardshrink", "threshold", "clamp", "clamp_min", "erf", "sin"),
    )
    for suffix in ("", "_")
)
