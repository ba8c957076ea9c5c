"""``deferred()``: a model built without its weights, and with a record of how they would have been drawn."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from xinit._torch import DisableTorchFunction, FakeTensor
from xinit.history.recorder import Recorder
from xinit.history.simplify import fills
from xinit.history.storages import (
    Ref,
    Store,
    history_of,
    known,
    needed,
    now,
    ordinary_tensors,
    purge,
    ref,
    without_memory,
)
from xinit.history.waiting import paused
from xinit.lazy.late import leave
from xinit.lazy.memory import Memory, is_meta_device
from xinit.lazy.shards import hold
from xinit.parameters.plans import Plan, Row, describe
from xinit.parameters.sites import some
from xinit.patches import Patch, truncated_normal_in_one_operator
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


# torch calls these hooks for every module of every thread; each looks for the context of its own thread.

_thread = threading.local()


def _on_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    if modules := getattr(_thread, "modules", None):
        modules.register(module, name, parameter)


def _on_buffer(module: nn.Module, name: str, buffer: Tensor | None) -> None:
    if modules := getattr(_thread, "modules", None):
        modules.members[module] = None


def _on_module(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    if (modules := getattr(_thread, "modules", None)) and submodule is not None:
        modules.members.update({module: None, submodule: None})
        modules.parents[submodule] = weakref.ref(module), name


def _register() -> Callable[[], None]:
    handles = (
        hooks.register_module_parameter_registration_hook(_on_parameter),
        hooks.register_module_buffer_registration_hook(_on_buffer),
        hooks.register_module_module_registration_hook(_on_module),
    )

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


_hooks = Patch(_register)


def is_deferring() -> bool:
    """Whether this thread is within a :func:`deferred`."""
    return getattr(_thread, "modules", None) is not None


class Recorded:
    """What a :func:`deferred` context has recorded so far; printed, the table of :class:`xinit.Plan`."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules

    @property
    def rows(self) -> tuple[Row, ...]:
        """What is to be done to every parameter that is still without memory."""
        rows, seen = [], set()
        roots = self._modules.roots()
        with DisableTorchFunction():  # or is_meta would say what the constructor is told
            for root in roots:
                for name, tensor in root.named_parameters(type(root).__name__ if len(roots) > 1 else ""):
                    if (
                        id(tensor) in seen
                    ):  # of a graph module too, which shares those of the one that it was traced from
                        continue
                    seen.add(id(tensor))
                    if tensor.is_meta and (store := history_of(tensor)):
                        method, std = _described(ref(tensor, store))
                        rows.append(Row(name, tuple(tensor.shape), tensor.dtype, method, std))
        return tuple(rows)

    def __str__(self) -> str:
        return str(Plan(self.rows))

    def folded(self) -> str:
        """The table with one line for the rows that differ only by the numbers in their names."""
        return Plan(self.rows).folded()


def _described(whole: Ref) -> tuple[str, float | None]:
    """What will be drawn and its standard deviation, or which operators will be done again."""
    drawn = fills(whole.store, now())
    if drawn is None:
        names = [node.func.overloadpacket.__name__ for node in whole.store.until(now())]
        groups = [(name, len([*group])) for name, group in groupby(names)]
        return "again: " + ", ".join(f"{name} x{count}" if count > 1 else name for name, count in groups), None
    words = [
        describe(what) + ("" if view.numel == whole.numel else f" in {view.numel} elements") for view, what in drawn[0]
    ]
    return (", ".join(words), drawn[0][0][1].std) if words else ("never written", None)


@contextmanager
def deferred() -> Iterator[Recorded]:
    """Within it, modules are built without the memory of their parameters, which :func:`materialize_` draws later.

    Parameters that this thread gives to modules come out on the meta device, whatever they were made of; shapes, dtypes, ties
    and ``requires_grad`` are those that the constructor chose. Buffers and other tensors are real, but for those that take the
    values of a parameter, or share its random numbers: what a module holds of these, as a buffer, an attribute, or in a list,
    dictionary or object that is one, gets its values together with the parameter. Until the context ends, all of them say of
    their device what they would say with memory, so that the constructor goes the way that it would have gone. Every operator
    that would have written to a parameter is recorded: fills by distribution and region, anything else, such as the QR
    decomposition of ``orthogonal_`` or a copy of data, to be done again with the values that the parameter will then have.
    Within ``torch.inference_mode`` too, parameters are ordinary ones.

    What is done to these tensors after the context is recorded too, as far as it is known of what: fills, conversions, slices,
    deep copies, parametrizations, whether ``fully_shard`` or ``parallelize_module`` has sharded them or not. What takes other
    tensors, as a vocabulary's new rows do, needs another context.

    Random numbers that are no parameter's yet can be read (``item()``, ``tolist()``, ``numpy()``, a branch, a size such as that
    of ``x[x > 0]``). They stay those that were read: what is made of them later follows from torch's generator, not the key.

    Gives:
        the plan, which prints as a table of parameters and what they will be drawn from.

    Raises:
        RuntimeError: at the line where something takes values that do not exist yet, and so cannot be recorded, such as
            ``item()`` or ``nonzero()`` of a parameter; it names parameter and operator.

    Warns:
        UserWarning: at the end, of parameters that are made of random numbers that were read.

    Example:
        >>> import torch, xinit
        >>> with xinit.deferred() as plan:
        ...     model = torch.nn.Embedding(1000, 64, padding_idx=0)
        >>> print(plan)
        name    shape       method                        std
        weight  (1000, 64)  normal, zeros in 64 elements    1
        <BLANKLINE>
        1 parameter, 64,000 elements, 250.0 KiB of float32
        >>> model = xinit.materialize_(model, key=xinit.Key(0))
        >>> weight = xinit.normal_(torch.empty(1000, 64), key=xinit.Key(0).fold_in("weight"))
        >>> torch.equal(model.weight[1:], weight[1:]), model.weight[0].any().item()
        (True, False)
    """
    if modules := getattr(_thread, "modules", None):
        yield Recorded(modules)
        if getattr(_thread, "modules", None) is not modules:
            raise RuntimeError(
                "deferred: the context that this one is within was left before it, as coroutines do that share a thread, so that "
                "not all parameters are deferred: build one model after the other"
            )
        return
    recorder = Recorder()
    modules = Modules(recorder)
    _thread.modules = modules
    with _hooks, ordinary_tensors():
        try:
            with ExitStack() as stack:
                if is_meta_device(
                    None
                ):  # parameters have no memory here anyway, and transformers would not initialise them
                    stack.enter_context(torch.device("cpu"))
                stack.enter_context(truncated_normal_in_one_operator)
                stack.enter_context(Memory())
                stack.enter_context(recorder)
                yield Recorded(modules)
        finally:
            _thread.modules = None
            modules.seal()
