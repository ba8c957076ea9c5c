"""From a function's arguments to its operator's: keys, windows, sharded tensors and slopes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import Parameter
from torch.overrides import has_torch_function_unary

from xinit._torch import not_compiled, without_modes
from xinit.dtensor import check_view, first_words, is_sharded, pieces
from xinit.guards import FLAG, ORIGINALS, check_kept, left_alone
from xinit.keys import Key
from xinit.subclasses import held
from xinit.window import Window


def fill(
    op: Any,
    function: Any,
    tensor: Tensor,
    parameters: tuple[Any, ...],
    generator: Generator | None,
    key: Key | None,
    window: Window | None,
) -> Tensor:
    """Fill a tensor by an operator, unless `function`, that of ``torch.nn.init`` at this moment, would leave it as it is;
    None where that has been asked."""
    kind = type(tensor)
    plain = kind is Tensor or kind is Parameter
    if not plain and not isinstance(tensor, Tensor):
        raise TypeError(f"{name_of(op)}: tensor must be a torch.Tensor, but found {kind.__name__}")
    # left_alone, but for what is usual
    if (
        function is not None
        and (function not in ORIGINALS or has_torch_function_unary(tensor) or getattr(tensor, FLAG, False))
        and left_alone(name_of(op), function, tensor)
    ):
        return tensor
    if kind is not Parameter and tensor.requires_grad and not torch.compiler.is_compiling():
        check_kept(name_of(op), tensor)
    try:
        values = tensor if plain else held(tensor, f"{name_of(op)}: tensor")
        if not plain and is_sharded(values):
            _fill_shard(op, values, parameters, generator, key, window)
        elif key is None and window is None:
            op(values, *parameters, generator=generator)
        else:
            op(values, *parameters, generator=generator, **_place(op, key, window))
        if values is not tensor:
            torch.autograd.graph.increment_version(tensor)
    except RuntimeError as error:
        # What the dispatcher says of an argument that is not of the schema's type.
        if "Expected a value of type" in str(error):
            raise TypeError(str(error)) from None
        raise
    return tensor


def name_of(op: Any) -> str:
    """An operator's, without its overload's; with it where torch.compile is reading, which takes no string apart."""
    name: str = op.__name__
    return name if torch.compiler.is_compiling() else name.partition(".")[0]


def fill_scaled(
    op: Any,
    function: Any,
    tensor: Tensor,
    parameters: tuple[Any, ...],
    generator: Generator | None,
    key: Key | None,
    window: Window | None,
) -> Tensor:
    """As fill, for distributions scaled by a fan: a tensor without elements has none, so it is left, with torch's warning."""
    if (
        isinstance(tensor, Tensor)
        and not tensor.numel()
        and (tensor.dim() > 1 or op.__name__.startswith("kaiming"))  # as torch, which looks at the fan first for others
        and (window is None or 0 in window.global_shape)
    ):
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=3)
        return tensor
    return fill(op, function, tensor, parameters, generator, key, window)


@not_compiled("torch.compile cannot tell that a DTensor changes when xinit fills its local tensor")
def _fill_shard(
    op: Any,
    tensor: Tensor,
    parameters: tuple[Any, ...],
    generator: Generator | None,
    key: Key | None,
    window: Window | None,
) -> None:
    if window is not None:
        raise ValueError(f"{name_of(op)}: a DTensor knows which part of the whole it is, so it takes no window")
    check_view(tensor, name_of(op))
    parts = pieces(tensor, name_of(op))
    captured = _captured(tensor)
    if key is None and captured and len(parts) > 1:
        raise RuntimeError(
            f"{name_of(op)}: a CUDA graph cannot record one draw for {len(parts)} places in a shard: pass a key"
        )
    if key is not None or 0 in tensor.shape or tensor.is_meta or captured:
        _fill_parts(op, parts, parameters, generator, key)
    else:
        with one_key(name_of(op), tensor, generator) as key:
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
    op: Any,
    parts: Sequence[tuple[Tensor, Window | None]],
    parameters: tuple[Any, ...],
    generator: Generator | None,
    key: Key | None,
) -> None:
    for part, where in parts:
        op(part, *parameters, generator=generator, **_place(op, key, where))


def _captured(tensor: Tensor) -> bool:
    """Whether a CUDA graph is recording, which takes the generator's state itself, for each replay."""
    return tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def default_generator(device: torch.device) -> Generator:
    if device.type == "cpu":
        return torch.default_generator
    generator: Generator = torch.get_device_module(device).default_generators[device.index]
    return generator


def _place(op: Any, key: Key | None, window: Window | None) -> dict[str, Any]:
    place: dict[str, Any] = {}
    if key is not None:
        if not isinstance(key, Key):
            raise TypeError(f"{name_of(op)}: key must be an xinit.Key, but found {type(key).__name__}")
        place["key"] = key.words
    if window is not None:
        if not isinstance(window, Window):
            raise TypeError(f"{name_of(op)}: window must be an xinit.Window, but found {type(window).__name__}")
        place["global_shape"] = window.global_shape
        place["offsets"] = window.offsets
    return place
