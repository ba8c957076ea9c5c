"""The functions of ``torch.nn.init`` that draw, with the same signatures, and their family.

All of them work in place, without recording gradients, on a tensor of dtype float32, float64, float16, bfloat16 or float8
(e4m3fn, e5m2, e4m3fnuz, e5m2fnuz), with any strides, on CPU or CUDA, and return that tensor. A tensor on the meta device is
left as it is; one without elements draws nothing.

Those that draw normally take complex64, complex128 and complex32 too. The variance is then that of real and imaginary part
together, each of which has the standard deviation std / sqrt(2); a mean is a real number, and so the real part's; fans are
those of the complex shape.

A ``DTensor`` is filled on each rank with that rank's part of the whole; fans are those of the whole. With a key this takes no
communication. With a generator every rank must call alike: each generator advances, ranks without elements included, and all
take the key of the mesh's first rank, by a small broadcast.

A tensor that ``torch.nn.init``'s function of the same name would leave as it is, xinit's leaves too: while transformers loads a
checkpoint, in its ``no_init_weights``, in Lightning's ``init_module(empty_init=True)``, and wherever else these functions were
replaced. One that transformers has loaded, and flagged with ``_is_hf_initialized``, is left everywhere, with a warning that says
how to fill it; :func:`xinit.fill_many_` and operators look at none of this.

Besides their own arguments they take

- generator: the ``torch.Generator`` to take a key from; None for the default one of the tensor's device. It advances
  by one draw, whatever the size of the tensor.
- key: an :class:`xinit.Key` instead: the values are then a pure function of key and index.
- window: an :class:`xinit.Window`, if the tensor is a part of a larger one.

and raise

- TypeError: if ``tensor`` is not a tensor, or another argument of a wrong type.
- NotImplementedError: for other dtypes, for a uniform or truncated distribution of complex numbers, for sparse or quantized
  tensors, and for wrapper subclasses that hold more than one tensor.
- RuntimeError: for a standard deviation below zero, bounds in the wrong order, parameters that are not finite or beyond
  the dtype; a generator of another device; memory that overlaps itself, or was released.
- ValueError: for both a key and a generator; for a window that does not fit; for a ``DTensor`` with a window, with a
  ``Partial`` placement, or with a local tensor that its placements do not give.
"""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor
from torch.nn import init

from xinit.calls import fill
from xinit.keys import Key
from xinit.scaling import (
    TORCHS,
    Axes,
    FanMode,
    Nonlinearity,
    ScalingDistribution,
    ScalingMode,
    axes_of,
    gain_of,
    slope_of,
)
from xinit.scaling import calculate_gain as calculate_gain
from xinit.window import Window


def __getattr__(name: str) -> Any:
    """The rest of ``torch.nn.init``'s names, which are defined elsewhere: ``from xinit import init`` has all of them too."""
    import xinit

    if hasattr(init, name) and name in xinit.__all__:
        return getattr(xinit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def uniform_(
    tensor: Tensor,
    a: float = 0.0,
    b: float = 1.0,
    generator: Generator | None = None,
    *,
    key: Key | None = None,
    window: Window | None = None,
) -> Tensor:
    """Fill with draws from the uniform distribution on [a, b).

    2^24 equally likely levels, symmetric about (a + b) / 2; no value leaves the interval in any dtype, and b is never
    drawn. For a = b every value is a. See :mod:`xinit.init` for the tensor, the other arguments and the errors.

    Args:
        a: lower bound.
        b: upper bound, at least a.

    Raises:
        ValueError: also if no value of the dtype lies in [a, b).

    Example:
        >>> import torch, xinit
        >>> w = xinit.uniform_(torch.empty(3, 5), -1, 1, key=xinit.Key(0))
        >>> bool((w.abs() < 1).all())
        True
    """
    return fill("uniform_", init.uniform_, tensor, (a, b), generator, key, window)


def normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    generator: Generator | None = None,
    *,
    key: Key | None = None,
    window: Window | None = None,
) -> Tensor:
    """Fill with draws from the normal distribution N(mean, std²).

    Box-Muller, from two 32-bit words for two values; tails reach 6.66 standard deviations. See :mod:`xinit.init` for the
    tensor, the other arguments and the errors.

    Args:
        mean: the mean.
        std: the standard deviation, at least 0.

    Example:
        >>> import torch, xinit
        >>> w = xinit.normal_(torch.empty(1000, 1000), std=0.02, key=xinit.Key(0))
        >>> round(w.std().item(), 4)
        0.02
    """
    return fill("normal_", init.normal_, tensor, (mean, std), generator, key, window)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
    *,
    key: Key | None = None,
    window: Window | None = None,
) -> Tensor:
    """Fill with draws from the normal distribution N(mean, std²) truncated to [a, b].

    By inversion, ``mean + std Φ⁻¹(Φ(α) + u (Φ(β) - Φ(α)))`` with α and β the standardised bounds: one word for a value, in
    one pass, without rejection and without atoms at the bounds, right also where the window lies far in a tail. See
    :mod:`xinit.init` for the tensor, the other arguments and the errors.

    Args:
        mean: the mean of the normal distribution before truncation.
        std: its standard deviation.
        a: the least value, in absolute terms.
        b: the greatest value, above a.

    Raises:
        ValueError: also if the window is empty: a >= b, no value of the dtype in [a, b], or std = 0 and the mean outside.

    Example:
        >>> import torch, xinit
        >>> w = xinit.trunc_normal_(torch.empty(1000, 1000), std=0.02, a=-0.04, b=0.04, key=xinit.Key(0))
        >>> round(w.std().item(), 4), bool((w.abs() <= 0.04).all())
        (0.0176, True)
    """
    return fill("trunc_normal_", init.trunc_normal_, tensor, (mean, std, a, b), generator, key, window)


def xavier_uniform_(
    tensor: Tensor,
    gain: float = 1.0,
    generator: Generator | None = None,
    *,
    key: Key | None = None,
    window: Window | None = None,
) -> Tensor:
    """Fill with Xavier's uniform distribution, U(-bound, bound).

    ``bound = gain sqrt(6 / (fan_in + fan_out))``, so that ``std = gain sqrt(2 / (fan_in + fan_out))``: Glorot & Bengio,
    "Understanding the difficulty of training deep feedforward neural networks", 2010. The fans of a weight of shape
    (out, in, ...) are the products of in, or out, and all further dimensions. See :mod:`xinit.init` for the tensor, the other
    arguments and the errors.

    Args:
        gain: a factor for the nonlinearity that follows, see :func:`calculate_gain`.

    Raises:
        ValueError: also if the tensor has fewer than 2 dimensions.

    Example:
        >>> import torch, xinit
        >>> w = xinit.xavier_uniform_(torch.empty(100, 200), key=xinit.Key(0))
        >>> bool((w.abs() < (6 / 300) ** 0.5).all())
        True
    """
    return fill("xavier_uniform_", init.xavier_uniform_, tensor, (gain,), generator, key, window)


def xavier_normal_(
    tensor: Tensor,
    gain: float = 1.0,
    generator: Generator | None = None,
    *,
    key: Key | None = None,
    window: Window | None = None,
) -> Tensor:
    """Fill with Xavier's normal distribution, N(0, std²) with ``std = gain sqrt(2 / (fan_in + fan_out))``.

    Glorot & Bengio, 2010; see :func:`xavier_uniform_` for the fans, and :mod:`xinit.init` for the tensor, the other arguments
    and the errors.

    Args:
        gain: a factor for the nonlinearity that follows, see :func:`calculate_gain`.

    Raises:
        ValueError: also if the tensor has fewer than 2 dimensions.

    Example:
        >>> import torch, xinit
        >>> w = xinit.xavier_normal_(torch.empty(1000, 3000), gain=5 / 3, key=xinit.Key(0))
        >>> round(w.std().item() / (2 / 4000) ** 0.5, 2)
        1.67
    """
    return fill("xavier_normal_", init.xavier_normal_, tensor, (gain,), generator, key, window)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: FanMode = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
    generator: Generator | None = None,
    *,
    key: Key | None = None,
    window: Window | None = None,
) -> Tensor:
    """Fill with Kaiming's uniform distribution, U(-bound, bound).

    ``bound = gain sqrt(3 / fan)``, so that ``std = gain / sqrt(fan)``, with the gain of the nonlinearity: sqrt(2) for ReLU. He
    et al., "Delving deep into rectifiers", 2015. See :func:`xavier_uniform_` for the fans, and :mod:`xinit.init` for the tensor,
    the other arguments and the errors.

    Args:
        a: the negative slope of the rectifier that follows, of torch's names used with "leaky_relu" only; or, unless 0, the
            parameter of another function that has one.
        mode: "fan_in" keeps the variance in the forward pass, "fan_out" in the backward pass.
        nonlinearity: the name of what follows, or the function itself, a module, or the gain, see :func:`calculate_gain`.

    Raises:
        ValueError: also if the tensor has fewer than 2 dimensions, or mode, nonlinearity or slope are not valid.

    Example:
        >>> import torch, xinit
        >>> w = xinit.kaiming_uniform_(torch.empty(100, 200), nonlinearity="relu", key=xinit.Key(0))
        >>> bool((w.abs() < (6 / 200) ** 0.5).all())
        True
    """
    slope, named = _slope(a, nonlinearity)
    return fill("kaiming_uniform_", init.kaiming_uniform_, tensor, (slope, mode, named), generator, key, window)


def _slope(a: float, nonlinearity: Nonlinearity) -> tuple[float, str]:
    """As the operators take them: torch's names with their slope, and "gain" with the gain of anything else."""
    if not isinstance(nonlinearity, str) or nonlinearity not in TORCHS:
        return gain_of(nonlinearity, a or None), "gain"
    return a if type(a) is float else slope_of(a, nonlinearity), nonlinearity


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: FanMode = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
    generator: Generator | None = None,
    *,
    key: Key | None = None,
    window: Window | None = None,
) -> Tensor:
    """Fill with Kaiming's normal distribution, N(0, std²) with ``std = gain / sqrt(fan)``.

    He et al., 2015. Not truncated, as torch's is not; JAX's and Keras's ``he_normal`` is, and to get theirs write
    ``variance_scaling_(w, 2.0, "fan_in", "truncated_normal")``. See :func:`kaiming_uniform_` for the arguments, and
    :mod:`xinit.init` for the tensor, the other arguments and the errors.

    Args:
        a: as there, and so are the others.

    Raises:
        ValueError: also if the tensor has fewer than 2 dimensions, or mode, nonlinearity or slope are not valid.

    Example:
        >>> import torch, xinit
        >>> w = xinit.kaiming_normal_(torch.empty(1000, 800), nonlinearity="relu", key=xinit.Key(0))
        >>> round(w.std().item(), 3), round((2 / 800) ** 0.5, 3)
        (0.05, 0.05)
    """
    slope, named = _slope(a, nonlinearity)
    return fill("kaiming_normal_", init.kaiming_normal_, tensor, (slope, mode, named), generator, key, window)


def variance_scaling_(
    tensor: Tensor,
    scale: float = 1.0,
    mode: ScalingMode = "fan_in",
    distribution: ScalingDistribution = "truncated_normal",
    generator: Generator | None = None,
    *,
    in_axis: Axes = 1,
    out_axis: Axes = 0,
    batch_axis: Axes = (),
    groups: int = 1,
    key: Key | None = None,
    window: Window | None = None,
    batch_axes: Axes = (),
) -> Tensor:
    """Fill with a distribution of mean 0 and variance ``scale / fan``: the family of JAX's and Keras's initializers.

    JAX's and Keras's ``he_normal`` and ``glorot_normal`` are truncated, as torch's are not:
    ``variance_scaling_(w, 2.0, "fan_in")`` and ``variance_scaling_(w, 1.0, "fan_avg")``. The fans are those of torch's layout,
    see :func:`xavier_uniform_`, unless axes are given: JAX's layout is ``in_axis=-2, out_axis=-1``. See :mod:`xinit.init` for
    the tensor, the other arguments and the errors.

    Args:
        scale: the variance times the fan, at least 0.
        mode: "fan_in", "fan_out", "fan_avg", their mean, or "fan_geo_avg", their geometric mean sqrt(fan_in · fan_out).
        distribution: "normal", "uniform", or "truncated_normal" at 2 standard deviations before truncation, with the standard
            deviation after truncation that is asked for.
        in_axis: the axis, or axes, whose sizes make up fan_in, together with the receptive field: all axes that are named
            nowhere here.
        out_axis: those of fan_out. With axes that are given, a tensor may have one dimension: ``in_axis=0, out_axis=()``, or the
            one axis as both, and both fans are 1 then, as in JAX.
        batch_axis: those that are part of no fan, such as that of stacked experts; ``batch_axes`` is the same.
        groups: of a grouped convolution, whose channels of all groups lie along axis 0.

    Raises:
        ValueError: also if the tensor has fewer than 2 dimensions and no axes are given, or scale, mode, distribution or axes are
            not valid.

    Example:
        >>> import torch, xinit
        >>> w = xinit.variance_scaling_(torch.empty(1000, 800), 2.0, "fan_avg", key=xinit.Key(0))
        >>> round(w.var().item() * 900, 2)
        2.0
    """
    parameters: tuple[object, ...] = scale, mode, distribution
    batch_axis = batch_axes if batch_axis == () else batch_axis
    if (in_axis, out_axis, batch_axis, groups) != (1, 0, (), 1):
        named = (("in_axis", in_axis), ("out_axis", out_axis), ("batch_axis", batch_axis))
        parameters += *(axes_of("variance_scaling_", name, axes) for name, axes in named), groups
    return fill("variance_scaling_", _drawing(distribution), tensor, parameters, generator, key, window)


def _drawing(distribution: str) -> Any:
    """torch's function that draws as ``variance_scaling_`` does."""
    return {"uniform": init.uniform_, "normal": init.normal_}.get(distribution, init.trunc_normal_)


def lecun_uniform_(
    tensor: Tensor, generator: Generator | None = None, *, key: Key | None = None, window: Window | None = None
) -> Tensor:
    """Fill with LeCun's uniform distribution: :func:`variance_scaling_` with scale 1, fan_in, uniform.

    Klambauer et al., "Self-normalizing neural networks", 2017, use it for SELU.

    Example:
        >>> import torch, xinit
        >>> w = xinit.lecun_uniform_(torch.empty(100, 300), key=xinit.Key(0))
        >>> bool((w.abs() < 0.1).all())
        True
    """
    return fill("variance_scaling_", init.uniform_, tensor, (1.0, "fan_in", "uniform"), generator, key, window)


def lecun_normal_(
    tensor: Tensor, generator: Generator | None = None, *, key: Key | None = None, window: Window | None = None
) -> Tensor:
    """Fill with LeCun's normal distribution, truncated: :func:`variance_scaling_` with its defaults.

    The same as JAX's and Keras's ``lecun_normal``, up to their layout; torch's :func:`kaiming_normal_` is not truncated.

    Example:
        >>> import torch, xinit
        >>> w = xinit.lecun_normal_(torch.empty(1000, 400), key=xinit.Key(0))
        >>> round(w.std().item(), 3)
        0.05
    """
    parameters = 1.0, "fan_in", "truncated_normal"
    return fill("variance_scaling_", init.trunc_normal_, tensor, parameters, generator, key, window)
