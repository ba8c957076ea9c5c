"""LSUV: layer by layer, weights are scaled until what goes out has unit variance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from xinit.distributions import variance_scaling, zeros
from xinit.fill import bar_of
from xinit.keys import Key
from xinit.matrices import orthogonal
from xinit.models.apply import init_
from xinit.observe.flow import Layer, is_norm, layers_of, tensors
from xinit.observe.meter import Meter
from xinit.observe.passes import called, check
from xinit.observe.restore import left_as_it_was
from xinit.parallel.ranks import Ranks, reshard
from xinit.parameters.computed import computed_of
from xinit.parameters.names import canonical_name
from xinit.parameters.sites import sites_of

Model = TypeVar("Model", bound=nn.Module)

STEPS = 10  # for each layer


def lsuv_(
    model: Model,
    *inputs: Any,
    key: Key | None = None,
    start: str | None = "orthogonal",
    tolerance: float = 0.01,
    progress: bool = False,
    **kwargs: Any,
) -> Model:
    """Layer-sequential unit-variance initialisation: each layer's weights, scaled until its outputs have unit variance.

    Matrices start orthogonal, or normal, and their layers' biases at zero. Then, in one forward pass, each layer that
    multiplies by a matrix runs again, up to ten times, until the variance of what goes out, before the activation, is 1 on the
    batch; the next one gets what it then gives. Other parameters, such as those of norms and embeddings, stay as they are.

    The same key, model and batch give the same weights. Of a sharded model each rank scales what it holds; what the ranks' layers
    give is taken together.

    Args:
        model: with parameters that have memory.
        inputs: a batch, as the model is called with, and so are ``kwargs``.
        key: of the start, from which each parameter has its own; None to draw one from torch's generator of the CPU.
        start: "orthogonal", "normal", or None for the weights as they are.
        tolerance: of the variance.
        progress: show a bar, with tqdm.

    Returns:
        The model.

    Raises:
        TypeError: if ``model`` is no module, or the key no key.
        ValueError: for another start, or a tolerance that is not above 0; for what :func:`xinit.diagnose` refuses; if a layer's
            outputs are all the same, or not finite. Then, and after any other error, all weights are as they were.

    Warns:
        UserWarning: of modules of several matrices, such as nn.LSTM and nn.MultiheadAttention, and of weights that are computed
            from others, as by ``torch.nn.utils.parametrizations``, which are left as they are.

    Source: Mishkin & Matas, "All you need is a good init", 2016, algorithm 1.

    Example:
        >>> import torch, xinit
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
        >>> x = xinit.uniform_(torch.empty(256, 64), key=xinit.Key(1))
        >>> _ = xinit.lsuv_(model, x, key=xinit.Key(0))
        >>> round(model[0](x).var().item(), 2), round(model(x).var().item(), 2)
        (1.0, 1.0)
    """
    if key is not None and not isinstance(key, Key):
        raise TypeError(f"lsuv_: key must be an xinit.Key, but found {type(key).__name__}")
    if start not in ("orthogonal", "normal", None):
        raise ValueError(f'lsuv_: start must be "orthogonal", "normal" or None, but found {start!r}')
    if not 0 < tolerance < math.inf:
        raise ValueError(f"lsuv_: tolerance must be above 0, but found {tolerance}")
    check("lsuv_", model, inputs, kwargs)
    chosen, several, computed = _layers(model)
    for left, why in (
        (several, "several matrices have no one scale"),
        (computed, "the weight is computed from others"),
    ):
        if left:
            be = "module {} left as it is" if len(left) == 1 else "modules {} left as they are"
            warnings.warn(f"lsuv_: {be.format(', '.join(left))}: {why}", stacklevel=2)
    held = [parameter for layer in chosen for parameter in layer.weights.values()]
    before = [(parameter, parameter.detach().clone()) for parameter in held]
    ranks = Ranks(model.parameters(), "lsuv_")
    try:
        if start is not None:
            key = ranks.first_key(Key.drawn(torch.default_generator)) if key is None else key
            _start(model, chosen, start, key)
        with bar_of("lsuv_", held, progress) as bar:
            scaling = _Scaling(chosen, ranks, tolerance, bar if progress else None)
            with left_as_it_was(model), torch.no_grad(), scaling:
                called("lsuv_", model, inputs, kwargs)
    except BaseException:
        reshard(model)
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)
        raise
    reshard(model)
    scaling.settle()
    return model


def _layers(model: nn.Module) -> tuple[list[Layer], list[str], list[str]]:
    """The modules that multiply by one matrix, in the model's order, and the names of those that do by several, or by one that is
    computed.

    A tied weight is scaled where it comes first.
    """
    names = {module: canonical_name(name) for name, module in model.named_modules()}
    taken: set[int] = set()
    found, several, computed = [], [], [name for module, name in names.items() if computed_of(module)]
    for module, weights in layers_of(dict(model.named_modules())).items():
        layer = Layer(names[module] or "(model)", module, weights)
        matrices = [parameter for parameter in weights.values() if parameter.dim() > 1]
        leaf = next(module.children(), None) is None
        if computed_of(module) or "parametrizations" in layer.name.split("."):
            continue
        if isinstance(module, nn.MultiheadAttention) or (leaf and len(matrices) > 1 and not layer.is_embedding):
            several.append(layer.name)
        alone = leaf and len(matrices) == 1
        taken |= {id(parameter) for parameter in matrices if layer.is_embedding}
        if alone and not layer.is_embedding and not is_norm(module) and id(matrices[0]) not in taken:
            taken.add(id(matrices[0]))
            found.append(layer)
    return found, several, computed


def _start(model: nn.Module, chosen: Iterable[Layer], start: str, key: Key) -> None:
    names = {id(site.parameter): site.name for site in sites_of(model, "lsuv_")}
    recipe: dict[str, Any] = {}
    for layer in chosen:
        for parameter in layer.weights.values():
            normal = variance_scaling(1.0, "fan_in", "normal")
            drawn = orthogonal() if start == "orthogonal" else normal
            recipe[names[id(parameter)]] = drawn if parameter.dim() > 1 else zeros()
    if recipe:
        init_(model, recipe, key, only=[*recipe], loaded=True)


class _Scaling:
    """Hooks that scale a layer's weight after it has run, and run it again."""

    def __init__(self, chosen: Iterable[Layer], ranks: Ranks, tolerance: float, bar: Any) -> None:
        self.layers, self.ranks, self.tolerance, self.bar = list(chosen), ranks, tolerance, bar
        self.done: set[nn.Module] = set()
        self.later: list[tuple[Tensor, float]] = []
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        for layer in self.layers:
            hook = self._hook(layer)
            self.handles.append(layer.module.register_forward_hook(hook, with_kwargs=True, prepend=True))

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def settle(self) -> None:
        """Scale what was not the tensor that ran: the shards of what FSDP2 gathers."""
        with torch.no_grad():
            for parameter, factor in self.later:
                parameter.mul_(factor)

    def _hook(self, layer: Layer) -> Any:
        leaf, parameter = next((leaf, p) for leaf, p in layer.weights.items() if p.dim() > 1)

        def scale(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            if module in self.done:
                return None
            self.done.add(module)
            total = 1.0
            for _ in range(STEPS):
                std = self._std(layer, output)
                if abs(std * std - 1) <= self.tolerance:
                    break
                used: Tensor = getattr(module, leaf)
                used.div_(std)
                total /= std
                output = module.forward(*args, **kwargs)
            if getattr(module, leaf) is not parameter:
                self.later.append((parameter, total))
            if self.bar is not None:
                self.bar.update(parameter.nbytes)
            return output

        return scale

    def _std(self, layer: Layer, output: Any) -> float:
        meter = Meter()
        meter.measure(next(t for t in tensors(output) if t.is_floating_point() or t.is_complex()))
        (moments,) = meter.read(self.ranks)
        if not moments.finite or not moments.std > 1e-6 * max(moments.rms, 1e-30):
            what = "all the same" if moments.finite else "not finite"
            raise ValueError(
                f"lsuv_: what {layer.name} gives for this batch is {what}, which no scale of its weights changes"
            )
        return moments.std
