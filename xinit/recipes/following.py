"""What follows a weight, as far as the order tells in which a model's modules were made."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from xinit.parameters.names import canonical_name
from xinit.scaling import calculate_gain

_ACTIVATION = re.compile(r".*(relu|gelu|[cs]?elu|silu|swish|mish|tanh|sigmoid|softplus|softsign|activation)\d?", re.I)


def gains(model: nn.Module, activations: Mapping[str, str] | None = None) -> dict[str, float]:
    """The gain that each parameter calls for, by name; 1 where nothing that calls for another one is known to follow.

    Args:
        model: the model.
        activations: what follows, by the parameter's name; None to go by the order of modules. In a model that has none that are
            modules, ReLU is taken to follow each but the last.
    """
    if activations is not None:
        return {name: calculate_gain(activation) for name, activation in activations.items()}
    found: dict[str, float] = {}
    waiting: list[str] = []
    several = False
    for path, module in model.named_modules():
        gain = _gain(module)
        if gain is not None:
            several = True
            found |= dict.fromkeys(waiting, gain)
            waiting = []
        prefix = canonical_name(path)
        matrices = [leaf for leaf, p in module._parameters.items() if p is not None and p.dim() > 1]
        if matrices and not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            waiting = [f"{prefix}.{leaf}" if prefix else leaf for leaf in matrices]
            found |= dict.fromkeys(waiting, 1.0)
    if several:
        return found
    return {name: 1.0 if name in waiting else calculate_gain("relu") for name in found}


def _gain(module: nn.Module) -> float | None:
    """Of a module that is an activation."""
    if next(module.children(), None) is not None or not _ACTIVATION.fullmatch(type(module).__name__):
        return None
    try:
        named = type(module).__name__.lower()
        if named in ("relu", "tanh", "sigmoid", "selu"):
            return calculate_gain(named)
        if isinstance(module, nn.LeakyReLU):
            return calculate_gain("leaky_relu", module.negative_slope)
        return calculate_gain(module)
    except ValueError:  # not elementwise, as a GLU
        return None
