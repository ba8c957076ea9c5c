"""What is put in the place of something of torch's for all threads, and does its work in some of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import init

from xinit._torch import trunc_normal
from xinit.distributions import DTYPES
from xinit.dtensor import is_answered, is_sharded
from xinit.subclasses import plain

_ops = torch.ops.xinit


class Patch:
    """In place as long as any thread is within it. It is to do its own work only where it is ``here``.

    Args:
        put: puts it in place; returns what takes it away.
    """

    def __init__(self, put: Callable[[], Callable[[], None]]) -> None:
        self._put, self._lock, self._users, self._thread = put, threading.Lock(), 0, threading.local()

    @property
    def here(self) -> bool:
        """Whether this thread is within it."""
        return getattr(self._thread, "depth", 0) > 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._take_away = self._put()
            self._users += 1
        self._thread.depth = getattr(self._thread, "depth", 0) + 1

    def __exit__(self, *error: object) -> None:
        self._thread.depth -= 1
        with self._lock:
            self._users -= 1
            if not self._users:
                self._take_away()


def drawable(tensor: Tensor) -> bool:
    """Whether xinit fills such a tensor."""
    return tensor.dtype in DTYPES and tensor.device.type in ("cpu", "cuda", "meta") and plain(tensor)


# torch.nn.init.trunc_normal_ rejects until nothing is left to reject: a loop over several operators, so no operator stands for
# it. Whatever name it was imported under, it ends in one private function of torch.nn.init, which is looked up at each call.
# That one is replaced while any thread is in a context; the replacement does its own work only in the threads that are.

_torch_trunc_normal_: Callable[..., Tensor]


def _trunc_normal_(
    tensor: Tensor, mean: float, std: float, a: float, b: float, generator: Generator | None = None
) -> Tensor:
    seen = drawable(tensor) or (is_sharded(tensor) and is_answered())
    if not truncated_normal_in_one_operator.here or not seen or tensor.is_complex():
        return _torch_trunc_normal_(tensor, mean, std, a, b, generator=generator)
    with torch.no_grad():
        _ops.trunc_normal_(tensor, mean, std, a, b, generator=generator)
    return tensor


def _replace() -> Callable[[], None]:
    global _torch_trunc_normal_
    _torch_trunc_normal_ = trunc_normal(init)
    trunc_normal.set(init, _trunc_normal_)

    def put_back() -> None:
        if trunc_normal(init) is _trunc_normal_:
            trunc_normal.set(init, _torch_trunc_normal_)

    return put_back


# Within it, this thread's torch.nn.init.trunc_normal_ is the one operator torch.ops.xinit.trunc_normal_.
truncated_normal_in_one_operator = Patch(_replace)
