"""Whether what a built-in recipe gives a parameter is more than a guess: held against what the model itself says of it.

A recipe knows matrices, biases and norms. Where the model's own init makes a parameter constant, or computes it, the recipe may
only give the same; where the model says nothing, only what has a familiar place and name is the recipe's to decide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from xinit import _C
from xinit._torch import local_tensor, without_modes
from xinit.distributions import Distribution, What, constant
from xinit.dtensor import is_sharded
from xinit.parameters.names import version_of
from xinit.parameters.plans import describe
from xinit.parameters.sites import Site, emptied, never_written, raw
from xinit.recipes.own import Own, OwnInit
from xinit.recipes.torch_modules import rule_of
from xinit.subclasses import plain

# What matrices of transformers are called when they are parameters of no module that says what they are.
_MATRIX = re.compile(
    r"w[qkvo]?\d?|(\w+_)?(weights?|proj|kernel)|(\w+_)?(q|k|v|query|queries|keys?|values?|latents?)|w[tp]e"
    r"|\w*(token|tok|pos|emb)(s|ed|eds|edding|eddings|ition|itions)?(_\w+)?|\w*rel(ative)?_\w*(bias|pos|attn)\w*"
)
_BIAS = re.compile(r"(\w+_)?bias(_\w+)?")
LORA = re.compile(r"(.*\.)?lora_\w+(\..*)?")


class Judge:
    """Says what speaks against a recipe's guesses for one model."""

    def __init__(self, model: nn.Module) -> None:
        self.own = OwnInit(model)
        self.in_doubt: dict[str, None] = {}  # the classes whose constructors may set what a recipe was let decide

    def problem(self, site: Site, what: What, resolved: What, recipe: str) -> str:
        """Why the recipe must not decide this parameter, to which it gives `what`, without a fan `resolved`; "" if it may."""
        if not isinstance(what, Distribution) or not isinstance(resolved, Distribution) or not site.parameter.numel():
            return ""
        if "lora_" in site.name and LORA.fullmatch(site.name):
            return f"{recipe} does not know LoRA, half of whose matrices start as zeros: {_skip(site)}"
        own, complete = self.own.of(site.parameter)
        told = complete or id(site.parameter) in self._written
        holds = not told and self._holds(site.parameter, resolved)
        if not told and (self._emptied or not holds):
            own = self.own.by_constructor(site.parameter) or own  # which may have called the methods, and gone on
        if own is not None and not agrees(own, resolved):
            return self._against(site, what, recipe, "its own init", own)
        if complete:
            return ""
        value = self._set.get(id(site.parameter)) if told or own is None else None
        if value is not None and not _is_constant(resolved, value):
            return self._against(site, what, recipe, "and it was set to", Own(constant(value)))
        problem = "" if own is not None or holds else self._unfamiliar(site, resolved, recipe)
        if problem and told and self._holds(site.parameter, resolved):
            return ""
        in_doubt = self._emptied or (self._copied.get(id(site.parameter)) == 0.0 and not holds)
        if in_doubt and not (problem or told or site.parameter.is_meta):
            around = self.own.in_doubt(site.parameter)
            if site.module in around and _constant(resolved) == 1.0 == identity(
                site.module, site.name.rpartition(".")[2]
            ):
                around = tuple(module for module in around if module is not site.module)
            self.in_doubt |= dict.fromkeys(type(module).__name__ for module in around)
        return problem

    def _holds(self, parameter: nn.Parameter, what: Distribution) -> bool:
        """Whether a real parameter has the values already."""
        value = _constant(what)
        return value is not None and not self._raw and self._values.get(id(parameter)) == value

    @cached_property
    def _parameters(self) -> dict[int, nn.Parameter]:
        """All of the model's, by id."""
        return {id(p): p for module in self.own.modules for p in module._parameters.values() if p is not None}

    @cached_property
    def _written(self) -> dict[int, nn.Parameter]:
        """Those that somebody wrote, but for recipes: memory of ``to_empty`` may be constant too."""
        return {key: p for key, p in self._parameters.items() if _written(p)}

    @cached_property
    def _of_torch(self) -> list[nn.Parameter]:
        """The parameters of torch's modules, which write theirs as they are built."""
        kinds: set[Any] = {type(module) for module in self.own.modules}
        known = {kind for kind in kinds if rule_of(kind) is not None}
        owned = (p for module in self.own.modules if type(module) in known for p in module._parameters.values())
        return [p for p in owned if p is not None and not p.is_meta]

    @cached_property
    def _unwritten(self) -> list[nn.Parameter]:
        return [*filter(never_written, self._of_torch or self._parameters.values())]

    @cached_property
    def _emptied(self) -> bool:
        return emptied(self._unwritten)

    @cached_property
    def _raw(self) -> bool:
        return raw(self._unwritten)

    @cached_property
    def _values(self) -> dict[int, float]:
        """Of those with one value in all elements, which; of raw memory nothing is asked."""
        return _constants((self._written if self._raw else self._parameters).values())

    @cached_property
    def _set(self) -> dict[int, float]:
        """The values of those that were set to one; also before they were sharded or copied, and are others since."""
        return {key: v for key, v in self._values.items() if key in self._written or self._copied.get(key)}

    @cached_property
    def _copied(self) -> dict[int, float]:
        """The same of those that nothing was written to. Zero says little: memory that was not used before is zero too."""
        said = self._of_torch and not self._raw
        return {id(p): self._values[id(p)] for p in self._unwritten if id(p) in self._values} if said else {}

    @staticmethod
    def _against(site: Site, what: Distribution, recipe: str, who: str, own: Own) -> str:
        return f"{recipe} would give {_words(what)}, {who} {own}: {_way_out(site, own, recipe)}"

    def hint(self, site: Site, recipe: str) -> str:
        """What is known of a parameter that the recipe has no pattern for."""
        own = self.own.of(site.parameter)[0] or self.own.by_constructor(site.parameter)
        if own is None:
            return f", which {recipe} does not know: {_own_pattern(site, recipe)}"
        return f"; its own init {own}: {_way_out(site, own, recipe)}"

    def _unfamiliar(self, site: Site, what: Distribution, recipe: str) -> str:
        leaf = site.name.rpartition(".")[2]
        kind: Any = type(site.module)
        rule: Any = rule_of(kind)
        if rule is not None and rule(leaf, site.module) is not None:
            return ""
        value = _constant(what)
        if value == 1.0:
            at = identity(site.module, leaf)
            if at == 1.0:
                return ""
            if at == 0.0:
                return self._against(site, what, recipe, f"and this {kind.__name__} normalises at", Own(constant(0.0)))
            return (
                f"{recipe} would give ones, and it cannot be told whether this {kind.__name__} is then a norm: put "
                f"{{{glob(site.name)!r}: xinit.ones()}} before {recipe} if it is, or skip= it"
            )
        known = _BIAS if value is not None and site.parameter.dim() < 2 else _MATRIX
        if known.fullmatch(leaf) or (value is not None and _MATRIX.fullmatch(leaf)):
            return ""
        return f"{recipe} does not know {leaf} of a {kind.__name__}, which is no module of torch.nn: {_own_pattern(site, recipe)}"


def agrees(own: Own, what: Distribution) -> bool:
    """Whether one may stand for the other: the same constant, or random numbers around the same mean."""
    if own.constant is not None:
        return _is_constant(what, own.constant)
    value = _constant(what)
    if own.distribution is None:
        return own.random and value is None
    mean = 0.0 if value is None else value
    return abs(_mean(own.distribution) - mean) <= own.distribution.std


def _is_constant(what: Distribution, value: float) -> bool:
    own = _constant(what)
    return own is not None and math.isclose(own, value, rel_tol=1e-6)


def _constant(what: Distribution) -> float | None:
    return None if what.std else _mean(what)


def _mean(what: Distribution) -> float:
    return sum(what.parameters) / 2 if what.name == "uniform" else what.parameters[0]


def glob(name: str) -> str:
    """A pattern for the parameter, and for those of the other layers."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _words(what: Distribution) -> str:
    return describe(what) + (f" of std {what.std:.3g}" if what.name != "constant" and not what.fan else "")


def _own_pattern(site: Site, recipe: str) -> str:
    return f"put {{{glob(site.name)!r}: ...}} before {recipe}, or skip= it"


def _skip(site: Site) -> str:
    return f"skip={glob(site.name)!r} leaves it as it is"


def _way_out(site: Site, own: Own, recipe: str) -> str:
    if own.distribution is None:
        return f"{_skip(site)}, or put a pattern of yours before {recipe}"
    name, values = own.distribution.name, ", ".join(f"{value:g}" for value in own.distribution.parameters)
    call = {"constant 0": "zeros()", "constant 1": "ones()"}.get(
        f"{name} {values}", f"{ {'truncated_normal': 'trunc_normal'}.get(name, name) }({values})"
    )
    return f"put {{{glob(site.name)!r}: xinit.{call}}}, or what you want, before {recipe}"


def _constants(parameters: Iterable[nn.Parameter]) -> dict[int, float]:
    """By id, the value of those of real, plain parameters whose elements, more than one and on this rank, all have the same."""
    here = [(id(p), local) for p in parameters if plain(local := _here(p))]
    found = {}
    alike: dict[Any, list[tuple[int, Tensor]]] = {}
    for i, told in _C.constants([local for _, local in here]):
        key, local = here[i]
        if told is None:
            alike.setdefault((local.device, local.dtype), []).append(here[i])
        else:
            found[key] = told
    with torch.no_grad():
        # A device is waited for once, and then for those whose first and last elements are equal.
        for group in alike.values():
            first, last = torch.stack([_ends(local) for _, local in group]).double().unbind(1)
            for (key, local), value, other in zip(group, first.tolist(), last.tolist(), strict=True):
                if value == other and bool((local.double() if local.dtype.itemsize == 1 else local).eq(value).all()):
                    found[key] = value
    return found


def _here(parameter: Tensor) -> Tensor:
    return local_tensor(parameter) if is_sharded(parameter) else parameter


def _ends(parameter: Tensor) -> Tensor:
    """Its first and its last element."""
    if parameter.is_contiguous():
        return parameter.as_strided((2,), (parameter.numel() - 1,))
    last = sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride(), strict=True))
    return parameter.as_strided((2,), (last,))


def _written(parameter: nn.Parameter) -> bool:
    version = version_of(parameter)
    return not parameter.is_meta and version > 0 and parameter.__dict__.get("_xinit_set") != version


def identity(module: nn.Module, leaf: str) -> float | None:
    """The value of a norm's weight at which it only normalises: 1, or 0 if it is of the (1 + w) kind.

    None if that cannot be told, or it is none. It is called, in float32 on the CPU, with both.
    """
    parameter = module._parameters[leaf]
    if parameter is None or parameter.dim() != 1 or len(parameter) < 2:
        return None
    found = [value for value in (1.0, 0.0) if _normalises(module, leaf, value)]
    return found[0] if len(found) == 1 else None


def _normalises(module: nn.Module, leaf: str, value: float) -> bool:
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__["training"] = True
    twin.__dict__["_buffers"] = {n: b if b is None else torch.zeros(b.shape) for n, b in module._buffers.items()}
    twin.__dict__["_parameters"] = {
        name: p if p is None else nn.Parameter(torch.full(p.shape, value if name == leaf else 0.0))
        for name, p in module._parameters.items()
    }
    width = len(module._parameters[leaf])  # type: ignore[arg-type]
    with without_modes(), torch.no_grad(), torch.device("cpu"):
        for shape in ((4, width), (4, width, 3, 3)):
            # Neither of mean 0 nor of unit variance, along any axis; the same in every run.
            x = 3 * torch.sin(torch.arange(1.0, math.prod(shape) + 1) * 2.7).reshape(shape) + 0.2
            try:
                y: Any = type(module).forward(twin, x)
            except Exception:  # whatever a module of others raises
                continue
            if isinstance(y, Tensor) and y.shape == x.shape and y.is_floating_point():
                return abs(y.float().square().mean().sqrt().item() - 1) < 0.1
    return False
