"""The ops under selective activation checkpointing, ``torch.utils.checkpoint.create_selective_checkpoint_contexts``.

What its policy saves is not done again when a region is recomputed. A fill in place returns nothing that could be saved, so that
the memory would keep what it held. There it is two operators: the functional twin, for the policy to save or not, as random as
the fill is, and a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from xinit import _C


def _one(twin: Any, mode: Any, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
    with mode:
        args[0].copy_(twin(*args, **kwargs or {}))


def _many(twin: Any, mode: Any, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
    tensors: list[Tensor] = args[0]
    with mode:
        for tensor, values in zip(tensors, twin(*args, **kwargs or {}), strict=True):
            tensor.copy_(values)


_MODES = [type(mode) for mode in create_selective_checkpoint_contexts([])]  # type: ignore[no-untyped-call]
_library: Any = torch.library.Library("xinit", "FRAGMENT")  # type: ignore[no-untyped-call]  # its rules last as long as it


def _register(name: str, rule: Callable[..., None]) -> None:
    packet, _, overload = name.partition(".")
    twin = getattr(getattr(torch.ops.xinit, packet.removesuffix("_")), overload or "default")
    for mode in _MODES:
        torch.library.register_torch_dispatch(f"xinit::{name}", mode, partial(rule, twin), lib=_library)


for _name in _C.ops():
    _register(_name, _one)
_register("fill_many_", _many)
