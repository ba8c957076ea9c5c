"""What each module of torch.nn asks for in its ``reset_parameters``, as distributions."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from math import sqrt
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from xinit._torch import ConvNd, NormBase
from xinit.distributions import (
    Distribution,
    constant,
    kaiming_uniform,
    normal,
    ones,
    uniform,
    xavier_normal,
    xavier_uniform,
    zeros,
)

Rule = Callable[[str, Any], Distribution | None]  # of a parameter's name in its module, and the module


@lru_cache(256)  # of a model's modules, many are alike
def _linear(leaf: str, fan_in: int) -> Distribution | None:
    if leaf == "weight":
        return kaiming_uniform(sqrt(5))
    return _symmetric(fan_in) if leaf == "bias" else None


@lru_cache(256)
def _symmetric(width: int) -> Distribution:
    bound = 1 / sqrt(width) if width > 0 else 0.0
    return uniform(-bound, bound)


def _conv(leaf: str, module: ConvNd) -> Distribution | None:
    # torch's fan_in is that of the weight's axis 1, for transposed convolutions too.
    fan_in = (module.out_channels if module.transposed else module.in_channels) // module.groups
    for size in module.kernel_size:
        fan_in *= size
    return _linear(leaf, fan_in)


def _attention_output(leaf: str, module: NonDynamicallyQuantizableLinear) -> Distribution | None:
    return zeros() if leaf == "bias" else _linear(leaf, module.in_features)


def _attention(leaf: str, module: nn.MultiheadAttention) -> Distribution | None:
    if leaf in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        return xavier_uniform()
    if leaf in ("bias_k", "bias_v"):
        return xavier_normal()
    return zeros() if leaf == "in_proj_bias" else None


def _recurrent(leaf: str, module: nn.RNNBase | nn.RNNCellBase) -> Distribution | None:
    return _symmetric(module.hidden_size) if _RECURRENT.fullmatch(leaf) else None


@lru_cache
def scale_or_shift(leaf: str) -> Distribution | None:
    """A norm's."""
    return {"weight": ones(), "bias": zeros()}.get(leaf)


def _scale(leaf: str, module: nn.Module) -> Distribution | None:
    return scale_or_shift(leaf)


_RECURRENT = re.compile(r"(weight|bias)_(ih|hh|hr)(_l\d+(_reverse)?)?")

# The classes of torch.nn that have a reset_parameters of their own, but for those that only pass it on to their parts.
TORCH: dict[type[nn.Module], Rule] = {
    NonDynamicallyQuantizableLinear: _attention_output,
    nn.Linear: lambda leaf, module: _linear(leaf, module.in_features),
    nn.Bilinear: lambda leaf, module: _symmetric(module.in1_features) if leaf in ("weight", "bias") else None,
    ConvNd: _conv,
    nn.Embedding: lambda leaf, module: normal() if leaf == "weight" else None,
    nn.EmbeddingBag: lambda leaf, module: normal() if leaf == "weight" else None,
    nn.MultiheadAttention: _attention,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _recurrent,
    NormBase: _scale,
    nn.GroupNorm: _scale,
    nn.LayerNorm: _scale,
    nn.RMSNorm: _scale,
    nn.PReLU: lambda leaf, module: constant(module.init) if leaf == "weight" else None,
}


def resets_as(kind: type[nn.Module], base: type[nn.Module]) -> bool:
    """Whether a class is the base or derived from it, and no subclass has a reset_parameters of its own."""
    return issubclass(kind, base) and all(
        getattr(kind, method, None) is getattr(base, method, None)
        for method in ("reset_parameters", "_reset_parameters")
    )


@lru_cache
def rule_of(kind: type[nn.Module]) -> Rule | None:
    """What modules of that class ask for, if it is known."""
    return next((rule for base, rule in TORCH.items() if resets_as(kind, base)), None)
