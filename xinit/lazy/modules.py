"""The modules that are built within :func:`xinit.deferred`: their parameters lose their memory, and what they hold is found."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from xinit._torch import DisableTorchFunction, FakeTensor
from xinit.history.recorder import Recorder
from xinit.history.storages import Store, history_of, known, needed, now, purge, without_memory
from xinit.history.waiting import paused
from xinit.lazy.late import leave
from xinit.lazy.memory import is_meta_device
from xinit.lazy.shards import hold
from xinit.parameters.sites import some
from xinit.subclasses import plain

_OWN = frozenset({"_parameters", "_buffers", "_modules"})
_NO_HOLDERS = (nn.Module, type, ModuleType, FunctionType)


class Modules:
    """The modules that are built in a context, and their parameters' loss of memory."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.members: weakref.WeakKeyDictionary[nn.Module, None] = weakref.WeakKeyDictionary()  # in order
        self.asked_for_meta: weakref.WeakKeyDictionary[nn.Module, None] = weakref.WeakKeyDictionary()
        self.parents: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[nn.Module], str]]
        self.parents = weakref.WeakKeyDictionary()

    def register(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        """Take the memory of a parameter away. It stays the same object, so that whoever holds it sees it."""
        self.members[module] = None
        if parameter is None:
            return
        if not plain(parameter) and isinstance(parameter, FakeTensor):
            raise RuntimeError(
                f"deferred: {self.name_of(module, name)} is a FakeTensor: leave out FakeTensorMode, no memory is taken without it"
            )
        if not plain(parameter):
            return
        if is_meta_device(None):
            self.asked_for_meta[module] = None
        with DisableTorchFunction(), paused():
            store = history_of(parameter)
            if store is None:
                if parameter.is_meta:
                    return
                store = known(parameter)
            elif store.exposed and not store.deferred:
                store.become_data(store.read or store.random)
            store.defer(f"{self.name_of(module, name)} of shape {tuple(parameter.shape)}")
            if not parameter.is_meta:
                without_memory(parameter, store)

    def roots(self) -> list[nn.Module]:
        """The modules that are, as far as is known, no part of another one."""
        below = {id(child) for module in self.members for child in module._modules.values()}
        return [module for module in self.members if id(module) not in below]

    def name_of(self, module: nn.Module, name: str) -> str:
        """As much of a parameter's name as is known, after the type of the module where the knowledge ends."""
        while (above := self.parents.get(module)) and (parent := above[0]()) is not None:
            module, name = parent, f"{above[1]}.{name}"
        return f"{type(module).__name__}.{name}"

    def seal(self) -> None:
        """At the end: do what is still put off, and leave with each module what is known of the tensors that it holds."""
        modules = list(dict.fromkeys(module for root in self.roots() for module in root.modules()))
        for module in modules:
            for name, parameter in module._parameters.items():  # those that came past the hook, or without a shape then
                if parameter is not None and (store := history_of(parameter)) and not store.deferred:
                    self.register(module, name, parameter)
        seen: set[int] = set()
        held = [
            (module, name, tensor, store)
            for module in modules
            for name, tensor in _held(module, seen)
            if (store := history_of(tensor))
        ]
        _defer_what_shares({store for *_, store in held})
        self.recorder.finish()
        self._warn_of_what_was_read(held)
        self._warn_of_what_was_skipped({id(module) for module, *_, store in held if store.deferred})
        for module, name, tensor, store in held:
            if not store.deferred:
                continue
            if not tensor.is_meta:
                without_memory(tensor, store)
            leave(tensor, store)
            if name not in module._parameters and name not in module._buffers:
                module.__dict__.setdefault("_xinit_held", []).append((name, tensor))
        for module in modules:
            hold(module)
        purge()

    def _warn_of_what_was_read(self, held: list[tuple[nn.Module, str, Tensor, Store]]) -> None:
        time = now()
        names = [
            self.name_of(module, name)
            for module, name, _, store in held
            if store.deferred and store.read and any(node.read for node in needed(store, time))
        ]
        if names:
            warnings.warn(
                f"deferred: {some(names)} made of random numbers that the constructor has read, as by item(): they are those of "
                f"torch's generator, whatever the key",
                stacklevel=5,
            )

    def _warn_of_what_was_skipped(self, deferred: set[int]) -> None:
        """transformers' models do not initialise themselves where the default device is meta."""
        parts = {id(module) for module in self.asked_for_meta} & deferred
        for root in self.roots():
            if hasattr(root, "_init_weights") and any(id(module) in parts for module in root.modules()):
                warnings.warn(
                    f"deferred: {type(root).__name__} was built within torch.device('meta'), where transformers does not run "
                    f"its initialisation, so that its parameters have that of their layers: leave that out, which "
                    f"deferred() does not need",
                    stacklevel=5,
                )


def _held(module: nn.Module, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters, buffers, and tensors that are other attributes of it, or in lists, dictionaries or objects that
    are, but for the objects seen before."""
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is not None:
            yield name, tensor
    lists: set[int] = set()
    todo = [(name, value) for name, value in reversed(module.__dict__.items()) if name not in _OWN]
    while todo:
        name, value = todo.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif (parts := _parts(value)) is not None and id(value) not in (met := lists if parts[0] else seen):
            met.add(id(value))
            todo += [(f"{name}.{part}", item) for part, item in reversed(parts[1])]


def _parts(value: Any) -> tuple[bool, list[tuple[Any, Any]]] | None:
    """Whether a value is a list or a dictionary, and what it or an object holds; it is not asked for its truth, its length or its
    attributes, which may be anything."""
    if isinstance(value, dict):
        return True, [*dict.items(value)]
    if isinstance(value, list | tuple):
        return True, [*enumerate(value)]
    if isinstance(value, _NO_HOLDERS) or type(value).__module__ == "builtins":
        return None
    try:
        return False, [*object.__getattribute__(value, "__dict__").items()]
    except AttributeError:
        return None


def _defer_what_shares(stores: set[Store]) -> None:
    """What shares random numbers with a parameter, such as a mask that it was multiplied by, is to have those that the parameter
    will have."""
    alone = [store for store in stores if store.random and not store.deferred]
    if alone:
        time = now()
        drawn = {node for store in stores if store.deferred for node in needed(store, time) if node.random}
        for store in alone:
            if not drawn.isdisjoint(needed(store, time)):
                store.defer("a tensor that shares random numbers with a parameter")
