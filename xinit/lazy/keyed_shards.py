"""What is done to sharded parameters within ``accelerate(key=, model=)`` is done to their wholes, which have no memory.

What such an operator gives is a replicated ``DTensor`` whose local tensor is the whole's, on the meta device: nothing is sent,
and nothing held, until the parameter that it goes into is drawn.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as hooks

from xinit._torch import local_tensor, schema_of, spec_of, swap_tensor, tree_leaves, tree_map
from xinit.dtensor import answered, check_view, is_sharded
from xinit.history.operators import EMPTY, FACTORIES, VIEWS, told
from xinit.history.operators import written as written_by
from xinit.history.recorder import is_recording
from xinit.history.storages import REDRAWS, ordinary_tensors, ref, store_of
from xinit.keys import Key
from xinit.lazy.keyed import Keyed, Looks, check_generator, draws
from xinit.lazy.places import Place, identity, like
from xinit.subclasses import plain

_aten = torch.ops.aten
_ALIASES = frozenset((_aten.detach.default, _aten.alias.default))


class KeyedShards(Keyed):
    """Sees what is done to sharded parameters too."""

    def _see_sharded(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        shards: list[Any] = [leaf for leaf in tree_leaves((args, kwargs)) if is_sharded(leaf)]
        wholes = {id(shard): self._whole_of(shard) for shard in shards}
        if None in wholes.values():
            return self._with_unknown(func, args, kwargs, shards)
        places = [
            place for whole in wholes.values() if whole is not None if (place := self.places.get(identity(whole)))
        ]
        for place in places:
            place.begin_if_overwritten()
        given, options = tree_map(lambda leaf: wholes.get(id(leaf), leaf), (args, kwargs))
        first = shards[0]
        if func.is_view or func in VIEWS:
            if func in _ALIASES and not _is_whole(first):
                return func(*args, **kwargs)
            return _sharded(func(*given, **options), first, (func, args, kwargs))
        if torch.Tag.inplace_view in func.tags:
            _replace(args[0], func(*given, **options))
            return args[0]
        if func in EMPTY or func in FACTORIES:
            if func not in EMPTY and not draws(func, kwargs) and not any(map(_is_whole, shards)):
                return func(*args, **kwargs)
            there = options | dict.fromkeys(options.keys() & {"device"}, "meta")
            return _sharded(super()._see(func, given, there), first)
        if told(func, given, lambda leaf: False):
            return self._shards_really(func, args, kwargs, places)
        target = given[0] if given and any(tensor is given[0] for tensor in written_by(func, given, options)) else None
        if target is None:
            if not any(store_of(whole) for whole in wholes.values() if whole is not None):
                return func(*args, **kwargs)
            return _sharded(self._record(func, given, options, _tensors(given, options)), first)
        if self._write(func, given, options, target):
            return args[0] if schema_of(func).returns else None
        return self._shards_really(func, args, kwargs, places)

    def _write(self, func: Any, given: tuple[Any, ...], options: dict[str, Any], target: Tensor) -> bool:
        """Write down what is done to a whole, or a view of one; whether that could be done."""
        into, tensors = self.places.get(identity(target)), _tensors(given, options)
        others = [tensor for tensor in tensors if tensor is not target]
        random = draws(func, options) or any(store.random for other in others if (store := store_of(other)))
        if into is None:  # what is made of others
            if self._fill(func, given, options) is None:
                self._record(func, given, options, tensors)
            return True
        if random:
            check_generator(func, into.members[0].name, options)
        fresh = into.store is None
        into.begin()
        assert into.store is not None
        try:
            if not others and self._fill(func, given, options) is not None:
                return True
            overwrites = (func is _aten.copy_.default or func in REDRAWS) and ref(target, into.store).whole()
            if fresh and not random and not overwrites and not any(map(store_of, others)):
                return False
            covered = into.covered or overwrites
            self._record(func, given, options, tensors)
            if covered or into.described:
                return True
            into.undo()
            if others:
                raise RuntimeError(
                    f"accelerate: {func} puts what is still to be drawn into a part of {into.members[0].name}, which is sharded, "
                    f"and of which the rest is not known here: fill all of it first, within the context"
                )
            return False
        finally:
            if not into.store.nodes:
                into.end()

    def _shards_really(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], places: list[Place]) -> Any:
        """Do it with the values that are there by then."""
        self.take(places)
        real, options = tree_map(lambda leaf: _real(leaf, func), (args, kwargs))
        for tensor in written_by(func, real, options):
            if is_sharded(tensor):
                check_view(tensor, f"accelerate: {func}")
        output = func(*real, **options)
        return args[0] if real and output is real[0] else output

    def _with_unknown(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shards: list[Any]) -> Any:
        """What takes a sharded tensor of which is not known what it is of a parameter, if of any."""
        members = [m for shard in shards for m in self.locals.get(_identity_of_local(shard), ())]
        written = [tensor for tensor in written_by(func, args, kwargs) if is_sharded(tensor)]
        if draws(func, kwargs) and written:
            if mine := [m for m in members if _identity_of_local(written[0]) == identity(m.memory)]:
                raise RuntimeError(
                    f"accelerate: {func} draws into a view of {mine[0].name}, which is sharded, that was made before the context "
                    f"began: make it within"
                )
            self.elsewhere.append(str(tuple(written[0].shape)))
            return func(*args, **kwargs)
        wholes = [whole for shard in shards if (whole := self._whole_of(shard)) is not None]
        places = [self.place(member) for member in members]
        places += [place for whole in wholes if (place := self.places.get(identity(whole)))]
        return self._shards_really(func, args, kwargs, places)

    def _whole_of(self, shard: Any) -> Tensor | None:
        """The tensor without memory that stands for the whole of a sharded one, if it is a parameter or was made of such."""
        local: Tensor = local_tensor(shard)
        if not plain(local):
            return None
        if local.is_meta and (store_of(local) or identity(local) in self.places):
            return local
        for member in self.locals.get(identity(local), ()):
            parameter: Any = member.parameter
            if (
                shard.shape == parameter.shape
                and shard.placements == parameter.placements
                and like(local, member.local)
            ):
                return member.whole
        return None


def _is_whole(shard: Any) -> bool:
    """Whether its local tensor is one without memory."""
    return bool(local_tensor(shard).is_meta)


def _identity_of_local(shard: Any) -> int:
    local = local_tensor(shard)
    return identity(local) if plain(local) else 0


def _tensors(given: Any, options: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((given, options)) if isinstance(leaf, Tensor)]


def _sharded(output: Any, like: Any, made: Any = None) -> Any:
    """What an operator gives of wholes, as of sharded tensors: replicated. ``made`` is how it can be made of real ones."""
    kinds: Any = sys.modules["torch.distributed.tensor"]

    def wrap(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        mesh = like.device_mesh
        shard = kinds.DTensor.from_local(leaf, mesh, [kinds.Replicate()] * mesh.ndim, run_check=False)
        shard._xinit_made = made if leaf is output else None
        return shard

    return tree_map(wrap, output)


def _replace(shard: Any, whole: Tensor) -> None:
    """Make a sharded tensor that of another whole, in place."""
    other = _sharded(whole, shard)
    local, spec = local_tensor(other), spec_of(other)
    swap_tensor(shard, other)
    local_tensor.set(shard, local)
    spec_of.set(shard, spec)


def _real(leaf: Any, func: Any) -> Any:
    """A sharded tensor with memory, of one without that is a view of such."""
    if not is_sharded(leaf) or not _is_whole(leaf):
        return leaf
    made = getattr(leaf, "_xinit_made", None)
    if made is None:
        raise RuntimeError(
            f"accelerate: {func} takes values of a tensor of shape {tuple(leaf.shape)}, made of sharded parameters, "
            f"which are drawn when the context ends: do it after that"
        )
    real, options = tree_map(lambda part: _real(part, func), made[1:])
    return made[0](*real, **options)


_thread = threading.local()


@contextmanager
def keyed(key: Any, model: Any) -> Iterator[None]:
    """Within it, what is done to the model's parameters is drawn from the key.

    Raises:
        TypeError, ValueError, RuntimeError: see :func:`xinit.accelerate`.
    """
    if not isinstance(key, Key):
        raise TypeError(f"accelerate: key must be an xinit.Key, but found {type(key).__name__}")
    outer: Keyed | None = getattr(_thread, "keyed", None)
    if outer is not None:
        if outer.key != key or outer.model is not model:
            raise RuntimeError(
                f"accelerate: this is within another accelerate() with key={outer.key} for a {type(outer.model).__name__}: leave "
                f"that one first, or pass the same key and model"
            )
        yield
        return
    if is_recording():
        raise RuntimeError(
            "accelerate: a key and a model are for what has memory; within deferred(), materialize_ takes the key"
        )
    mode = KeyedShards(model, key)
    hook = hooks.register_module_parameter_registration_hook(lambda *_: setattr(mode, "stale", True))
    _thread.keyed = mode
    try:
        with ordinary_tensors(), answered(by_name=True), Looks(mode), mode:
            yield
        mode.finish()
        mode.finish_drawing()
    finally:
        _thread.keyed = None
        hook.remove()
        mode.close()
