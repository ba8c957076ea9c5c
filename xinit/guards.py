"""What is not to be initialised: where ``torch.nn.init``'s functions would leave a tensor as it is, xinit's do too.

Three kinds of thing keep them from it. A function may have been replaced, as transformers does while it loads a checkpoint, or
in ``no_init_weights``. A ``TorchFunctionMode`` may answer instead, as Lightning's ``init_module(empty_init=True)`` does. And a
tensor may carry the flag that transformers sets on what it has loaded. The first two are asked rather than known: the function
of that name in ``torch.nn.init``, whatever it is now, is called on something in the tensor's place, which says whether it
would have been written to.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import handle_torch_function, has_torch_function_unary

from xinit._torch import is_view

FLAG = "_is_hf_initialized"

ORIGINALS = frozenset(
    function
    for name, function in vars(init).items()
    if name.endswith("_")
    and getattr(function, "__module__", "") == init.__name__
    and not hasattr(function, "__wrapped__")
)


class _Written(Exception):
    pass


class _Proxy:
    """In a tensor's place: it answers what a guard may ask of the tensor, and is never written to."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __getattr__(self, name: str) -> Any:
        if name == "is_meta":
            return False  # or torch's would not go on, which is no reason to leave the checks out
        method = getattr(Tensor, name, None)
        if not callable(method) or name in ("dim", "ndimension", "size", "numel"):
            return getattr(self._tensor, name)
        if not name.endswith("_"):
            raise _Written  # a value made of it, which is to go into it
        return lambda *args, **kwargs: handle_torch_function(method, (self,), self, *args, **kwargs)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise _Written  # no mode has kept the function from it


def skips(function: Callable[..., Any], tensor: Tensor, *arguments: Any) -> bool:
    """Whether a function of ``torch.nn.init``, or what is now in its place, would leave the tensor as it is, flags apart."""
    if function in ORIGINALS and not has_torch_function_unary(None):
        return False
    if not isinstance(tensor, Tensor) or not tensor.numel():
        return False
    try:
        function(_Proxy(tensor), *arguments)
    except Exception:  # it was on its way to the values; or what is wrong with the tensor xinit will say
        return False
    return True


def loaded(tensor: Tensor) -> bool:
    """Whether transformers has marked the tensor as loaded from a checkpoint, or as to be tied to one that was."""
    return bool(getattr(tensor, FLAG, False))


def quiet() -> bool:
    """Whether transformers, or whoever else has replaced torch's functions, knows that what was loaded is kept."""
    return init.normal_ not in ORIGINALS


def left_alone(op: str, function: Callable[..., Any], tensor: Tensor, *arguments: Any) -> bool:
    """Whether a tensor is to be left as it is by xinit's function `op`, torch's own being `function` at this moment.

    Warns:
        UserWarning: that it was loaded, where transformers has not said itself that what was loaded is to be kept.
    """
    if not isinstance(tensor, Tensor):
        return False
    if loaded(tensor):
        if function in ORIGINALS:
            warnings.warn(
                f"{op}: the tensor, of shape {tuple(tensor.shape)}, was loaded from a checkpoint, as its {FLAG} says, and is "
                f"left as it is: del tensor.{FLAG} first to fill it",
                stacklevel=_outside(),
            )
        return True
    return (function not in ORIGINALS or has_torch_function_unary(tensor)) and skips(function, tensor, *arguments)


def _outside() -> int:
    """The stack level of the line outside of the package, for a warning of the function that calls this."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        level, frame = level + 1, frame.f_back
    return level


def switched_off() -> bool:
    """Whether initialisation is a no-op here."""
    return skips(init.normal_, torch.empty(1, device="cpu"))


def check_kept(op: str, tensor: Tensor) -> None:
    """Raises a RuntimeError for what has been computed from parameters, by a few operators: the model does not keep it."""
    if is_view(tensor)():  # first: of a chunk, torch refuses to say more once another one has been written to
        return
    nodes = [tensor.grad_fn]
    for node in nodes:  # which grows
        if node is None or len(nodes) > 32:
            continue
        if isinstance(getattr(node, "variable", None), torch.nn.Parameter):
            raise RuntimeError(
                f"{op}: the tensor was computed from parameters, so that what is written to it would "
                f"be lost, as to the weight of a parametrized layer: assign to that, layer.weight = ..., or fill tensor.detach()"
            )
        nodes += [following for following, _ in node.next_functions]


def check_can_wait(op: str, tensor: Tensor) -> None:
    """For what is more than operators, so that it cannot be put off: whether a tensor's class puts off what is done to it."""
    refuse = getattr(type(tensor), "_xinit_cannot_wait", None)
    if refuse is not None:
        refuse(op)
