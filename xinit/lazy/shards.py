"""Deferred parameters that are sharded before they have memory: what is done to a shard is done to the whole of it too.

``fully_shard`` and ``parallelize_module`` put another tensor in a parameter's place, a ``DTensor`` on the meta device. It is told
there which whole it stands for, and has a subclass of its own class as long as it has no memory.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from xinit._torch import DisableTorchFunctionSubclass, is_view, local_tensor, spec_of, tree_leaves, tree_map, version
from xinit.dtensor import is_sharded
from xinit.history.storages import known, now, store_of
from xinit.lazy.late import IS_META, Late, class_of, is_meta, telling_where_to, watch

_OF_A_SHARD = frozenset({local_tensor.name, spec_of.name, "_xinit_whole", "_xinit_seen", "_xinit_local"})


class Held(dict[str, Any]):
    """A module's parameters or buffers, of which some are deferred. A shard that takes the place of one stands for it."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        super().__init__(tensors)
        self.deferred = {name for name, tensor in tensors.items() if whole_of(tensor) is not None}

    def __setitem__(self, name: str, tensor: Any) -> None:
        whole = whole_of(self.get(name))
        new = is_sharded(tensor) and tensor.is_meta and not isinstance(tensor, Shard)
        if new and whole is not None and tensor.shape == whole.shape:
            _stand_for(tensor, whole, [0])
        super().__setitem__(name, tensor)


def hold(module: nn.Module) -> None:
    """See what takes the place of the module's parameters and buffers."""
    for names in "_parameters", "_buffers":
        if type(held := module.__dict__.get(names)) is dict:
            module.__dict__[names] = Held(held)


def let_go(module: nn.Module) -> None:
    for names in "_parameters", "_buffers":
        if type(held := module.__dict__.get(names)) is Held:
            module.__dict__[names] = dict(held)


def holds_deferred(module: nn.Module) -> bool:
    """Whether some of the module's tensors were deferred, whatever is in their places now."""
    return any(isinstance(held, Held) and bool(held.deferred) for held in (module._parameters, module._buffers))


class Shard:
    """What the subclasses of ``DTensor`` have that it does not."""

    _xinit_class: Any

    @staticmethod
    def _xinit_cannot_wait(op: str) -> None:
        """See :func:`xinit.guards.check_can_wait`."""
        raise RuntimeError(
            f"deferred: {op} does nothing on the meta device, where this tensor is until materialize_: do it before the model is "
            f"sharded, within xinit.deferred()"
        )

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == IS_META:
            return is_meta(args[0])
        with DisableTorchFunctionSubclass():
            shards: list[Any] = [leaf for leaf in tree_leaves((args, kwargs)) if is_sharded(leaf)]
            known = all(isinstance(shard, Shard) for shard in shards)
            seen: list[Any] = [shard for shard in shards if isinstance(shard, Shard) and not written_unseen(shard)]
            if getattr(func, "namespace", None) == "xinit":  # which is done to the whole alone
                output = args[0]
            else:
                with telling_where_to():
                    output = func(*args, **kwargs)
            made = [leaf for leaf in tree_leaves(output) if is_sharded(leaf)]
            if not all(shard.is_meta for shard in made):
                _mark_raw(made)
                return output
            if not known:  # what was made or written with others is unknown
                return output
        if made or func.__name__ != "__get__":
            _repeat(func, args, kwargs, output)
        with DisableTorchFunctionSubclass():
            for shard in seen:
                shard._xinit_seen[0] = version(shard)  # whatever was written to it was done to its whole too
        return output

    def to_local(self: Any, **options: Any) -> Tensor:
        """Of what is written to it the whole does not know, but this tensor does."""
        local: Tensor = self._xinit_class.to_local(self, **options)
        watch(local)
        return local

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            with DisableTorchFunctionSubclass(), torch.no_grad():
                memo[id(self)] = twin = self.clone().requires_grad_(self.requires_grad)
            twin.__dict__.update({name: value for name, value in self.__dict__.items() if name not in _OF_A_SHARD})
            _stand_for(twin, copy.deepcopy(self._xinit_whole, memo))
        return memo[id(self)]


def whole_of(tensor: Any) -> Any:
    """The deferred tensor that a tensor is, or is a shard of; None if it is neither."""
    return tensor if isinstance(tensor, Late) else getattr(tensor, "_xinit_whole", None)


def written_unseen(shard: Any) -> bool:
    """Whether something was written to it, or to its local tensor, that the whole does not know of."""
    local, (count, time) = local_tensor(shard), shard._xinit_local
    store = store_of(local)
    if store is not None and store is not store_of(shard._xinit_whole) and store.since(time):
        return True
    return bool(version(shard) != shard._xinit_seen[0] or version(local) != count)


def is_raw_shard(holders: list[tuple[nn.Module, str]], tensor: Any) -> bool:
    """Whether a deferred tensor's shard has got its memory by ``to_empty()``, and nothing was written there."""
    local = local_tensor(tensor)
    was_deferred = any(
        isinstance(held, Held) and name in held.deferred
        for module, name in holders
        for held in (module._parameters, module._buffers)
    )
    return was_deferred and bool(local.numel()) and bool(local[(0,) * local.dim()].isnan())


def _stand_for(shard: Any, whole: Tensor, seen: list[int] | None = None) -> None:
    """``seen`` is that of what it shares the count of its versions with."""
    local = local_tensor(shard)
    if store_of(local) is None:
        known(local).defer("a shard")
    shard._xinit_whole, shard._xinit_local = whole, (version(local), now())
    shard._xinit_seen = [version(shard)] if seen is None else seen
    if not isinstance(shard, Shard):
        own: Any = type(shard)
        shard.__class__ = class_of(Shard, own)


def _repeat(func: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Do to the wholes what was done to their shards."""
    given = tree_map(lambda leaf: whole_of(leaf) if isinstance(leaf, Shard) else leaf, (args, kwargs))
    wholes = tree_leaves(func(*given[0], **given[1]))
    with DisableTorchFunctionSubclass():
        for shard, whole in zip(tree_leaves(output), wholes, strict=True):
            if is_sharded(shard) and not isinstance(shard, Shard):
                alias = is_view(shard)() or func.__name__ == "detach"
                _stand_for(shard, whole, args[0]._xinit_seen if alias else None)


def _mark_raw(tensors: list[Any]) -> None:
    """As :func:`xinit.history.storages.mark_raw`, but FSDP2 may copy it to another storage, to pad it."""
    with torch.no_grad():
        for local in map(local_tensor, tensors):
            if local.numel() and local.is_floating_point():
                local[(0,) * local.dim()] = math.nan
