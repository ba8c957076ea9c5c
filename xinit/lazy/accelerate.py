"""``accelerate()``: a model's own code, its random numbers drawn by xinit."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Generator, Tensor, nn

from xinit._torch import TorchDispatchMode
from xinit.calls import fill_shard
from xinit.distributions import DTYPES
from xinit.dtensor import answered, is_sharded
from xinit.history.operators import FACTORIES, FILLS, torchs_complex_normal
from xinit.keys import Key
from xinit.lazy.keyed_shards import keyed
from xinit.patches import drawable, truncated_normal_in_one_operator

_aten = torch.ops.aten


def _draw(fill: Any, tensor: Tensor, parameters: tuple[Any, ...], generator: Generator | None) -> bool:
    """Whether xinit has filled the tensor. What it refuses is torch's: to do, or to refuse in its own words."""
    by_xinit = FILLS[fill].by_xinit
    if not by_xinit or not drawable(tensor) or (tensor.is_complex() and not torchs_complex_normal(fill, parameters)):
        return False
    try:
        by_xinit(tensor, *parameters, generator=generator)
    except (RuntimeError, ValueError):  # before anything has changed
        return False
    return True


def _draw_shard(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether xinit has filled a sharded tensor, with the bits of the whole: the key of all ranks is drawn by the first."""
    op, parameters = func, args[1:]
    if func in FILLS and func.namespace == "aten":
        op, parameters = FILLS[func].by_xinit, FILLS[func].given(args, kwargs)
    if op is None or op.namespace != "xinit" or kwargs.get("key") is not None or args[0].dtype not in DTYPES:
        return False
    if args[0].is_complex() and op is not func and not torchs_complex_normal(func, parameters):
        return False
    fill_shard(op.overloadpacket.__name__, args[0], parameters, kwargs.get("generator"), None, None)
    return True


class _Accelerate(TorchDispatchMode):  # type: ignore[misc]
    """Sees every operator of this thread, below autograd, whatever name it was called by."""

    def __init__(self, left: list[str]) -> None:
        super().__init__()
        self.left, self.shards_left = left, False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if (func in FILLS or func.namespace == "xinit") and args and is_sharded(args[0]):
            if _draw_shard(func, args, kwargs):
                return args[0] if func.namespace == "aten" else None
        elif func in FILLS:
            if _draw(func, args[0], FILLS[func].given(args, kwargs), kwargs.get("generator")):
                return args[0]
        elif func in FACTORIES and FILLS[FACTORIES[func].fill].by_xinit and kwargs.get("dtype") in (None, *DTYPES):
            values = FACTORIES[func].given(args, kwargs)
            empty = _aten.empty_like.default if isinstance(args[0], Tensor) else _aten.empty.memory_format
            options = {name: value for name, value in kwargs.items() if name != "generator"}
            tensor = empty(*args[len(values) :], **options)
            if is_sharded(tensor) and _draw_shard(FACTORIES[func].fill, (tensor, *values), kwargs):
                return tensor
            if _draw(FACTORIES[func].fill, tensor, values, kwargs.get("generator")):
                return tensor
        if torch.Tag.nondeterministic_seeded in func.tags and func.namespace != "xinit":
            self._note(func, args)
        return func(*args, **kwargs)

    def _note(self, func: Any, args: tuple[Any, ...]) -> None:
        """That torch draws."""
        first = args[0] if args and isinstance(args[0], Tensor) else None
        what = "" if first is None else f" of {type(first).__name__} {tuple(first.shape)} {first.dtype}"
        self.left.append(f"{func}{what}")
        self.shards_left = self.shards_left or is_sharded(first)


@contextmanager
def accelerate(*, key: Key | None = None, model: nn.Module | None = None, report: bool = False) -> Iterator[list[str]]:
    r"""Within it, whatever draws uniform or normal numbers in this thread draws them by xinit's fills.

    That is ``Tensor.normal_`` and ``uniform_``, ``torch.randn``, ``rand``, ``normal`` and their like, and so everything in
    ``torch.nn.init`` and in the libraries that use it, under whatever name it was imported; ``trunc_normal_`` without its
    loop. Results follow the generators that the calls name, or the default ones, and so ``torch.manual_seed``, but they are
    not torch's own numbers; a ``DTensor`` gets the bits of the whole, from a key that its mesh's first rank draws. Tensors that
    xinit does not fill (other dtypes and devices, subclasses) are left to torch, and so is every operator that does not draw:
    weights that were loaded are not touched. Contexts nest, other threads are not affected, and on leaving, by an exception too,
    everything is as it was.

    **With a key and a model** that has its memory, sharded or not, whatever is drawn into its parameters by its own code is drawn
    from ``key.fold_in(name)`` instead, and has the values that :func:`xinit.materialize_` gives after :func:`xinit.deferred` of
    the same code: drawn into a parameter, ``.data``, ``.to_local()`` or a slice, once or twice, scaled by a factor, or made by
    several operators, as ``orthogonal_`` is. What is done is written down, and drawn in one batch when the context ends, or
    before somebody looks at a parameter; an error leaves undone what was not drawn by then. Of a sharded parameter each rank
    draws what it holds, without communication; what no fill describes, it does again as a whole, one parameter at a time. What
    is drawn for no parameter, such as a buffer, has no name for a key, and follows the generators, as within ``deferred``.

    What an operator takes of a plain parameter, to overwrite that or another one with it, is drawn by its name by then: after
    ``w.copy_(w / w.norm())`` values are as sound, but may have other bits than ``deferred`` gives, and than sharded parameters
    have; and a ``v`` that was copied from ``w`` resembles a ``w`` that is drawn again later.

    Args:
        key: the model's, for its parameters.
        model: the model as it is by then: sharded, wrapped, and with memory, as by ``to_empty``.
        report: whether to warn, at the end, of all that torch has drawn itself; of ``DTensor``\ s that is always said.

    Gives:
        a list of what torch has drawn itself, as text, to which is added meanwhile.

    Raises:
        TypeError: if key or model are not of these types.
        ValueError: if one of both is given without the other; for a ``DTensor`` that :mod:`xinit.init` cannot fill, as with a
            ``Partial`` placement; where a draw into a parameter names a generator.
        NotImplementedError: for parameters that are neither plain tensors nor ``DTensor``\ s of such.
        RuntimeError: for parameters without memory, or that were replaced within; for random numbers across two parameters that
            share a storage; where a sharded parameter would have to be known before it is drawn; within another key's context; if
            other parameters were drawn into, and none of the model's.

    Warns:
        UserWarning: if nothing was drawn into the model at all; of what torch has drawn, as ``report`` says.

    Example:
        >>> import torch, xinit
        >>> with xinit.accelerate():
        ...     model = torch.nn.Linear(100, 200)
        >>> bool((model.weight.abs() <= 0.1).all())
        True
        >>> with xinit.accelerate(key=xinit.Key(0), model=model):
        ...     _ = torch.nn.init.normal_(model.weight)
        >>> torch.equal(model.weight, xinit.normal_(torch.empty(200, 100), key=xinit.Key(0).fold_in("weight")))
        True
    """
    if (key is None) != (model is None):
        raise ValueError(
            f"accelerate: a key and the model whose parameters are drawn from it go together, but found key={key} and "
            f"model={'None' if model is None else type(model).__name__}"
        )
    left: list[str] = []
    mode = _Accelerate(left)
    with (
        truncated_normal_in_one_operator,
        answered(),
        mode,
        nullcontext() if key is None else keyed(key, model),
    ):
        yield left
    if left and (report or mode.shards_left):
        counts = [f"{count} x {what}" if count > 1 else what for what, count in Counter(left).items()]
        warnings.warn(f"accelerate: left to torch: {', '.join(counts)}", stacklevel=3)
