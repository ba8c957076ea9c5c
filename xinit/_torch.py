"""Private names of torch: one place for each, with what it is for and what breaks without it. None is needed to import xinit."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def current_vmap() -> tuple[int, int, str]:
    """Level, batch size and randomness of the innermost vmap. Without it: xinit's functions under ``torch.vmap``."""
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    interpreter: Any = retrieve_current_functorch_interpreter()
    return interpreter.level(), interpreter.batch_size(), interpreter.randomness()


def unwrap_batched(tensor: Tensor, level: int) -> tuple[Tensor, int | None]:
    """The tensor of all members and its axis of them, or the tensor and None. Without it: as for :func:`current_vmap`."""
    value, axis = torch._C._functorch._unwrap_batched(tensor, level)
    return value, axis


def wrap_batched(tensor: Tensor, axis: int, level: int) -> Tensor:
    """The opposite of :func:`unwrap_batched`. Without it: ``torch.vmap`` of ``torch.func.functionalize`` of a fill."""
    batched: Tensor = torch._C._functorch._add_batch_dim(tensor, axis, level)
    return batched


def below_vmap() -> AbstractContextManager[Any]:
    """Within it, ops do not come back to their rules for vmap. Without it: as for :func:`current_vmap`."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchVmapMode)
    guard: AbstractContextManager[Any] = torch._C._ExcludeDispatchKeyGuard(keys)
    return guard


def simulated_ranks(local: Any, coordinate: Any) -> list[tuple[Tensor, tuple[int, ...]]]:
    """Each simulated rank's part of a ``LocalTensor``, and its coordinate in the mesh.

    ``LocalTensor._local_tensors``, and a coordinate's ``node._local_ints``: no public way leads to one rank of many in a process.
    Without them a ``DTensor`` is not filled under ``LocalTensorMode``.
    """
    at = [axis.node._local_ints for axis in coordinate]
    return [(part, tuple(axis[rank] for axis in at)) for rank, part in sorted(local._local_tensors.items())]
