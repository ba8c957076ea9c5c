"""``init_()``: every parameter of a model from the key of its name, by a recipe; ``plan()``: what that does, as a table."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from torch import nn

from xinit.guards import loaded as is_loaded
from xinit.guards import quiet, switched_off
from xinit.keys import Key
from xinit.models.buffers import Buffers, buffers_of
from xinit.models.memory import check_memory, warn_of_packed
from xinit.models.steps import Rulebook, do, refuse
from xinit.parallel.marks import refuse_parts
from xinit.parallel.ranks import Ranks, sharded_sites
from xinit.parameters.names import Walk, canonical_name
from xinit.parameters.plans import Plan
from xinit.parameters.sites import (
    Patterns,
    Site,
    emptied,
    known_unwritten,
    mark_unwritten,
    never_written,
    patterns_of,
    raw,
    selected,
    sites_of,
    skips,
    some,
    unwritten,
    walk,
)
from xinit.recipes import Recipe
from xinit.recipes.torch_modules import rule_of

Model = TypeVar("Model", bound=nn.Module)


def init_(
    model: Model,
    recipe: Recipe,
    key: Key,
    *,
    only: Patterns | None = None,
    skip: Patterns | None = None,
    loaded: bool = False,
    progress: bool = False,
    check: bool = False,
) -> Model:
    """Fill every parameter of a model, each from the key of its name, in one batch.

    A parameter's values are a pure function of key, name and shape, and of what the recipe says: other parameters, their
    order, the device and wrappers such as DataParallel or torch.compile do not matter. A tied parameter is drawn once, under
    its first name. Everything is checked before anything changes.

    Running statistics are reset with their module's parameters, and buffers of which ``to_empty`` has left the memory raw are
    made as their modules make them; others stay as they are.

    Of a model that ``fully_shard`` or ``parallelize_module`` has sharded, each rank fills what it holds, with the bits of the
    whole, without communication.

    Args:
        model: with parameters that have memory, on any devices; of any dtype that :mod:`xinit.init` fills.
        recipe: the name of one, or a mapping from patterns to distributions, of which the first match wins, or another kind: see
            :mod:`xinit.recipes`.
        key: the model's; each parameter uses ``key.fold_in(name)``, its name being without wrappers' parts.
        only: the parameters to fill, which get the bits that they would get among all: a glob on names, a module type, a
            predicate ``(name, parameter, module) -> bool`` such as :func:`xinit.unwritten`, or several of these. A tied parameter
            goes by any of its names.
        skip: the parameters to leave as they are, likewise; and, by globs and module types, buffers.
        loaded: fill also what transformers has loaded from a checkpoint, which is otherwise left as it is, with a warning: the
            parameters that it has flagged with ``_is_hf_initialized``.
        progress: show a bar, with tqdm.
        check: whether the ranks first compare their keys, and the names and shapes of what they hold, in one small all-reduce.

    Returns:
        The model.

    Raises:
        TypeError: for a model, key, recipe or pattern that is none.
        ValueError: listing all parameters that no pattern matches, that do not fit their distributions, or to which the model's
            own init gives a constant that a built-in recipe would change (see :mod:`xinit.recipes`); for an unknown recipe, a
            pattern of ``only`` or ``skip`` that matches nothing, or lazy parameters; for a ``DTensor`` that
            :mod:`xinit.init` cannot fill; on all ranks, if ``check`` finds different keys, or ranks that hold different
            parameters of one name, as a pipeline's stages under names of their own do.
        RuntimeError: for parameters on the meta device, or whose memory was released; where there are several ranks, or with
            ``check``, for parameters that Megatron or DeepSpeed have marked as one rank's part of the whole, and for layers whose
            ``layer_number`` is not that of their name: see :mod:`xinit.parallel`.
        NotImplementedError: for other dtypes and layouts; within FSDP's first version, ``FullyShardedDataParallel``.
        ImportError: for ``progress`` without tqdm.

    Warns:
        UserWarning: of buffers, and of parameters skipped, that may be raw memory, for nothing was written to them and to what
            torch's modules write as they are built, which is also so where only ``fully_shard``, ``copy.deepcopy`` or
            ``load_state_dict(assign=True)`` have been; of classes whose constructors may have set
            what a built-in recipe gives otherwise, which ``to_empty`` has lost; of parameters of transformers' models that
            are no longer tied; of globs of the recipe that are no parameter's name, apart from "*.bias"
            and "*.weight", which any model may do without; of parameters left because they were loaded; and of a model left
            because it is in a context, such as Lightning's ``init_module(empty_init=True)``, in which ``torch.nn.init`` does
            nothing.

    Example:
        >>> import torch, xinit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> recipe = {"*.bias": xinit.zeros(), "*": xinit.kaiming_normal(nonlinearity="relu")}
        >>> _ = xinit.init_(model, recipe, xinit.Key(0))
        >>> weight = xinit.kaiming_normal_(torch.empty(2, 3), nonlinearity="relu", key=xinit.Key(0).fold_in("2.weight"))
        >>> torch.equal(model[2].weight, weight)
        True
    """
    if not isinstance(key, Key):
        raise TypeError(f"init_: key must be an xinit.Key, but found {type(key).__name__}")
    modules = walk(model, "init_")
    every = sharded_sites(model, "init_", computed=True, modules=modules)
    warn_of_packed("init_", modules)
    if check:  # first, or a rank with an error of its own would leave the others waiting
        Ranks((site.parameter for site in every), "init_").check(
            key, {site.name: site.parameter.shape for site in every}
        )
    sites = selected(every, only, skip, "init_", (buffer.place for buffer in buffers_of(modules)))
    refuse_parts("init_", model, ((site.name, site.parameter) for site in sites), check)
    if switched_off():
        warnings.warn(
            "init_: the model is left as it is: this is where torch.nn.init's functions do nothing", stacklevel=2
        )
        return model
    kept = set() if loaded else {id(site) for site in sites if is_loaded(site.parameter)}
    chosen = [site for site in sites if id(site) not in kept]
    check_memory("init_", [part for site in chosen for part in site.parts])
    rules = Rulebook(recipe, model, "init_")
    steps = [rules.step(site, key) for site in sites]  # those of loaded ones too, to tell which patterns are of use
    steps = [step for step in steps if id(step.site) not in kept]
    refuse(steps)
    skipped = skips(skip, "init_")
    left = lambda b: skipped(b) or (not loaded and is_loaded(b[1]))  # noqa: E731
    untied = _untied(modules)
    buffers = Buffers(modules, every, chosen, left, key, unwritten in patterns_of(only))
    unset = _skipped_raw(every, selected(every, only, None, "init_"), sites) if skip is not None else []
    do(steps, key, progress)
    loaded_ones = f"{len(kept)} of {len(sites)}" if kept and not quiet() else ""
    for words in _notes(untied, rules, every, unset, *buffers.write(), loaded_ones):
        warnings.warn(f"init_: {words}", stacklevel=2)
    return model


def plan(
    model: nn.Module,
    recipe: Recipe,
    *,
    only: Patterns | None = None,
    skip: Patterns | None = None,
    loaded: bool = False,
) -> Plan:
    """What :func:`init_` would do, as a table that prints: for each parameter name, shape, dtype, method and std.

    Nothing is drawn, and nothing changes; parameters may be on the meta device. One that no pattern matches, that does not fit
    its distribution, or that a built-in recipe must not decide, has a row with a problem; these are printed below the others.

    Args:
        model: the model.
        recipe: as for :func:`init_`, and so are ``only``, ``skip`` and ``loaded``.

    Raises:
        TypeError: for a model, recipe or pattern that is none.
        ValueError: for an unknown recipe, a pattern of ``only`` or ``skip`` that matches nothing, or lazy parameters.

    Example:
        >>> import torch, xinit
        >>> with torch.device("meta"):
        ...     model = torch.nn.Linear(300, 200)
        >>> print(xinit.plan(model, {"weight": xinit.xavier_uniform(), "bias": xinit.zeros()}))
        name    shape       method             std
        weight  (200, 300)  xavier_uniform  0.0632
        bias    (200,)      zeros                0
        <BLANKLINE>
        2 parameters, 60,200 elements, 235.2 KiB of float32
    """
    sites = sites_of(model, "plan", computed=True)
    chosen = selected(sites, only, skip, "plan")
    rules = Rulebook(recipe, model, "plan")
    steps = [rules.step(site, Key(0)) for site in chosen]
    rows = tuple(step.row() for step in steps if loaded or not is_loaded(step.site.parameter))
    return Plan(rows, len(sites) - len(chosen), tuple(rules.unused.values()), len(steps) - len(rows))


def _notes(
    untied: list[str],
    rules: Rulebook,
    every: Sequence[Site],
    raw: list[str],
    raw_buffers: list[str],
    changed: list[str],
    kept: str,
) -> Iterator[str]:
    """What is to be said of a model that is initialised."""
    since = (
        "which nothing has written to since to_empty() or the like, may hold what the memory held (unless they came by a copy, "
        "fully_shard or load_state_dict(assign=True), which look the same)"
    )
    if untied:
        yield f"{some(untied)} no longer tied, as the model's class has it: call model.tie_weights() after to_empty()"
    if classes := ", ".join(rules.judge.in_doubt):
        yield (
            f"what the constructors of {classes} may have set is lost after to_empty(), as nothing has written to the parameters "
            f"since, and they cannot be run again, for not all of their arguments are attributes of the same names: if that was "
            f"not what the recipe gives, such as a zero output layer, put a pattern of yours before it; or build the model "
            f"within xinit.deferred(); what was copied or sharded since it was built looks the same"
        )
    if misspelt := rules.misspelt(every):
        yield f"the recipe's {', '.join(map(repr, misspelt))} matches none of the model's {len(every)} parameters"
    if raw:
        yield f"{some(raw)}, skipped, {since}: set them, or build the model within xinit.deferred()"
    if raw_buffers:
        yield (
            f"{some(raw_buffers, 'buffer')}, {since}: set them, name them in skip= if they are right, or build the model within "
            f"xinit.deferred()"
        )
    if changed:
        yield (
            f"{some(changed, 'buffer')}, {since}, and so got what their own modules make of them: skip= them, if they were right"
        )
    if kept:
        yield (
            f"{kept} parameters were loaded from a checkpoint, as their _is_hf_initialized says, and are left as they are; "
            f"init_(..., loaded=True) fills them too"
        )


def _skipped_raw(every: Sequence[Site], wanted: Sequence[Site], chosen: Sequence[Site]) -> list[str]:
    """Those skipped that may be raw memory, of which the ones that surely are get marked: nothing was written to them, nor to
    what modules of torch write as they are built."""
    ids = {id(site) for site in chosen}
    skipped = [s for s in wanted if id(s) not in ids and s.parameter.numel() and not s.parameter.is_meta]
    if not skipped:
        return []
    kinds: list[Any] = [type(site.module) for site in every]
    known = [s.parameter for s, kind in zip(every, kinds, strict=True) if not s.computed and rule_of(kind) is not None]
    known = known or [s.parameter for s in every if not s.computed]
    may_be = emptied(known)
    found = [s for s in skipped if known_unwritten(s.parameter) or (may_be and never_written(s.parameter))]
    for site in found if found and raw(known) else ():
        mark_unwritten(site.parameter)
    return [site.name for site in found]


def _untied(modules: Walk) -> list[str]:
    """Parameters that ``to_empty`` has untied, as far as a model of transformers says which belong together."""
    found = []
    for _, prefix, path in modules:
        for name, source in (path[-1].__dict__.get("all_tied_weights_keys") or {}).items():
            try:
                pair = path[-1].get_parameter(name), path[-1].get_parameter(source)
            except AttributeError:
                continue
            if pair[0] is not pair[1] and all(map(never_written, pair)):
                found.append(prefix + canonical_name(name))
    return list(dict.fromkeys(found))
