"""Mean-field theory of signals in deep networks: what a wide one does to activations and gradients, layer by layer.

Layers x ↦ f(W x + b), weights of variance weight_std² / fan_in, biases of variance bias_std². In the limit of great width what
goes into f is normal, of a variance q that each layer maps to the next (Poole et al. 2016), and the mean square of gradients is
multiplied by χ₁ on the way back (Schoenholz et al. 2017):

    V(q) = weight_std² E[f(√q z)²] + bias_std²        χ₁(q) = weight_std² E[f'(√q z)²]        z standard normal
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from xinit.insight.gains import Probed, aside, edges_of, expectation, panels
from xinit.scaling import Nonlinearity, calculate_gain

_LEAST, _MOST = 2.0**-80, 2.0**20  # variances beyond these are 0 and infinity
_SAME = 1e-10  # relative: what quadrature leaves of a difference


@dataclass(frozen=True)
class Theory:
    """What theory says of a deep network. Made by :func:`theory`.

    Attributes:
        nonlinearity: its name.
        weight_std: standard deviation of the weights times sqrt(fan_in).
        bias_std: standard deviation of the biases.
        q: the fixed point q* to which the variance of what goes into the nonlinearity tends; 0 and infinity are such, too.
        chi: χ₁ there: by how much a layer multiplies the mean square of gradients on their way back.
        growth: by how much a layer multiplies the mean square of activations, in the end.
        mean: of activations, at the fixed point.
        correlation: c* to which that of any two inputs tends.
        signal_depth: layers in which the difference from c* falls by a factor of e: how deep inputs can be told apart.
        gradient_depth: layers in which the mean square of gradients falls, or grows, by a factor of e.
        activations: their RMS after each of `depth` layers, from that of the inputs on, which is 1.
        gradients: that of the loss's gradient by those activations, if it is 1 by the last.
    """

    nonlinearity: str
    weight_std: float
    bias_std: float
    q: float
    chi: float
    growth: float
    mean: float
    correlation: float
    signal_depth: float
    gradient_depth: float
    activations: tuple[float, ...] = field(default=(), repr=False)
    gradients: tuple[float, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        ends = f"settle, q* = {self.q:.3g}" if 0 < self.q < math.inf else _per_layer(self.growth)
        kept = "never" if math.isinf(self.signal_depth) else f"within about {self.signal_depth:.2g} layers"
        return (
            f"{self.nonlinearity}, weights of std {self.weight_std:.4g} / sqrt(fan_in), biases of std {self.bias_std:.4g}\n"
            f"  activations  {ends}\n"
            f"  gradients    {_per_layer(self.chi)}, χ₁ = {self.chi:.4g}\n"
            f"  two inputs   tend to a correlation of {self.correlation:.3g}, {kept}"
        )


def _per_layer(factor: float) -> str:
    """What becomes of an RMS whose square each layer multiplies."""
    if abs(factor - 1) < 1e-6:
        return "keep their RMS"
    return f"{'grow' if factor > 1 else 'fall'} by a factor of {math.sqrt(factor):.4g} a layer"


def theory(
    nonlinearity: Nonlinearity,
    weight_std: float | None = None,
    bias_std: float = 0.0,
    depth: int = 0,
    *,
    gain: float | None = None,
    param: float | None = None,
) -> Theory:
    """What becomes of activations and gradients in a deep, wide network of equal layers.

    Poole et al., "Exponential expressivity in deep neural networks through transient chaos", 2016; Schoenholz et al., "Deep
    information propagation", 2017.

    Args:
        nonlinearity: as :func:`xinit.calculate_gain` takes it, but for numbers. A name means the function, also one of torch's.
        weight_std: standard deviation of the weights times sqrt(fan_in): 1 for Xavier's between layers of one width, sqrt(2) for
            Kaiming's and ReLU; by default the gain of the nonlinearity.
        bias_std: standard deviation of the biases.
        depth: of how many layers to say how large activations and gradients are.
        gain: another name for weight_std, which it is for weights that Kaiming's functions make.
        param: of the nonlinearity.

    Raises:
        ValueError: for a nonlinearity that has no gain, or no derivative; for standard deviations below 0.

    Example:
        >>> import xinit
        >>> print(xinit.theory("relu", gain=1))  # Xavier's
        relu, weights of std 1 / sqrt(fan_in), biases of std 0
          activations  fall by a factor of 0.7071 a layer
          gradients    fall by a factor of 0.7071 a layer, χ₁ = 0.5
          two inputs   tend to a correlation of 1, within about 1.4 layers
    """
    if weight_std is not None and gain is not None:
        raise ValueError("theory: weight_std and gain are one number: give one of them")
    number = weight_std if gain is None else gain
    std = float(calculate_gain(nonlinearity, param) if number is None else number)
    for name, value in (("weight_std", std), ("bias_std", bias_std), ("depth", depth)):
        if not 0 <= value < math.inf:
            raise ValueError(f"theory: {name} must be finite and at least 0, but found {value}")
    with aside():
        moments = Moments(nonlinearity, param)
        return _theory(moments, std, float(bias_std), depth)


def _theory(moments: Moments, std: float, bias_std: float, depth: int) -> Theory:
    weight, bias = std**2, bias_std**2
    activations, factors, q = [1.0], [], weight + bias
    for _ in range(depth):
        try:
            _, square, slope, _ = moments(q)
        except ValueError:  # it has grown beyond all numbers
            square = slope = math.inf
        activations.append(math.sqrt(square))
        factors.append(weight * slope)
        q = weight * square + bias
    gradients = [1.0]
    for factor in reversed(factors):
        gradients.append(gradients[-1] * math.sqrt(factor))

    q = fixed_point(lambda q: weight * moments.square(q) + bias, weight + bias)
    at = moments(min(max(q, _LEAST), _MOST))
    chi = weight * at.slope
    growth = 1.0 if 0 < q < math.inf else weight * at.square / min(max(q, _LEAST), _MOST)
    correlation, chi_there = 1.0, chi
    if 0 < q < math.inf and chi > 1 + _SAME:
        correlation, chi_there = moments.correlation(q, weight, bias)
    return Theory(
        moments.name,
        std,
        bias_std,
        q,
        chi,
        growth,
        at.mean,
        correlation,
        _depth(chi_there),
        _depth(chi),
        tuple(activations),
        tuple(reversed(gradients)),
    )


def _depth(factor: float) -> float:
    """In how many layers a factor a layer makes one of e, whether larger or smaller."""
    if factor == 0:
        return 0.0
    return math.inf if abs(factor - 1) < 1e-6 else 1 / abs(math.log(factor))


def critical(
    nonlinearity: Nonlinearity, bias_std: float | None = None, *, param: float | None = None
) -> tuple[float, float]:
    """(weight_std, bias_std) at which χ₁ = 1: gradients neither die nor explode, however deep the network.

    Schoenholz et al. 2017; see :func:`theory` for what the two mean. At a fixed point of the variance that does not repel, so
    that deep layers are near it. For GELU, SiLU and their like that takes biases: without, gradients die where activations do,
    and explode where they do (Roberts, Yaida & Hanin, "The principles of deep learning theory", 2022, section 5.3).

    Args:
        nonlinearity: as for :func:`theory`.
        bias_std: that of the biases; by default 0, or if there is no such point with 0, that of the point at which the variance
            map, too, has slope 1.
        param: of the nonlinearity.

    Raises:
        ValueError: if there is no such point.

    Example:
        >>> import xinit
        >>> [f"{number:.4f}" for number in xinit.critical("relu") + xinit.critical("gelu")]
        ['1.4142', '0.0000', '1.4082', '0.4158']
    """
    if bias_std is not None and not 0 <= bias_std < math.inf:
        raise ValueError(f"critical: bias_std must be finite and at least 0, but found {bias_std}")
    with aside():
        moments = Moments(nonlinearity, param)
        line = [_Critical.at(moments, q) for q in (_LEAST, *(2.0**n for n in range(-30, 21)))]
        slope = line[0].slope
        if not bias_std and slope and all(moments.square(q) / slope <= q * (1 + _SAME) for q, *_ in line if q <= 2):
            return 1 / math.sqrt(slope), 0.0
        for what in ["bias", "change"] if bias_std is None else ["bias"]:
            wanted = (bias_std or 0.0) ** 2 if what == "bias" else 1.0
            for near, far in pairwise(line):
                if (getattr(near, what) < wanted) != (getattr(far, what) < wanted):
                    found = _between(moments, near, far, what, wanted)
                    if found.change < 1 + 1e-6 and found.bias >= 0:
                        return 1 / math.sqrt(found.slope), math.sqrt(found.bias)
    fixed, way_out = (
        ("", "") if bias_std is None else (f" with bias_std={bias_std:g}", "; without bias_std one is looked for")
    )
    raise ValueError(f"critical: {moments.name}{fixed} has no point where χ₁ = 1 and activations come to rest{way_out}")


class _Critical(NamedTuple):
    """Where q is a fixed point and χ₁ = 1."""

    q: float
    slope: float  # 1 / weight_std²
    bias: float  # bias_std²
    change: float  # the slope of the variance map

    @classmethod
    def at(cls, moments: Moments, q: float) -> _Critical:
        at = moments(q)
        if not at.slope:
            return cls(q, 0.0, -math.inf, math.inf)
        return cls(q, at.slope, q - at.square / at.slope, at.change / at.slope)


def _between(moments: Moments, near: _Critical, far: _Critical, what: str, wanted: float) -> _Critical:
    below = getattr(near, what) < wanted
    while far.q / near.q - 1 > 1e-11:
        middle = _Critical.at(moments, math.sqrt(near.q * far.q))
        near, far = (middle, far) if (getattr(middle, what) < wanted) == below else (near, middle)
    return near


class At(NamedTuple):
    """Moments of f(√q z)."""

    mean: float
    square: float  # E[f²]
    slope: float  # E[f'²]
    change: float  # of the square with q: E[z f f'] / √q


class Moments:
    """Those of one nonlinearity, at any variance of what goes into it."""

    def __init__(self, nonlinearity: object, param: float | None = None) -> None:
        self._f = Probed.of(nonlinearity, param)
        self.name = self._f.name
        self._kinks: tuple[float, ...] = ()
        # At no round number, so that kinks are not where panels end anyway.
        _, self._kinks = expectation(self._f, self._integrand, 0.91537)

    def __call__(self, q: float) -> At:
        q = q or _LEAST
        if math.isinf(q):
            raise self._f.refused("activations have grown beyond all numbers")
        moments, _ = expectation(self._f, self._integrand, math.sqrt(q), self._kinks)
        mean, square, slope, change = moments.tolist()
        return At(mean, square, slope, change / q)

    def square(self, q: float) -> float:
        """E[f²] alone, for which nothing is differentiated."""
        return float(expectation(self._f, lambda x: self._f(x).square(), math.sqrt(q), self._kinks)[0])

    def _with_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = self._f(x)
            if not y.requires_grad:
                raise self._f.refused("autograd cannot differentiate it")
            try:
                (slope,) = torch.autograd.grad(y.sum(), x)
            except Exception as error:
                raise self._f.refused(f"autograd cannot differentiate it ({error})") from error
        if not torch.isfinite(slope).all():
            raise self._f.refused("its derivative is not finite")
        return y.detach(), slope

    def _integrand(self, x: Tensor) -> Tensor:
        y, slope = self._with_slope(x)
        return torch.stack((y, y.square(), slope.square(), x * y * slope))

    def correlation(self, q: float, weight: float, bias: float) -> tuple[float, float]:
        """c* below 1 where two inputs come to rest, and the slope of the map there.

        For two of correlation c, E[f f] is a double integral, the density by Mehler's kernel. The map is convex, as its power
        series has no negative terms; where χ₁ > 1, it meets the diagonal once below 1.
        """
        z, masses = panels(*edges_of(tuple(kink / math.sqrt(q) for kink in self._kinks)))
        f, slope = (masses * values for values in self._with_slope(z * math.sqrt(q)))

        def kernel(c: float) -> Tensor:
            squares = z.square()
            exponent = 2 * c * z[:, None] * z - c * c * (squares[:, None] + squares)
            return torch.exp(exponent / (2 * (1 - c * c))) / math.sqrt(1 - c * c)

        low, high = 0.0, 0.999
        while high - low > 1e-9:
            c = (low + high) / 2
            above = weight * float(f @ kernel(c) @ f) + bias > c * q * (1 + 1e-12) + 1e-12 * q
            low, high = (c, high) if above else (low, c)
        if high > 0.9989:
            return 1.0, 2 - weight * self(q).slope
        return (0.0 if low == 0 else low), weight * float(slope @ kernel(low) @ slope)


def fixed_point(step: Callable[[float], float], start: float) -> float:
    """The one that repeated steps of a growing function lead to from `start`: the next one upwards, or downwards."""
    if start == 0:
        return 0.0

    def excess(q: float) -> float:
        try:
            return step(q) / q - 1
        except ValueError:  # it has grown beyond all numbers
            return math.inf

    first = excess(start)
    if abs(first) < _SAME:
        return start
    up = first > 0
    near = start
    while _LEAST < near < _MOST:
        far = near * (1.3 if up else 1 / 1.3)
        there = excess(far)
        if abs(there) > _SAME and (there > 0) != up:
            break
        near = far
    else:
        return math.inf if up else 0.0
    while abs(far / near - 1) > 1e-13:
        middle = math.sqrt(near * far)
        if middle in (near, far):
            break
        near, far = (middle, far) if (excess(middle) > 0) == up else (near, middle)
    return near
