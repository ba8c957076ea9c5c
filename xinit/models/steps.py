"""What a recipe says of each parameter of a model, as steps; and these done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from xinit.distributions import DTYPES, Distribution, Rows, What, zeros
from xinit.dtensor import is_sharded, pieces, view
from xinit.generators import governed
from xinit.keys import Key
from xinit.parameters.names import version_of
from xinit.parameters.plans import Row, describe
from xinit.parameters.sites import Site, predicate
from xinit.parameters.writes import Write, fill_writes_, writes_of
from xinit.recipes import Recipe, rules_of
from xinit.recipes.guesses import Judge, glob


@dataclass(slots=True)
class Step:
    """What is to be done to one parameter, or why nothing can be."""

    site: Site
    what: What | None = None
    writes: Sequence[Write] = ()
    problem: str = ""

    def row(self) -> Row:
        site, method, std = self.site, "", None
        if self.what is not None and self.writes and not self.problem:
            padded = site.padding is not None and not isinstance(self.what, Rows)
            drawn = self.writes[:-1] if padded and len(self.writes) > 1 else self.writes
            std = _std(drawn)
            method = describe(self.what) + (f", row {site.padding} zero" if padded else "")
        return Row(site.name, tuple(site.parameter.shape), site.parameter.dtype, method, std, site.tied, self.problem)


def _std(drawn: Sequence[Write]) -> float:
    """Of all of them together."""
    if len({write.distribution.std for write in drawn}) == 1:
        return drawn[0].distribution.std
    sizes = [math.prod(write.shape) for write in drawn]
    squares = sum(size * write.distribution.std**2 for size, write in zip(sizes, drawn, strict=True))
    return math.sqrt(squares / sum(sizes))


class Rulebook:
    """A recipe's patterns and values for one model."""

    def __init__(self, recipe: Recipe, model: nn.Module, op: str) -> None:
        self.op = op
        self.rules = [(predicate(p, op), value, p, source) for p, value, source in rules_of(recipe, model, op)]
        self.unused: dict[object, str] = {p: p for _, _, p, source in self.rules if isinstance(p, str)}
        self.judge = Judge(model)
        self._resolved: dict[tuple[int, tuple[int, ...]], tuple[What, What]] = {}

    def misspelt(self, sites: Sequence[Site]) -> list[str]:
        """The globs that are none of any parameter's; but any model may do without "*.bias" and "*.weight"."""
        left = [name for name in self.unused.values() if name.lstrip("*.") not in ("bias", "weight")]
        tried = [(name, predicate(name, self.op)) for name in left]
        return [g for g, match in tried if not any(match(n, s.parameter, s.module) for s in sites for n in s.names)]

    def what(self, site: Site) -> tuple[What | None, str]:
        """What the first pattern that matches says, and of which built-in recipe it is, or ""; None if there is none."""
        where = site.name, site.parameter, site.module
        for matches, value, pattern, source in self.rules:
            if matches(*where):
                self.unused.pop(pattern, None)
                what = value if isinstance(value, What) or not callable(value) else value(*where)
                if isinstance(what, What):
                    return what, source
                if what is not None or what is value:
                    raise TypeError(
                        f"{self.op}: a recipe must give a distribution, blocks, or a function of (name, parameter, module) "
                        f"that gives one, but for {site.name} it gives {what!r}"
                    )
        return None, next((source for *_, source in reversed(self.rules) if source), "")

    def resolved(self, what: What, shape: tuple[int, ...]) -> What:
        """A distribution without a fan, once for all parameters of a shape; anything else as it is."""
        if not isinstance(what, Distribution) or 0 in shape:
            return what
        known = self._resolved.get((id(what), shape))
        if known is None:  # which is kept, so that no other gets its id
            known = self._resolved[id(what), shape] = what, what.resolve(shape)
        return known[1]

    def step(self, site: Site, key: Key) -> Step:
        step = Step(site)
        try:
            step.what, source = self.what(site)
            if step.what is not None:
                shape = tuple(site.parameter.shape)
                resolved = self.resolved(step.what, shape)
                step.writes = _writes(site, shape, resolved, key)
                if source:
                    step.problem = self.judge.problem(site, step.what, resolved, source)
            else:
                step.problem = f"no pattern matches it; it belongs to a {type(site.module).__name__}"
                step.problem += self.judge.hint(site, source) if source else ""
        except ValueError as error:
            step.problem = str(error)
        return step


def _writes(site: Site, shape: tuple[int, ...], what: What, key: Key) -> list[Write]:
    dtype = site.parameter.dtype
    if dtype not in DTYPES:
        raise ValueError(f"nothing can be drawn of dtype {dtype}: skip= it")
    writes = writes_of(site.name, shape, what, key)
    for write in writes if dtype.is_complex else ():
        if not write.distribution.fits(dtype):
            raise ValueError(
                f"it is complex, and takes normal distributions and constants, not {write.distribution}: put "
                f"{{{glob(site.name)!r}: xinit.normal(std={write.distribution.std:.3g})}}, of the same variance, first"
            )
    if isinstance(what, Rows):
        if site.computed is not None:
            raise ValueError("rows of a computed weight cannot be drawn without the others")
        return writes
    if site.padding is not None and 0 not in shape:
        writes.append(Write(zeros(), key.fold_in(site.name), (site.padding, 0), (1, shape[1])))
    return writes


def refuse(steps: Sequence[Step]) -> None:
    """Raise a ValueError that lists those that cannot be done."""
    problems = [step.row() for step in steps if step.problem]
    if problems:
        lines = [f"\n  {row.name} {row.shape}: {row.problem}" for row in problems]
        raise ValueError(f"init_: {len(problems)} of {len(steps)} parameters cannot be initialised:{''.join(lines)}")


def do(steps: list[Step], key: Key, progress: bool) -> None:
    """Fill the parameters, and those that others are computed from."""
    computed = [step for step in steps if step.site.computed]
    values = [pair for step in computed for pair in _inverted(step, key)]
    direct = [step for step in steps if not step.site.computed]
    fill_writes_([(s.site.name, s.site.parameter, s.writes) for s in direct], progress=progress, op="init_")
    with torch.no_grad():
        for part, value in values:
            part.copy_(value)
    torch.autograd.graph.increment_version([p.parameter for step in computed for p in step.site.parts])
    for step in computed:
        assert step.site.computed is not None
        step.site.computed.settle(key.fold_in(step.site.name), partial(_wholes, step, key))
    for step in direct:
        parameter, what = step.site.parameter, step.what
        if isinstance(what, Distribution) and what.name == "constant" and not parameter.is_inference():
            parameter.__dict__["_xinit_set"] = version_of(parameter)  # see xinit.recipes.guesses


def _inverted(step: Step, key: Key) -> list[tuple[Tensor, Tensor]]:
    """What a computed weight makes of the parameters that it is computed from: of each what is here, and its values."""
    assert step.site.computed is not None
    parts = step.site.parts
    if any(is_sharded(part.parameter) for part in parts) and not step.site.computed.shards:
        raise NotImplementedError(
            f"init_: {step.site.name} is computed by a hook from {', '.join(part.name for part in parts)}, and sharded: call "
            f"init_ before the model is sharded, use torch.nn.utils.parametrizations or xinit.deferred, or skip= it"
        )
    found = []
    for part, whole in zip(parts, _wholes(step, key), strict=True):
        for here, where in pieces(part.parameter, f"init_: parameter {part.name}"):
            found.append((here, whole if where is None else view(whole, where.offsets, tuple(here.shape)).clone()))
    return found


def _wholes(step: Step, key: Key) -> list[Tensor]:
    """All of the parameters that a computed weight is computed from."""
    site = step.site
    assert site.computed is not None
    device = site.parts[0].parameter.device
    value = torch.empty(site.parameter.shape, dtype=site.parameter.dtype, device=device)
    fill_writes_([(site.name, value, step.writes)])
    with torch.no_grad(), governed(key.fold_in(site.name), device):
        return site.computed.inverted(value)
