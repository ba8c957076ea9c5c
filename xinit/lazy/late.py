"""After a :func:`xinit.deferred` context: what is done to tensors that still have no memory goes on being recorded.

As long as they have none, these tensors have a subclass of their own class, which sees what torch's functions do to them and to
what comes of them. With their memory they get their own class back.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import init

from xinit._torch import (
    IS_PARAMETER,
    LOADS,
    NO_GRAD,
    DisableTorchFunctionSubclass,
    mark_parameter,
    of_class,
    tree_leaves,
)
from xinit.guards import check_can_wait
from xinit.history.recorder import Recorder, is_recording
from xinit.history.simplify import Record, record_of_view
from xinit.history.storages import Store, history_of, ref
from xinit.parameters.names import version_of
from xinit.patches import truncated_normal_in_one_operator

IS_META = Tensor.is_meta.__get__  # type: ignore[attr-defined]
INDEXES = frozenset({Tensor.__getitem__, Tensor.__setitem__})


def as_tensors(index: Any) -> Any:
    """An index with its lists as tensors: torch would make them on the meta device, where nobody sees what they hold."""
    if isinstance(index, tuple):
        return tuple(map(as_tensors, index))
    if isinstance(index, range):
        index = list(index)
    if isinstance(index, list) and all(isinstance(leaf, bool | int) for leaf in tree_leaves(index)):
        return torch.tensor(index, dtype=None if index else torch.long)
    if type(index).__module__ == "numpy" and getattr(index, "ndim", None):
        return torch.as_tensor(index)
    return index


def cannot_be_shared(label: str) -> NoReturn:
    raise RuntimeError(f"deferred: share_memory_() of {label}, which has no memory yet: call it after materialize_")


class Late:
    """What the subclasses have that the classes do not."""

    _xinit_class: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Who makes a tensor of the class of one of these, of real values, is to get one of its own class."""
        return (nn.Parameter if cls._xinit_class is Tensor else cls._xinit_class)(*args, **kwargs)

    @staticmethod
    def _xinit_cannot_wait(op: str) -> None:
        """See :func:`xinit.guards.check_can_wait`."""
        if not is_recording():
            raise RuntimeError(
                f"deferred: {op} does nothing on the meta device, where this tensor is until materialize_: do it within another "
                f"xinit.deferred() context"
            )

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == IS_META:
            return is_meta(args[0])
        if func == Tensor.share_memory_:
            cannot_be_shared("a tensor")
        with DisableTorchFunctionSubclass():
            if func in INDEXES:
                args = args[0], as_tensors(args[1]), *args[2:]
            if func.__name__ == "__get__" or is_recording():  # what an attribute gives is a view
                output = func(*args, **kwargs)
            else:
                seen = [leaf for leaf in args if isinstance(leaf, Late) and _is_as_seen(leaf)]
                with truncated_normal_in_one_operator, Recorder(late=True), telling_where_to():
                    output = func(*args, **kwargs)
                for leaf in seen:
                    _see(leaf)
            for tensor in output if isinstance(output, list | tuple) else [output]:
                if type(tensor) is Tensor and _is_deferred(tensor):
                    watch(tensor)
        return output

    def set_(self: Any, *args: Any, **kwargs: Any) -> Any:
        """It changes what the tensor is a view of, without asking the class."""
        seen = _is_as_seen(self)
        with DisableTorchFunctionSubclass():
            Tensor.set_(self, *args, **kwargs)
        if seen:
            _see(self)
        return self

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        raise RuntimeError(
            "deferred: a tensor that is not materialized yet cannot be pickled; its module's code can build it again"
        )

    def __repr__(self: Any) -> str:
        with DisableTorchFunctionSubclass():
            text = repr(of_class(Tensor, self, self.requires_grad))
        return f"Parameter containing:\n{text}" if isinstance(self, nn.Parameter) else text

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        if id(self) in memo:
            return memo[id(self)]
        twin: Any = self.data.clone(memory_format=torch.preserve_format)
        with DisableTorchFunctionSubclass():
            twin = memo[id(self)] = of_class(type(self), twin, self.requires_grad)
            if not isinstance(self, nn.Parameter):
                twin.__dict__ = copy.deepcopy(self.__dict__, memo)
            elif twin._xinit_class is Tensor:
                mark_parameter(twin)
        return twin


def is_meta(tensor: Tensor) -> bool:
    """What a tensor without memory says to whoever asks ``is_meta``, two calls up from here."""
    caller = sys._getframe(2)
    if caller.f_globals.get("__name__") == init.__name__:
        check_can_wait(caller.f_code.co_name.removeprefix(NO_GRAD), tensor)
    return caller.f_code.co_name != LOADS  # or torch warns that the copy, which is recorded, is a no-op


@contextmanager
def telling_where_to() -> Iterator[None]:
    """torch advises to_empty(), after which nothing is known any more."""
    try:
        yield
    except NotImplementedError as error:
        if "Cannot copy out of meta tensor" not in str(error):
            raise
        raise NotImplementedError(
            "Cannot copy out of meta tensor; no data! What deferred() has left without gets it on its device by "
            "xinit.materialize_(model, device), which to_empty() would prevent"
        ) from None


class Left(NamedTuple):
    """What a tensor was at the end of its context; its version, but for what has been recorded since."""

    version: int
    record: Record


def leave(tensor: Tensor, store: Store) -> None:
    """See, from the end of its context on, what is done to a tensor."""
    tensor.__dict__["_xinit_left"] = Left(version_of(tensor), record_of_view(ref(tensor, store)))
    watch(tensor)


def left_of(tensor: Tensor) -> Left | None:
    left: Left | None = tensor.__dict__.get("_xinit_left")
    return left


def _is_as_seen(tensor: Any) -> bool:
    left = left_of(tensor)
    return left is not None and left.version == version_of(tensor)


def _see(tensor: Any) -> None:
    """Whatever was written to it just now has been recorded."""
    tensor.__dict__["_xinit_left"] = tensor.__dict__["_xinit_left"]._replace(version=version_of(tensor))


def _is_deferred(tensor: Tensor) -> bool:
    store = history_of(tensor) if tensor.is_meta else None
    return store is not None and store.deferred


@cache
def class_of(kind: Any, base: Any) -> Any:
    """The subclass of a tensor's class that has what that kind of tensors without memory has."""
    made: Any = type(base)(base.__name__, (kind, base), {"__module__": base.__module__, "_xinit_class": base})
    return made


def watch(tensor: Any) -> None:
    """See what is done to a tensor that has no memory."""
    if type(tensor) is nn.Parameter:
        # As torch has it for parameters of other classes: what detach() gives has the same one.
        tensor.__class__ = class_of(Late, Tensor)
        mark_parameter(tensor)
    elif not isinstance(tensor, Late):
        own: Any = type(tensor)
        tensor.__class__ = class_of(Late, own)


def own_class(tensor: Any) -> type[Tensor]:
    """The class that a tensor has with memory."""
    own: type[Tensor] = getattr(type(tensor), "_xinit_class", type(tensor))
    return nn.Parameter if own is Tensor and tensor.__dict__.get(IS_PARAMETER) else own


def release(tensor: Any) -> None:
    """Give it its own class back."""
    own = own_class(tensor)
    if own is not type(tensor):
        tensor.__class__ = own
        if own is nn.Parameter:
            tensor.__dict__.pop(IS_PARAMETER)
