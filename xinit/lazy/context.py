"""``deferred()``: a model built without its weights, and with a record of how they would have been drawn."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from xinit._torch import DisableTorchFunction
from xinit.history.recorder import Recorder
from xinit.history.simplify import fills
from xinit.history.storages import (
    Ref,
    history_of,
    now,
    ordinary_tensors,
    ref,
)
from xinit.lazy.memory import Memory, is_meta_device
from xinit.lazy.modules import Modules
from xinit.parameters.plans import Plan, Row, describe
from xinit.patches import Patch, truncated_normal_in_one_operator

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


class Preview:
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

    def __reduce__(self) -> tuple[type[Plan], tuple[tuple[Row, ...]]]:
        return Plan, (self.rows,)  # a copy is of what there is now

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
def deferred() -> Iterator[Preview]:
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
        yield Preview(modules)
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
                yield Preview(modules)
        finally:
            _thread.modules = None
            modules.seal()
