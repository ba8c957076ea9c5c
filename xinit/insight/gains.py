"""The gain of any elementwise function f: 1 / sqrt(E[f(z)²]), z standard normal, by adaptive quadrature in double.

With weights of standard deviation gain / sqrt(fan_in) a layer's inputs f(z) have the mean square that makes its outputs
standard normal again, as He et al. (2015) argue for rectifiers.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xinit._torch import DisableTorchFunction, below_vmap, without_modes

Function = Callable[[Tensor], Tensor]

REACH = 16  # standard deviations, beyond which there is no mass in double
_ORDER = 20  # of Gauss's rule on each panel
_ENOUGH = 1e-13  # of the whole: the error of a panel that is not split again
_NARROW = 1e-4  # a panel that was split down to this holds a kink or a step
_PARAMETERS = {
    "leaky_relu": "negative_slope",
    "elu": "alpha",
    "celu": "alpha",
    "softplus": "beta",
    "hardshrink": "lambd",
    "softshrink": "lambd",
}
_WAYS = "name an elementwise function of torch.nn.functional, or give the function, a module, or the gain as a number"


def gain_of(nonlinearity: object, param: float | None = None) -> float:
    """The gain of what is neither one of torch's names nor a number, as :func:`xinit.calculate_gain` documents it."""
    if isinstance(nonlinearity, str):
        return _gain_of_name(nonlinearity, param)
    with aside():
        return _gain(Probed.of(nonlinearity, param))


@functools.lru_cache(256)
def _gain_of_name(name: str, param: float | None) -> float:
    with aside():
        return _gain(Probed.of(name, param))


@functools.lru_cache(256)
def _gain(probed: Probed) -> float:
    square, _ = expectation(probed, lambda x: probed(x).square())
    if not square > 0:
        raise probed.refused(f"its second moment E[f(z)²] is {float(square):g}")
    # No processor's last digits may show in the bits of weights.
    return float(f"{1 / math.sqrt(square):.10g}")


@contextmanager
def aside() -> Iterator[None]:
    """Within it what is computed is nobody's business: no mode sees it, nothing is recorded, generators stay as they are."""
    with (
        without_modes(),
        DisableTorchFunction(),
        below_vmap(),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.random.fork_rng(devices=()),
    ):
        yield


@dataclass(frozen=True)
class Probed:
    """An elementwise function, and what it gave on a grid. Those that gave the same are equal: a module, whose parameters may
    change, is known by what it does."""

    name: str = field(compare=False)
    function: Function = field(compare=False)
    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, nonlinearity: object, param: float | None = None) -> Probed:
        """Looked up, if it is a name, and tried out.

        Raises:
            ValueError: if it is no function, or not elementwise, or gives NaN.
        """
        name, function = look_up(nonlinearity, param)
        probed = cls(name, function)
        nodes, _ = panels(*edges_of(()))
        values = probed(nodes)
        some = nodes.flip(0)[: nodes.numel() // 2].reshape(2, -1)
        alone, within = probed(some), values.flip(0)[: some.numel()].reshape(2, -1)
        if not torch.allclose(alone, within, rtol=1e-5, atol=1e-7):  # a function may work in float32
            raise probed.refused("it is not elementwise: an element's value depends on the others, or on chance")
        return cls(name, function, tuple(values.tolist()))

    def __call__(self, x: Tensor) -> Tensor:
        try:
            y: Any = self.function(x.clone())  # which it may overwrite
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise self.refused(f"it is not a function of one tensor ({reason or type(error).__name__})") from error
        if not isinstance(y, Tensor) or y.shape != x.shape or y.is_complex():
            raise self.refused("it is not elementwise: of a tensor it makes no real one of the same shape")
        values: Tensor = y.to(x.dtype)
        if not (finite := torch.isfinite(values)).all():
            at = int((~finite).flatten().nonzero()[0])
            raise self.refused(f"it gives {values.flatten()[at]:g} at {x.flatten()[at]:.4g}")
        return values

    def refused(self, why: str) -> ValueError:
        return ValueError(f"Unsupported nonlinearity {self.name}: {why}; where a gain is known, give it as a number")


def look_up(nonlinearity: object, param: float | None = None) -> tuple[str, Function]:
    """What to call it, and the function itself. A module is copied, to double, in evaluation mode."""
    if isinstance(nonlinearity, str):
        function = _named(nonlinearity)
        if param is not None and nonlinearity in _PARAMETERS:
            number = {_PARAMETERS[nonlinearity]: float(param)}
            return f"{nonlinearity}({param:g})", functools.partial(function, **number)
        name = nonlinearity
    elif isinstance(nonlinearity, nn.Module):
        name = type(nonlinearity).__name__
        try:
            function = copy.deepcopy(nonlinearity).to("cpu", torch.float64).eval().requires_grad_(False)
        except Exception as error:
            raise ValueError(f"Unsupported nonlinearity {name}: it cannot be copied ({error})") from error
    elif callable(nonlinearity) and not isinstance(nonlinearity, type):
        name, function = getattr(nonlinearity, "__name__", type(nonlinearity).__name__), nonlinearity
    else:
        what = repr(nonlinearity)[:40]
        if isinstance(nonlinearity, type):
            what = f"{nonlinearity}: make one, {nonlinearity.__name__}()"
        raise ValueError(f"Unsupported nonlinearity {what}: {_WAYS}")
    if param is not None:
        raise ValueError(f"nonlinearity {name} has no parameter, but found {param}")
    return name, function


def _named(name: str) -> Function:
    if name == "linear" or name.startswith("conv"):
        return torch.clone
    if name in ("tanh", "sigmoid"):
        return getattr(torch, name)  # type: ignore[no-any-return]
    if name == "gelu_tanh":
        return functools.partial(F.gelu, approximate="tanh")
    function = None if name.startswith("_") else getattr(F, name, None)
    if callable(function) and not isinstance(function, type):
        return function  # type: ignore[no-any-return]
    near = get_close_matches(
        name.lower(), [known for known in dir(F) if known[0].islower() and callable(getattr(F, known))], 1
    )
    raise ValueError(f"Unsupported nonlinearity {name}: {f'{near[0]} is one; ' if near else ''}{_WAYS}")


def expectation(
    function: Probed, integrand: Callable[[Tensor], Tensor], scale: float = 1.0, kinks: tuple[float, ...] = ()
) -> tuple[Tensor, tuple[float, ...]]:
    """E of integrand(scale · z), z standard normal, and where its kinks and steps were found, or `kinks` among them.

    Args:
        function: what errors name.
        integrand: of nodes (n,) it makes (n,), or (k, n) for k of them at once.
    """
    left, right = edges_of(tuple(kink / scale for kink in kinks))
    outer = left.abs().maximum(right.abs()) == REACH
    nodes, masses = panels(left, right)
    whole = _summed(integrand(nodes * scale) * masses, _ORDER)
    done, size, done_error, found = torch.zeros_like(whole[..., 0]), torch.zeros_like(whole[..., 0]), 0.0, [*kinks]
    for depth in range(60):
        middle = (left + right) / 2
        left, right = torch.stack((left, middle), 1), torch.stack((middle, right), 1)
        nodes, masses = panels(left.flatten(), right.flatten())
        halves = _summed(integrand(nodes * scale) * masses, 2, _ORDER)
        error, sums = (whole - halves.sum(-1)).abs(), halves.sum(-1)
        least = 1e-300 + size + sums.abs().sum(-1)  # what may cancel must not be held against what is left of it
        # At another scale there may be next to nothing but in the tails.
        if depth == 0 and scale == 1 and bool(((sums.abs() * outer).sum(-1) > 1e-9 * least).any()):
            raise function.refused("it grows too fast for a second moment, E[f(z)²]")
        relative = error / least[..., None]
        is_open = relative.reshape(-1, relative.shape[-1]).amax(0) > _ENOUGH
        if int(is_open.sum()) > 2**12 or depth == 59:
            done_error += float(relative.sum(-1).max())
            is_open = torch.zeros_like(is_open)
        done, size = done + (sums * ~is_open).sum(-1), size + (sums.abs() * ~is_open).sum(-1)
        if 0.5**depth < _NARROW:  # the last to close is the nearest
            for kink in (middle[~is_open] * scale).tolist():
                found = [*(x for x in found if abs(x - kink) > 4 * _NARROW * scale), kink]
        if not is_open.any():
            break
        left, right, whole = left[is_open].flatten(), right[is_open].flatten(), halves[..., is_open, :].flatten(-2)
    if done_error > 1e-7:
        raise function.refused(f"E[f(z)²] cannot be integrated: an error of {done_error:.0e} of it remains")
    return done, tuple(found)


def _summed(values: Tensor, *sizes: int) -> Tensor:
    return values.reshape(*values.shape[:-1], -1, *sizes).sum(-1)


def edges_of(kinks: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Of the first panels: integers, where most functions that have kinks have them, and these."""
    edges = torch.arange(-REACH, REACH + 1, dtype=torch.float64, device="cpu")
    inner = torch.tensor([kink for kink in kinks if abs(kink) < REACH], dtype=torch.float64, device="cpu")
    edges = torch.unique(torch.cat((edges, inner)))
    return edges[:-1], edges[1:]


def panels(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes of Gauss's rule on each panel, in a row, with their weights times the normal density."""
    x, w = _rule()
    half = (right - left)[:, None] / 2
    nodes = ((left + right)[:, None] / 2 + half * x).flatten()
    return nodes, (half * w).flatten() * torch.exp(nodes.square() / -2) / math.sqrt(2 * math.pi)


@functools.cache
def _rule() -> tuple[Tensor, Tensor]:
    """Gauss and Legendre's nodes and weights on [-1, 1]: of Jacobi's matrix the eigenvalues (Golub & Welsch 1969)."""
    n = torch.arange(1, _ORDER, dtype=torch.float64, device="cpu")
    beside = n / (4 * n**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(beside.diag(1) + beside.diag(-1))
    return nodes, 2 * vectors[0].square()
