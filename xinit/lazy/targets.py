"""What is to get its values in a model that :func:`xinit.deferred` has built, and what cannot, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from xinit._torch import DisableTorchFunction
from xinit.dtensor import is_sharded
from xinit.history.simplify import Record, record_of_view
from xinit.history.storages import history_of, is_raw, needed, now, ref
from xinit.lazy.draw import Target
from xinit.lazy.late import Late, left_of
from xinit.lazy.shards import Shard, is_raw_shard, whole_of
from xinit.parameters.names import Walk, every_module, modules_of, tensors_of
from xinit.subclasses import held


def places_of(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """The modules that hold each tensor, by its id, and the names under which they do."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                places.setdefault(id(tensor), []).append((module, name))
    return places


def record_of(tensor: Tensor) -> Record | None:
    """What is known of a tensor without memory by its storage."""
    with DisableTorchFunction():  # or its class would look at what this does
        store = history_of(tensor) if tensor.is_meta else None
        if store is None or not store.deferred:
            return None
        if store.unknown and any(node.is_unknown for node in needed(store, now())):
            return None
        view, left = ref(tensor, store), left_of(tensor)
        if left is not None and left.record.ref == view and not store.since(left.record.time):
            return left.record
        return record_of_view(view)


def targets_of(model: nn.Module, op: str) -> tuple[list[Target], list[Tensor], dict[str, str]]:
    """What has a record, parameters first; what is real; and the names of what has no values and no record, with the reason."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, but found {type(model).__name__}")
    targets, real, unknown = [], [], dict[str, str]()
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    modules = list(modules_of(model))
    with DisableTorchFunction():  # or is_meta would say what deferred() has it say
        for name, tensor in [*tensors_of(modules), *_set_later(modules)]:
            if not tensor.is_meta:
                real.append(tensor)
                if is_sharded(tensor):
                    places = places or places_of(model)
                    raw = is_raw_shard(places.get(id(tensor), []), tensor)
                else:
                    raw = is_raw(tensor)
                if raw:
                    unknown[name] = RAW
                continue
            try:
                values = held(tensor, f"{op}: {name}")
            except NotImplementedError:
                if op == "materialize_":
                    raise
                unknown[name] = OUTSIDE
                continue
            record = record_of(whole_of(tensor) if isinstance(tensor, Shard) else values)
            if _is_emptied(tensor):
                unknown[name] = EMPTIED
            elif record is not None:
                targets.append(Target(name, values, record, tensor))
            elif (is_sharded(tensor) and not isinstance(tensor, Shard)) or history_of(values) is None:
                unknown[name] = OUTSIDE
            else:
                unknown[name] = CHANGED
    return targets, real, unknown


def _set_later(modules: Walk) -> Iterator[tuple[str, Tensor]]:
    """What modules hold as attributes since the context, made of what has no memory."""
    seen: set[int] = set()
    for _, prefix, path in modules:
        attributes = path[-1].__dict__
        if not any(map(_is_late, set(map(type, attributes.values())))):
            continue
        known = {id(tensor) for _, tensor in attributes.get("_xinit_held", ())}
        for name, value in attributes.items():
            if isinstance(value, Late) and id(value) not in known | seen:
                seen.add(id(value))
                yield prefix + name, value  # type: ignore[misc]


@lru_cache(1024)  # the attributes of a model's modules are many, and of few classes
def _is_late(kind: type) -> bool:
    return issubclass(kind, Late)


_HOLDERS = nn.Module, dict, list, tuple
_OWN = frozenset(name for name, value in nn.Module().__dict__.items() if isinstance(value, dict))  # hooks and parts


def hidden_in(model: nn.Module) -> Iterator[str]:
    """The names of deferred parameters of modules in lists, tuples and dictionaries, which torch does not take as parts of the
    model, so that nobody gives them memory."""
    parts = {id(module) for module in every_module(model)}
    met: set[int] = set()
    for _, prefix, (*_, module) in modules_of(model):
        own = module.__dict__.items()
        todo = [
            (prefix + name, value) for name, value in reversed(own) if name not in _OWN and isinstance(value, _HOLDERS)
        ]
        while todo:
            name, value = todo.pop()
            if isinstance(value, nn.Module):
                found = () if id(value) in parts else value.named_parameters(name)
                with DisableTorchFunction():
                    yield from (name for name, p in found if p.is_meta and history_of(p) is not None)
            elif isinstance(value, _HOLDERS) and id(value) not in met:
                met.add(id(value))
                items = dict.items(value) if isinstance(value, dict) else enumerate(value)
                todo += [(f"{name}.{part}", item) for part, item in reversed([*items])]


OUTSIDE = "on the meta device, built outside of deferred()"
CHANGED = "on the meta device, made of tensors that were put there outside of deferred()"
RAW = "has memory by to_empty(), but no values"
EMPTIED = "without elements since, as those that DeepSpeed's ZeRO-3 partitions"


def _is_emptied(tensor: Any) -> bool:
    """Whether it had elements and has none, as its values are elsewhere."""
    left = left_of(tensor)
    had = (left is not None and bool(left.record.ref.numel)) or tensor.__dict__.get("_xinit_emptied", False)
    return hasattr(tensor, "ds_id") or (had and not tensor.numel())
