"""What follows a weight: as a pass has shown, or as far as the order tells in which a model's modules were made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from xinit.observe.passes import watched
from xinit.parameters.names import canonical_name
from xinit.parameters.sites import sites_of
from xinit.scaling import calculate_gain

_ACTIVATION = re.compile(r".*(relu|gelu|[cs]?elu|silu|swish|mish|tanh|sigmoid|softplus|softsign|activation)\d?", re.I)


def gains(recipe: str, model: nn.Module, activations: Mapping[str, Any] | None, inputs: Any) -> dict[str, float]:
    """The gain that each parameter calls for, by name; 1 where nothing that calls for another one is known to follow.

    Args:
        recipe: who asks.
        model: the model.
        activations: what follows, by the parameter's name.
        inputs: a batch, to see what follows; None, as ``activations`` is too, to go by the order of modules.
    """
    if inputs is not None:
        return _seen(recipe, model, inputs)
    if activations is None:
        return _in_order(recipe, model)
    names = {canonical_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    if unknown := activations.keys() - names:
        raise ValueError(
            f"{recipe}: activations names {', '.join(sorted(unknown))}, which {type(model).__name__} lacks"
        )
    return {name: calculate_gain(activation) for name, activation in activations.items()}


def _seen(recipe: str, model: nn.Module, inputs: Any) -> dict[str, float]:
    """By what follows in a forward pass."""
    kwargs = inputs if isinstance(inputs, Mapping) else {}
    args = () if kwargs else tuple(inputs) if isinstance(inputs, tuple | list | Mapping) else (inputs,)
    if not args and not kwargs:
        raise ValueError(
            f"{recipe}: inputs is empty: pass what the model is called with, as in recipes.{recipe}(inputs=batch)"
        )
    layers = watched(recipe, model, args, kwargs).layers
    found = {
        id(parameter): calculate_gain(layer.activation.nonlinearity)
        for layer in layers
        if layer.activation is not None
        for parameter in layer.weights.values()
    }
    sites = sites_of(model, recipe, computed=True)
    return {site.name: found[id(site.parameter)] for site in sites if id(site.parameter) in found}


def _in_order(recipe: str, model: nn.Module) -> dict[str, float]:
    """By the order of modules. In a model without activations that are modules, ReLU is taken to follow each but the last."""
    sites = sites_of(model, recipe, computed=True)
    drawn = {part.name: site.name for site in sites for part in site.parts}  # others where a weight is computed from it
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
            waiting = [drawn.get(name, name) for name in waiting]
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
