"""Distributions as values: what to draw into a tensor, or into the parts of one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor

from xinit import _C
from xinit._torch import DisableTorchFunction, Lacking, below_vmap, constant_when_compiled, specialized, without_modes
from xinit.scaling import TORCHS, Axes, FanMode, Nonlinearity, ScalingDistribution, ScalingMode, axes_of, calculate_gain

_ops = torch.ops.xinit

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
# Of what can be filled; complex numbers, with normal distributions and constants.
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    *FLOAT8,
    torch.complex64,
    torch.complex128,
    torch.complex32,
)

__all__ = [  # all of it public, as xinit's
    "Blocks",
    "Distribution",
    "Rows",
    "blocks",
    "constant",
    "kaiming_normal",
    "kaiming_uniform",
    "normal",
    "ones",
    "rows",
    "trunc_normal",
    "uniform",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]


def _truncated_std(mean: float, std: float, a: float, b: float) -> float:
    """Of N(mean, std²) cut to [a, b]: std · sqrt(1 + (αφ(α) − βφ(β)) / Z − ((φ(α) − φ(β)) / Z)²)."""
    if std == 0:
        return 0.0
    alpha, beta = sorted((abs(a - mean), abs(b - mean))) if (a - mean) * (b - mean) > 0 else (a - mean, b - mean)
    alpha, beta = alpha / std, beta / std
    mass = 0.5 * (math.erfc(alpha / math.sqrt(2)) - math.erfc(beta / math.sqrt(2)))
    if mass == 0:
        return std / alpha  # too far to tell from an exponential
    at_a, at_b = (math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) / mass for x in (alpha, beta))
    return std * math.sqrt(max(0.0, 1 + alpha * at_a - beta * at_b - (at_a - at_b) ** 2))


# By name: the parameters of a distribution without a fan, and the standard deviation that they give.
_LAWS: dict[str, tuple[tuple[str, ...], Callable[..., float]]] = {
    "uniform": (("a", "b"), lambda a, b: (b - a) / math.sqrt(12)),
    "normal": (("mean", "std"), lambda mean, std: std),
    "truncated_normal": (("mean", "std", "a", "b"), _truncated_std),
    "constant": (("value",), lambda value: 0.0),
}


@dataclass(frozen=True, slots=True)
class Distribution:
    """What to draw. Made by :func:`normal`, :func:`kaiming_uniform` and the like; equal parameters make equal values.

    Attributes:
        name: "uniform", "normal", "truncated_normal" or "constant".
        parameters: as the function of that name takes them; with a fan, the gain alone.
        fan: "fan_in", "fan_out", "fan_avg" or "fan_geo_avg" if the standard deviation is gain / sqrt(fan), else "".
        in_axis: the axes whose sizes make up fan_in, with the receptive field: all axes that are named nowhere here.
        out_axis: those of fan_out.
        batch_axis: those that are part of no fan, such as that of stacked experts; the functions take it as ``batch_axes`` too.
        groups: of a grouped convolution, whose channels of all groups lie along axis 0.
    """

    name: str
    parameters: tuple[float, ...]
    fan: str = ""
    in_axis: tuple[int, ...] = (1,)
    out_axis: tuple[int, ...] = (0,)
    batch_axis: tuple[int, ...] = ()
    groups: int = 1

    by_whole: ClassVar[bool] = False  # what xinit.matrices.Matrix is: a part of it is known only by the whole

    def resolve(self, shape: Sequence[int]) -> Distribution:
        """The same for tensors of this shape without a fan: numbers only.

        Raises:
            ValueError: if the shape has fewer than two dimensions, or not these axes.

        Example:
            >>> import xinit
            >>> xinit.kaiming_normal(nonlinearity="relu").resolve((64, 32))
            Distribution(normal, mean=0, std=0.25)
        """
        return Distribution(*_resolve(self.description, tuple(shape))) if self.fan else self

    @property
    def description(self) -> str:
        """How it is said to ``torch.ops.xinit.fill_many_``: ``normal(0.0, 0.02)``, or ``normal(1.0, fan_in)`` by a fan."""
        parameters = specialized(self.parameters)
        return _described(self.name, parameters, self.fan, self.in_axis, self.out_axis, self.batch_axis, self.groups)

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether a tensor of that dtype can be filled with it: complex numbers have no uniform or truncated distribution."""
        return dtype in DTYPES and (not dtype.is_complex or self.name in ("normal", "constant"))

    @property
    def std(self) -> float:
        """The standard deviation of what is drawn, of a distribution without a fan; of a truncated one after the cut.

        Raises:
            ValueError: if it has a fan: :meth:`resolve` it first.
        """
        if self.fan:
            raise ValueError(f"std: {self} depends on the shape: resolve it first")
        return _LAWS[self.name][1](*self.parameters)

    def __repr__(self) -> str:
        parts = (f"{self.fan} gain",) if self.fan else _LAWS[self.name][0]
        numbers = ", ".join(f"{part}={value:.6g}" for part, value in zip(parts, self.parameters, strict=True))
        return f"Distribution({self.name}, {numbers})"


@constant_when_compiled
def _resolve(description: str, shape: tuple[int, ...]) -> tuple[str, tuple[float, ...]]:
    return _C.resolve(description, shape)


@constant_when_compiled
def _described(name: str, parameters: tuple[float, ...], fan: str, *axes: Any) -> str:
    numbers = ", ".join(map(repr, map(float, parameters)))
    if not fan:
        return f"{name}({numbers})"
    if axes == ((1,), (0,), (), 1):
        return f"{name}({numbers}, {fan})"
    inside, outside, batch = (" ".join(map(str, axis)) for axis in axes[:3])
    return f"{name}({numbers}, {fan}, in={inside}, out={outside}, batch={batch}, groups={axes[3]})"


P = ParamSpec("P")
R = TypeVar("R")


def factory(make: Callable[P, R]) -> Callable[P, R]:
    """A function that makes a distribution, and has the name that once filled a tensor in ``torch.nn.init``: it says so.

    Raises:
        TypeError: by the factory, for a tensor among its arguments; it names the function that fills one.
    """

    @functools.wraps(make)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if "batch_axes" in kwargs:  # its name before it was JAX's
            kwargs["batch_axis"] = kwargs.pop("batch_axes")
        try:
            return make(*args, **kwargs)
        except TypeError:  # the old calls also have an argument too many
            for name, value in (*((f"argument {i}", value) for i, value in enumerate(args)), *kwargs.items()):
                if isinstance(value, Tensor):
                    refuse(make.__name__, name, value, "a number")
            raise

    return checked


def refuse(op: str, name: str, value: Any, kind: str) -> NoReturn:
    found = "a tensor" if isinstance(value, Tensor) else type(value).__name__
    raise TypeError(
        f"{op}: {name} must be {kind}, but found {found}: {op} makes a distribution and fills nothing; "
        f"{'eye' if op == 'identity' else op}_ fills a tensor"
    )


def numbers(op: str, **values: Any) -> tuple[float, ...]:
    """The arguments of a factory as floats.

    Raises:
        TypeError: if one is no number; it names the function that fills.
    """
    for name, value in values.items():
        if not isinstance(value, int | float) and not isinstance(value, Real):
            refuse(op, name, value, "a number")
    return tuple(map(float, values.values()))


def _string(op: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        refuse(op, name, value, "a string")
    return value


def _check(op: str, *arguments: float | str) -> None:
    """What the operator would refuse for every tensor, refused now: of float64, which holds what the others do."""
    if not torch.compiler.is_compiling():
        with suppress(Lacking):  # then by the fill
            _accepted(op, *arguments)


@functools.lru_cache(1024)  # a model's layers are alike, and asking an operator takes 50 µs
def _accepted(op: str, *arguments: float | str) -> None:
    with without_modes(), DisableTorchFunction(), below_vmap():
        getattr(_ops, op + "_")(torch.empty(1, 1, dtype=torch.float64, device="meta"), *arguments)


def _scaled(
    op: str, name: str, gain: float, fan: str, in_axis: Axes, out_axis: Axes, batch_axis: Axes, groups: int
) -> Distribution:
    axes = axes_of(op, "in_axis", in_axis), axes_of(op, "out_axis", out_axis), axes_of(op, "batch_axis", batch_axis)
    if not isinstance(groups, int):
        refuse(op, "groups", groups, "an integer")
    return Distribution(name, (gain,), fan, *axes, groups)


def _xavier(op: str, name: str, gain: float, *axes: Any) -> Distribution:
    (number,) = numbers(op, gain=gain)
    _check(op, number)
    return _scaled(op, name, number, "fan_avg", *axes)


def _kaiming(op: str, name: str, a: float, mode: str, nonlinearity: Nonlinearity, *axes: Any) -> Distribution:
    (slope,) = numbers(op, a=a)
    mode = _string(op, "mode", mode).lower()
    torchs = isinstance(nonlinearity, str) and nonlinearity in TORCHS
    gain = calculate_gain(nonlinearity, a if isinstance(a, bool) else slope if torchs else slope or None)
    _check(op, gain, mode, "gain")
    return _scaled(op, name, gain, mode, *axes)


@factory
def uniform(a: float = 0.0, b: float = 1.0) -> Distribution:
    """U(a, b), as :func:`xinit.uniform_` draws it, which raises the same for the same bounds."""
    parameters = numbers("uniform", a=a, b=b)
    _check("uniform", *parameters)
    return Distribution("uniform", parameters)


@factory
def normal(mean: float = 0.0, std: float = 1.0) -> Distribution:
    """N(mean, std²), as :func:`xinit.normal_` draws it, which raises the same for the same parameters.

    Example:
        >>> import xinit
        >>> xinit.normal(std=-1)
        Traceback (most recent call last):
        RuntimeError: normal expects std >= 0.0, but found std -1
    """
    parameters = numbers("normal", mean=mean, std=std)
    _check("normal", *parameters)
    return Distribution("normal", parameters)


@factory
def trunc_normal(mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Distribution:
    """N(mean, std²) truncated to [a, b], as :func:`xinit.trunc_normal_` draws it, which raises the same."""
    parameters = numbers("trunc_normal", mean=mean, std=std, a=a, b=b)
    _check("trunc_normal", *parameters)
    return Distribution("truncated_normal", parameters)


@factory
def xavier_uniform(
    gain: float = 1.0, *, in_axis: Axes = 1, out_axis: Axes = 0, batch_axis: Axes = (), groups: int = 1
) -> Distribution:
    """Xavier's uniform distribution, as :func:`xinit.xavier_uniform_` draws it; axes as in :class:`Distribution`."""
    return _xavier("xavier_uniform", "uniform", gain, in_axis, out_axis, batch_axis, groups)


@factory
def xavier_normal(
    gain: float = 1.0, *, in_axis: Axes = 1, out_axis: Axes = 0, batch_axis: Axes = (), groups: int = 1
) -> Distribution:
    """Xavier's normal distribution, as :func:`xinit.xavier_normal_` draws it; axes as in :class:`Distribution`."""
    return _xavier("xavier_normal", "normal", gain, in_axis, out_axis, batch_axis, groups)


@factory
def kaiming_uniform(
    a: float = 0,
    mode: FanMode = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
    *,
    in_axis: Axes = 1,
    out_axis: Axes = 0,
    batch_axis: Axes = (),
    groups: int = 1,
) -> Distribution:
    """Kaiming's uniform distribution, as :func:`xinit.kaiming_uniform_` draws it; axes as in :class:`Distribution`.

    Example:
        >>> import xinit
        >>> experts = xinit.kaiming_uniform(nonlinearity="relu", batch_axis=0, out_axis=1, in_axis=2)
        >>> experts.resolve((8, 64, 24))
        Distribution(uniform, a=-0.5, b=0.5)
    """
    return _kaiming("kaiming_uniform", "uniform", a, mode, nonlinearity, in_axis, out_axis, batch_axis, groups)


@factory
def kaiming_normal(
    a: float = 0,
    mode: FanMode = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
    *,
    in_axis: Axes = 1,
    out_axis: Axes = 0,
    batch_axis: Axes = (),
    groups: int = 1,
) -> Distribution:
    """Kaiming's normal distribution, as :func:`xinit.kaiming_normal_` draws it; axes as in :class:`Distribution`.

    JAX's and Keras's ``he_normal`` is truncated: ``variance_scaling(2.0, "fan_in", "truncated_normal")``.
    """
    return _kaiming("kaiming_normal", "normal", a, mode, nonlinearity, in_axis, out_axis, batch_axis, groups)


@factory
def variance_scaling(
    scale: float = 1.0,
    mode: ScalingMode = "fan_in",
    distribution: ScalingDistribution = "truncated_normal",
    *,
    in_axis: Axes = 1,
    out_axis: Axes = 0,
    batch_axis: Axes = (),
    groups: int = 1,
) -> Distribution:
    """Variance ``scale / fan``, as :func:`xinit.variance_scaling_` draws it; axes as in :class:`Distribution`.

    Raises:
        ValueError: if ``scale``, ``mode`` or ``distribution`` are not valid.
    """
    op = "variance_scaling"
    (number,) = numbers(op, scale=scale)
    mode = _string(op, "mode", mode).lower()  # type: ignore[assignment]
    _check(op, number, mode, _string(op, "distribution", distribution))
    return _scaled(op, distribution, math.sqrt(number), mode, in_axis, out_axis, batch_axis, groups)


@factory
def constant(value: float) -> Distribution:
    """The value itself."""
    (number,) = numbers("constant", value=value)
    _check("uniform", number, number)
    return Distribution("constant", (number,))


@factory
def zeros() -> Distribution:
    """Zero."""
    return constant(0.0)


@factory
def ones() -> Distribution:
    """One."""
    return constant(1.0)


@dataclass(frozen=True, slots=True)
class Blocks:
    """What to draw into a fused parameter: blocks along an axis. Made by :func:`blocks`."""

    fused: str
    parts: tuple[tuple[str, int, Distribution], ...]
    axis: int = 0


def blocks(fused: str, parts: Mapping[str, tuple[int, Distribution]], axis: int = 0) -> Blocks:
    """A fused parameter, whose blocks get the very values, with fans of their own, that they would get as parameters.

    Args:
        fused: the component of the parameter's dotted name that each part's name takes the place of.
        parts: for each part its name, its size along the axis, and its distribution; in their order along the axis.
        axis: the axis along which the parts are joined.

    Raises:
        TypeError: if a part has no distribution, or the arguments are of other types.
        ValueError: if a size is none.

    Example:
        >>> import xinit
        >>> xavier = xinit.xavier_uniform()
        >>> fused = xinit.blocks("qkv", {"q": (64, xavier), "k": (16, xavier), "v": (16, xavier)})
    """
    for argument, value, kind, what in (("fused", fused, str, "string"), ("parts", parts, Mapping, "mapping")):
        if not isinstance(value, kind):
            found = "a tensor" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"blocks: {argument} must be a {what}, but found {found}")
    checked: list[tuple[str, int, Distribution]] = []
    for name, (size, distribution) in parts.items():
        if not isinstance(distribution, Distribution):
            raise TypeError(
                f"blocks: part {name!r} takes an xinit.Distribution, but found {type(distribution).__name__}"
            )
        if not isinstance(size, int) or size < 0:
            raise ValueError(f"blocks: the size of part {name!r} must be an integer >= 0, but found {size!r}")
        checked.append((name, size, distribution))
    return Blocks(fused, tuple(checked), axis)


@dataclass(frozen=True, slots=True)
class Rows:
    """What to draw into a part of a parameter, which keeps the rest. Made by :func:`rows`."""

    start: int
    stop: int | None
    distribution: Distribution
    axis: int = 0


def rows(start: int, stop: int | None, distribution: Distribution, axis: int = 0) -> Rows:
    """The rows from ``start`` up to ``stop`` of a parameter, as a recipe's value; the other rows keep their bits.

    They get the values that they would get if all were drawn, and fans are those of the whole: so new rows of a vocabulary have
    the bits that they have in a model that is new.

    Args:
        start: as in a slice, and so is ``stop``: negative numbers count from the end, and None is the end.
        stop: see there.
        distribution: of what is drawn.
        axis: the axis along which they are counted.

    Example:
        >>> import torch, xinit
        >>> model = torch.nn.Embedding(120, 8)
        >>> before = model.weight[:100].clone()
        >>> _ = xinit.init_(model, {"weight": xinit.rows(100, None, xinit.normal(std=0.02))}, xinit.Key(0))
        >>> torch.equal(model.weight[:100], before), bool(model.weight[100:].abs().max() < 0.2)
        (True, True)
    """
    for bound in (start, stop):
        if isinstance(bound, bool) or not isinstance(bound, int | None):
            raise TypeError(f"rows: start and stop must be integers, but found {bound!r}")
    if not isinstance(distribution, Distribution):
        raise TypeError(f"rows: distribution must be an xinit.Distribution, but found {distribution!r}")
    return Rows(start, stop, distribution, axis)


What = Distribution | Blocks | Rows  # a recipe's values, resolved
