"""What a layer's weights are like: their size, units that are alike, and what the model's own code would have drawn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xinit.distributions import Distribution
from xinit.observe.flow import Layer, fans
from xinit.observe.meter import Meter, Moments, local
from xinit.recipes.own import OwnInit
from xinit.recipes.torch_modules import rule_of


@dataclass(slots=True)
class Weights:
    """What was measured of a layer's weights.

    Attributes:
        matrices: of its matrices, or of all weights if there are none.
        all: of each parameter, by its name in the module.
        equal: of its units, those with the same weights as another one.
        own_std: what the model's own code draws them with, if that is known.
    """

    matrices: Moments
    all: dict[str, Moments]
    equal: Moments
    own_std: float | None


def weigh(layer: Layer, meter: Meter) -> tuple[dict[str, int], int]:
    """Numbers of measurements: of each weight, and of units with equal weights."""
    with torch.no_grad():
        each = {leaf: meter.measure(parameter) for leaf, parameter in layer.weights.items()}
        matrix = next((parameter for parameter in layer.weights.values() if parameter.dim() > 1), None)
        rows = None if matrix is None or layer.is_embedding else _by_units(layer, local(matrix))
        equal = (0, torch.zeros((), device="cpu")) if rows is None else (rows.shape[0] * rows.shape[1], _equal(rows))
        return each, meter.note(*equal)


def _by_units(layer: Layer, matrix: Tensor) -> Tensor | None:
    """A weight as (groups, units of a group, inputs of a unit); None if no two units see the same inputs."""
    if matrix.dim() > 2 and fans(layer) == tuple(matrix.shape[:-3:-1]):
        matrix = matrix.flatten(0, -3)
        return matrix if matrix.shape[1] > 1 else None
    if layer.kind == "Conv1D":
        matrix = matrix.t()
    groups = getattr(layer.module, "groups", 1)
    if getattr(layer.module, "transposed", False):
        matrix = matrix.view(groups, -1, *matrix.shape[1:]).transpose(1, 2)
    elif not isinstance(groups, int) or matrix.shape[0] % groups:
        return None
    else:
        matrix = matrix.view(groups, -1, *matrix.shape[1:])
    matrix = matrix.flatten(2)
    return matrix if matrix.shape[1] > 1 and matrix.numel() else None


def _equal(rows: Tensor) -> Tensor:
    """How many rows, not all zero, are equal to another one of their group."""
    heads = rows[..., :32].double()
    marks = (heads * torch.linspace(1, 2, heads.shape[-1], dtype=heads.dtype, device=heads.device).sin()).sum(-1)
    order = marks.argsort(dim=1)
    ranked = marks.gather(1, order)
    alike = ranked[:, 1:] == ranked[:, :-1]  # candidates, for the whole rows are looked at only then
    if not alike.any():
        return torch.zeros((), device=rows.device)
    group, place = alike.nonzero(as_tuple=True)
    one, other = rows[group, order[group, place]], rows[group, order[group, place + 1]]
    same = ((one == other).all(1) & (one != 0).any(1)).nonzero().flatten()
    twins = torch.zeros_like(order, dtype=torch.bool)
    twins[group[same], place[same]] = True
    twins[group[same], place[same] + 1] = True
    return twins.sum()


def weights_of(layer: Layer, numbers: tuple[dict[str, int], int], values: Sequence[Moments], own: OwnInit) -> Weights:
    """From numbers of measurements to what they say."""
    each = {leaf: values[number] for leaf, number in numbers[0].items()}
    matrices = {leaf: parameter for leaf, parameter in layer.weights.items() if parameter.dim() > 1}
    matrices = matrices or {leaf: p for leaf, p in layer.weights.items() if leaf == "weight"} or layer.weights
    moments = Moments.together([each[leaf] for leaf in matrices])
    drawn = own_distribution(layer, next(iter(matrices)), own)
    return Weights(moments, each, values[numbers[1]], None if drawn is None else drawn.std)


def own_distribution(layer: Layer, leaf: str, own: OwnInit) -> Distribution | None:
    """What the model's own code, or torch's, draws a weight from; None if that is computed, or not known."""
    parameter = layer.weights[leaf]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model's own code is run again, without memory
        drawn, _ = own.of(parameter)
    kind: Any = type(layer.module)
    what = None if drawn is None else drawn.distribution
    if drawn is None and (rule := rule_of(kind)) is not None:
        what = rule(leaf, layer.module)
    return None if what is None else what.resolve(parameter.shape)
