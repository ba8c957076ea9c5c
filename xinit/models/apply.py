"""Whole models: every parameter from the key of its name, by a recipe; and what that gives, as a plan and as a fingerprint."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from xinit.distributions import DTYPES, Distribution, Rows, What, zeros
from xinit.dtensor import is_sharded, local_of, pieces, view
from xinit.fill import bar_of
from xinit.generators import governed
from xinit.guards import loaded as is_loaded
from xinit.guards import quiet, switched_off
from xinit.keys import Key
from xinit.models.buffers import Buffers, as_floats, buffers_of
from xinit.parallel.ranks import Ranks, reshard
from xinit.parameters.names import canonical_name, version_of
from xinit.parameters.plans import Plan, Row, describe
from xinit.parameters.sites import (
    Patterns,
    Site,
    emptied,
    known_unwritten,
    mark_unwritten,
    never_written,
    patterns_of,
    predicate,
    selected,
    sites_of,
    skips,
    some,
    unwritten,
)
from xinit.parameters.writes import Write, fill_writes_, writes_of
from xinit.recipes import Recipe, rules_of
from xinit.recipes.guesses import Judge, glob
from xinit.recipes.torch_modules import rule_of
from xinit.subclasses import held, holds_tensors, plain


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
            sizes, stds = [math.prod(write.shape) for write in drawn], [write.distribution.std for write in drawn]
            squares = sum(size * std * std for size, std in zip(sizes, stds, strict=True))
            std = stds[0] if len(set(stds)) == 1 else math.sqrt(squares / sum(sizes))
            method = describe(self.what) + (f", row {site.padding} zero" if padded else "")
        return Row(site.name, tuple(site.parameter.shape), site.parameter.dtype, method, std, site.tied, self.problem)


class Rulebook:
    """A recipe's patterns and values for one model."""

    def __init__(self, recipe: Recipe, model: nn.Module, op: str) -> None:
        self.op = op
        self.rules = [(predicate(p, op), value, p, source) for p, value, source in rules_of(recipe, model, op)]
        self.unused: dict[object, str] = {p: p for _, _, p, source in self.rules if isinstance(p, str)}
        self.judge = Judge(model)

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

    def step(self, site: Site, key: Key) -> Step:
        step = Step(site)
        try:
            step.what, source = self.what(site)
            if step.what is not None:
                step.writes = _writes(site, step.what, key)
                if source:
                    step.problem = self.judge.problem(site, step.what, source)
            else:
                step.problem = f"no pattern matches it; it belongs to a {type(site.module).__name__}"
                step.problem += self.judge.hint(site, source) if source else ""
        except ValueError as error:
            step.problem = str(error)
        return step


def _writes(site: Site, what: What, key: Key) -> list[Write]:
    shape = tuple(site.parameter.shape)
    if site.parameter.dtype not in DTYPES:
        raise ValueError(f"nothing can be drawn of dtype {site.parameter.dtype}: skip= it")
    writes = writes_of(site.name, shape, what, key)
    for write in writes:
        if site.parameter.is_complex() and not write.distribution.fits(site.parameter.dtype):
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


def _check_memory(op: str, sites: Iterable[Site]) -> None:
    """Whether all of them are there to be written to and read from."""
    meta, empty, owners = [], [], dict[tuple[torch.device, int], str]()
    for site in sites:
        name = site.name
        parameter: Tensor = site.parameter
        if parameter.is_meta:
            meta.append(name)
            continue
        parameter = held(parameter, f"{op}: parameter {name}")
        if is_sharded(parameter):
            parameter, boxes = local_of(parameter, f"{op}: parameter {name}")
            if not boxes and site.parameter.numel():
                continue  # all of its elements are on other ranks
        if holds_tensors(parameter):
            kind = type(parameter).__name__
            raise NotImplementedError(
                f"{op}: parameter {name} is a {kind}; supported are plain tensors, DTensors of them, and wrappers of these"
            )
        elif parameter.layout is not torch.strided:
            raise NotImplementedError(
                f"{op}: parameter {name} has layout {parameter.layout}; supported is torch.strided"
            )
        elif parameter.dtype not in DTYPES:
            supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise NotImplementedError(f"{op}: parameter {name} has dtype {parameter.dtype}; supported are {supported}")
        elif parameter.numel() == 0 and _empty_by_shape(site):
            continue
        elif not plain(parameter):
            continue  # fake: a shape and a dtype, but no memory to share
        elif parameter.numel() == 0 or parameter.untyped_storage().nbytes() == 0:
            empty.append(name)
        else:
            owner = owners.setdefault((parameter.device, parameter.data_ptr()), name)
            if owner is not name:
                raise ValueError(
                    f"{op}: {owner} and {name} are two parameters, but share their memory: tie them, or clone one"
                )
    if meta:
        raise RuntimeError(
            f"{op}: {some(meta)} on the meta device, without memory: call model.to_empty(device=...) first, or use "
            f"xinit.deferred and xinit.materialize_"
        )
    if empty:
        raise RuntimeError(
            f"{op}: {some(empty)} without elements: has a sharding wrapper released the memory? Initialise the model before "
            f"it is wrapped, or skip= them"
        )


_SIZES = (
    *(
        "out_features",
        "out_channels",
        "num_features",
        "num_channels",
        "num_parameters",
        "normalized_shape",
        "embed_dim",
    ),
    "hidden_size",
)


def _empty_by_shape(site: Site) -> bool:
    """Whether it is for its module to have no elements there, not for a sharding wrapper, which leaves one dimension."""
    if hasattr(site.parameter, "ds_id"):  # DeepSpeed's, which ZeRO has taken to other ranks
        return False
    sizes = [getattr(site.module, name, None) for name in _SIZES]
    others = [p for p in site.module._parameters.values() if p is not None]
    return (
        site.parameter.dim() > 1
        or any(size == 0 if isinstance(size, int) else isinstance(size, tuple) and 0 in size for size in sizes)
        or any(other.dim() > 1 and 0 in other.shape for other in others)
    )


def _write(steps: list[Step], key: Key, progress: bool) -> None:
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


def _skipped_raw(every: Sequence[Site], wanted: Sequence[Site], chosen: Sequence[Site]) -> list[Site]:
    """Those skipped that may be raw memory: nothing was written to them, nor to what modules of torch write as they are built."""
    ids = {id(site) for site in chosen}
    skipped = [s for s in wanted if id(s) not in ids and s.parameter.numel() and not s.parameter.is_meta]
    if not skipped:
        return []
    kinds: list[Any] = [type(site.module) for site in every]
    known = [s.parameter for s, kind in zip(every, kinds, strict=True) if not s.computed and rule_of(kind) is not None]
    raw = emptied(known)
    return [s for s in skipped if known_unwritten(s.parameter) or (raw and never_written(s.parameter))]


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
        check: whether the ranks first compare their keys, in one small all-reduce.

    Returns:
        The model.

    Raises:
        TypeError: for a model, key, recipe or pattern that is none.
        ValueError: listing all parameters that no pattern matches, that do not fit their distributions, or to which the model's
            own init gives a constant that a built-in recipe would change (see :mod:`xinit.recipes`); for an unknown recipe, a
            pattern of ``only`` or ``skip`` that matches nothing, or lazy parameters; for a ``DTensor`` that
            :mod:`xinit.init` cannot fill; on all ranks, if ``check`` finds different keys.
        RuntimeError: for parameters on the meta device, or whose memory was released.
        NotImplementedError: for other dtypes and layouts; within FSDP's first version, ``FullyShardedDataParallel``.
        ImportError: for ``progress`` without tqdm.

    Warns:
        UserWarning: of buffers, and of parameters skipped, that may be raw memory; of classes whose constructors may have set
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
    every = _sites(model, "init_", computed=True)
    if check:  # first, or a rank with an error of its own would leave the others waiting
        Ranks((site.parameter for site in every), "init_").check_key(key)
    sites = selected(every, only, skip, "init_", (buffer.place for buffer in buffers_of(model)))
    if switched_off():
        warnings.warn(
            "init_: the model is left as it is: this is where torch.nn.init's functions do nothing", stacklevel=2
        )
        return model
    chosen = sites if loaded else [site for site in sites if not is_loaded(site.parameter)]
    _check_memory("init_", [part for site in chosen for part in site.parts])
    rules = Rulebook(recipe, model, "init_")
    steps = [rules.step(site, key) for site in sites]  # those of loaded ones too, to tell which patterns are of use
    steps = [step for step in steps if loaded or not is_loaded(step.site.parameter)]
    problems = [step.row() for step in steps if step.problem]
    if problems:
        lines = [f"\n  {row.name} {row.shape}: {row.problem}" for row in problems]
        raise ValueError(f"init_: {len(problems)} of {len(steps)} parameters cannot be initialised:{''.join(lines)}")
    skipped = skips(skip, "init_")
    left = lambda b: skipped(b) or (not loaded and is_loaded(b[1]))  # noqa: E731
    untied = _untied(model)
    buffers = Buffers(model, every, chosen, left, key, unwritten in patterns_of(only))
    skipped_raw = _skipped_raw(every, selected(every, only, None, "init_"), sites) if skip is not None else []
    _write(steps, key, progress)
    if untied:
        warnings.warn(
            f"init_: {some(untied)} no longer tied, as the model's class has it: call model.tie_weights() after to_empty()",
            stacklevel=2,
        )
    if doubtful := rules.judge.in_doubt:
        warnings.warn(
            f"init_: what the constructors of {', '.join(doubtful)} may have set is lost, as with to_empty(), and they cannot be "
            f"run again, for not all of their arguments are attributes of the same names: if that was not what the recipe gives, "
            f"such as a zero output layer, put a pattern of yours before it; or build the model within xinit.deferred()",
            stacklevel=2,
        )
    if misspelt := rules.misspelt(every):
        warnings.warn(
            f"init_: the recipe's {', '.join(map(repr, misspelt))} matches none of the model's {len(every)} parameters",
            stacklevel=2,
        )
    if skipped_raw:
        for site in skipped_raw:
            mark_unwritten(site.parameter)
        warnings.warn(
            f"init_: {some([site.name for site in skipped_raw])}, skipped, which nothing has written to since to_empty() or the "
            f"like, may hold what the memory held: set them, or build the model within xinit.deferred()",
            stacklevel=2,
        )
    if raw := buffers.write():
        warnings.warn(
            f"init_: {some(raw, 'buffer')}, which nothing has written to since to_empty() or the like, may hold what the "
            f"memory held: set them, name them in skip= if they are right, or build the model within xinit.deferred()",
            stacklevel=2,
        )
    if len(chosen) < len(sites) and not quiet():
        warnings.warn(
            f"init_: {len(sites) - len(chosen)} of {len(sites)} parameters were loaded from a checkpoint, as their "
            f"_is_hf_initialized says, and are left as they are; init_(..., loaded=True) fills them too",
            stacklevel=2,
        )
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


def fingerprint(model: nn.Module, progress: bool = False, group: Any = None, *, buffers: bool = False) -> str:
    """A digest of all parameters of a model, and of its buffers if asked for: 32 hexadecimal digits.

    The sum, modulo 2^64 twice, of a function of every element's parameter name, dtype, index and bits. So it is the same on every
    device, in every memory layout, order of parameters and wrapper; a tied parameter counts once, under its first name.
    Of a sharded model, it is that of the whole, on all ranks: each digests what it holds, and an all-reduce adds that up. What
    several ranks hold alike counts once, and is compared. A rank outside of the model's mesh holds none of it, and is not told:
    it gets 32 zeros, unless ``group`` is one that it is in.
    Models of equal fingerprints may differ in their buffers, which do not count by default: running statistics change by use,
    and tables that are computed on different devices differ in their last bits.
    It tells differences that happen from each other, not those that someone takes pains to hide.

    Args:
        model: with parameters that have memory, on any devices.
        progress: show a bar, with tqdm.
        group: the process group whose ranks hold the model together, if it is more than the ranks of the parameters' meshes:
            the stages of a pipeline.
        buffers: whether buffers count, persistent or not, of any dtype; those that two stages have in common, in each.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: for a ``DTensor`` that :func:`init_` could not fill; on all ranks of the group, if two parts of the model have
            a name in common.
        RuntimeError: for parameters on the meta device, or whose memory was released; on all ranks, if some that should hold the
            same of a parameter do not.
        NotImplementedError: for dtypes and layouts that :func:`init_` does not support; for parameters on meshes none of which
            spans the others.
        ImportError: for ``progress`` without tqdm.

    Example:
        >>> import torch, xinit
        >>> model = xinit.init_(torch.nn.Linear(4, 3), "torch", xinit.Key(0))
        >>> before = xinit.fingerprint(model)
        >>> with torch.no_grad():
        ...     _ = model.bias[1].neg_()
        >>> xinit.fingerprint(model) == before
        False
    """
    sites = _sites(model, "fingerprint")
    _check_memory("fingerprint", sites)
    ranks = Ranks((site.parameter for site in sites), "fingerprint", group)
    ranks.check_names({site.name: site.parameter for site in sites})
    tensors: list[Tensor] = [site.parameter for site in sites]
    names = [site.name for site in sites]
    parts = [
        (i, part, Key(0).fold_in(names[i]).words, where)
        for i, tensor in enumerate(tensors)
        for part, where in _once(pieces(tensor, f"fingerprint: parameter {names[i]}"))
    ]
    for buffer in buffers_of(model, meta=True) if buffers else ():
        if buffer.tensor.is_meta:
            raise RuntimeError(f"fingerprint: buffer {buffer.name} is on the meta device, without memory")
        key = Key(0).fold_in(buffer.name).fold_in(str(buffer.tensor.dtype))
        there = _once(pieces(buffer.tensor, f"fingerprint: buffer {buffer.name}"))
        parts += [(len(tensors), as_floats(part, buffer.name), key.words, where) for part, where in there]
        tensors.append(buffer.tensor)
        names.append(buffer.name)
    found: dict[torch.device, list[tuple[int, Tensor]]] = {}  # one a device, so that nothing waits before the end
    with bar_of("fingerprint", (part for _, part, _, _ in parts), progress) as bar:
        for i, part, words, where in parts:
            window = () if where is None else (where.global_shape, where.offsets)
            digest = torch.ops.xinit.digest(part.detach(), words, *window)
            found.setdefault(part.device, []).append((i, digest))
            if progress:
                digest.cpu()  # or the bar would run ahead of the device
                bar.update(part.nbytes)
    digests = torch.zeros(len(tensors), 2, dtype=torch.int64)
    for on_one in found.values():
        indices = torch.tensor([i for i, _ in on_one])
        digests.index_add_(0, indices, torch.stack([digest for _, digest in on_one]).cpu())
    differing = ranks.differing(tensors, digests)
    counted = digests[[i for i, tensor in enumerate(tensors) if ranks.counts(tensor)]].sum(0).tolist()
    first, second, wrong = ranks.sum([*counted, len(differing)])
    if wrong:
        here = some([names[i] for i in differing]) if differing else "parameters of other ranks"
        raise RuntimeError(
            f"fingerprint: the ranks that should hold the same of {here} do not: was each initialised with a key of its own?"
        )
    return f"{first:016x}{second:016x}"


def _once(parts: Sequence[tuple[Tensor, Any]]) -> list[tuple[Tensor, Any]]:
    """Without those that hold the same of the whole, as simulated ranks in one process do."""
    return list({where and (where.offsets, part.shape): (part, where) for part, where in reversed(parts)}.values())


def _untied(model: nn.Module) -> list[str]:
    """Parameters that ``to_empty`` has untied, as far as a model of transformers says which belong together."""
    found = []
    for path, module in model.named_modules():
        for name, source in (module.__dict__.get("all_tied_weights_keys") or {}).items():
            try:
                pair = module.get_parameter(name), module.get_parameter(source)
            except AttributeError:
                continue
            if pair[0] is not pair[1] and all(map(never_written, pair)):
                found.append(canonical_name(f"{path}.{name}" if path else name))
    return list(dict.fromkeys(found))


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


def _sites(model: nn.Module, op: str, computed: bool = False) -> list[Site]:
    """Of a model with its parameters in shards, if it is sharded."""
    if isinstance(model, nn.Module):
        fully_sharded = sys.modules.get("torch.distributed.fsdp")
        if fully_sharded and any(isinstance(m, fully_sharded.FullyShardedDataParallel) for m in model.modules()):
            raise NotImplementedError(
                f"{op}: FullyShardedDataParallel keeps parameters in flat pieces without their shapes: call {op} before it "
                f"wraps the model, or use torch.distributed.fsdp.fully_shard"
            )
        reshard(model)
    return sites_of(model, op, computed)
