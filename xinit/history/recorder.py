"""Who writes the histories: a mode that sees every operator of a thread while modules are built."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from xinit._torch import DisableTorchFunction, TorchDispatchMode, schema_of, tree_leaves, tree_map
from xinit.distributions import FLOAT8, Distribution
from xinit.history.operators import (
    COPIES,
    EMPTY,
    FACTORIES,
    POINTWISE,
    VIEWS,
    distribution,
    makes_fillable,
    tensors_of,
    told,
)
from xinit.history.operators import written as written_by
from xinit.history.replay import rehearse
from xinit.history.storages import (
    Data,
    Node,
    Store,
    elsewhere,
    history_of,
    is_ref,
    known,
    mark_raw,
    memory_like,
    ref,
    store_of,
)
from xinit.history.waiting import flush, is_paused, read, settle, without_values
from xinit.subclasses import plain

_aten = torch.ops.aten
_META = torch.device("meta")
_SMALL = 1 << 14  # bytes: not worth to be left untouched

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
        if is_paused() or func.is_view or func in VIEWS:
            return func(*args, **kwargs)
        if func is _aten.set_.source_Tensor and args[0].is_meta and store_of(args[0]) and not args[1].is_meta:
            args = args[0], without_values(args[1])
        if torch.Tag.inplace_view in func.tags and func is not _aten.resize_.default:
            return func(*args, **kwargs)
        tensors = [tensor for value in (*args, *kwargs.values()) for tensor in tensors_of(value)]
        if not all(plain(tensor) for tensor in tensors):
            return _do_with_others(func, args, kwargs, tensors)
        if self.late and (real := self._not_to_be_recorded(func, args, kwargs, tensors)) is not None:
            return real[0]
        if func in EMPTY or makes_fillable(func, args, kwargs):
            return self._make(func, args, kwargs)
        stores = [store for store in map(store_of, tensors) if store]
        meta = any(tensor.is_meta for tensor in tensors) or str(kwargs.get("device")) == "meta"
        if not (stores or meta or _draws(func)):
            return func(*args, **kwargs)
        if (filled := self._fill(func, args, kwargs)) is not None:
            return filled[0]
        for tensor in told(func, args, is_ref):
            if (store := store_of(tensor)) and not store.deferred:
                read(store, str(func))
        if meta or any(store.deferred for store in stores):
            return self._record(func, args, kwargs, tensors)
        alone = len(tensors) == 1 and (func in POINTWISE or func in COPIES)
        if alone and stores[0].lazy and stores[0].nbytes > _SMALL:
            return self._put_off(func, args, kwargs)
        return self._do(func, args, kwargs, stores)

    def _do(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], stores: list[Store]) -> Any:
        """Do an operator at once, and write it down if random numbers go into what it writes."""
        for store in stores:
            flush(store)
        written = written_by(func, args, kwargs)
        changed = [store for store in map(store_of, written) if store]
        for store in changed:
            settle(store)
        if not _draws(func) and not any(store.random or store.read for store in stores):
            for store in changed:
                store.forget()
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
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if func in EMPTY or kwargs.get("pin_memory") or kwargs.get("layout") not in (None, torch.strided):
            tensor = func(*args, **kwargs)
        else:
            device = kwargs.get("device") or (torch.device("cpu") if source is None else source.device)
            tensor = memory_like(func(*args, **elsewhere(kwargs, _META) | {"device": _META}), device)
        if not plain(tensor):
            return tensor
        store = Store(tensor.untyped_storage(), lazy=not tensor.is_meta, deferred=tensor.is_meta)
        if store.lazy:
            self.lazy.append(weakref.ref(store))
        elif source is not None and not kwargs.get("device") and (origin := store_of(source)):
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
        source, rest = args[0], args[1:]
        shape = func(memory_like(source, _META), *rest, **elsewhere(kwargs, _META))
        tensor = memory_like(shape, kwargs.get("device") or source.device)
        store, origin = Store(tensor.untyped_storage(), lazy=True), store_of(source)
        assert origin is not None
        store.add(Node(func, (ref(source, origin), *rest), kwargs, outputs=[(0, ref(tensor, store))]))
        store.held.append(source.untyped_storage())
        origin.followers.append(weakref.ref(store))
        self.lazy.append(weakref.ref(store))
        return tensor

    def _fill(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
        """Put off, or do, an operator that only fills a tensor whose history is known; gives back what it returns."""
        store = history_of(args[0]) if args else None
        if store is None:
            return None
        target, rest = args[0], args[1:]
        drawn = None if any(map(store_of, tensors_of(rest))) else distribution(func, args, kwargs)
        if drawn is None and not (store.lazy and func in (_aten.zero_.default, _aten.fill_.Scalar)):
            return None
        settle(store)
        returns = schema_of(func).returns
        view = ref(target, store)
        if drawn is None or not sound(drawn, view.dtype):
            # fill_ takes any number on the meta device, and for one element
            number = func is _aten.fill_.Scalar
            twin = torch.empty(2, dtype=view.dtype, device="cpu") if number else memory_like(target, _META)
            func(twin, *rest, **elsewhere(kwargs, _META))  # or its own error
        if drawn and drawn.name == "constant":
            func, rest, kwargs = _aten.fill_.Scalar, drawn.parameters, {}  # not the tensor that the number came in
        store.add(Node(func, (view, *rest), kwargs, (view, drawn) if drawn else None))
        if store.lazy and store.nbytes <= _SMALL:
            flush(store)
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
        written = written_by(func, args, kwargs)
        node = self._node(func, args, kwargs, written)
        real: dict[int, Tensor] = {}

        def twin(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.is_meta:
                return leaf
            meta = memory_like(leaf, _META)
            real[id(meta)] = leaf
            twins.append(meta)  # an id is one as long as its tensor lives
            return meta

        twins: list[Tensor] = []
        shapes = [tensor.shape for tensor in written]
        metas, options = tree_map(twin, (args, kwargs))
        try:
            output = func(*metas, **elsewhere(options, _META))
        except Exception as error:
            output = rehearse(node, label, error)
        if [tensor.shape for tensor in written_by(func, metas, options)] != shapes:
            raise RuntimeError(f"deferred: {func}, which resizes what depends on {label}, cannot be recorded")
        output = tree_map(lambda leaf: real.get(id(leaf), leaf), output)
        self._add(node, output, written, label)
        return output

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

    def finish(self) -> None:
        """Do all that is still put off."""
        for reference in self.lazy:
            if (store := reference()) and not store.deferred:
                flush(store)


def _do_with_others(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
    """Do an operator that takes sparse tensors, or others of which no history is kept."""
    for store in filter(None, map(history_of, tensors)):
        flush(store)
    for store in filter(None, map(history_of, written_by(func, args, kwargs))):
        if store.deferred:
            raise RuntimeError(
                f"deferred: {func} cannot be recorded: it writes to {store.label} with a tensor that is not dense"
            )
        settle(store)
        store.forget()
    return func(*args, **kwargs)


def _draws(func: Any) -> bool:
    """Whether it takes random numbers."""
    return torch.Tag.nondeterministic_seeded in func.tags


def sound(what: Distribution, dtype: torch.dtype) -> bool:
    """Whether the parameters are such that no operator refuses them."""
    a, b = (*what.parameters, 0.0)[:2]
    if not max(map(abs, what.parameters)) < (240 if dtype in FLOAT8 else 6e4):
        return False
    return what.name == "constant" or (what.name == "normal" and b >= 0) or (what.name == "uniform" and a <= b)
