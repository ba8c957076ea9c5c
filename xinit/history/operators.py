"""What is known of torch's operators: which fill a tensor and with what, which make one, write to one, or tell what it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xinit._torch import reshape_alias, schema_of, to_copy, tree_leaves, unsafe_view
from xinit.distributions import (
    DTYPES,
    Distribution,
    kaiming_normal,
    kaiming_uniform,
    variance_scaling,
    xavier_normal,
    xavier_uniform,
)

_aten, _ops = torch.ops.aten, torch.ops.xinit


class Fill(NamedTuple):
    """An operator that only fills a tensor, its first argument.

    Attributes:
        name: of the distribution.
        parameters: the names of the arguments that follow, with their defaults.
        by_xinit: xinit's operator for the same, if it is another one.
    """

    name: str
    parameters: tuple[tuple[str, float], ...] = ()
    by_xinit: Any = None

    def given(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The parameters of a call."""
        return (*args[1:], *(kwargs.get(name, default) for name, default in self.parameters[len(args) - 1 :]))


_NORMAL = (("mean", 0.0), ("std", 1.0))
FILLS = {
    _aten.zero_.default: Fill("constant"),
    _aten.fill_.Scalar: Fill("constant"),
    _aten.fill_.Tensor: Fill("constant"),
    _aten.copy_.default: Fill("constant"),  # of a single number
    _aten.normal_.default: Fill("normal", _NORMAL, _ops.normal_.default),
    _aten.uniform_.default: Fill("uniform", (("from", 0.0), ("to", 1.0)), _ops.uniform_.default),
    _ops.normal_.default: Fill("normal", _NORMAL),
    _ops.uniform_.default: Fill("uniform", (("a", 0.0), ("b", 1.0))),
    _ops.trunc_normal_.default: Fill("truncated_normal", (*_NORMAL, ("a", -2.0), ("b", 2.0))),
}
# Those that need the fans of the tensor: what makes them of the operator's parameters, which have the same order, by name.
_SCALED: dict[Any, tuple[Callable[..., Distribution], tuple[str, ...]]] = {
    getattr(_ops, what.__name__ + "_").default: (what, tuple(signature(what).parameters))
    for what in (xavier_uniform, xavier_normal, kaiming_uniform, kaiming_normal, variance_scaling)
}


class Factory(NamedTuple):
    """An operator that makes a tensor and fills it: what fills it, and which of the arguments are for that."""

    fill: Any
    values: slice = slice(0, 0)

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """What it fills the tensor with."""
        values = args[self.values]
        return (kwargs.get("fill_value", 1),) if self.fill is _aten.fill_.Scalar and not values else values


EMPTY = frozenset(
    getattr(getattr(_aten, name), "memory_format" if name == "empty" else "default")
    for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
)
FACTORIES = {
    **{getattr(_aten, name).default: Factory(_aten.zero_.default) for name in ("zeros", "zeros_like", "new_zeros")},
    **{
        getattr(_aten, name).default: Factory(_aten.fill_.Scalar, slice(at, at + 1))
        for name, at in (("full", 1), ("full_like", 1), ("new_full", 2), ("ones", 9), ("ones_like", 9), ("new_ones", 9))
    },
    **{
        getattr(getattr(_aten, name), overload): Factory(fill)
        for kind, fill in (("rand", _aten.uniform_.default), ("randn", _aten.normal_.default))
        for name in (kind, kind + "_like")
        for overload in {"default", "generator"} & set(getattr(_aten, name).overloads())
    },
    _aten.normal.float_float: Factory(_aten.normal_.default, slice(0, 2)),
}
COPIES = frozenset({_aten.clone.default, to_copy, _aten.copy_.default})
JOINS = frozenset({_aten.cat.default, _aten.stack.default})
# Of one tensor and numbers, each element for itself.
POINTWISE = frozenset({*(getattr(_aten, name).Tensor for name in ("mul", "div", "add", "sub")), _aten.neg.default})
# They return what they were given, or change what a tensor is a view of; they do not look at values.
VIEWS = frozenset({unsafe_view, reshape_alias})
# They write to two arguments, running statistics, without saying so: the first of them, and which argument says whether.
_UNDECLARED = {
    getattr(_aten, name).default: (3, 5)
    for name in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
    if hasattr(_aten, name)
}
_BY_MASK = frozenset(
    {_aten.index.Tensor, _aten.masked_select.default}
)  # the later arguments say how large the result is


def distribution(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Distribution | None:
    """What an in-place operator fills its first argument with, if it does that and nothing else."""
    if args[0].dtype not in DTYPES or kwargs.get("key") is not None or kwargs.get("global_shape") is not None:
        return None  # with a key or a window, its values are chosen already
    if func in _SCALED:
        factory, names = _SCALED[func]
        what = factory(**dict(zip(names, args[1:], strict=False))).resolve(args[0].shape)
        return what if what.fits(args[0].dtype) else None
    if func not in FILLS:
        return None
    fill = FILLS[func]
    if fill.name == "constant":
        value = args[1] if len(args) > 1 else 0.0
        if isinstance(value, Tensor):
            if value.dim() or value.is_meta:
                return None
            value = value.item()
        return None if isinstance(value, complex) else Distribution("constant", (float(value),))
    given = fill.given(args, kwargs)
    if args[0].is_complex() and func.namespace == "aten" and not torchs_complex_normal(func, given):
        return None
    what = Distribution(fill.name, tuple(map(float, given)))
    return what if what.fits(args[0].dtype) else None


def torchs_complex_normal(fill: Any, parameters: Sequence[float]) -> bool:
    """Whether torch draws complex numbers by the same rule: it adds a mean to the imaginary part too, and draws uniforms."""
    return fill is _aten.normal_.default and not any(parameters[:1])


def makes_fillable(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether it is a factory of what a distribution, or a number of any dtype, can fill later."""
    if func not in FACTORIES:
        return False
    fill = FACTORIES[func].fill
    if fill in (_aten.zero_.default, _aten.fill_.Scalar):
        return True
    like = args[0].dtype if args and isinstance(args[0], Tensor) else torch.get_default_dtype()
    dtype = kwargs.get("dtype") or like
    return dtype in DTYPES and (
        not dtype.is_complex or torchs_complex_normal(fill, FACTORIES[func].given(args, kwargs))
    )


def sized_by_values(func: Any) -> bool:
    """Whether the size of what it returns depends on values."""
    return torch.Tag.dynamic_output_shape in func.tags


def told(func: Any, args: tuple[Any, ...], is_leaf: Callable[[Any], bool]) -> list[Any]:
    """The tensors, or leaves, of which what an operator returns tells Python something, as a number or by its size."""
    if not (sized_by_values(func) or torch.Tag.data_dependent_output in func.tags):
        return []
    leaves = tree_leaves(args[1:] if func in _BY_MASK else args, is_leaf=is_leaf)
    leaves = [leaf for leaf in leaves if isinstance(leaf, Tensor) or is_leaf(leaf)]
    return [t for t in leaves if t.dtype in (torch.bool, torch.uint8)] if func is _aten.index.Tensor else leaves


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among the arguments that the operator writes to."""
    if func in _UNDECLARED:
        first, whether = _UNDECLARED[func]
        return [tensor for tensor in args[first : first + 2] if tensor is not None and args[whether]]
    if not schema_of(func).is_mutable:
        return []
    found = []
    for i, argument in enumerate(schema_of(func).arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tensors_of(args[i] if i < len(args) else kwargs.get(argument.name))
    return found


def tensors_of(value: Any) -> list[Tensor]:
    """Those of an operator's argument, which is one, a list of them, or something else."""
    if isinstance(value, Tensor):
        return [value]
    return [item for item in value if isinstance(item, Tensor)] if isinstance(value, list | tuple) else []
