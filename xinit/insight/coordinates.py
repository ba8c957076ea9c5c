"""The coordinate check: do activations keep their size as a model grows wider, also once it learns?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from xinit.generators import governed
from xinit.init import normal_
from xinit.insight.coordinates_plot import draw
from xinit.keys import Key
from xinit.observe.flow import Layer, fans, layers_of, tensors
from xinit.observe.meter import local
from xinit.observe.passes import called, check, note
from xinit.parameters.names import canonical_name
from xinit.parameters.table import table

FLAT = 0.2  # the steepest slope of what counts as flat


@dataclass(frozen=True, slots=True)
class CoordinateRow:
    """One layer after so many steps.

    Attributes:
        layer: its name, or "(output)" for the model's.
        step: how many steps the optimizer has taken.
        sizes: the mean absolute value of what it gives, for each width.
        slope: by how much the logarithm of that grows with the logarithm of the width; 0 where all is zero.
    """

    layer: str
    step: int
    sizes: tuple[float, ...]
    slope: float


@dataclass(frozen=True, slots=True)
class CoordinateReport:
    """What :func:`coordinate_check` gives: prints as a verdict and a table of slopes.

    Attributes:
        widths: those that were tried.
        rows: one for each layer and number of steps.
    """

    widths: tuple[int, ...]
    rows: tuple[CoordinateRow, ...]

    @property
    def steepest(self) -> CoordinateRow:
        """The row that speaks most against µP: of the steepest slope after the last step, or up after an earlier one."""
        last = max(row.step for row in self.rows)
        learned = [row for row in self.rows if row.step == last or (row.step and row.slope > 0)]
        return max(learned, key=lambda row: abs(row.slope))

    @property
    def flat(self) -> bool:
        """Whether no layer's size depends on the width once the model learns: that slope is at most 0.2."""
        return abs(self.steepest.slope) <= FLAT

    def to_dict(self) -> dict[str, Any]:
        """All of it as dicts, lists, strings and numbers."""
        return asdict(self)

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Sizes by width, a panel for each number of steps.

        Args:
            path: a file to write; its ending says in which format.

        Returns:
            The ``matplotlib.figure.Figure``.

        Raises:
            ImportError: without matplotlib.
        """
        row = self.steepest
        of = "the output" if row.layer == "(output)" else f"layer {row.layer}"
        title = f"{'Flat' if self.flat else 'Not flat'}: {of} goes as width^{row.slope:+.2f} after {_steps_of(row)}"
        return draw(title, self.widths, self.rows, FLAT, path)

    def __str__(self) -> str:
        row = self.steepest
        word = "flat" if self.flat else "not flat"
        verdict = f"{word}: after {_steps_of(row)} {row.layer} goes as width to the power of {row.slope:+.2f}"
        steps = sorted({row.step for row in self.rows})
        by_layer: dict[str, list[str]] = {}
        for row in self.rows:
            by_layer.setdefault(row.layer, []).append(f"{row.slope:+.2f}")
        header = ("layer", *(f"step {step}" for step in steps))
        lines = table(header, [(layer, *slopes) for layer, slopes in by_layer.items()])
        return f"{verdict}\n\n{lines}"


def _steps_of(row: CoordinateRow) -> str:
    return f"{row.step} step" + "s" * (row.step != 1)


def coordinate_check(
    make: Callable[[int], nn.Module],
    widths: Sequence[int],
    *inputs: Any,
    steps: int = 3,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    lr: float = 0.01,
    loss: Callable[[Any], Tensor] | None = None,
    **kwargs: Any,
) -> CoordinateReport:
    """Whether a parametrisation is µP: each layer's activations by width, at the start and over the first steps.

    Where slopes are near 0 after some steps, hyperparameters carry over from width to width. Where a layer's outputs grow with
    the width, wider models want smaller learning rates; where they shrink, these do not learn features. An output layer that
    µP has drawn shrinks at step 0, and not once it has learned.

    Args:
        make: from a width to an initialised model.
        widths: at least two, such as ``(64, 128, 256, 512, 1024)``; the first is the one at which ``lr`` holds.
        inputs: a batch, the same for all widths, and so are ``kwargs``.
        steps: how many steps to take on that batch.
        optimizer: from the model to its optimizer; by default Adam with µP's rates: ``lr`` for vectors, embeddings and matrices
            whose fan_in is the same for all widths, and for the others ``lr`` times the first width's fan_in over their own.
        lr: of the default optimizer.
        loss: from the model's output to a number; by default the mean squared distance from fixed normal numbers.

    Returns:
        A report that prints as a table of slopes.

    Raises:
        TypeError: if ``make`` gives no module.
        ValueError: for fewer than two widths, or others than integers above 0; for fewer than one step; if models of different
            widths have different layers; for what :func:`xinit.diagnose` refuses.
        Exception: those of ``make`` and of the models, with a note of the width and the layer that was reached.

    Source: Yang & Hu et al., "Tensor Programs V: tuning large neural networks via zero-shot hyperparameter transfer", 2022,
    figure 5 and table 3.

    Example:
        >>> import torch, xinit
        >>> def make(width, recipe="mup"):
        ...     net = {"read": torch.nn.Linear(8, width), "act": torch.nn.ReLU(), "head": torch.nn.Linear(width, 4)}
        ...     model = torch.nn.Sequential(*net.values())
        ...     recipe = xinit.recipes.mup(outputs=["2.weight"])
        ...     return xinit.init_(model, recipe, xinit.Key(0))
        >>> batch = xinit.normal_(torch.empty(32, 8), key=xinit.Key(1))
        >>> xinit.coordinate_check(make, (64, 256, 1024), batch).flat
        True
    """
    widths = _widths(widths)
    if steps < 1:
        raise ValueError(f"coordinate_check: steps must be at least 1, but found {steps}")
    sizes: dict[tuple[int, str], list[float]] = {}
    base: dict[str, int] = {}
    for width in widths:
        with governed(Key(0)):
            model = _made(make, width)
            check("coordinate_check", model, inputs, kwargs)
            inner = {name: layer for name, layer in _layers(model) if (layer and fans(layer)) is not None}
            base = base or {name: (fans(layer) or (1, 1))[0] for name, layer in inner.items()}
            chosen = optimizer(model) if optimizer is not None else _mup_adam(model, base, lr)
            with torch.enable_grad():
                found = _steps(f"coordinate_check, width {width}", model, inputs, kwargs, steps, chosen, loss)
        if sizes and sizes.keys() != found.keys():
            differing = sorted({name for _, name in sizes.keys() ^ found.keys()})
            raise ValueError(f"coordinate_check: not all widths have the layers {', '.join(differing[:5])}")
        for place, size in found.items():
            sizes.setdefault(place, []).append(size)
    rows = (CoordinateRow(name, step, tuple(s), _slope(widths, s)) for (step, name), s in sizes.items())
    return CoordinateReport(widths, tuple(rows))


def _widths(widths: Sequence[int]) -> tuple[int, ...]:
    found = tuple(widths) if isinstance(widths, Iterable) else (widths,)
    if any(type(width) is not int or width < 1 for width in found) or len(set(found)) < max(2, len(found)):
        raise ValueError(f"coordinate_check: widths must be at least two different integers above 0, but found {found}")
    return found


def _made(make: Callable[[int], nn.Module], width: int) -> nn.Module:
    try:
        model = make(width)
    except Exception as error:
        note(error, f"coordinate_check: while making the model of width {width}")
        raise
    if not isinstance(model, nn.Module):
        raise TypeError(f"coordinate_check: make must give a torch.nn.Module, but gave {type(model).__name__}")
    return model


def _layers(model: nn.Module) -> list[tuple[str, Layer]]:
    """The modules that hold weights and have no others inside."""
    owned = layers_of(dict(model.named_modules()))
    names = {module: canonical_name(name) or "(model)" for name, module in model.named_modules()}
    return [(names[m], Layer(names[m], m, w)) for m, w in owned.items() if next(m.children(), None) is None]


def _mup_adam(model: nn.Module, base: dict[str, int], lr: float) -> torch.optim.Optimizer:
    """Table 3's rates: those of matrices, of hidden layers and the last one, go as 1 / fan_in."""
    scaled = {
        id(parameter): base[name] / width[0]
        for name, layer in _layers(model)
        if (width := fans(layer)) is not None and name in base
        for parameter in layer.weights.values()
        if parameter.dim() > 1
    }
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("coordinate_check: no parameter requires a gradient, so none can learn")
    groups = [{"params": [p], "lr": lr * scaled.get(id(p), 1.0)} for p in model.parameters() if p.requires_grad]
    return torch.optim.Adam(groups)


def _steps(
    op: str,
    model: nn.Module,
    inputs: Any,
    kwargs: Any,
    steps: int,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Any], Tensor] | None,
) -> dict[tuple[int, str], float]:
    found: dict[tuple[int, str], float] = {}
    step = 0

    def keep(name: str, output: Any) -> None:
        tensor = next((t for t in tensors(output) if t.is_floating_point()), None)
        if tensor is not None:
            found[step, name] = float(local(tensor).abs().mean(dtype=torch.float32))

    def hook(name: str) -> Any:
        return lambda module, args, output: keep(name, output)

    handles = [layer.module.register_forward_hook(hook(name)) for name, layer in _layers(model) if not layer.is_norm]
    try:
        for step in range(steps + 1):
            output = called(op, model, inputs, kwargs)
            keep("(output)", output)
            if step < steps:
                optimizer.zero_grad()
                value: Any = (loss or _distance)(output)
                try:
                    value.backward()
                except Exception as error:
                    note(error, f"{op}: in the backward pass of step {step + 1}")
                    raise
                optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _distance(output: Any) -> Tensor:
    tensor = next((t for t in tensors(output) if t.requires_grad), None)
    if tensor is None:
        raise ValueError("coordinate_check: the output has no gradient: pass loss=")
    return (tensor - normal_(torch.empty_like(tensor), key=Key(0).fold_in("target"))).square().mean()


def _slope(widths: Sequence[int], sizes: Sequence[float]) -> float:
    """Of the line through the logarithms, by least squares."""
    if not all(math.isfinite(size) for size in sizes):
        return math.inf
    if min(sizes) <= 0:
        return 0.0
    x, y = [math.log(width) for width in widths], [math.log(size) for size in sizes]
    middle, mean = sum(x) / len(x), sum(y) / len(y)
    return sum((a - middle) * (b - mean) for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)
