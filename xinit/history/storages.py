"""What has been done to a storage, written down operator by operator: what :func:`xinit.deferred` keeps instead of weights.

A :class:`Store` is the history of one storage, a list of nodes in the order of time; a :class:`Node` is one operator, its
tensor arguments given as a :class:`Ref`, a strided view of a storage as it was just before, or as a copy of data that no
recorded operator has made. Nothing else is needed to do it all again, elsewhere and with other random numbers.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from xinit._torch import DisableTorchDispatch, identity_of, of_class, storage_at, swap_tensor, tree_leaves, tree_map
from xinit.distributions import Distribution
from xinit.subclasses import plain

_aten = torch.ops.aten
# They draw each element of their first argument anew, as no distribution of xinit's describes.
REDRAWS = frozenset(
    getattr(getattr(_aten, name), overload)
    for name, overload in (
        *((name, "default") for name in ("cauchy_", "exponential_", "geometric_", "log_normal_", "random_")),
        *(("bernoulli_", "float"), ("random_", "to"), ("random_", "from")),
    )
)
_clock = itertools.count()
_addresses = itertools.count(1 << 56, 1 << 40)  # beyond what processes have, further apart than any storage is long


class Ref(NamedTuple):
    """A strided view of a storage, in elements of its dtype."""

    store: Store
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.size)

    def of(self, storage: torch.UntypedStorage) -> Tensor:
        """The view of that storage."""
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        return empty.set_(storage, self.offset, self.size, self.stride)

    def among(self, storages: dict[Store, torch.UntypedStorage], device: torch.device) -> Tensor:
        """The view of its memory among these, which is made on the device if it is not there yet."""
        if self.store not in storages:
            storages[self.store] = torch.empty(self.store.nbytes, dtype=torch.uint8, device=device).untyped_storage()
        return self.of(storages[self.store])

    def dense(self) -> bool:
        """Whether no element is missing in between, and none is there twice."""
        return _dense(self.size, self.stride)

    def whole(self) -> bool:
        """Whether it is all of the storage."""
        return self.offset == 0 and self.numel * self.dtype.itemsize == self.store.nbytes and self.dense()


@lru_cache(4096)  # a model's layers are alike
def _dense(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for step, count in sorted((s, n) for s, n in zip(stride, size, strict=True) if n != 1):
        if step != expected:
            return False
        expected *= count
    return True


class Data(NamedTuple):
    """Values that were there before anything was recorded."""

    tensor: Tensor


@dataclass(eq=False)
class Node:
    """One operator that was called, or would have been."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    fill: tuple[Ref, Distribution] | None = None  # if it is but a fill of that view
    outputs: list[tuple[int, Ref]] = field(default_factory=list)  # new storages, by the position among what it returned
    answer: bool | None = None  # if it asks about values: what they have to say
    read: bool = False  # whether it is data because somebody has read the numbers that were drawn
    is_unknown: bool = False  # whether nobody knows what it was
    reached: list[weakref.ref[Store]] = field(
        default_factory=list
    )  # if it draws: which storages that may have gone into
    time: int = field(default_factory=lambda: next(_clock))

    @classmethod
    def unknown(cls) -> Node:
        """After it, nothing is known of what a storage holds."""
        return cls(None, (), {}, is_unknown=True)

    @property
    def refs(self) -> list[Ref]:
        if self.fill:
            return [self.fill[0]]
        return [leaf for leaf in tree_leaves((self.args, self.kwargs), is_leaf=_is_leaf) if isinstance(leaf, Ref)]

    @property
    def device(self) -> torch.device | None:
        """Where what it returns would be; None if that is not known."""
        if self.kwargs.get("device") is not None:
            return torch.device(self.kwargs["device"])
        return next((ref.store.device for ref in self.refs), None)

    @property
    def stores(self) -> set[Store]:
        return {ref.store for ref in self.refs} | {ref.store for _, ref in self.outputs}

    @property
    def random(self) -> bool:
        """Whether it draws random numbers itself."""
        if self.fill:
            return self.fill[1].name != "constant"
        if self.is_unknown:
            return False
        return torch.Tag.nondeterministic_seeded in self.func.tags and self.kwargs.get("key") is None

    def overwrites(self, store: Store) -> bool:
        """Whether nothing of what the storage held before is left."""
        if self.fill:
            return self.fill[0].whole()
        if self.func in REDRAWS:
            return bool(self.args[0].store is store and self.args[0].whole())
        if self.func is _aten.copy_.default:
            target, source = self.args[:2]
            return bool(
                target.store is store and target.whole() and not (isinstance(source, Ref) and source.store is store)
            )
        return any(ref.store is store for _, ref in self.outputs)

    def run(self, tensor: Callable[[Ref | Data], Tensor], device: torch.device | None = None, **more: Any) -> Any:
        """Do it, on those tensors; on a device, without a generator; with more arguments."""
        args, kwargs = tree_map(
            lambda leaf: tensor(leaf) if isinstance(leaf, (Ref, Data)) else leaf,
            (self.args, self.kwargs),
            is_leaf=_is_leaf,
        )
        return self.func(*args, **(elsewhere(kwargs, device) if device else kwargs), **more)


def elsewhere(kwargs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The arguments of an operator, for another device, where no generator is to be drawn from."""
    return kwargs | {name: at for name, at in (("device", device), ("generator", None)) if name in kwargs}


def memory_like(tensor: Tensor, device: torch.device) -> Tensor:
    """Memory for as much, laid out likewise, which nobody has written to."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def _is_leaf(value: Any) -> bool:
    return isinstance(value, (Ref, Data))


def is_ref(value: Any) -> bool:
    return isinstance(value, Ref)


class Store:
    """The history of one storage.

    Attributes:
        nodes: all that was done to it, in the order of time.
        lazy: nothing of it has been done yet: the memory exists, but has not been touched.
        deferred: it is, or depends on, a parameter, so nothing of it will be done here.
        draws: the operators whose random numbers may have gone into it.
        read: whether such numbers did that somebody had read, and which are data since.
        unknown: whether something did of which nothing is known.
        exposed: its memory may change without an operator.
        raw: it is memory without values.
        label: the parameter that it is or depends on, as far as its name is known.
        device: where it would be, if its memory were not put off: what the constructor is told.
    """

    def __init__(self, storage: torch.UntypedStorage, *, lazy: bool = False, deferred: bool = False, label: str = ""):
        self.nodes: list[Node] = []
        self.draws: set[Node] = set()
        self.read = self.unknown = self.exposed = self.raw = False
        self.reference = weakref.ref(self)
        self.nbytes, self.device = storage.nbytes(), storage.device
        self.lazy, self.deferred, self.label = lazy, deferred, label
        self.held: list[torch.UntypedStorage] = []  # what it will be made of, as long as it is lazy
        self.followers: list[weakref.ref[Store]] = []  # lazy ones that will be made of it
        self.storages: list[StorageWeakRef] = []  # the real one, and the one on the meta device
        self.stand_for(storage)

    @cached_property
    def address(self) -> int:
        """Where it would be: no memory is there, and no other storage is told any of its bytes."""
        return next(_addresses)

    def stand_for(self, storage: torch.UntypedStorage) -> None:
        """Be the history of that storage too."""
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self.storages.append(reference)
        _stores[reference.cdata] = (reference, self)

    def storage(self, meta: bool) -> torch.UntypedStorage | None:
        """The storage on the meta device, or the real one, if it is still there."""
        for reference in self.storages:
            if not reference.expired():  # type: ignore[no-untyped-call]
                storage: torch.UntypedStorage | None = storage_at(reference.cdata)
                if storage is not None and (storage.device.type == "meta") == meta:
                    return storage
        return None

    def defer(self, label: str) -> None:
        """Nothing of it will be done here, nor of what was put off that takes its values."""
        self.lazy, self.deferred, self.label, self.held = False, True, self.label or label, []
        for follower in self.lazy_followers():
            follower.defer(self.label)

    def lazy_followers(self) -> list[Store]:
        return [store for reference in self.followers if (store := reference()) and store.lazy]

    def forget(self) -> None:
        """What it holds from now on is data like any other."""
        for reference in self.storages:
            _stores.pop(reference.cdata, None)

    @property
    def random(self) -> bool:
        """Whether random numbers went into it."""
        return bool(self.draws)

    def add(self, node: Node) -> None:
        self.nodes.append(node)
        if node.random:
            self.draws.add(node)
            node.reached.append(self.reference)
        self.read, self.unknown = self.read or node.read, self.unknown or node.is_unknown
        for source in () if node.fill else {ref.store for ref in node.refs} - {self}:
            self.read, self.unknown = self.read or source.read, self.unknown or source.unknown
            for draw in source.draws - self.draws:
                self.draws.add(draw)
                draw.reached.append(self.reference)

    def become_data(self, read: bool = False) -> None:
        """What its memory holds now is all that it is."""
        storage = self.storage(meta=False)
        if storage is not None:
            view = Ref(self, torch.uint8, (self.nbytes,), (1,), 0)
            data = Data(view.of(storage).clone())
            self.draws.clear()
            self.add(Node(_aten.clone.default, (data,), {}, outputs=[(0, view)], read=read))

    def since(self, time: int) -> bool:
        """Whether anything was done to it after that time."""
        return bool(self.nodes) and self.nodes[-1].time > time

    def __deepcopy__(self, memo: dict[int, Any]) -> Store:
        return self  # history does not change by being copied

    def until(self, time: int) -> list[Node]:
        """What was done to it before that time and can still be seen then; and all that was asked about it."""
        nodes = [node for node in self.nodes if node.time < time] if self.since(time) else self.nodes
        start = next((i for i in range(len(nodes) - 1, 0, -1) if nodes[i].overwrites(self)), 0)
        return [node for node in nodes[:start] if node.answer is not None] + nodes[start:]


def needed(store: Store, time: int, known: Iterable[Node] = ()) -> list[Node]:
    """The operators, in their order, on which the values of a storage at a time depend; without those already known."""
    found: set[Node] = set()
    known, seen, todo = set(known), {(store, time)}, [(store, time)]
    while todo:
        for node in (at := todo.pop())[0].until(at[1]):
            if node not in found:
                found.add(node)
                steps = {(ref.store, node.time) for ref in node.refs if ref.store is not at[0]} - seen
                seen |= steps
                todo += steps
    return sorted(found - known, key=lambda node: node.time)


# By the storage's address, which cannot be used anew as long as there is a weak reference to it.
_stores: dict[int, tuple[StorageWeakRef, Store]] = {}


def store_of(tensor: Tensor) -> Store | None:
    """The history of a plain tensor's storage, if it has one."""
    entry = _stores.get(identity_of(tensor.untyped_storage()))
    return entry[1] if entry else None


def history_of(value: Any) -> Store | None:
    """The same of anything."""
    return store_of(value) if isinstance(value, Tensor) and plain(value) else None


def ref(tensor: Tensor, store: Store) -> Ref:
    if tensor.is_conj() or tensor.is_neg():
        raise RuntimeError("deferred: a lazily conjugated or negated view cannot be recorded")
    return Ref(store, tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))


def known(tensor: Tensor) -> Store:
    """A history for data of which none is known: that it is what it is; on the meta device, that nobody knows it."""
    store = Store(tensor.untyped_storage())
    if tensor.is_meta:
        store.add(Node.unknown())
    else:
        store.become_data()
    return store


def on_meta(tensor: Tensor, store: Store) -> Tensor:
    """The same view on the meta device, where views of one storage share one too; from now on only recorded."""
    store.defer(store.label)
    storage = store.storage(meta=True)
    with DisableTorchDispatch():
        if storage is None:
            storage = torch.empty(store.nbytes, dtype=torch.uint8, device="meta").untyped_storage()
            store.stand_for(storage)
        return ref(tensor, store).of(storage)


def without_memory(tensor: Tensor, store: Store) -> None:
    """Move a tensor to the meta device, in place."""
    meta = on_meta(tensor, store)
    with DisableTorchDispatch():
        if isinstance(tensor, nn.Parameter):
            meta = of_class(type(tensor), meta, tensor.requires_grad)
        swap_tensor(tensor, meta)


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Within it, no tensor is one of ``torch.inference_mode``, which never trains; what that mode allows is allowed."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            yield
    else:
        yield


def mark_raw(tensor: Tensor) -> None:
    """Of memory that was made for a deferred tensor without its values, as by ``to_empty()``: know it again as long as nothing is
    written there."""
    Store(tensor.untyped_storage()).raw = True
    with torch.no_grad():
        tensor.view(-1)[0] = math.nan


def is_raw(tensor: Tensor) -> bool:
    store = history_of(tensor) if tensor.numel() and not tensor.is_meta else None
    return store is not None and store.raw and bool(tensor.detach().flatten()[0].isnan())


def now() -> int:
    """A time after all that was recorded so far."""
    return next(_clock)


def purge() -> None:
    """Forget the histories of storages that are no more."""
    for address, (reference, _) in list(_stores.items()):
        if reference.expired():  # type: ignore[no-untyped-call]
            _stores.pop(address, None)
