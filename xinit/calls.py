"""From a function's arguments to its operator's: keys, windows, sharded tensors and slopes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import Parameter

from xinit import _C
from xinit._torch import not_compiled, without_modes
from xinit.dtensor import check_view, first_words, is_answered, is_sharded, pieces
from xinit.guards import FLAG, ORIGINALS, check_kept, left_alone
from xinit.keys import Key
from xinit.subclasses import held
from xinit.window import Window

# By operator: fills a tensor that is just one, with plain numbers for parameters, and says so; for others torch.ops is asked.
_plainly = _C.calls


def fill(
    op: str,
    function: Any,
    tensor: Tensor,
    parameters: tuple[Any, ...],
    generator: Generator | None,
    key: Key | None,
    window: Window | None,
) -> Tensor:
    """Fill a tensor by an operator, unless `function`, that of ``torch.nn.init`` at this moment, would leave it as it is;
    None where that has been asked. One that is scaled by a fan leaves a tensor without elements, with torch's warning."""
    if (
        not torch.compiler.is_compiling()
        and window is None
        and function in ORIGINALS
        and not getattr(tensor, FLAG, False)
        and (
            _plainly[op](tensor, parameters, generator)
            if key is None
            else type(key) is Key and _plainly[op](tensor, parameters, generator, key.seed, key.stream)
        )
    ):
        return tensor
    return _fill_any(op, function, tensor, parameters, generator, key, window)


def _fill_any(
    op: str,
    function: Any,
    tensor: Tensor,
    parameters: tuple[Any, ...],
    generator: Generator | None,
    key: Key | None,
    window: Window | None,
) -> Tensor:
    """The same, of tensors and arguments of every kind."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: tensor must be a torch.Tensor, but found {type(tensor).__name__}")
    if (
        not tensor.numel()
        and op not in ("uniform_", "normal_", "trunc_normal_")
        and (tensor.dim() > 1 or op.startswith("kaiming"))  # as torch, which looks at the fan first for others
        and (window is None or 0 in window.global_shape)
    ):
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=4)
        return tensor
    if function is not None and left_alone(op, function, tensor):
        return tensor
    if type(tensor) is not Parameter and tensor.requires_grad and not torch.compiler.is_compiling():
        check_kept(op, tensor)
    try:
        values = held(tensor, f"{op}: tensor")
        if is_sharded(values) and not hasattr(values, "_xinit_class"):  # a deferred one's class sees to it
            if is_answered() and key is None and window is None and not torch.compiler.is_compiling():
                _overload(op)(values, *parameters, generator=generator)
            else:
                fill_shard(op, values, parameters, generator, key, window)
        else:
            _overload(op)(values, *parameters, generator=generator, **_place(op, key, window))
        if values is not tensor:
            torch.autograd.graph.increment_version(tensor)
    except RuntimeError as error:
        # What the dispatcher says of an argument that is not of the schema's type.
        if "Expected a value of type" in str(error):
            raise TypeError(str(error)) from None
        raise
    return tensor


def _overload(op: str) -> Any:
    return getattr(torch.ops.xinit, op).default


@not_compiled("torch.compile cannot tell that a DTensor changes when xinit fills its local tensor")
def fill_shard(
    op: str,
    tensor: Tensor,
    parameters: tuple[Any, ...],
    generator: Generator | None,
    key: Key | None,
    window: Window | None,
) -> None:
    if window is not None:
        raise ValueError(f"{op}: a DTensor knows which part of the whole it is, so it takes no window")
    check_view(tensor, op)
    parts = pieces(tensor, op)
    captured = _captured(tensor)
    if key is None and captured and len(parts) > 1:
        raise RuntimeError(f"{op}: a CUDA graph cannot record one draw for {len(parts)} places in a shard: pass a key")
    if key is not None or 0 in tensor.shape or tensor.is_meta or captured:
        _fill_parts(op, parts, parameters, generator, key)
    else:
        with one_key(op, tensor, generator) as key:
            _fill_parts(op, parts, parameters, None, key)
    torch.autograd.graph.increment_version(tensor)  # the ops have moved on that of the local tensor


@contextmanager
def one_key(op: str, tensor: Any, generator: Generator | None) -> Iterator[Key]:
    """The key of a sharded tensor for all ranks, drawn by the first; all generators advance, but for an error within it."""
    source = default_generator(tensor.device) if generator is None else generator
    if not isinstance(source, Generator):
        raise TypeError(f"{op}: generator must be a torch.Generator, but found {type(source).__name__}")
    with without_modes():  # LocalTensorMode's among them, in which nothing has one value
        state = source.get_state()
        try:
            yield Key(*first_words(tensor.device_mesh, Key.drawn(source).words))
        except Exception:
            source.set_state(state)
            raise


def _fill_parts(
    op: str,
    parts: Sequence[tuple[Tensor, Window | None]],
    parameters: tuple[Any, ...],
    generator: Generator | None,
    key: Key | None,
) -> None:
    for part, where in parts:
        _overload(op)(part, *parameters, generator=generator, **_place(op, key, where))


def _captured(tensor: Tensor) -> bool:
    """Whether a CUDA graph is recording, which takes the generator's state itself, for each replay."""
    return tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def default_generator(device: torch.device) -> Generator:
    if device.type == "cpu":
        return torch.default_generator
    generator: Generator = torch.get_device_module(device).default_generators[device.index]
    return generator


def _place(op: str, key: Key | None, window: Window | None) -> dict[str, Any]:
    place: dict[str, Any] = {}
    if key is not None:
        if not isinstance(key, Key):
            raise TypeError(f"{op}: key must be an xinit.Key, but found {type(key).__name__}")
        place["key"] = key.words
    if window is not None:
        if not isinstance(window, Window):
            raise TypeError(f"{op}: window must be an xinit.Window, but found {type(window).__name__}")
        place["global_shape"] = window.global_shape
        place["offsets"] = window.offsets
    return place
