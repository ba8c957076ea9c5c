"""Private names of torch: one place for each, with what it is for and what breaks without it. None is needed to import xinit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, TypeVar, cast

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


def without_modes() -> AbstractContextManager[Any]:
    """Within it no mode sees the operators, which are xinit's own business. Without it: ``materialize_``, built-in recipes,
    factories of distributions, and draws of a ``DTensor`` without a key."""
    from torch.utils._python_dispatch import _disable_current_modes

    context: AbstractContextManager[Any] = _disable_current_modes()
    return context


def of_class(kind: Any, tensor: Tensor, requires_grad: bool) -> Tensor:
    """The tensor as one of another class, which its constructor might refuse. Without it: ``deferred`` and ``materialize_``."""
    made: Tensor = Tensor._make_subclass(kind, tensor, requires_grad)
    return made


def is_fake(tensor: object) -> bool:
    """Whether it is a ``FakeTensor``. Without it: ``deferred`` within ``FakeTensorMode``, which it refuses."""
    from torch._subclasses import FakeTensor

    return isinstance(tensor, FakeTensor)


def local_tensor(tensor: Any) -> Tensor:
    """A ``DTensor``'s local tensor: ``to_local()`` gives a view, and is differentiated. Without it: all that is sharded."""
    local: Tensor = tensor._local_tensor
    return local


def checkpoint_modes() -> list[Any]:
    """The modes of selective activation checkpointing, in forward and in recomputation.

    Without them: fills in place that a policy of ``create_selective_checkpoint_contexts`` saves, of which nothing is then kept.
    """
    from torch.utils import checkpoint

    names = "_CachingTorchDispatchMode", "_CachedTorchDispatchMode"
    return [mode for name in names if (mode := getattr(checkpoint, name, None))]


def simulated_ranks(local: Any, coordinate: Any) -> list[tuple[Tensor, tuple[int, ...]]]:
    """Each simulated rank's part of a ``LocalTensor``, and its coordinate in the mesh.

    ``LocalTensor._local_tensors``, and a coordinate's ``node._local_ints``: no public way leads to one rank of many in a process.
    Without them a ``DTensor`` is not filled under ``LocalTensorMode``.
    """
    at = [axis.node._local_ints for axis in coordinate]
    return [(part, tuple(axis[rank] for axis in at)) for rank, part in sorted(local._local_tensors.items())]


F = TypeVar("F", bound=Callable[..., Any])


def constant_when_compiled(function: F) -> F:
    """``torch.compiler.assume_constant_result``, which imports the compiler, seconds of work, when xinit is imported.

    Without it: keys that are folded in compiled functions.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def not_compiled(why: str) -> Callable[[F], F]:
    """``torch.compiler.disable``, but only once there is a compiler: it imports that too. Without it: fills of DTensors in
    compiled functions."""

    def mark(function: F) -> F:
        disabled: Any = None

        @wraps(function)
        def outside(*args: Any, **kwargs: Any) -> Any:
            nonlocal disabled
            if disabled is None and "torch._dynamo" in sys.modules:
                disabled = torch.compiler.disable(function, reason=why)  # type: ignore[no-untyped-call]
            return (disabled or function)(*args, **kwargs)

        outside._torchdynamo_disable = True  # type: ignore[attr-defined]
        outside._torchdynamo_disable_msg = why  # type: ignore[attr-defined]
        return cast(F, outside)

    return mark
