"""``deferred()``: a model built without its weights, and with a record of how they would have been drawn."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from xinit.accelerate import truncated_normal_in_one_operator
from xinit.record import Ref, now, ref, store_of
from xinit.recorder import Memory, Recorder
from xinit.simplify import fills

# torch calls these hooks for every module of every thread; each looks for the recorder of its own thread.

_thread = threading.local()
_lock = threading.Lock()
_users = 0
_handles: list[Any] = []


def _on_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    if recorder := getattr(_thread, "recorder", None):
        recorder.modules[module] = None
        recorder.register(module, name, parameter)


def _on_buffer(module: nn.Module, name: str, buffer: Tensor | None) -> None:
    if recorder := getattr(_thread, "recorder", None):
        recorder.modules[module] = None


def _on_module(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    if (recorder := getattr(_thread, "recorder", None)) and submodule is not None:
        recorder.modules.update({module: None, submodule: None})
        recorder.parents[submodule] = weakref.ref(module), name


class Plan:
    """What a :func:`deferred` context has recorded; printed, a table of the parameters and what they will be drawn from."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    @property
    def rows(self) -> list[tuple[str, tuple[int, ...], torch.dtype, str]]:
        """Name, shape, dtype and what is done, of every parameter that is still without memory."""
        rows = []
        roots = self._recorder.roots()
        for root in roots:
            for name, tensor in root.named_parameters(type(root).__name__ if len(roots) > 1 else ""):
                if tensor.is_meta and (store := store_of(tensor)):
                    rows.append((name, tuple(tensor.shape), tensor.dtype, _describe(ref(tensor, store))))
        return rows

    def __str__(self) -> str:
        cells = [(name, "x".join(map(str, shape)), str(dtype)[6:], what) for name, shape, dtype, what in self.rows]
        table = [("name", "shape", "dtype", "what"), *cells]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


def _describe(whole: Ref) -> str:
    """What will be drawn, or which operators will be done again."""
    drawn = fills(whole.store, now())
    if drawn is None:
        names = [node.func.overloadpacket.__name__ for node in whole.store.until(now())]
        return ", then ".join(f"{name} x{n}" if (n := len([*group])) > 1 else name for name, group in groupby(names))
    words = []
    for view, what in drawn[0]:
        numbers = ", ".join(f"{value:.6g}" for value in what.parameters)
        part = "" if view.numel == whole.numel else f" in {view.numel} elements"
        words.append(f"{what.name}({numbers}){part}")
    return ", then ".join(words) or "never written"


@contextmanager
def deferred() -> Iterator[Plan]:
    """Within it, modules are built without the memory of their parameters, which :func:`materialize_` draws later.

    Parameters that this thread gives to modules come out on the meta device, whatever they were made of; shapes, dtypes, ties
    and ``requires_grad`` are those that the constructor chose, and buffers and other tensors are real. Every operator that
    would have written to a parameter is recorded: fills by distribution and region, anything else, such as the QR
    decomposition of ``orthogonal_`` or a copy of data, to be done again with the values that the parameter will then have.

    Gives:
        the plan, which prints as a table of parameters and what they will be drawn from.

    Raises:
        RuntimeError: at the line where something takes values that do not exist yet, and so cannot be recorded, such as
            ``item()`` of a parameter; it names parameter and operator.

    Example:
        >>> import torch, xinit
        >>> with xinit.deferred() as plan:
        ...     model = torch.nn.Embedding(1000, 64, padding_idx=0)
        >>> print(plan)
        name    shape    dtype    what
        weight  1000x64  float32  normal(0, 1), then constant(0) in 64 elements
        >>> model = xinit.materialize_(model, key=xinit.Key(0))
        >>> weight = xinit.normal_(torch.empty(1000, 64), key=xinit.Key(0).fold_in("weight"))
        >>> torch.equal(model.weight[1:], weight[1:]), model.weight[0].any().item()
        (True, False)
    """
    global _users
    if recorder := getattr(_thread, "recorder", None):
        yield Plan(recorder)
        return
    recorder = Recorder()
    with _lock:
        if not _users:
            _handles[:] = [
                hooks.register_module_parameter_registration_hook(_on_parameter),
                hooks.register_module_buffer_registration_hook(_on_buffer),
                hooks.register_module_module_registration_hook(_on_module),
            ]
        _users += 1
    _thread.recorder = recorder
    try:
        with ExitStack() as stack:
            stack.enter_context(truncated_normal_in_one_operator())
            stack.enter_context(Memory(recorder))
            stack.enter_context(recorder)
            yield Plan(recorder)
    finally:
        _thread.recorder = None
        with _lock:
            _users -= 1
            if not _users:
                for handle in _handles:
                    handle.remove()
        recorder.seal()
