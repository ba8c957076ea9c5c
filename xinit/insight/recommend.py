"""Which initialisation? Seen from what follows each weight in a forward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from xinit.distributions import Distribution, normal, ones, zeros
from xinit.insight.methods import suited
from xinit.insight.weights import own_distribution
from xinit.observe.flow import Layer, paths
from xinit.observe.passes import watched
from xinit.parameters.plans import describe
from xinit.parameters.sites import sites_of
from xinit.parameters.table import table
from xinit.recipes.guesses import LORA
from xinit.recipes.own import OwnInit


@dataclass(frozen=True, slots=True)
class Advice:
    """What a parameter is best drawn from.

    Attributes:
        name: the parameter's.
        activation: what follows its layer, or "".
        method: the distribution, as it is written.
        std: of what it draws.
        why: in a few words.
    """

    name: str
    activation: str
    method: str
    std: float
    why: str


class Recommendation(dict[str, Distribution]):
    """What :func:`recommend` gives: a recipe, from parameters' names to distributions, which prints with its reasons.

    Attributes:
        rows: the reasons, one for each parameter.
        activations: what follows each layer that an activation follows, by the names of its weights.
    """

    def __init__(self, found: dict[str, tuple[Distribution, Advice]]) -> None:
        super().__init__({name: distribution for name, (distribution, _) in found.items()})
        self.rows = tuple(advice for _, advice in found.values())
        self.activations = {advice.name: advice.activation for advice in self.rows if advice.activation}

    def __str__(self) -> str:
        cells = [(row.name, row.activation, row.method, f"{row.std:.3g}", row.why) for row in self.rows]
        return table(("parameter", "activation", "method", "std", "why"), cells)


def recommend(model: nn.Module, *inputs: Any, **kwargs: Any) -> Recommendation:
    """A recipe for a model, by what follows each of its weights in one forward pass, with reasons.

    Matrices before a rectifier, such as ReLU or GELU, get Kaiming's variance with its gain; those before a function that
    saturates, such as tanh, Xavier's; others, heads among them, such that they pass on what they get. The last layers of the n
    branches that add up to a residual path are scaled by 1 / sqrt(n). Embeddings, and parameters that are no product's factor,
    are drawn as the model's own code does it, norms are one, or what that code makes them, and biases zero.

    Args:
        model: as for :func:`xinit.diagnose`, and so are ``inputs`` and ``kwargs``.

    Returns:
        A recipe that prints as a table, for :func:`xinit.init_`.

    Raises:
        As :func:`xinit.diagnose`.

    Source: He et al. 2015 and Glorot & Bengio 2010 for the methods; Radford et al. 2019 and, without norms, Zhang et al. 2019
    ("Fixup initialization") for the branches.

    Example:
        >>> import torch, xinit
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 10))
        >>> recipe = xinit.recommend(model, torch.ones(2, 64))
        >>> print(recipe)
        parameter  activation  method                              std  why
        0.weight   gelu        kaiming_normal fan_in gain 1.53   0.192  gelu rectifies
        0.bias                 zeros                                 0  bias
        2.weight               kaiming_normal fan_in            0.0884  head
        2.bias                 zeros                                 0  bias
        >>> _ = xinit.init_(model, recipe, xinit.Key(0))
    """
    seen = watched("recommend", model, inputs, kwargs)
    own = OwnInit(seen.model)
    names = {id(site.parameter): site.name for site in sites_of(seen.model, "recommend", computed=True)}
    inner = {call for call in seen.watch.calls for call in call.source.calls}
    heads = {call.layer for call in seen.watch.calls if call not in inner} - {call.layer for call in inner}
    branches = {call.layer: len(sums) for sums in paths(seen.watch.streams) for one in sums for call in one.writers}
    found: dict[str, tuple[Distribution, Advice]] = {}
    for layer in seen.layers:
        for leaf, parameter in layer.weights.items():
            name = names.pop(id(parameter), None)  # a tied one is where it comes first
            if name is None:
                continue
            if LORA.fullmatch(name):
                advice = _adapter(name, own_distribution(layer, leaf, own))
            else:
                advice = _advice(layer, leaf, branches.get(layer, 1), layer in heads, own)
            if advice is not None:
                what, why = advice
                kind = layer.activation if parameter.dim() > 1 else None
                std = what.resolve(parameter.shape).std
                found[name] = what, Advice(name, kind.name if kind else "", describe(what), std, why)
    return Recommendation(found)


def _advice(layer: Layer, leaf: str, branches: int, head: bool, own: OwnInit) -> tuple[Distribution, str] | None:
    """What a weight is to be drawn from, and why; None for what the model's own code computes."""
    drawn = own_distribution(layer, leaf, own)
    matrix = max(2, *(parameter.dim() for parameter in layer.weights.values()))
    if layer.weights[leaf].dim() < (matrix if "bias" in leaf else 2):  # there may be a bias for each head
        return _vector(layer, leaf, drawn, own)
    if layer.is_embedding:
        return drawn or normal(std=0.02), "embedding, as its own code"
    if not layer.calls:
        return drawn or normal(std=0.02), "no product, as its own code"
    kind = layer.activation
    if branches > 1:
        what = suited(layer, 1 / math.sqrt(branches)).distribution
        return what, f"1 of {branches} branches"
    if kind is not None:
        return suited(layer).distribution, f"{kind.name} {'rectifies' if kind.rectifies else 'follows'}"
    return suited(layer).distribution, "head" if head else "no activation"


def _adapter(name: str, drawn: Distribution | None) -> tuple[Distribution, str] | None:
    """LoRA adds nothing at first; None for what else adapters have."""
    parts = name.split(".")
    what = zeros() if "lora_B" in parts else drawn if "lora_A" in parts else None
    return None if what is None else (what, "adapter")


def _vector(layer: Layer, leaf: str, drawn: Distribution | None, own: OwnInit) -> tuple[Distribution, str] | None:
    if layer.is_norm:
        return drawn or (ones() if leaf == "weight" else zeros()), "norm"
    if "bias" in leaf:  # as its own code has it only if that makes it constant
        return drawn if drawn is not None and drawn.name == "constant" else zeros(), "bias"
    if drawn is None and own.of(layer.weights[leaf])[0] is not None:
        return None  # computed, by operators that are not the drawing of random numbers
    return drawn or ones(), "as its own code" if drawn else "a scale"
