"""``accelerate(key=, model=)``: what a model's own code does to its parameters, written down, and drawn by their names.

Parameters have their memory, and keep it. As :func:`xinit.deferred` does, a mode here writes down what is done to them; it is
drawn into that memory when the context ends, or before somebody looks at it or does what no fill describes. So the values are
those of :func:`xinit.materialize_`, and what is filled twice is drawn once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xinit._torch import DisableTorchFunction, local_tensor, schema_of, tree_leaves, without_modes
from xinit.distributions import Distribution
from xinit.dtensor import is_sharded
from xinit.history.operators import EMPTY, FACTORIES, FILLS, VIEWS, distribution, tensors_of
from xinit.history.operators import written as written_by
from xinit.history.recorder import Recorder, sound
from xinit.history.simplify import record_of_view
from xinit.history.storages import purge, ref, store_of
from xinit.history.waiting import is_paused
from xinit.keys import Key
from xinit.lazy.draw import Target, draw
from xinit.lazy.places import Member, Place, check_one, identity, inside, like, part_of, places_of
from xinit.parallel.marks import refuse_parts
from xinit.parallel.ranks import sharded_sites
from xinit.parameters.sites import sites_of, some
from xinit.parameters.writes import Write, fill_writes_
from xinit.subclasses import plain

_aten = torch.ops.aten
_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
_SETS = frozenset(
    getattr(_aten.set_, name) for name in ("source_Tensor", "source_Storage", "source_Storage_storage_offset")
)
_IS_META = Tensor.is_meta.__get__  # type: ignore[attr-defined]
# What looks at memory by other ways than operators: of its first argument, of all in a list.
_LOOKS = frozenset(
    (
        *(Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.tolist, Tensor.__repr__, Tensor.storage),
        *(Tensor.data_ptr, Tensor.share_memory_, Tensor.__reduce_ex__, Tensor.untyped_storage),
    )
)
_COLLECTS = frozenset((torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor))


class Keyed(Recorder):
    """Sees every operator of this thread, and writes down what is done to a model's parameters."""

    def __init__(self, model: nn.Module, key: Key) -> None:
        super().__init__()
        self.model, self.key = model, key
        sites = sharded_sites(model, "accelerate")
        refuse_parts("accelerate", model, ((site.name, site.parameter) for site in sites))
        self.places, self.locals = places_of(sites)
        self.stale = False  # whether modules may have got other parameters, so that names are not what they were
        self.written = False  # whether any of the parameters was written to by what cannot be put off
        self.drawn: set[str] = set()  # the names of what was drawn
        self.elsewhere: list[str] = []  # parameters of others that something was drawn into

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in FILLS and not is_paused():
            with DisableTorchFunction():
                if self._overwrite(func, args, kwargs or {}):
                    return args[0] if schema_of(func).returns else None
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _overwrite(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Write down a fill of all of a parameter: nearly all that is done is that, so it goes without a history."""
        target, rest = args[0], args[1:]
        if any(value is not None for value in kwargs.values()) or any(isinstance(value, Tensor) for value in rest):
            return False
        whole = self._whole_of(target) if is_sharded(target) else target if plain(target) else None
        if whole is None or (place := self.places.get(identity(whole))) is None:
            return False
        if len(place.members) > 1 or not like(whole, place.members[0].whole):
            return False
        what = _filled(func, rest, whole.dtype)
        if what is not None:
            place.overwrite(what)
        return what is not None

    def _whole_of(self, shard: Any) -> Tensor | None:
        raise NotImplementedError

    def is_part(self, shard: Any) -> bool:
        """Whether it is a sharded parameter, or made of such."""
        return self._whole_of(shard) is not None

    def _see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_paused() or (func.is_view and not self._any_sharded(args)):
            return func(*args, **kwargs)
        if func in _SETS and not self._any_sharded(args) and identity(args[0]) in self.places:
            if func is not _aten.set_.source_Tensor or _kind(args[0]) != _kind(args[1]):
                return func(*args, **kwargs)  # which check_found() sees
            self.check_not_shared(*args)
            func = _aten.copy_.default
        tensors = [tensor for value in (*args, *kwargs.values()) for tensor in tensors_of(value)]
        if any(map(is_sharded, tensors)):
            self.written = self.written or bool(schema_of(func).is_mutable)
            return self._see_sharded(func, args, kwargs)
        if not all(plain(tensor) for tensor in tensors):
            return func(*args, **kwargs)
        if func in EMPTY or func in FACTORIES or func in VIEWS:
            return super()._see(func, args, kwargs)
        places = [place for tensor in tensors if (place := self.places.get(identity(tensor)))]
        if places:
            self.written = self.written or bool(schema_of(func).is_mutable)
            return self._see_placed(func, args, kwargs, tensors, places)
        if self.locals and any(identity(tensor) in self.locals for tensor in tensors):
            return self._see_local(func, args, kwargs, tensors)
        if draws(func, kwargs) and tensors and isinstance(args[0], nn.Parameter):
            self.elsewhere.append(str(tuple(args[0].shape)))
        return super()._see(func, args, kwargs)

    @staticmethod
    def _any_sharded(args: tuple[Any, ...]) -> bool:
        return any(is_sharded(tensor) for value in args for tensor in tensors_of(value))

    def _see_sharded(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def _see_placed(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor], places: list[Place]
    ) -> Any:
        """What is done with parameters themselves, or with views of them."""
        written = written_by(func, args, kwargs)
        target = next((tensor for tensor in written if tensor is args[0]), None)
        into = None if target is None else self.places.get(identity(target))
        if target is None or into is None or not (met := into.met(target)):
            return self._really(func, args, kwargs, places)
        others = [tensor for tensor in tensors if tensor is not target]
        givers = [place for tensor in others if (place := self.places.get(identity(tensor))) and place is not into]
        self.take(givers)
        for place in givers:
            place.given |= dict.fromkeys(member.name for member in met)
        fresh = into.store is None  # before others are asked what they share with it
        random = draws(func, kwargs) or any((store := store_of(other)) and store.random for other in others)
        if random:
            check_one(met, target)
            check_generator(func, met[0].name, kwargs)
        if len(met) == 1 and not others and part_of(target, met[0].whole) is not None:
            into.begin()
            try:
                if (filled := self._fill(func, args, kwargs)) is not None:
                    return filled[0]
            finally:
                if fresh and into.store is not None and not into.store.nodes:
                    into.end()
        if random:
            store = into.begin()
            if not into.covered and not (func is _aten.copy_.default and ref(target, store).whole()):
                self.draw([into] if store.nodes else [])
                into.end()
                into.begin(on_data=True)
            if not others and (filled := self._fill(func, args, kwargs)) is not None:
                return filled[0]
            return self._record(func, args, kwargs, tensors)
        if into.store is not None and not others:
            output = self._record(func, args, kwargs, tensors)
            if into.described:
                return output
            into.undo()
        return self._really(func, args, kwargs, places)

    def _really(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], places: Iterable[Place]) -> Any:
        """Do it, with the values that are there by then."""
        self.take(places)
        return super()._see(func, args, kwargs)

    def _see_local(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        """What is done with the local tensor of a shard, as ``to_local()`` gives it."""
        written = written_by(func, args, kwargs)
        if args and any(tensor is args[0] for tensor in written):
            target = args[0]
            of = [member for member in self.locals.get(identity(target), ()) if inside(target, member)]
            if len(of) == 1 and len(tensors) == 1 and self._fill_local(func, args, kwargs, of[0]):
                return target if schema_of(func).returns else None
            if of and (draws(func, kwargs) or any((store := store_of(t)) and store.random for t in tensors)):
                raise RuntimeError(
                    f"accelerate: {func} puts random numbers into the local tensor of {of[0].name}, of which nobody knows what "
                    f"they are in the whole: use it on the DTensor"
                )
        return self._really(func, args, kwargs, [place for tensor in tensors for place in self.places_at(tensor)])

    def _fill_local(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], member: Member) -> bool:
        boxes, place = inside(args[0], member) or [], self.place(member)
        check_generator(func, member.name, kwargs)
        fresh = place.store is None
        place.begin()
        for offsets, shape in boxes:
            part = member.whole[tuple(slice(at, at + size) for at, size in zip(offsets, shape, strict=True))]
            if self._fill(func, (part, *args[1:]), kwargs) is None:
                if fresh:
                    place.end()
                return False
        return True

    def places_at(self, tensor: Tensor) -> list[Place]:
        """Of the parameters whose memory a plain tensor may share."""
        at = identity(tensor)
        return [self.places[at]] if at in self.places else [self.place(m) for m in self.locals.get(at, ())]

    def place(self, member: Member) -> Place:
        return self.places[identity(member.whole)]

    def draw(self, places: Iterable[Place] | None = None) -> None:
        """Draw what was written down: of all, or of these places."""
        pending = {place: None for place in (self.places.values() if places is None else places) if place.pending}
        if not pending:
            return
        if self.stale:
            self.check_found()
        fills: list[tuple[str, Tensor, list[Write]]] = []
        targets: dict[torch.device, list[Target]] = {}
        drawn: dict[Member, Target] = {}
        for place in pending:
            place.count_draws()
            if place.given and place.repeats:
                warnings.warn(
                    f"accelerate: {some([*place.given])} was made of {some([m.name for m in place.members])}, which was then "
                    f"drawn again, from the same key: draw it once, or do this within deferred()",
                    stacklevel=2,
                )
                place.given.clear()
            for member in place.members:
                if (what := place.overwritten) is not None:
                    shape = tuple(member.whole.shape)
                    write = Write(what, self.key.fold_in(member.name), (0,) * len(shape), shape)
                    fills.append((member.name, member.parameter, [write]))
                elif (store := place.store) is not None:
                    record = record_of_view(ref(member.whole, store))
                    target = Target(member.name, member.parameter, record, member.parameter)
                    target.draws, drawn[member] = member.draws, target
                    targets.setdefault(member.parameter.device, []).append(target)
        with without_modes(), torch.no_grad():
            for device, alike in targets.items():
                draw(alike, lambda target, again: target.tensor, device, self.key, "accelerate")
            fill_writes_(fills, op="accelerate")
        for member, target in drawn.items():
            member.draws = target.draws
        for place in pending:
            self.drawn.update(member.name for member in place.members)
            place.end()

    def take(self, places: Iterable[Place]) -> None:
        """Draw what an operator takes."""
        places = list(places)
        self.draw(places)
        for place in places:
            place.taken = True

    def check_not_shared(self, parameter: Any, data: Any) -> None:
        """Raise a RuntimeError if a parameter is to have the memory of another one."""
        into, other = (
            next(iter(self.places_at(local_tensor(tensor) if is_sharded(tensor) else tensor)), None)
            for tensor in (parameter, data)
        )
        if into is not None and other is not None and into is not other:
            raise RuntimeError(
                f"accelerate: this gives {into.members[0].name} the memory of {other.members[0].name}: tie parameters before the "
                f"context, as by one.weight = other.weight, or copy values, by copy_"
            )

    def check_found(self) -> None:
        """Take the names that parameters have by now.

        Raises:
            RuntimeError: if other parameters have come into the model.
        """
        members = {id(member.parameter): member for place in self.places.values() for member in place.members}
        new = []
        for site in sites_of(self.model, "accelerate"):
            member = members.get(id(site.parameter))
            if member is None or self._moved(site.parameter):
                new.append(site.name)
            else:
                member.name = site.name
        self.stale = False
        if new:
            raise RuntimeError(
                f"accelerate: {some(new)} of the model other tensors than when the context began: shard and wrap the model "
                f"before it, and write to its parameters within, instead of replacing them"
            )

    def finish_drawing(self) -> None:
        """Draw all that is left.

        Raises:
            RuntimeError: if nothing was drawn for the model, but something for others.
        """
        self.check_found()
        self.draw()
        if self.elsewhere and not self.drawn:
            raise RuntimeError(
                f"accelerate: {len(self.elsewhere)} draws went into parameters that are not the model's, the first of shape "
                f"{self.elsewhere[0]}, and none into the model's: pass the model whose parameters they are, as it is by then"
            )
        if self.places and not (self.drawn or self.written):
            warnings.warn(
                "accelerate: nothing was drawn into the model's parameters: call its own initialisation within the context",
                stacklevel=6,
            )

    def _moved(self, parameter: Any) -> bool:
        where = local_tensor(parameter) if is_sharded(parameter) else parameter
        return not plain(where) or identity(where) not in (self.locals if is_sharded(parameter) else self.places)

    def close(self) -> None:
        """What was not drawn is as it was."""
        for place in self.places.values():
            place.end()
        purge()


class Looks(TorchFunctionMode):
    """Whoever looks at a parameter's memory finds it drawn; new memory for one is written to what it has."""

    def __init__(self, keyed: Keyed) -> None:
        super().__init__()
        self.keyed = keyed

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == _IS_META and is_sharded(args[0]) and self.keyed.is_part(args[0]):
            return False  # or torch.nn.init would leave it as it is
        if func in _LOOKS or func in _COLLECTS:
            for leaf in tree_leaves(args):
                if isinstance(leaf, Tensor) and plain(leaf):
                    self.keyed.draw(self.keyed.places_at(leaf))
        if func == _SET_DATA and self._is_member(args[0]) and _kind(args[0]) == _kind(args[1]):
            self.keyed.check_not_shared(*args)
            with torch.no_grad():
                args[0].copy_(args[1])
            return None
        return func(*args, **(kwargs or {}))

    def _is_member(self, tensor: Any) -> bool:
        if is_sharded(tensor):
            return identity(local_tensor(tensor)) in self.keyed.locals
        return plain(tensor) and isinstance(tensor, nn.Parameter) and identity(tensor) in self.keyed.places


@lru_cache(256)
def _filled(func: Any, rest: tuple[Any, ...], dtype: torch.dtype) -> Distribution | None:
    """What an operator fills a tensor with, if it can be put off."""
    what = distribution(func, (torch.empty(0, dtype=dtype, device="meta"), *rest), {})
    return what if what is not None and sound(what, dtype) else None


def _kind(tensor: Any) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device_mesh if is_sharded(tensor) else tensor.device


def draws(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether it draws random numbers, from no key of its own."""
    return torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("key") is None


def check_generator(func: Any, name: str, kwargs: dict[str, Any]) -> None:
    if kwargs.get("generator") is not None:
        raise ValueError(
            f"accelerate: {func} draws {name} from a generator, but the context has a key: leave one of them out"
        )
