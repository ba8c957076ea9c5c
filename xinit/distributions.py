"""Distributions as values, and many tensors filled at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xinit.init import calculate_gain
from xinit.keys import Key

_fill_many_ = torch.ops.xinit.fill_many_.default


@dataclass(frozen=True, slots=True)
class Distribution:
    """What to draw. Made by :func:`normal`, :func:`kaiming_uniform` and the like; equal parameters make equal values.

    Attributes:
        name: "uniform", "normal", "truncated_normal" or "constant".
        parameters: as the function of that name takes them; with a fan, the gain alone.
        fan: "fan_in", "fan_out" or "fan_avg" if the standard deviation is gain / sqrt(fan), else "".
    """

    name: str
    parameters: tuple[float, ...]
    fan: str = ""


def uniform(a: float = 0.0, b: float = 1.0) -> Distribution:
    """U(a, b), as :func:`xinit.uniform_` draws it."""
    return Distribution("uniform", (a, b))


def normal(mean: float = 0.0, std: float = 1.0) -> Distribution:
    """N(mean, std²), as :func:`xinit.normal_` draws it."""
    return Distribution("normal", (mean, std))


def trunc_normal(mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Distribution:
    """N(mean, std²) truncated to [a, b], as :func:`xinit.trunc_normal_` draws it."""
    return Distribution("truncated_normal", (mean, std, a, b))


def xavier_uniform(gain: float = 1.0) -> Distribution:
    """Xavier's uniform distribution, as :func:`xinit.xavier_uniform_` draws it."""
    return Distribution("uniform", (gain,), "fan_avg")


def xavier_normal(gain: float = 1.0) -> Distribution:
    """Xavier's normal distribution, as :func:`xinit.xavier_normal_` draws it."""
    return Distribution("normal", (gain,), "fan_avg")


def kaiming_uniform(a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Distribution:
    """Kaiming's uniform distribution, as :func:`xinit.kaiming_uniform_` draws it."""
    return Distribution("uniform", (calculate_gain(nonlinearity, a),), mode)


def kaiming_normal(a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Distribution:
    """Kaiming's normal distribution, as :func:`xinit.kaiming_normal_` draws it."""
    return Distribution("normal", (calculate_gain(nonlinearity, a),), mode)


def variance_scaling(scale: float = 1.0, mode: str = "fan_in", distribution: str = "truncated_normal") -> Distribution:
    """Variance ``scale / fan``, as :func:`xinit.variance_scaling_` draws it."""
    return Distribution(distribution, (scale**0.5,), mode)


def constant(value: float) -> Distribution:
    """The value itself."""
    return Distribution("constant", (value,))


def zeros() -> Distribution:
    """Zero."""
    return constant(0.0)


def ones() -> Distribution:
    """One."""
    return constant(1.0)


def fill_many_(tensors: Sequence[Tensor], distributions: Sequence[Distribution], keys: Sequence[Key]) -> None:
    """Fill many tensors at once: tensor i from distribution i with key i, each with the bits that it would get alone.

    All tensors of a device are checked before the first of them changes. On a CPU all of them are shared out among the
    threads as one; on a GPU the contiguous ones take one launch for each seed among the keys, however many they are.

    Args:
        tensors: of any shapes, strides and supported dtypes, on any devices.
        distributions: as many.
        keys: as many.

    Raises:
        ValueError: if the numbers differ, or a distribution does not fit its tensor; see :mod:`xinit.init` for the rest.

    Example:
        >>> import torch, xinit
        >>> w, b = torch.empty(4, 3), torch.empty(4)
        >>> key = xinit.Key(0)
        >>> xinit.fill_many_([w, b], [xinit.kaiming_normal(), xinit.zeros()], [key.fold_in("w"), key.fold_in("b")])
        >>> torch.equal(w, xinit.kaiming_normal_(torch.empty(4, 3), key=key.fold_in("w")))
        True
    """
    if not len(tensors) == len(distributions) == len(keys):
        raise ValueError(
            f"fill_many_: as many tensors, distributions and keys are needed, "
            f"but found {len(tensors)}, {len(distributions)} and {len(keys)}"
        )
    devices: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"fill_many_: tensors must be torch.Tensors, but found {type(tensor).__name__} at index {i}"
            )
        devices.setdefault(tensor.device, []).append(i)
    for indices in devices.values():
        chosen = [distributions[i] for i in indices]
        _fill_many_(
            [tensors[i] for i in indices],
            [d.name for d in chosen],
            [d.fan for d in chosen],
            [p for d in chosen for p in (*d.parameters, 0.0, 0.0, 0.0)[:4]],
            [word for i in indices for word in keys[i].words],
        )
