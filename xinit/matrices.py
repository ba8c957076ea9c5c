"""Weights of which a part is known only by the whole: orthogonal, sparse and identity matrices, as functions and distributions.

The random numbers of the functions and distributions here are xinit's, keyed by the tensor's key and a number, so they are the
same everywhere; and so is all of ``sparse``. The QR decomposition of ``orthogonal`` and ``delta_orthogonal`` is the device's
library's: their bits are the same on one kind of device, for any sharding and number of threads, and close on others. A shard
computes the whole of its parameter, one parameter after the other, and keeps its part.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, SupportsIndex

import torch
from torch import Generator, Tensor
from torch.nn import init

from xinit.calls import fill, one_key
from xinit.distributions import DTYPES, Distribution, factory, numbers, refuse
from xinit.dtensor import is_answered_by_name, is_sharded, view
from xinit.guards import check_can_wait, left_alone
from xinit.keys import Key
from xinit.parts import centre_of, parts_of, write_diagonals
from xinit.subclasses import held, wraps
from xinit.window import Window

_uniform_, _normal_ = torch.ops.xinit.uniform_.default, torch.ops.xinit.normal_.default

Shape = tuple[int, ...]
Source = Callable[[], dict[str, Any]]  # an operator's key or generator, for what is drawn beside the tensor

_COMPUTED = {  # all others in float32
    torch.float64: torch.float64,
    torch.complex32: torch.complex64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}
_PARAMETERS = {"sparse": ("sparsity", "std")}  # of all others, the gain
_DIMENSIONS = {
    "orthogonal": (range(2, 1 << 30), "2 or more dimensions"),
    "sparse": ((2,), "2 dimensions"),
    "identity": ((2,), "2 dimensions"),
    "dirac": ((3, 4, 5), "3, 4, or 5 dimensions"),
    "delta_orthogonal": ((3, 4, 5), "3, 4, or 5 dimensions"),
}


@dataclass(frozen=True, slots=True, repr=False)
class Matrix(Distribution):
    """A distribution of whole matrices: made by :func:`orthogonal`, :func:`sparse`, :func:`identity` and the like.

    Attributes:
        name: of the function.
        parameters: as that takes them.
        groups: as that takes them.
        shape: of the whole, once it is resolved.
    """

    shape: Shape = ()

    by_whole: ClassVar[bool] = True

    def resolve(self, shape: Sequence[int]) -> Matrix:
        """The same for a whole of this shape; one that is resolved stays as it is.

        Raises:
            ValueError: if it does not have as many dimensions as it takes, or sizes that do not fit.

        Example:
            >>> import xinit
            >>> xinit.orthogonal().resolve((64, 16)).std
            0.125
        """
        if self.shape:
            return self
        whole = tuple(shape)
        allowed, words = _DIMENSIONS[self.name]
        if len(whole) not in allowed:
            raise ValueError(f"Only tensors with {words} are supported")
        if self.name == "dirac" and whole[0] % self.groups:
            raise ValueError("dim 0 must be divisible by groups")
        if self.name == "delta_orthogonal" and whole[0] < whole[1]:
            raise ValueError(
                f"delta_orthogonal takes at least as many output as input channels, or norms would not be kept, but found "
                f"{whole[0]} and {whole[1]}"
            )
        return Matrix(self.name, self.parameters, groups=self.groups, shape=whole)

    @property
    def std(self) -> float:
        """The root mean square of the entries less their mean, over all draws: 0 for what is not drawn.

        ``gain / sqrt(max(rows, columns))`` for orthogonal, of a matrix with all but the first dimension as columns;
        ``gain / sqrt(out · kernel size)`` for delta_orthogonal; ``std · sqrt(1 - zeros / rows)`` for sparse.

        Raises:
            ValueError: if it is not resolved.
        """
        if not self.shape:
            raise ValueError(f"std: {self} depends on the shape: resolve it first")
        if 0 in self.shape:
            return 0.0
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        if self.name == "orthogonal":
            return abs(self.parameters[0]) / math.sqrt(max(rows, columns))
        if self.name == "delta_orthogonal":
            return abs(self.parameters[0]) / math.sqrt(rows * math.prod(self.shape[2:]))
        return self.parameters[1] * math.sqrt(1 - self._zeros / rows) if self.name == "sparse" else 0.0

    @property
    def _zeros(self) -> int:
        """In each column."""
        return math.ceil(self.parameters[0] * self.shape[0])

    @property
    def drawn(self) -> Distribution:
        """What to fill a tensor with before :meth:`finish_`."""
        if self.name == "sparse":
            return Distribution("normal", (0.0, self.parameters[1]))
        return Distribution("constant", (0.0,))

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether a tensor of that dtype can be filled with it; an orthogonal one of complex numbers is unitary."""
        return dtype in DTYPES

    def check(self, op: str, dtype: torch.dtype) -> None:
        """Whether its values are within the dtype's range, which are at most as large as the gain."""
        if self.name != "sparse" and abs(self.parameters[0]) > torch.finfo(dtype).max:
            raise RuntimeError(f"gain is out of bounds for {dtype}: {op} received gain={self.parameters[0]}")

    def finish_(self, parts: Sequence[tuple[Tensor, Window]], source: Source) -> None:
        """Write to parts of one whole, which hold what is :attr:`drawn`, what the whole has there."""
        like = parts[0][0]
        if 0 in self.shape or like.is_meta:
            return
        place = source()
        if "key" in place and not any(tensor.numel() for tensor, _ in parts):
            return  # a generator is to advance all the same
        with torch.no_grad():
            values = self._values(like, place)
            for tensor, window in parts:
                if self.name not in ("orthogonal", "sparse") and window.global_shape == self.shape:
                    self._write(tensor, window, values)
                    continue
                whole = values
                if self.name not in ("orthogonal", "sparse"):  # a part of it flattened, or stacked
                    whole = like.new_empty(self.shape)
                    self._write(whole, Window(self.shape, (0,) * len(self.shape)), values)
                assert whole is not None
                here = view(whole.reshape(tuple(window.global_shape)), window.offsets, tuple(tensor.shape))
                if self.name == "sparse":
                    _as_bits(tensor).masked_fill_(here, 0)
                else:
                    tensor.copy_(here)

    def _values(self, like: Tensor, place: dict[str, Any]) -> Tensor | None:
        """What tells all parts: a matrix, or where a sparse one is zero; nothing for what is not drawn."""
        rows = self.shape[0]
        if self.name == "sparse":
            order = like.new_empty(self.shape, dtype=torch.float32)
            _uniform_(order, **place)
            ranks = order.argsort(dim=0, stable=True).argsort(dim=0)  # of equal ones the upper comes first
            return ranks < self._zeros
        if self.name == "orthogonal":
            return _orthogonal(rows, math.prod(self.shape[1:]), self.parameters[0], like, place).reshape(self.shape)
        if self.name == "delta_orthogonal":
            return _orthogonal(rows, self.shape[1], self.parameters[0], like, place)
        return None

    def _write(self, tensor: Tensor, window: Window, values: Tensor | None) -> None:
        """What is in the centre of a kernel, or on a diagonal."""
        if values is None:
            write_diagonals(tensor, window, self.groups, self.parameters[0])
            return
        tensor.zero_()
        centre = centre_of(tensor, window)
        if centre is not None:
            centre.copy_(view(values, window.offsets[:2], tuple(centre.shape)))

    def __str__(self) -> str:
        """In a plan's words."""
        first = self.parameters[0]
        words = f" {first:.3g}" if self.name == "sparse" else f" gain {first:.3g}" if first != 1 else ""
        return self.name + words + (f", groups {self.groups}" if self.groups != 1 else "")

    def __repr__(self) -> str:
        names = _PARAMETERS.get(self.name, ("gain",))
        words = [f"{name}={value:.6g}" for name, value in zip(names, self.parameters, strict=True)]
        words += [f"groups={self.groups}"] * (self.groups != 1)
        return f"Matrix({', '.join([self.name, *words])})"


def _as_bits(tensor: Tensor) -> Tensor:
    """Of dtypes that torch does not compute with, where zero is zero."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def _orthogonal(rows: int, columns: int, gain: float, like: Tensor, place: dict[str, Any]) -> Tensor:
    """Orthonormal columns, or rows if there are fewer of them, times the gain; uniform among all such (Haar's measure).

    The Q of a normal matrix's QR decomposition, with the signs that make R's diagonal positive: Mezzadri, "How to generate random
    matrices from the classical compact groups", 2007. Of complex numbers, unitary.
    """
    flat = like.new_empty((rows, columns), dtype=_COMPUTED.get(like.dtype, torch.float32))
    _normal_(flat, **place)
    with one_thread():
        q, r = torch.linalg.qr(flat.t() if rows < columns else flat)
    d = r.diagonal()
    # Computed from d alone: a new tensor would be one of each rank in LocalTensorMode, and applied as often.
    q.mul_(d.sgn() if d.is_complex() else 1 - 2 * (d < 0).to(d.dtype)).mul_(gain)
    whole: Tensor = q.t() if rows < columns else q
    return whole


@contextmanager
def one_thread() -> Iterator[None]:
    """LAPACK's sums follow the number of threads, which is not that of one process alone under torchrun."""
    threads = 1 if torch.compiler.is_compiling() else torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def _number(op: str, name: str, value: float) -> float:
    (number,) = numbers(op, **{name: value})
    if not -math.inf < number < math.inf:  # isfinite() is more than torch.compile understands
        raise ValueError(f"{op}: {name} must be finite, but found {number}")
    return number


@factory
def orthogonal(gain: float = 1.0) -> Matrix:
    """An orthogonal matrix times ``gain``, as :func:`xinit.orthogonal_` draws it.

    Raises:
        TypeError: if ``gain`` is not a number.
        ValueError: if it is not finite.

    Example:
        >>> import torch, xinit
        >>> rnn = xinit.init_(torch.nn.RNNCell(4, 8), [{"weight_hh": xinit.orthogonal()}, "torch"], xinit.Key(0))
        >>> torch.allclose(rnn.weight_hh @ rnn.weight_hh.T, torch.eye(8), atol=1e-6)
        True
    """
    return Matrix("orthogonal", (_number("orthogonal", "gain", gain),))


@factory
def delta_orthogonal(gain: float = 1.0) -> Matrix:
    """A convolution's weight of which only the centre is not zero, and orthogonal, as :func:`xinit.delta_orthogonal_` draws it.

    Raises:
        TypeError: if ``gain`` is not a number.
        ValueError: if it is not finite.
    """
    return Matrix("delta_orthogonal", (_number("delta_orthogonal", "gain", gain),))


@factory
def sparse(sparsity: float, std: float = 0.01) -> Matrix:
    """N(0, std²) with a fraction of each column zero, as :func:`xinit.sparse_` draws it.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if one is not finite, or ``sparsity`` not in [0, 1].

    Example:
        >>> import torch, xinit
        >>> xinit.sparse(0.75, std=0.1).resolve((100, 50)).std
        0.05
    """
    fraction = _number("sparse", "sparsity", sparsity)
    if not 0 <= fraction <= 1:
        raise ValueError(f"sparse: sparsity must be in [0, 1], but found {fraction}")
    return Matrix("sparse", (fraction, _number("sparse", "std", std)))


@factory
def identity(gain: float = 1.0) -> Matrix:
    """``gain`` on a matrix's diagonal and zero elsewhere, as :func:`xinit.eye_` has it for 1.

    Raises:
        TypeError: if ``gain`` is not a number.
        ValueError: if it is not finite.

    Example:
        >>> import torch, xinit
        >>> layer = xinit.init_(torch.nn.Linear(3, 3), {"weight": xinit.identity(), "bias": xinit.zeros()}, xinit.Key(0))
        >>> layer(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """
    return Matrix("identity", (_number("identity", "gain", gain),))


@factory
def dirac(groups: int = 1, gain: float = 1.0) -> Matrix:
    """``gain`` times the Dirac delta for the weight of a convolution, as :func:`xinit.dirac_` has it for 1.

    Raises:
        TypeError: if ``groups`` is not an integer or ``gain`` not a number.
        ValueError: if ``groups`` is less than 1, or ``gain`` not finite.

    Example:
        >>> import xinit
        >>> xinit.dirac(groups=2).resolve((4, 2, 3))
        Matrix(dirac, gain=1, groups=2)
    """
    if isinstance(groups, bool) or not isinstance(groups, SupportsIndex) or isinstance(groups, Tensor):
        refuse("dirac", "groups", groups, "an integer")
    if operator.index(groups) < 1:
        raise ValueError(f"dirac: groups must be at least 1, but found {groups}")
    return Matrix("dirac", (_number("dirac", "gain", gain),), groups=operator.index(groups))


def orthogonal_(
    tensor: Tensor,
    gain: float = 1,
    generator: Generator | None = None,
    *,
    key: Key | None = None,
    window: Window | None = None,
) -> Tensor:
    """Fill with an orthogonal matrix times ``gain``, all dimensions but the first taken as one.

    The columns are orthonormal times ``gain``, or the rows if there are fewer, and uniform among all such: the Q of a normal
    matrix's QR decomposition, signs chosen so that R's diagonal is positive; computed in float32, or float64 if the tensor is.
    Saxe, McClelland & Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks", 2014;
    Mezzadri, 2007. See :mod:`xinit.init` for the tensor, the other arguments and the errors, and :mod:`xinit.matrices` for which
    bits are the same where.

    Args:
        gain: a factor, see :func:`xinit.calculate_gain`. The entries have the standard deviation
            ``gain / sqrt(max(rows, columns))``.

    Raises:
        ValueError: also if the tensor has fewer than 2 dimensions, or ``gain`` is not finite.

    Example:
        >>> import torch, xinit
        >>> w = xinit.orthogonal_(torch.empty(3, 5), key=xinit.Key(0))
        >>> torch.allclose(w @ w.T, torch.eye(3), atol=1e-6)
        True
    """
    return _fill_matrix("orthogonal_", tensor, orthogonal(_item(gain)), generator, key, window)


def delta_orthogonal_(
    tensor: Tensor,
    gain: float = 1,
    generator: Generator | None = None,
    *,
    key: Key | None = None,
    window: Window | None = None,
) -> Tensor:
    """Fill the weight of a convolution with zeros, and its centre with an orthogonal matrix times ``gain``.

    So the convolution, padded by half its kernel, keeps the norm of its input, at any depth: Xiao et al., "Dynamical isometry and
    a mean field theory of CNNs: how to train 10,000-layer vanilla convolutional neural networks", 2018, and JAX's initializer of
    this name. The centre is at position ``size // 2``, as for :func:`xinit.dirac_`. See :func:`orthogonal_` for how it is drawn.

    Args:
        tensor: of shape (out, in, ...) with 3, 4 or 5 dimensions, and out at least as large as in.
        gain: a factor, see :func:`xinit.calculate_gain`.

    Raises:
        ValueError: also for other shapes, or if ``gain`` is not finite.

    Example:
        >>> import torch, xinit
        >>> w, x = xinit.delta_orthogonal_(torch.empty(8, 4, 3), key=xinit.Key(0)), torch.randn(2, 4, 10)
        >>> torch.allclose(torch.conv1d(x, w, padding=1).norm(), x.norm())
        True
    """
    return _fill_matrix("delta_orthogonal_", tensor, delta_orthogonal(_item(gain)), generator, key, window)


def sparse_(
    tensor: Tensor,
    sparsity: float,
    std: float = 0.01,
    generator: Generator | None = None,
    *,
    key: Key | None = None,
    window: Window | None = None,
) -> Tensor:
    """Fill a matrix with draws from N(0, std²), and a fraction of each column, drawn anew for each, with zeros.

    The draws are those of :func:`xinit.normal_`; zero are the ``ceil(sparsity * rows)`` of a column that come first in a second
    draw, so a generator advances twice. The bits are the same on every device. Martens, "Deep learning via Hessian-free
    optimization", 2010. See :mod:`xinit.init` for the tensor, the other arguments and the errors.

    Args:
        sparsity: the fraction of a column that is zero, in [0, 1].
        std: of the others.

    Raises:
        ValueError: also if the tensor does not have 2 dimensions, or ``sparsity`` is not in [0, 1].

    Example:
        >>> import torch, xinit
        >>> w = xinit.sparse_(torch.empty(10, 5), 0.75, key=xinit.Key(0))
        >>> (w == 0).sum(0).tolist()
        [8, 8, 8, 8, 8]
    """
    return _fill_matrix("sparse_", tensor, sparse(_item(sparsity), _item(std)), generator, key, window)


def _item(value: Any) -> Any:
    """A number that came in a tensor, which torch's functions take too."""
    return value.item() if isinstance(value, Tensor) and value.dim() == 0 else value


def _fill_matrix(
    op: str, tensor: Tensor, what: Matrix, generator: Generator | None, key: Key | None, window: Window | None
) -> Tensor:
    function, arguments = (init.sparse_, what.parameters) if what.name == "sparse" else (init.orthogonal_, ())
    if left_alone(op, function, tensor, *arguments):
        return tensor
    parts, values = parts_of(op, tensor, window), held(tensor, f"{op}: tensor")
    matrix = what.resolve(parts[0][1].global_shape)
    if tensor.dtype not in DTYPES:
        supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise NotImplementedError(f"{op}: not implemented for {tensor.dtype}; supported are {supported}")
    matrix.check(op, tensor.dtype)
    if key is not None and not isinstance(key, Key):
        raise TypeError(f"{op}: key must be an xinit.Key, but found {type(key).__name__}")
    if generator is not None and not isinstance(generator, Generator):
        raise TypeError(f"{op}: generator must be a torch.Generator, but found {type(generator).__name__}")
    if key is not None and generator is not None:
        raise ValueError(f"{op}: key and generator exclude each other")
    if generator is not None and generator.device.type != tensor.device.type and not tensor.is_meta:
        raise RuntimeError(
            f"Expected a '{tensor.device.type}' device type for generator but found '{generator.device.type}'"
        )
    check_can_wait(op, tensor)
    if key is None and is_sharded(values) and is_answered_by_name():
        raise RuntimeError(
            f"{op}: within accelerate(key=, model=), a DTensor takes a key, key.fold_in(name), or torch.nn.init.{op}, which "
            f"is drawn by its name"
        )
    # What is left to be checked, the operator checks.
    if what.name == "sparse":
        fill("normal_", None, tensor, what.drawn.parameters, generator, key, window)
    else:
        fill("normal_", None, tensor, (0.0, 0.0), None, key or Key(0), window)

    if key is not None:
        matrix.finish_(parts, lambda: {"key": key.fold_in(0).words})
    elif is_sharded(values) and tensor.numel() and not tensor.is_meta:
        with one_key(op, values, generator) as drawn:
            matrix.finish_(parts, lambda: {"key": drawn.words})
    else:
        matrix.finish_(parts, lambda: {"generator": generator})
    if is_sharded(tensor) or wraps(tensor):
        torch.autograd.graph.increment_version(tensor)
    return tensor


def eye(*args: Any, **kwargs: Any) -> NoReturn:
    """The old name of :func:`xinit.eye_`.

    Raises:
        TypeError: always.
    """
    raise TypeError("eye: fills nothing; eye_ fills a tensor, and identity makes a distribution")
