"""``accelerate()``: a model's own code, its random numbers drawn by xinit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor

from xinit._torch import TorchDispatchMode
from xinit.distributions import DTYPES
from xinit.history.operators import FACTORIES, FILLS, torchs_complex_normal
from xinit.patches import drawable, truncated_normal_in_one_operator

_aten = torch.ops.aten


def _draw(fill: Any, tensor: Tensor, parameters: tuple[float, ...], generator: Generator | None) -> bool:
    """Whether xinit has filled the tensor. What it refuses is torch's: to do, or to refuse in its own words."""
    by_xinit = FILLS[fill].by_xinit
    if not by_xinit or not drawable(tensor) or (tensor.is_complex() and not torchs_complex_normal(fill, parameters)):
        return False
    try:
        by_xinit(tensor, *parameters, generator=generator)
    except (RuntimeError, ValueError):  # before anything has changed
        return False
    return True


class _Accelerate(TorchDispatchMode):  # type: ignore[misc]
    """Sees every operator of this thread, below autograd, whatever name it was called by."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FILLS:
            if _draw(func, args[0], FILLS[func].given(args, kwargs), kwargs.get("generator")):
                return args[0]
        elif func in FACTORIES and FILLS[FACTORIES[func].fill].by_xinit and kwargs.get("dtype") in (None, *DTYPES):
            values = FACTORIES[func].given(args, kwargs)
            empty = _aten.empty_like.default if isinstance(args[0], Tensor) else _aten.empty.memory_format
            options = {name: value for name, value in kwargs.items() if name != "generator"}
            tensor = empty(*args[len(values) :], **options)
            if _draw(FACTORIES[func].fill, tensor, values, kwargs.get("generator")):
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
    with truncated_normal_in_one_operator, _Accelerate():
        yield
