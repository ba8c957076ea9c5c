"""Who writes the histories: a mode that sees every operator of a thread while modules are built."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from xinit._torch import (
    DisableTorchFunction,
    TorchDispatchMode,
    schema_of,
    tree_leaves,
    tree_map,
)
from xinit.distributions import FLOAT8, Distribution
from xinit.history.operators import (
    COPIES,
    EMPTY,
    FACTORIES,
    POINTWISE,
    VIEWS,
    distribution,
    makes_fillable,
    sized_by_values,
    tensors_of,
    told,
)
from xinit.history.operators import written as written_by
from xinit.history.replay import needed, replay
from xinit.history.storages import (
    Data,
    Node,
    Ref,
    Store,
    known,
    mark_raw,
    now,
    on_meta,
    ref,
    store_of,
)
from xinit.keys import Key
from xinit.subclasses import plain

_aten = torch.ops.aten
_SMALL = 1 << 14  # bytes: not worth to be left untouched

INDEXES = frozenset({Tensor.__getitem__, Tensor.__setitem__})


def as_tensors(index: Any) -> Any:
    """An index with its lists as tensors: torch would make them on the meta device, where nobody sees what they hold."""
    if isinstance(index, tuple):
        return tuple(map(as_tensors, index))
    if isinstance(index, range):
        index = list(index)
    if isinstance(index, list) and all(isinstance(leaf, bool | int) for leaf in tree_leaves(index)):
        return torch.tensor(index, dtype=None if index else torch.long)
    if type(index).__module__ == "numpy" and getattr(index, "ndim", None):
        return torch.as_tensor(index)
    return index


_thread = threading.local()


def is_recording() -> bool:
    """Whether a recorder sees this thread's operators."""
    return bool(getattr(_thread, "depth", 0))


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Sees every operator of this thread, and writes down those that concern parameters or random numbers.

    A tensor that is made by a factory exists, but its memory is not touched as long as it is only filled: most of them become
    parameters, and a parameter has no memory. Whatever else is done with such a tensor is preceded by what was put off.
    """

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.late = late  # after the context: what is real, or on the meta device for other reasons, is nothing to it
        self.paused = False
        self.lazy: list[weakref.ref[Store]] = []

    def __enter__(self) -> Any:
        _thread.depth = getattr(_thread, "depth", 0) + 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _thread.depth -= 1
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with DisableTorchFunction():
            return self._see(func, args, kwargs or {})

    def _see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.paused or func.is_view or func in VIEWS:
            return func(*args, **kwargs)
        if func is _aten.set_.source_Tensor and args[0].is_meta and store_of(args[0]) and not args[1].is_meta:
            with self.pause():
                args = args[0], on_meta(args[1], store_of(args[1]) or known(args[1]))
        if torch.Tag.inplace_view in func.tags and func is not _aten.resize_.default:
            return func(*args, **kwargs)
        tensors = [tensor for value in (*args, *kwargs.values()) for tensor in tensors_of(value)]
        if not all(plain(tensor) for tensor in tensors):
            return func(*args, **kwargs)
        if self.late and (real := self._not_to_be_recorded(func, args, kwargs, tensors)) is not None:
            return real[0]
        if func in EMPTY or makes_fillable(func, args, kwargs):
            return self._make(func, args, kwargs)
        stores = [store for store in map(store_of, tensors) if store]
        meta = any(tensor.is_meta for tensor in tensors) or str(kwargs.get("device")) == "meta"
        if not (stores or meta or torch.Tag.nondeterministic_seeded in func.tags):
            return func(*args, **kwargs)
        if (filled := self._fill(func, args, kwargs)) is not None:
            return filled[0]
        for tensor in told(func, args, _is_ref):
            if (store := store_of(tensor)) and not store.deferred:
                self.read(store, str(func))
        if meta or any(store.deferred for store in stores):
            return self._record(func, args, kwargs, tensors)
        if (
            (func in POINTWISE or func in COPIES)
            and len(tensors) == 1
            and (store := stores[0]).lazy
            and store.nbytes > _SMALL
        ):
            return self._put_off(func, args, kwargs)
        for store in stores:
            self.flush(store)
        written = written_by(func, args, kwargs)
        for store in filter(None, map(store_of, written)):
            self.settle(store)
        if torch.Tag.nondeterministic_seeded not in func.tags and not any(s.random or s.read for s in stores):
            for changed in map(store_of, written):
                if changed is not None:
                    changed.forget()
            return func(*args, **kwargs)
        node = self._node(func, args, kwargs, written)
        output = func(*args, **kwargs)
        self._add(node, output, written)
        return output

    def _not_to_be_recorded(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> tuple[Any] | None:
        """Do after the context what gives real tensors, or takes values of which nothing is known."""
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type != "meta":
            output = func(*args, **kwargs)
            if func in EMPTY and output.numel() and output.is_floating_point() and plain(output):
                mark_raw(output)
            return (output,)
        written = written_by(func, args, kwargs)
        if all(not t.is_meta or store_of(t) or any(t is w for w in written) for t in tensors):
            return None  # all that it takes is known
        try:
            output = func(*args, **kwargs)
        except RuntimeError as error:
            if torch.Tag.data_dependent_output in func.tags or isinstance(error, NotImplementedError):
                raise RuntimeError(
                    f"deferred: {func} takes a tensor that was put on the meta device outside of deferred(): do this within "
                    f"another such context"
                ) from error
            raise
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.is_meta and plain(tensor):
                store = store_of(tensor) or known(tensor)
                store.add(Node.unknown())
                store.defer(store.label or "a tensor put on the meta device outside of deferred()")
        return (output,)

    def _make(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A new tensor, its memory not touched if it is of some size."""
        if func in EMPTY or kwargs.get("pin_memory") or kwargs.get("layout") not in (None, torch.strided):
            tensor = func(*args, **kwargs)
        else:
            like = args[0].device if args and isinstance(args[0], Tensor) else torch.device("cpu")
            shape = func(*args, **kwargs | {"device": "meta"} | ({"generator": None} if "generator" in kwargs else {}))
            tensor = torch.empty_strided(
                shape.shape, shape.stride(), dtype=shape.dtype, device=kwargs.get("device") or like
            )
        if not plain(tensor):
            return tensor
        store = Store(tensor.untyped_storage(), lazy=not tensor.is_meta, deferred=tensor.is_meta)
        if store.lazy:
            self.lazy.append(weakref.ref(store))
        elif args and isinstance(args[0], Tensor) and not kwargs.get("device") and (origin := store_of(args[0])):
            store.device = origin.device
        if func in FACTORIES:
            fill, values = FACTORIES[func].fill, FACTORIES[func].given(args, kwargs)
            generator = kwargs.get("generator")
            given = {"generator": generator} if generator else {}
            if self._fill(fill, (tensor, *values), given) is None:
                self._see(fill, (tensor, *values), given)  # of a dtype that no distribution has
        return tensor

    def _put_off(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """A new tensor, of values that can wait as long as those of its source."""
        source = args[0]
        twin = torch.empty_strided(source.shape, source.stride(), dtype=source.dtype, device="meta")
        shape = func(twin, *args[1:], **kwargs | ({"device": "meta"} if "device" in kwargs else {}))
        tensor = torch.empty_strided(
            shape.shape, shape.stride(), dtype=shape.dtype, device=kwargs.get("device") or source.device
        )
        store, origin = Store(tensor.untyped_storage(), lazy=True), store_of(source)
        assert origin is not None
        store.add(Node(func, (ref(source, origin), *args[1:]), kwargs, outputs=[(0, ref(tensor, store))]))
        store.held.append(source.untyped_storage())
        origin.followers.append(weakref.ref(store))
        self.lazy.append(weakref.ref(store))
        return tensor

    def _fill(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
        """Put off, or do, an operator that only fills a tensor whose history is known; gives back what it returns."""
        target = args[0] if args and isinstance(args[0], Tensor) else None
        store = None if target is None else store_of(target)
        if target is None or store is None:
            return None
        drawn = None if any(map(store_of, tensors_of(args[1:]))) else distribution(func, args, kwargs)
        if drawn is None and not (store.lazy and func in (_aten.zero_.default, _aten.fill_.Scalar)):
            return None
        self.settle(store)
        returns = schema_of(func).returns
        view = ref(target, store)
        if drawn is None or not _sound(drawn, view.dtype):
            if func is _aten.fill_.Scalar:  # which takes any number on the meta device, and for one element
                twin = torch.empty(2, dtype=view.dtype, device="cpu")
            else:
                twin = torch.empty_strided(view.size, view.stride, dtype=view.dtype, device="meta")
            func(twin, *args[1:], **kwargs | ({"generator": None} if "generator" in kwargs else {}))  # or its own error
        if store.deferred:
            kwargs = {name: value for name, value in kwargs.items() if name != "generator"}
        rest = args[1:]
        if drawn and drawn.name == "constant":
            func, rest, kwargs = _aten.fill_.Scalar, drawn.parameters, {}  # not the tensor that the number came in
        store.add(Node(func, (view, *rest), kwargs, (view, drawn) if drawn else None))
        if store.lazy and store.nbytes <= _SMALL:
            self.flush(store)
        elif not store.lazy and not store.deferred:
            func(target, *rest, **kwargs)
        return (target,) if returns else (None,)

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        """Write down an operator whose values there will be only at the end: run it on the meta device."""
        label = next(
            (store.label for store in map(store_of, tensors) if store and store.label), "a tensor on the meta device"
        )
        if func is _aten.resize_.default:
            raise RuntimeError(f"deferred: {func} of {label} cannot be recorded")
        replaced = {"device": torch.device("meta")} if kwargs.get("device") else {}
        if kwargs.get("generator"):
            kwargs = kwargs | {"generator": None}
        written = written_by(func, args, kwargs)
        node = self._node(func, args, kwargs, written)
        real: dict[int, Tensor] = {}

        def twin(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.is_meta:
                return leaf
            meta = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
            real[id(meta)] = leaf
            twins.append(meta)  # an id is one as long as its tensor lives
            return meta

        twins: list[Tensor] = []
        shapes = [tensor.shape for tensor in written]
        metas, options = tree_map(twin, (args, kwargs))
        try:
            output = func(*metas, **options | replaced)
        except Exception as error:
            output = self._rehearse(node, label, error)
        if [tensor.shape for tensor in written] != shapes:
            raise RuntimeError(f"deferred: {func}, which resizes what depends on {label}, cannot be recorded")
        output = tree_map(lambda leaf: real.get(id(leaf), leaf), output)
        self._add(node, output, written, label)
        return output

    def _rehearse(self, node: Node, label: str, error: Exception) -> Any:
        """What an operator returns that the meta device cannot tell: from values that have been drawn to no other end.

        Only what does not depend on the numbers: shapes, and the answer to a question. That it does not is checked when the
        parameters get their values. What no random number went into is known anyway.
        """
        stores = {ref.store for ref in node.refs}
        nodes = [other for store in stores for other in needed(store, node.time)]
        answers = {
            ref.store for ref in tree_leaves(told(node.func, node.args, _is_ref), is_leaf=_is_ref) if _is_ref(ref)
        }
        if any(other.random for store in answers for other in needed(store, node.time)) and sized_by_values(node.func):
            raise RuntimeError(
                f"deferred: {node.func} cannot be recorded: the size of what it returns depends on the values of {label}, which "
                f"has none yet"
            ) from error
        keys = {other: (Key(0).fold_in(i), None) for i, other in enumerate(nodes) if other.random}
        try:
            storages = replay(nodes, keys, stores, torch.device("cpu"))
            output = node.run(
                lambda leaf: leaf.of(storages[leaf.store]) if isinstance(leaf, Ref) else leaf.tensor.cpu()
            )
        except Exception:
            output = None
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if isinstance(output, bool) and keys:
            node.answer = output
            for store in {store for other in nodes for store in other.stores}:
                store.add(node)
        elif output is None or (keys and not tensors):
            raise RuntimeError(
                f"deferred: {node.func} cannot be recorded: it takes the values of {label}, which has none yet "
                f"({str(error).splitlines()[0].split('. ')[0]})"
            ) from error
        return tree_map(
            lambda leaf: torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
            if isinstance(leaf, Tensor)
            else leaf,
            output,
        )

    def _node(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[Tensor]) -> Node:
        for tensor in written:
            if store_of(tensor) is None:
                known(tensor)

        def leaf_of(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if store := store_of(leaf):
                return ref(leaf, store)
            if leaf.is_meta:
                raise RuntimeError(
                    f"deferred: {func} takes a tensor that was put on the meta device outside of the context"
                )
            return Data(leaf.detach().clone())

        return Node(func, *tree_map(leaf_of, (args, kwargs)))

    def _add(self, node: Node, output: Any, written: list[Tensor], label: str | None = None) -> None:
        for i, leaf in enumerate(tree_leaves(output)):
            if isinstance(leaf, Tensor) and plain(leaf) and store_of(leaf) is None:
                store = Store(leaf.untyped_storage(), deferred=label is not None, label=label or "")
                store.device = node.device or store.device
                node.outputs.append((i, ref(leaf, store)))
                store.add(node)
        for store in {store for store in map(store_of, written) if store}:
            store.add(node)
            if label is not None:
                store.defer(label)

    def flush(self, store: Store) -> None:
        """Do what was put off."""
        storage = store.storage(meta=False)
        if not store.lazy or storage is None:
            return
        for source in {leaf.store for node in store.nodes for leaf in node.refs} - {store}:
            self.flush(source)
        store.lazy = False
        with self.pause(), torch.no_grad():
            for node in store.nodes:
                result = node.run(_real)
                for _, view in node.outputs:
                    view.of(storage).copy_(result)
        store.held.clear()

    def read(self, store: Store, reader: str) -> None:
        """Somebody looks at random numbers, and may decide by them: they stay what they are now, wherever they went, and are not
        drawn anew."""
        self.flush(store)
        time = now()
        draws = {node for node in needed(store, time) if node.random}
        others = {other for node in draws for reference in node.reached if (other := reference()) is not None}
        reached = [other for other in others if not draws.isdisjoint(needed(other, time))]
        for other in reached:
            if other.deferred:
                raise RuntimeError(
                    f"deferred: {reader} takes random numbers that went into {other.label}, which is to be drawn later"
                )
        for other in reached:
            self.flush(other)
            other.become_data(read=True)

    def finish(self) -> None:
        """Do all that is still put off."""
        for reference in self.lazy:
            if (store := reference()) and not store.deferred:
                self.flush(store)

    def settle(self, store: Store) -> None:
        """Do what was put off and takes the values that a storage has now, since they are about to change."""
        for follower in store.lazy_followers():
            self.flush(follower)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """For operators of its own."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before


def _real(leaf: Ref | Data) -> Tensor:
    assert isinstance(leaf, Ref)  # what is put off takes no other
    storage = leaf.store.storage(meta=False)
    assert storage is not None  # as whoever waits for its values holds it
    return leaf.of(storage)


def _is_ref(value: Any) -> bool:
    return isinstance(value, Ref)


def _sound(what: Distribution, dtype: torch.dtype) -> bool:
    """Whether the parameters are such that no operator refuses them."""
    a, b = (*what.parameters, 0.0)[:2]
    if not max(map(abs, what.parameters)) < (240 if dtype in FLOAT8 else 6e4):
        return False
    return what.name == "constant" or (what.name == "normal" and b >= 0) or (what.name == "uniform" and a <= b)
