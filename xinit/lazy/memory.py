"""What looks at memory by other ways than operators: it finds it written, or is told what it would find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from xinit._torch import tree_leaves, tree_map
from xinit.history.storages import Store, history_of, known, on_meta
from xinit.history.waiting import flush, paused, read, settle, without_values
from xinit.lazy.late import INDEXES, IS_META, as_tensors, cannot_be_shared
from xinit.subclasses import plain

# What a tensor without memory says: what it would say with it. Who is told goes the way that is to be recorded, and makes what
# goes with it real; there is no address, but who asks compares them, to know what shares memory.
_SAID: dict[Any, Callable[[Tensor, Store], Any]] = {
    IS_META: lambda tensor, store: False,
    Tensor.device.__get__: lambda tensor, store: store.device,
    Tensor.is_cpu.__get__: lambda tensor, store: store.device.type == "cpu",  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda tensor, store: store.device.type == "cuda",  # type: ignore[attr-defined]
    Tensor.data_ptr: lambda tensor, store: store.address + tensor.storage_offset() * tensor.element_size(),
}
_EXPOSES = frozenset({Tensor.numpy, Tensor.__array__, Tensor.__dlpack__})
_READS = _EXPOSES | {Tensor.tolist}
_LOOKS = _READS | {Tensor.data_ptr, Tensor.__reduce_ex__, Tensor.__repr__, Tensor.share_memory_, Tensor.storage}
_COLLECTS = frozenset({torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor})

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Memory(TorchFunctionMode):
    """Sees every function of torch's that this thread calls."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SAID and args[0].is_meta and (store := history_of(args[0])):
            return _SAID[func](args[0], store)
        if func in _COLLECTS:
            lists = [value for value in (*args, *kwargs.values()) if isinstance(value, list | tuple)]
            for leaf in tree_leaves(lists):  # no operator is seen to take the numbers out of them
                if store := history_of(leaf):
                    _look(func, store, in_vain=store.deferred, reads=True)
        if func is torch.tensor and is_meta_device(kwargs.get("device")):
            with paused():
                store = known(value := func(*args, **kwargs | {"device": "cpu"}))
                store.device = torch.device("meta")  # as was asked for
                return on_meta(value, store)
        if func in _INSTEAD:
            args, kwargs = _INSTEAD[func](args, kwargs)
        if func == Tensor.share_memory_ and (store := history_of(args[0])) and store.deferred:
            cannot_be_shared(store.label)
        if func in _LOOKS and (store := history_of(args[0])):
            in_vain = store.deferred and (not args[0].is_meta or func in _READS)
            _look(func, store, in_vain, reads=func in _READS or func is Tensor.__reduce_ex__)
            store.exposed = store.exposed or func in _EXPOSES
        return func(*args, **kwargs)


def is_meta_device(device: Any) -> bool:
    """Whether a factory that is given this device makes something without memory."""
    return str(torch.get_default_device() if device is None else device) == "meta"


def _look(func: Any, store: Store, in_vain: bool, reads: bool) -> None:
    if in_vain:
        raise RuntimeError(f"deferred: {func.__name__} takes the values of {store.label}, which has none yet")
    flush(store)
    settle(store)
    if reads and store.random:
        read(store, func.__name__)


# What is called instead of what the constructor calls.


def _on_its_device(args: Any, kwargs: Any) -> Call:
    store = None if kwargs.get("device") else history_of(args[0])
    return args, kwargs | {"device": store.device} if store else kwargs


def _with_recorded_data(args: Any, kwargs: Any) -> Call:
    tensor, data = args
    if not (tensor.is_meta and history_of(tensor) and plain(data) and not data.is_meta):
        return args, kwargs
    tensor.__dict__["_xinit_emptied"] = bool(tensor.numel() and not data.numel())  # as DeepSpeed's ZeRO-3 does
    return (tensor, without_values(data)), kwargs


def _by_tensors(args: Any, kwargs: Any) -> Call:
    return ((args[0], as_tensors(args[1]), *args[2:]) if history_of(args[0]) else args), kwargs


def _without_its_values(args: Any, kwargs: Any) -> Call:
    store = history_of(args[0])
    if store is None or not store.deferred:
        return args, kwargs
    with paused():
        return (on_meta(args[0], store),), kwargs


def _all_on_meta(args: Any, kwargs: Any) -> Call:
    """For functions that compare the devices of their arguments themselves."""

    def values(leaf: Any) -> Any:
        is_real = isinstance(leaf, Tensor) and plain(leaf) and not leaf.is_meta and leaf.is_floating_point()
        return without_values(leaf.detach().clone()) if is_real else leaf

    if any(history_of(leaf) and leaf.is_meta for leaf in tree_leaves((args, kwargs))):
        args, kwargs = tree_map(values, (args, kwargs))
    return args, kwargs


_INSTEAD: dict[Any, Callable[[Any, Any], Call]] = {
    Tensor.new_tensor: _on_its_device,
    Tensor.data.__set__: _with_recorded_data,  # type: ignore[attr-defined]
    **dict.fromkeys(INDEXES, _by_tensors),
    Tensor.__repr__: _without_its_values,
    **{
        getattr(torch, name + cell): _all_on_meta
        for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
        for cell in ("", "_cell")
    },
}
