"""Sites: a model's parameters by name, and patterns that pick them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from xinit._torch import local_tensor
from xinit.dtensor import is_sharded
from xinit.guards import loaded
from xinit.parameters.computed import Computed, computed_of
from xinit.parameters.names import Walk, modules_of, version_of
from xinit.subclasses import PLAIN, plain

Predicate = Callable[[str, nn.Parameter, nn.Module], bool]
Pattern = str | type[nn.Module] | Predicate
Patterns = Pattern | Sequence[Pattern]
Place = tuple[str, Any, nn.Module]  # a parameter's or buffer's name, itself, and the module that owns it


def predicate(pattern: Pattern, op: str) -> Predicate:
    """Whether a parameter matches the pattern: a glob, a module type, or a predicate already."""
    if isinstance(pattern, str):
        match = re.compile(translate(pattern)).match
        dot = "." if pattern.startswith("*.") else ""
        return lambda name, parameter, module: match(dot + name) is not None
    if isinstance(pattern, type) and issubclass(pattern, nn.Module):
        return lambda name, parameter, module: isinstance(module, pattern)
    if isinstance(pattern, type | nn.Module) or not callable(pattern):
        raise TypeError(f"{op}: a pattern must be a glob, a module type or a predicate, but found {pattern!r}")
    return pattern


def unwritten(name: str, parameter: Tensor, module: nn.Module) -> bool:
    """A pattern for ``only`` and ``skip``: the parameters that a checkpoint lacks, and what else nothing was written to.

    In a model into which transformers' ``from_pretrained`` has loaded, those that the file did not have, such as a new head,
    though transformers has drawn them: it flags what it loads. In others, those that nothing was written to in place since they
    were made: after ``to_empty`` and ``load_state_dict(strict=False)``, what the state lacked, and then buffers are made or named
    by the same measure; and what :func:`xinit.materialize_` found the constructor never to write. A constructor like
    ``nn.Parameter(torch.ones(8))`` and ``load_state_dict(assign=True)``, which replaces tensors, leave no such trace: ``skip``
    these.

    Example:
        >>> import torch, xinit
        >>> with torch.device("meta"):
        ...     model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> _ = model.to_empty(device="cpu")
        >>> _ = model[0].load_state_dict(torch.nn.Linear(4, 4).state_dict())
        >>> [row.name for row in xinit.plan(model, "torch", only=xinit.unwritten).rows]
        ['1.weight', '1.bias']
    """
    return known_unwritten(parameter) or never_written(parameter)


def _not_loaded(name: str, parameter: Tensor, module: nn.Module) -> bool:
    return not loaded(parameter)


def never_written(tensor: Tensor) -> bool:
    """Whether nothing was written in place since the tensor was made, as by ``to_empty``; nor loaded by transformers."""
    return not (tensor.is_inference() or version_of(tensor) or loaded(tensor))


def emptied(parameters: Iterable[Tensor]) -> bool:
    """Whether parameters, which their modules write as they are built, may be as ``to_empty`` leaves them: nothing was written to
    any in place. Nor was it to those of ``fully_shard``, ``distribute_tensor``, ``copy.deepcopy`` and
    ``load_state_dict(assign=True)``, and no other trace tells which of these it was.
    """
    parameters = list(parameters)
    return bool(parameters) and all(map(never_written, parameters))


def raw(parameters: Iterable[Tensor]) -> bool:
    """Whether they surely are: most elements of the largest lie where no weights are. Memory that held weights before, which
    ``to_empty`` may get again, is told from weights by nothing: what is not raw may be so still, if it is :func:`emptied`."""
    parameters = list(parameters)
    if not emptied(parameters):
        return False
    here = [local_tensor(p) if is_sharded(p) else p for p in parameters]
    largest = sorted((p for p in here if p.numel() and plain(p) and not p.is_meta), key=Tensor.numel)[-8:]
    with_values = sum(p.numel() for p in largest if _has_values(p))
    return not largest or 2 * with_values < sum(map(Tensor.numel, largest))


def _has_values(parameter: Tensor) -> bool:
    """Whether its first elements are of the size of weights. Memory that was not used before is zero; what was there before, if
    it was no weights, is mostly far too small or too large."""
    first = parameter.detach().reshape(-1)[:1024]
    sizes = first.to(torch.complex128 if first.is_complex() else torch.float64).abs()
    return bool(((sizes > 1e-9) & (sizes < 1e4)).double().mean() > 0.9)


def known_unwritten(tensor: Tensor) -> bool:
    """Whether xinit has found it to be unwritten, and it still is."""
    return bool(tensor.__dict__.get("_xinit_unwritten", -1) == version_of(tensor))


def mark_unwritten(tensor: Tensor) -> None:
    tensor.__dict__["_xinit_unwritten"] = version_of(tensor)


@dataclass(slots=True)
class Site:
    """A parameter, and where it is in the model."""

    name: str  # the first of its names, without wrappers' parts
    parameter: nn.Parameter
    module: nn.Module  # that owns it under this name
    tied: tuple[str, ...] = ()  # its other names
    padding: int | None = None  # the row that an embedding pads with
    computed: Computed | None = None  # from others, if it is no parameter itself, but as one of them

    @property
    def names(self) -> tuple[str, ...]:
        return self.name, *self.tied

    @property
    def parts(self) -> list[Site]:
        """The parameters that it is computed from; itself, if it is one."""
        if self.computed is None:
            return [self]
        prefix = self.name.removesuffix(self.name.rpartition(".")[2])
        return [Site(prefix + leaf, parameter, self.module) for leaf, parameter in self.computed.parameters.items()]


_EMBEDDINGS = nn.Embedding, nn.EmbeddingBag


def walk(model: nn.Module, op: str) -> Walk:
    """The modules of a model under all of their names, gone along once for all that a function does to them."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, but found {type(model).__name__}")
    return list(modules_of(model, tied=True))


def sites_of(model: nn.Module, op: str, computed: bool = False, modules: Walk | None = None) -> list[Site]:
    """All parameters, or, if asked for, computed weights instead of those that they are computed from.

    Args:
        modules: what :func:`walk` gives for the model, if that is there already.
    """
    sites: dict[int, Site] = {}
    named: dict[str, Site] = {}
    parts: set[str] = set()
    for _, prefix, path in walk(model, op) if modules is None else modules:
        module = path[-1]
        here: Iterable[tuple[str, nn.Parameter | None]] = module._parameters.items()
        weights = computed_of(module) if computed else None
        if weights:
            parts.update(prefix + leaf for weight in weights.values() for leaf in weight.parameters)
            here = [*((leaf, weight.like) for leaf, weight in weights.items()), *here]
        for leaf, parameter in here:
            name = prefix + leaf
            if parameter is None or name in parts:
                continue
            site = sites.get(id(parameter))
            if site is None:
                site = sites[id(parameter)] = Site(
                    name, parameter, module, computed=weights.get(leaf) if weights else None
                )
            elif name not in site.names:
                site.tied += (name,)
            if named.setdefault(name, site) is not site:
                raise ValueError(
                    f"{op}: two parameters are both called {name}, apart from wrappers' parts of their names"
                )
            if leaf == "weight" and isinstance(module, _EMBEDDINGS):
                site.padding = site.padding if module.padding_idx is None else module.padding_idx
    lazy = [site.name for site in sites.values() if type(site.parameter) not in PLAIN and is_lazy(site.parameter)]
    if lazy:
        raise ValueError(
            f"{op}: {some(lazy)} of lazy modules have no shape yet: call the model once with an input first"
        )
    return list(sites.values())


def some(names: Collection[str], kind: str = "parameter") -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return kind + "s" * (len(names) != 1) + " " + ", ".join([*names][:5]) + more


def selected(
    sites: list[Site], only: Patterns | None, skip: Patterns | None, op: str, buffers: Iterable[Place] = ()
) -> list[Site]:
    """The sites of which a name matches one of ``only``, and none matches one of ``skip``, which may match buffers alone."""
    chosen = sites if only is None else _matched(sites, only, "only", op)
    left_out = [] if skip is None else [id(site) for site in _matched(sites, skip, "skip", op, buffers)]
    return [site for site in chosen if id(site) not in left_out] if left_out else chosen


def patterns_of(patterns: Patterns | None) -> Sequence[Pattern]:
    """All of them."""
    if patterns is None:
        return ()
    return patterns if isinstance(patterns, Sequence) and not isinstance(patterns, str) else [patterns]


def skips(skip: Patterns | None, op: str) -> Callable[[Place], bool]:
    """Whether a buffer is to be left alone: by its name or its module's type, for predicates are of parameters."""
    matches = [predicate(pattern, op) for pattern in patterns_of(skip) if isinstance(pattern, str | type)]
    return lambda place: any(match(*place) for match in matches)


def _matched(sites: list[Site], patterns: Patterns, option: str, op: str, buffers: Iterable[Place] = ()) -> list[Site]:
    found: set[int] = set()
    for pattern in patterns_of(patterns):
        matches = predicate(pattern, op)
        if pattern is unwritten and any(loaded(site.parameter) for site in sites):
            matches = _not_loaded
        here = [i for i, s in enumerate(sites) if any(matches(name, s.parameter, s.module) for name in s.names)]
        # That nothing is unwritten is as good an answer as any; of parameters, for there may be buffers.
        if not here and pattern is not unwritten and not any(map(skips(pattern, op), buffers)):
            said = getattr(pattern, "__qualname__", repr(pattern))  # a function's repr ends in an address
            raise ValueError(f"{op}: {option}={said} matches none of the model's {len(sites)} parameters")
        found.update(here)
    return [sites[i] for i in sorted(found)]


def depths(model: nn.Module, names: Sequence[str], layers: int | None) -> Callable[[str], int]:
    """A function from a name, one of these, to the number of layers in the stack that it is part of.

    That is ``layers``, or what the model's ``config`` says, or the number of indices that the names count.
    """
    config = next((module.config for module in model.modules() if hasattr(module, "config")), None)
    said = (getattr(config, name, None) for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"))
    number = next((n for n in (layers, *said) if type(n) is int and n > 0), None)

    def indices(name: str) -> Iterable[tuple[int, str, str]]:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdigit():
                yield int(part), ".".join(parts[:i]), ".".join(parts[i + 1 :])

    stacks: dict[str, set[int]] = defaultdict(set)
    alike: dict[tuple[str, str], set[int]] = defaultdict(set)
    for index, stack, rest in (found for name in names for found in indices(name)):
        stacks[stack].add(index)
        alike[stack, rest].add(index)

    def depth(name: str) -> int:
        if number is not None:
            return number
        # A layer's index is the first that other names have otherwise: 5 in "1.5.c_proj", if there is no "2.5.c_proj".
        found = [(stack, len(alike[stack, rest]) > 1) for _, stack, rest in indices(name)]
        if not found:
            raise ValueError(
                "neither a config nor the name tells the number of layers: pass it as recipes.gpt2(layers=...)"
            )
        return len(stacks[next((stack for stack, several in found if several), found[0][0])])

    return depth
