"""Computed weights: what ``torch.nn.utils`` makes of other parameters, by a parametrization, a norm, or a pruning mask.

Such a weight is drawn as if it were a parameter, under its own name, and then set as assignment to it would: its parameters
get what they would have if the layer had been initialised first, and parametrized then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from xinit._torch import pre_hooks, pruned_name
from xinit.dtensor import is_sharded
from xinit.init import normal_
from xinit.keys import Key

_ITERATIONS = 15  # of the power method, as where torch's own spectral_norm begins


class Computed:
    """A weight that is computed from parameters of other names.

    Attributes:
        parameters: those, by their names in the module.
        like: one of them, of the weight's shape and dtype; or what stands for it, on the meta device.
        shards: whether the parameters may be sharded.
    """

    parameters: dict[str, nn.Parameter]
    like: nn.Parameter
    shards: bool = False

    def inverted(self, value: Tensor) -> list[Tensor]:
        """What each of the parameters must be, as a whole, for the weight to be that; nothing changes yet."""
        raise NotImplementedError

    def settle(self, key: Key, wholes: Callable[[], list[Tensor]]) -> None:
        """What else follows from the parameters, once they are set; ``wholes`` gives them as they were before they were cut."""

    @property
    def modules(self) -> list[nn.Module]:
        """Whose buffers are set, too."""
        return []


class _Parametrized(Computed):
    shards = True

    def __init__(self, module: nn.Module, name: str) -> None:
        lists: Any = module.parametrizations
        self.list: Any = lists[name]
        self.originals = {leaf: p for leaf, p in self.list._parameters.items() if p is not None}
        self.parameters = {f"parametrizations.{name}.{leaf}": p for leaf, p in self.originals.items()}
        first = next(iter(self.parameters.values()))
        self.like = first
        if not self.list.is_tensor or self.list.unsafe:
            training, self.list.training = self.list.training, False
            all_ = self.parameters.values()
            weight = self._weight(lambda: [torch.zeros(p.shape, dtype=p.dtype, device=p.device) for p in all_])
            self.list.train(training)
            alike = [p for p in self.parameters.values() if (p.shape, p.dtype) == (weight.shape, weight.dtype)]
            meta = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype, device="meta"), first.requires_grad)
            self.like = alike[-1] if alike else meta

    def inverted(self, value: Tensor) -> list[Tensor]:
        values: Any = value
        for step in reversed(self.list):
            if hasattr(step, "right_inverse"):
                try:
                    values = step.right_inverse(values)
                except NotImplementedError:
                    continue  # as register_parametrization does: then, as where there is none, the original is what was there
        return [values] if isinstance(values, Tensor) else list(values)

    def settle(self, key: Key, wholes: Callable[[], list[Tensor]]) -> None:
        norms = [step for step in self.list if hasattr(step, "_u") and hasattr(step, "_v")]
        for i, norm in enumerate(norms):
            _draw_vectors((norm._u, norm._v), key.fold_in(i))
        if norms:
            trained = {module: module.training for module in self.list.modules()}
            self.list.train()
            self._weight(wholes, _ITERATIONS)
            for module, training in trained.items():
                module.training = training

    def _weight(self, wholes: Callable[[], list[Tensor]], times: int = 1) -> Tensor:
        """What it computes of the parameters, or, if these are sharded, of wholes in their place."""
        sharded = any(map(is_sharded, self.originals.values()))
        if sharded:
            self.list._parameters.update(zip(self.originals, map(nn.Parameter, wholes()), strict=True))
        try:
            with torch.no_grad():
                for _ in range(times):
                    weight: Tensor = self.list()
        finally:
            self.list._parameters.update(self.originals)
        return weight

    @property
    def modules(self) -> list[nn.Module]:
        return list(self.list.modules())


class _WeightNorm(Computed):
    """Of ``torch.nn.utils.weight_norm``."""

    def __init__(self, module: nn.Module, hook: Any) -> None:
        self.module, self.hook = module, hook
        self.parameters = {hook.name + end: module._parameters[hook.name + end] for end in ("_g", "_v")}  # type: ignore[misc]
        self.like = self.parameters[hook.name + "_v"]

    def inverted(self, value: Tensor) -> list[Tensor]:
        return [torch.norm_except_dim(value, 2, self.hook.dim), value]

    def settle(self, key: Key, wholes: Callable[[], list[Tensor]]) -> None:
        setattr(self.module, self.hook.name, self.hook.compute_weight(self.module))


class _Original(Computed):
    """Of ``torch.nn.utils.spectral_norm`` and of ``torch.nn.utils.prune``, which keep the parameter with another name."""

    def __init__(self, module: nn.Module, name: str, recompute: Callable[[Key], Tensor]) -> None:
        self.module, self.name, self.recompute = module, name, recompute
        self.like = module._parameters[name + "_orig"]  # type: ignore[assignment]
        self.parameters = {name + "_orig": self.like}

    def inverted(self, value: Tensor) -> list[Tensor]:
        return [value]

    def settle(self, key: Key, wholes: Callable[[], list[Tensor]]) -> None:
        setattr(self.module, self.name, self.recompute(key))


def computed_of(module: nn.Module) -> dict[str, Computed]:
    """The weights of a module that are computed, by name."""
    found: dict[str, Computed] = {}
    hooks = pre_hooks(module)
    if not hooks and "parametrizations" not in module._modules:  # as of nearly all
        return found
    if is_parametrized(module):
        for name, steps in module.parametrizations.items():  # type: ignore[operator, union-attr]
            if any(p is not None for p in steps._parameters.values()):
                found[name] = _Parametrized(module, name)
    for hook in hooks.values():
        name = pruned_name(hook) if hasattr(hook, "apply_mask") else getattr(hook, "name", None)
        if not isinstance(name, str):
            continue
        names = module._parameters.keys()
        if hasattr(hook, "compute_weight") and {name + "_g", name + "_v"} <= names:
            found[name] = _WeightNorm(module, hook)
        elif hasattr(hook, "compute_weight") and name + "_orig" in names:
            found[name] = _Original(module, name, _spectral(module, hook))
        elif hasattr(hook, "apply_mask") and name + "_orig" in names:
            found[name] = _Original(module, name, _pruned(module, hook))
    return found


def _spectral(module: nn.Module, hook: Any) -> Callable[[Key], Tensor]:
    def recompute(key: Key) -> Tensor:
        vectors = getattr(module, hook.name + "_u"), getattr(module, hook.name + "_v")
        _draw_vectors(vectors, key)
        with torch.no_grad():
            for _ in range(_ITERATIONS):
                weight: Tensor = hook.compute_weight(module, do_power_iteration=True)
        return weight

    return recompute


def _pruned(module: nn.Module, hook: Any) -> Callable[[Key], Tensor]:
    def recompute(key: Key) -> Tensor:
        weight: Tensor = hook.apply_mask(module)
        return weight

    return recompute


def _draw_vectors(vectors: tuple[Tensor, Tensor], key: Key) -> None:
    """Where the power method starts."""
    with torch.no_grad():
        for name, vector in zip("uv", vectors, strict=True):
            normal_(vector, key=key.fold_in(name))
            vector.div_(vector.norm())
