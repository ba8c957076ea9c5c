"""``accelerate()``: a model's own code, its random numbers drawn by xinit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import init

from xinit._torch import TorchDispatchMode, trunc_normal
from xinit.distributions import DTYPES
from xinit.history.storages import torchs_complex_normal
from xinit.subclasses import plain

_aten, _ops = torch.ops.aten, torch.ops.xinit


def _drawable(tensor: Tensor) -> bool:
    return tensor.dtype in DTYPES and tensor.device.type in ("cpu", "cuda", "meta") and plain(tensor)


# torch.nn.init.trunc_normal_ rejects until nothing is left to reject: a loop over several operators, so no operator stands for
# it. Whatever name it was imported under, it ends in one private function of torch.nn.init, which is looked up at each call.
# That one is replaced while any thread is in a context; the replacement does its own work only in the threads that are.

_lock = threading.Lock()
_users = 0
_thread = threading.local()
_torch_trunc_normal_: Callable[..., Tensor]


def _trunc_normal_(
    tensor: Tensor, mean: float, std: float, a: float, b: float, generator: Generator | None = None
) -> Tensor:
    if not getattr(_thread, "depth", 0) or not _drawable(tensor) or tensor.is_complex():
        return _torch_trunc_normal_(tensor, mean, std, a, b, generator=generator)
    with torch.no_grad():
        _ops.trunc_normal_(tensor, mean, std, a, b, generator=generator)
    return tensor


@contextmanager
def truncated_normal_in_one_operator() -> Iterator[None]:
    """Within it, this thread's ``torch.nn.init.trunc_normal_`` is the one operator ``torch.ops.xinit.trunc_normal_``."""
    global _users, _torch_trunc_normal_
    with _lock:
        if not _users:
            _torch_trunc_normal_ = trunc_normal(init)
            trunc_normal.set(init, _trunc_normal_)
        _users += 1
    _thread.depth = getattr(_thread, "depth", 0) + 1
    try:
        yield
    finally:
        _thread.depth -= 1
        with _lock:
            _users -= 1
            if not _users and trunc_normal(init) is _trunc_normal_:
                trunc_normal.set(init, _torch_trunc_normal_)


# In place: the operator that draws instead, and the names of its arguments with torch's defaults.
_FILLS: dict[Any, tuple[Any, dict[str, float]]] = {
    _aten.normal_.default: (_ops.normal_.default, {"mean": 0.0, "std": 1.0}),
    _aten.uniform_.default: (_ops.uniform_.default, {"from": 0.0, "to": 1.0}),
}
# New tensors: what allocates them, what fills them, and how many of the arguments, the first ones, are for the latter.
_FACTORIES: dict[Any, tuple[Any, Any, int]] = {
    _aten.normal.float_float: (_aten.empty.memory_format, _ops.normal_.default, 2)
}
for _suffix, _empty in ("", _aten.empty.memory_format), ("_like", _aten.empty_like.default):
    for _name, _fill in ("rand", _ops.uniform_.default), ("randn", _ops.normal_.default):
        _packet = getattr(_aten, _name + _suffix)
        for _overload in {"default", "generator"} & set(_packet.overloads()):
            _FACTORIES[getattr(_packet, _overload)] = (_empty, _fill, 0)


def _draw(fill: Any, tensor: Tensor, parameters: tuple[float, ...], generator: Generator | None) -> bool:
    """Whether xinit has filled the tensor. What it refuses is torch's: to do, or to refuse in its own words."""
    if not _drawable(tensor) or (tensor.is_complex() and not torchs_complex_normal(fill, parameters)):
        return False
    try:
        fill(tensor, *parameters, generator=generator)
    except (RuntimeError, ValueError):  # before anything has changed
        return False
    return True


class _Accelerate(TorchDispatchMode):  # type: ignore[misc]
    """Sees every operator of this thread, below autograd, whatever name it was called by."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS:
            fill, defaults = _FILLS[func]
            rest = [kwargs.get(name, default) for name, default in defaults.items()][len(args) - 1 :]
            if _draw(fill, args[0], (*args[1:], *rest), kwargs.get("generator")):
                return args[0]
        elif func in _FACTORIES and kwargs.get("dtype") in (None, *DTYPES):
            empty, fill, count = _FACTORIES[func]
            tensor = empty(*args[count:], **{name: value for name, value in kwargs.items() if name != "generator"})
            if _draw(fill, tensor, args[:count], kwargs.get("generator")):
                return tensor
        return func(*args, **kwargs)


@contextmanager
def accelerate() -> Iterator[None]:
    """Within it, whatever draws uniform or normal numbers in this thread draws them by xinit's fills.

    That is ``Tensor.normal_`` and ``uniform_``, ``torch.randn``, ``rand``, ``normal`` and their like, and so everything in
    ``torch.nn.init`` and in the libraries that use it, under whatever name it was imported; ``trunc_normal_`` without its
    loop. Results follow the generators that the calls name, or the default ones, and so ``torch.manual_seed``, but they are
    not torch's own numbers. Tensors that xinit does not fill (other dtypes and devices, subclasses) are left to torch, and so is
    every operator that does not draw: weights that were loaded are not touched. Contexts nest, other threads are not
    affected, and on leaving, by an exception too, everything is as it was.

    Example:
        >>> import torch, xinit
        >>> with xinit.accelerate():
        ...     model = torch.nn.Linear(100, 200)
        >>> bool((model.weight.abs() <= 0.1).all())
        True
    """
    with truncated_normal_in_one_operator(), _Accelerate():
        yield
