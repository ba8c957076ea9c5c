"""``materialize_()``: what :func:`xinit.deferred` has recorded, drawn; ``audit()``: what is still to be drawn."""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from xinit._torch import DisableTorchFunction, local_tensor, of_class, swap_tensor, without_modes
from xinit.dtensor import cut, is_sharded, outside, with_memory
from xinit.history.replay import needed, replay
from xinit.history.simplify import Record, box, origin, record_of
from xinit.history.storages import Node, Ref, Store, is_raw, now, ordinary_tensors, purge, store_of
from xinit.keys import Key
from xinit.lazy.late import Late, own_class, release
from xinit.lazy.shards import Shard, holds_deferred, is_raw_shard, let_go, whole_of, written_unseen
from xinit.parallel.ranks import Ranks, offloaded
from xinit.parameters.names import canonical_name, modules_of, tensors_of, version_of
from xinit.parameters.sites import known_unwritten, mark_unwritten, some
from xinit.parameters.table import fold, table
from xinit.parameters.writes import Write, fill_writes_
from xinit.subclasses import held, plain, rewrap


class _Target:
    """A parameter or buffer that is to get its memory."""

    def __init__(self, name: str, tensor: Tensor, record: Record, wrapper: Tensor) -> None:
        self.name, self.tensor, self.record = name, tensor, record
        self.wrapper = wrapper  # the tensor itself, or the wrapper subclass that holds it
        self.whole = record.ref
        self.store = record.ref.store

    def writes(self, key: Key) -> list[Write]:
        """Its parts, to be drawn from the model's key."""
        key = key.fold_in(self.name)
        return [Write(what, key, offsets, shape, frame) for what, offsets, shape, frame in self.record.parts or ()]

    def written(self) -> bool:
        """Whether anything was ever written to it."""
        return self.record.parts != () or not self.whole.numel


def _places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """The modules that hold each tensor, by its id, and the names under which they do."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                places.setdefault(id(tensor), []).append((module, name))
    return places


def _record(tensor: Tensor) -> Record | None:
    """What is known of a tensor on the meta device by its storage."""
    store = store_of(tensor) if plain(tensor) else None
    if store is None or not store.deferred:
        return None
    if store.unknown and any(node.is_unknown for node in needed(store, now())):
        return None
    left: Record | None = tensor.__dict__.get("_xinit_record")
    if left is not None and left.describes(tensor, store):
        return left
    return record_of(tensor, store, left.version if left else version_of(tensor))


def _targets(model: nn.Module, op: str) -> tuple[list[_Target], list[Tensor], dict[str, str]]:
    """What has a record, parameters first; what is real; and the names of what has no values and no record, with the reason."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, but found {type(model).__name__}")
    targets, real, unknown = [], [], dict[str, str]()
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    with DisableTorchFunction():  # or is_meta would say what deferred() has it say
        for name, tensor in [*tensors_of(model), *_set_later(model)]:
            if not tensor.is_meta:
                real.append(tensor)
                if is_sharded(tensor):
                    places = places or _places(model)
                    raw = is_raw_shard(places.get(id(tensor), []), tensor)
                else:
                    raw = plain(tensor) and is_raw(tensor)
                if raw:
                    unknown[name] = _RAW
                continue
            try:
                values = held(tensor, f"{op}: {name}")
            except NotImplementedError:
                if op == "materialize_":
                    raise
                unknown[name] = _OUTSIDE
                continue
            record = _record(whole_of(tensor) if isinstance(tensor, Shard) else values)
            if record is not None:
                targets.append(_Target(name, values, record, tensor))
            elif (
                (is_sharded(tensor) and not isinstance(tensor, Shard)) or not plain(values) or store_of(values) is None
            ):
                unknown[name] = _OUTSIDE
            else:
                unknown[name] = _CHANGED
    return targets, real, unknown


def _set_later(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What modules hold as attributes since the context, made of what has no memory."""
    seen: set[int] = set()
    for _, prefix, (*_, module) in modules_of(model):
        known = {id(tensor) for _, tensor in module.__dict__.get("_xinit_held", ())}
        for name, value in module.__dict__.items():
            if isinstance(value, Late) and id(value) not in known | seen:
                seen.add(id(value))
                yield prefix + name, value  # type: ignore[misc]


_OUTSIDE = "on the meta device, built outside of deferred()"
_CHANGED = "on the meta device, made of tensors that were put there outside of deferred()"
_RAW = "has memory by to_empty(), but no values"


def _refuse(unknown: dict[str, str], model: nn.Module) -> None:
    """Raise an error for the first kind of them."""
    why = next(iter(unknown.values()))
    names = some([name for name, other in unknown.items() if other is why])
    if why is _RAW:
        raise RuntimeError(
            f"materialize_: to_empty() has replaced {names} by memory without values, and buffers likewise: leave it out, "
            f"materialize_(model, device) gives them their memory"
        )
    if why is _CHANGED:
        raise RuntimeError(
            f"materialize_: {names} changed after the xinit.deferred() context, with tensors of which nothing is known, such as "
            f"the new rows of a resized embedding: do that within it, or within another one"
        )
    sharded = any(is_sharded(parameter) and parameter.is_meta for parameter in model.parameters())
    raise RuntimeError(
        f"materialize_: nothing is known of {names}, on the meta device: built outside of xinit.deferred(), or put there "
        f"since{', or sharded within it: shard a model after the context' if sharded else ''}? Do it within another context"
    )


def materialize_(
    model: nn.Module,
    device: torch.device | str | None = None,
    key: Key | None = None,
    progress: bool = False,
    check: bool = False,
) -> nn.Module:
    """Give the parameters of a model built within :func:`deferred` their memory and their values, all in one fill.

    Each parameter is drawn as the constructor would have drawn it, in its dtype, from ``key.fold_in(name)`` with its fully
    qualified name, once, however often the constructor did. What is not a fill is done again, its random numbers keyed by the
    name of the parameter that they are for and their number. A parameter that is a copy of another one of the model is a copy
    here too; one that was copied from a template that is not part of the model, as in ``nn.TransformerEncoder``, is drawn
    for itself. Parameters stay the same objects; buffers, and parameters that are real already, are moved.

    Of a model that ``fully_shard`` or ``parallelize_module`` has sharded, each rank draws what it holds, with the bits of the
    whole, without communication. What is done again, it does as a whole, and then keeps its part.

    Args:
        model: what was built, or a part of it, or a module that it is part of. A part's names are those within it, so that one
            key draws equal parts alike: ``xinit.parallel.renamed(layer, {"": "layers.0"})`` is drawn as in the whole.
        device: where; the CPU by default. What FSDP2 offloads to the CPU goes there.
        key: the model's; by default one drawn from torch's default generator, so that ``torch.manual_seed`` governs: of a sharded
            model from that of the mesh's first rank, which tells the others in a small broadcast.
        progress: show a bar; takes tqdm.
        check: whether the ranks first compare their keys, in one small all-reduce.

    Returns:
        the model.

    Raises:
        TypeError: if model, device or key are not of these types.
        ValueError: for a ``DTensor`` that :mod:`xinit.init` cannot fill; on all ranks, if ``check`` finds different keys.
        RuntimeError: before anything has changed: if the model has no deferred parameters, or some that were put on the meta
            device elsewhere, changed after the context so that it is not known how, or given memory without values by
            ``to_empty``, which are named.

    Warns:
        UserWarning: of parameters that the constructor never wrote; they hold what the memory held.

    Example:
        >>> import torch, xinit
        >>> with xinit.deferred():
        ...     model = torch.nn.Linear(100, 200)
        >>> _ = xinit.materialize_(model, key=xinit.Key(0))
        >>> weight = xinit.uniform_(torch.empty(200, 100), -0.1, 0.1, key=xinit.Key(0).fold_in("weight"))
        >>> torch.allclose(model.weight, weight)
        True
    """
    # Within a deferred() too, this is for real.
    with without_modes(), DisableTorchFunction(), _without_collector(), ordinary_tensors():
        unwritten = _materialize_(model, device, key, progress, check)
    if unwritten:
        warnings.warn(
            f"materialize_: {some(unwritten, 'tensor')} never written by the model's constructor", stacklevel=2
        )
    return model


@contextmanager
def _without_collector() -> Iterator[None]:
    """A device waits while the work for it is put together, of many small objects none of which is garbage yet; the collector
    would look at all of the process's, more than once, for as long as all the rest takes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check(model: nn.Module, targets: list[_Target], real: list[Tensor], unknown: dict[str, str]) -> None:
    """Raise if not all can be drawn, or there is nothing to draw."""
    if unknown:
        _refuse(unknown, model)
    if not targets and (lazy := [canonical_name(name) for name, p in model.named_parameters() if is_lazy(p)]):
        raise RuntimeError(
            f"materialize_: {some(lazy)} of lazy modules have no shape yet: call the model with an input first, within the "
            f"xinit.deferred() that builds it if they are to be drawn from the key"
        )
    if not targets and not any(map(outside, real)):
        if any(map(holds_deferred, model.modules())):
            raise RuntimeError(
                "materialize_: other tensors have taken the place of all deferred parameters: leave to_empty() out, "
                "materialize_(model, device) gives them their memory; a model that was loaded whole needs neither"
            )
        raise RuntimeError(
            "materialize_: the model has no deferred parameters: they have their memory already, or were not built within "
            "xinit.deferred()"
        )
    late = [target.name for target in targets if _written_unseen(target)]
    if late:
        raise RuntimeError(
            f"materialize_: {some(late)} written to after the xinit.deferred() context, so that it is not known how: do that "
            f"within another such context, before the model is sharded"
        )


def _materialize_(
    model: nn.Module, device: torch.device | str | None, key: Key | None, progress: bool, check: bool
) -> list[str]:
    """Returns the names of what was never written."""
    targets, real, unknown = _targets(model, "materialize_")
    if key is not None and not isinstance(key, Key):
        raise TypeError(f"materialize_: key must be an xinit.Key, but found {type(key).__name__}")
    where = torch.empty(0, device=device or "cpu").device  # with its index
    _check(model, targets, real, unknown)
    if key is None:
        drawn = Key.drawn(torch.default_generator)
        key = Ranks(model.parameters(), "materialize_").first_key(drawn)
    if check:
        Ranks(model.parameters(), "materialize_").check_key(key)
    elsewhere = [tensor for tensor in real if tensor.device != where]
    on_cpu = offloaded(model) if elsewhere or any(is_sharded(target.tensor) for target in targets) else set()
    # Copied before the fill is launched, which a copy to a GPU would wait for; one from a GPU must be waited for.
    behind = where.type != "cpu"
    moved = [(t, t.data.to(where, non_blocking=behind)) for t in elsewhere if id(t) not in on_cpu]
    values = _drawn(targets, where, on_cpu, key, progress)
    scripted = [
        (module, name, tensor)
        for module in model.modules()
        if isinstance(module, torch.jit.ScriptModule)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]
    ]

    for target, value in zip(targets, values, strict=True):
        tensor: Any = target.tensor
        if is_sharded(tensor):
            local_tensor.set(tensor, local_tensor(value))
        elif isinstance(tensor, nn.Parameter):
            value = of_class(own_class(tensor), value, tensor.requires_grad)
        release(tensor)
        swap_tensor(tensor, value)
        rewrap(target.wrapper, target.tensor)
        for told in "_xinit_record", "_xinit_whole", "_xinit_seen", "_xinit_local":
            tensor.__dict__.pop(told, None)
        if not target.written():
            mark_unwritten(target.tensor)
    for module in model.modules():
        let_go(module)
        module.__dict__.pop("_xinit_held", None)
    for module, name, tensor in scripted:
        setattr(module, name, tensor)  # it holds what the object was, not the object
    for tensor, value in moved:
        tensor.data = value
    purge()
    return [target.name for target in targets if not target.written()]


def _written_unseen(target: _Target) -> bool:
    """Whether something was done to it after the context of which nothing is recorded."""
    tensor = target.tensor
    if isinstance(tensor, Shard):
        return written_unseen(tensor)
    left = tensor.__dict__.get("_xinit_record")
    return version_of(tensor) != target.record.version and left is not None and not target.store.since(left.time)


def _drawn(targets: list[_Target], device: torch.device, on_cpu: set[int], key: Key, progress: bool) -> list[Tensor]:
    """The values of all targets, in their order: fills in one batch, and everything else done again, all of it on one device.

    Those of the sharded ones among them whose ids are in `on_cpu` go there.
    """
    again, nodes = _again(targets)
    replayed = set(again)
    storages = replay(
        nodes, _keys_of(again, {target.store for target in targets}, key), {t.store for t in again}, device
    )

    values: list[Tensor] = []
    jobs: list[tuple[str, Tensor, list[Write]]] = []
    for target in targets:
        tensor = target.tensor
        if is_sharded(tensor):
            value = with_memory(tensor, torch.device("cpu") if id(tensor) in on_cpu else device)
            if target in replayed:
                cut(target.whole.of(storages[target.store]), value)
        elif target in replayed:
            value = target.whole.among(storages, device).to(tensor.dtype)
        else:
            value = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        values.append(value)
        if target not in replayed:
            jobs.append((target.name, value, target.writes(key)))
    fill_writes_(jobs, progress, "materialize_")
    return values


def _again(targets: list[_Target]) -> tuple[list[_Target], dict[Node, None]]:
    """The targets of which what was recorded is to be done again, and all that takes, for them."""
    replayed: set[_Target] = set()
    nodes: dict[Node, None] = {}
    owned = Counter(target.store for target in targets)
    # Two parameters that are views of one storage take their values in the order of time.
    simple = {target for target in targets if target.record.parts is not None and owned[target.store] == 1}
    while True:
        # A copy of what another target, or an operator that is to be done again, draws too must not be drawn for itself.
        read = {ref.store for node in nodes for ref in node.refs}
        shared = owned.keys() | read
        rest = [
            target
            for target in targets
            if target not in replayed
            and (target not in simple or target.store in read or not shared.isdisjoint(target.record.sources))
        ]
        if not rest:
            break
        replayed.update(rest)
        for target in rest:
            nodes |= dict.fromkeys(needed(target.store, target.record.time))
    return [target for target in targets if target in replayed], nodes


def _keys_of(again: list[_Target], owned: set[Store], key: Key) -> dict[Node, tuple[Key, Ref | None]]:
    """Whose draws they are: a parameter's own if its final values come from them, else the first one's that needs them."""
    keys: dict[Node, tuple[Key, Ref | None]] = {}
    own: dict[Node, tuple[_Target, Ref]] = {}
    for copied in True, False:
        for t in reversed(again):
            whole, time = origin(t.whole, t.record.time) if copied else (t.whole, t.record.time)
            if whole.store is t.store or whole.store not in owned:
                own |= {n: (t, whole) for n in whole.store.until(time) if n.fill and box(n.fill[0], whole)}
    known: set[Node] = set()
    for target in again:
        count = 0
        for node in needed(target.store, target.record.time, known):
            known.add(node)
            if node in own:
                keys[node] = key.fold_in(own[node][0].name), own[node][1]
            elif node.random:
                keys[node] = key.fold_in(target.name).fold_in(count), None
                count += 1
    return keys


class Audit(list[tuple[str, str]]):
    """Names of parameters and buffers, and what is wrong with each; printed, a table, of one line for equal layers."""

    def __str__(self) -> str:
        if not self:
            return "every parameter and buffer has its values"
        return table(("count", "name", "problem"), fold(self))


def audit(model: nn.Module) -> Audit:
    """The parameters and buffers of a model that have no values: without memory, or never written.

    Returns:
        a list of names and problems, which prints as a table; it is empty, and so false, if all is well.

    Raises:
        TypeError: if ``model`` is not a module.

    Example:
        >>> import torch, xinit
        >>> with xinit.deferred():
        ...     model = torch.nn.Linear(100, 200, bias=False)
        >>> print(xinit.audit(model))
        count  name    problem
            1  weight  deferred: on the meta device until materialize_
        >>> xinit.audit(xinit.materialize_(model))
        []
    """
    targets, _, unknown = _targets(model, "audit")
    problems = dict(unknown)
    for target in targets:
        written = "deferred: on the meta device until materialize_"
        problems[target.name] = written if target.written() else "deferred, but never written by the constructor"
    rows = Audit()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        canonical = canonical_name(name)
        if canonical in problems:
            rows.append((canonical, problems[canonical]))
        elif is_lazy(tensor):
            rows.append((canonical, "lazy: without a shape until the model is called with an input"))
        elif known_unwritten(tensor):
            rows.append((canonical, "never written"))
    return rows
