"""Methods of initialisation beside each other in deep networks: what becomes of signals, as measured and as theory says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xinit.init import (
    kaiming_normal_,
    kaiming_uniform_,
    lecun_normal_,
    normal_,
    uniform_,
    xavier_normal_,
    xavier_uniform_,
)
from xinit.insight.gains import look_up
from xinit.insight.pictures import COLOURS, figure, headline, label_ends
from xinit.insight.theory import theory
from xinit.keys import Key
from xinit.matrices import orthogonal_
from xinit.parameters.table import table
from xinit.scaling import calculate_gain

HEALTH = 10.0  # a factor by which an RMS may change and a network still learn without care
BEYOND = 1000.0  # one after which it has died, or exploded


class Method(NamedTuple):
    """How to fill a square weight for layers with an activation, whose gain theory is told too."""

    label: str
    colour: str  # its meaning in pictures
    fill_: Callable[[Tensor, str, Key], object]
    weight_std: Callable[[str], float]  # times sqrt(fan_in)


def _bound(square: float) -> Callable[[Tensor, str, Key], object]:
    """U(±sqrt(square / fan_in))."""

    def fill_(w: Tensor, activation: str, key: Key) -> Tensor:
        bound = math.sqrt(square / w.shape[1])
        return uniform_(w, -bound, bound, key=key)

    return fill_


METHODS = {
    "xavier_uniform": Method("Xavier", "xavier", lambda w, f, key: xavier_uniform_(w, key=key), lambda f: 1.0),
    "xavier_normal": Method("Xavier normal", "xavier", lambda w, f, key: xavier_normal_(w, key=key), lambda f: 1.0),
    "kaiming_uniform": Method(
        "Kaiming uniform", "kaiming", lambda w, f, key: kaiming_uniform_(w, nonlinearity=f, key=key), calculate_gain
    ),
    "kaiming_normal": Method(
        "Kaiming", "kaiming", lambda w, f, key: kaiming_normal_(w, nonlinearity=f, key=key), calculate_gain
    ),
    "lecun_normal": Method("LeCun", "lecun", lambda w, f, key: lecun_normal_(w, key=key), lambda f: 1.0),
    "orthogonal": Method(
        "orthogonal", "orthogonal", lambda w, f, key: orthogonal_(w, calculate_gain(f), key=key), calculate_gain
    ),
    "sqrt_2_fan": Method("U(±√(2/fan))", "bound", _bound(2), lambda f: math.sqrt(2 / 3)),
    "torch": Method("nn.Linear's own", "torch", _bound(1), lambda f: math.sqrt(1 / 3)),
}


@dataclass(frozen=True)
class Pair:
    """One activation with one method: the RMS of activations and of gradients, by layer, the inputs being layer 0.

    Attributes:
        activation: its name.
        method: its name.
        weight_std: that theory is told, times sqrt(fan_in).
        forward: RMS of the inputs, and after each layer.
        backward: RMS of the gradient by those, of a loss by whose gradient the last layer's is 1.
        forward_theory: of a network of infinite width.
        backward_theory: see there.
    """

    activation: str
    method: str
    weight_std: float
    forward: tuple[float, ...]
    backward: tuple[float, ...]
    forward_theory: tuple[float, ...]
    backward_theory: tuple[float, ...]

    @property
    def verdicts(self) -> tuple[str, str]:
        """What becomes of activations from the first layer to the last, and of gradients from the last to the first."""
        return verdict(self.forward[-1], self.forward[1]), verdict(self.backward[1], self.backward[-1])

    @property
    def verdict(self) -> str:
        """In a word, or a few.

        Example:
            >>> steady, falling = (1.0,) * 9, tuple(0.3**n for n in range(9))
            >>> Pair("sigmoid", "xavier_normal", 1.0, steady, falling[::-1], steady, falling[::-1]).verdict
            'gradients die'
        """
        signal, gradient = self.verdicts
        if signal == gradient:
            return f"{signal}s"
        said = {"activations": signal, "gradients": gradient}
        return ", ".join(f"{what} {word}" for what, word in said.items() if word != "live")


def verdict(end: float, start: float) -> str:
    """Live, fade, die, grow or explode: by how much an RMS changes."""
    if not math.isfinite(end) or end > BEYOND * start:
        return "explode"
    if end * BEYOND < start:
        return "die"
    return "fade" if end * HEALTH < start else "grow" if end > HEALTH * start else "live"


def measure(activation: str, method: str, depth: int, width: int, batch: int = 64, seed: int = 0) -> Pair:
    """One pass forward and one back through `depth` layers x ↦ f(W x), from standard normal inputs.

    No weight is kept: on the way back each is drawn again.

    Raises:
        ValueError: for a method, or an activation, that there is none of.
    """
    if method not in METHODS:
        raise ValueError(f"there is no method {method}, but {', '.join(METHODS)}")
    key = Key(seed)
    how, (_, function) = METHODS[method], look_up(activation)
    std = how.weight_std(activation)
    expected = theory(activation, std, depth=depth)
    weight = torch.empty(width, width)
    inputs = normal_(torch.empty(batch, width), key=key.fold_in("inputs"))
    forward, before = [_rms(inputs)], []
    for layer in range(depth):
        how.fill_(weight, activation, key.fold_in(layer))
        before.append(inputs @ weight.T)
        inputs = function(before[-1].clone())
        forward.append(_rms(inputs))
    gradient = normal_(torch.empty(batch, width), key=key.fold_in("gradient"))
    backward = [_rms(gradient)]
    for layer in reversed(range(depth)):
        how.fill_(weight, activation, key.fold_in(layer))
        at = before.pop().requires_grad_()
        (gradient,) = torch.autograd.grad(function(at.clone()), at, gradient)
        gradient = gradient @ weight
        backward.append(_rms(gradient))
    ends = tuple(forward), tuple(reversed(backward)), expected.activations, expected.gradients
    return Pair(activation, method, std, *ends)


def _rms(values: Tensor) -> float:
    return math.sqrt(values.double().square().mean())


def compare(
    activations: Sequence[str],
    methods: Sequence[str],
    depth: int = 50,
    width: int = 512,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> list[Pair]:
    """All pairs, in this order.

    Raises:
        ValueError: for names that there are none of, or sizes below 2 layers of 1 unit; before anything is measured.
    """
    if depth < 2 or width < 1:
        raise ValueError(f"there must be at least 2 layers of 1 unit, but found {depth} of {width}")
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"there is no method {method}, but {', '.join(METHODS)}")
    for activation in activations:
        calculate_gain(activation)
    pairs = [(activation, method) for activation in activations for method in methods]
    return [measure(activation, method, depth, width) for activation, method in progress(pairs)]


LEGEND = f"""\
weight std: times sqrt(fan_in); theory: mean-field, in the limit of great width
lives: within a factor of {HEALTH:g}; fades, grows: within {BEYOND:g}; dies, explodes: beyond"""


def as_table(pairs: Sequence[Pair]) -> str:
    """One line a pair, at most 100 columns."""
    title = ("activation", "method", "weight std", "activations", "theory", "gradients", "theory", "verdict")
    rows = []
    for p in pairs:
        numbers = p.forward[-1], p.forward_theory[-1], p.backward[0], p.backward_theory[0]
        rows.append((p.activation, p.method, f"{p.weight_std:.3f}", *map(_short, numbers), p.verdict))
    return table(title, rows)


def _short(number: float) -> str:
    return f"{number:.1e}" if number and not 0.01 <= number < 100 else f"{number:.2g}"


def as_dicts(pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    """For JSON, which has no infinity."""
    rows = []
    for pair in pairs:
        row = {**asdict(pair), "verdict": pair.verdict}
        for name, values in row.items():
            if isinstance(values, tuple):
                row[name] = [value if math.isfinite(value) else None for value in values]
        rows.append(row)
    return rows


LOWEST, HIGHEST = 1e-16, 1e8  # that are drawn


def draw(pairs: Sequence[Pair], note: str = "") -> Any:
    """A figure: a row for each activation, forward and backward; lines as measured, theory dashed."""
    activations = list(dict.fromkeys(pair.activation for pair in pairs))
    layout = {"nrows": len(activations), "ncols": 2, "sharey": True, "sharex": True}
    drawn, axes = figure(message(pairs), note, 1.6 + 2.4 * len(activations), **layout)
    ends = [value for pair in pairs for value in (pair.forward[-1], pair.backward[0]) if math.isfinite(value)]
    low, high = max(LOWEST, min([1 / HEALTH, *ends])), min(HIGHEST, max([HEALTH, *ends]))
    axes[0][0].set(yscale="log", ylim=(low / HEALTH, high * HEALTH))
    for row, activation in zip(axes, activations, strict=True):
        mine = [pair for pair in pairs if pair.activation == activation]
        _panel(row[0], [(p, p.forward, p.forward_theory) for p in mine])
        _panel(row[1], [(p, p.backward[::-1], p.backward_theory[::-1]) for p in mine])
        row[0].set_ylabel(f"{activation}: RMS")
    for ax, text in zip(axes[0], ("forward: activations", "backward: gradients"), strict=True):
        headline(ax, text)
    for ax, end in zip(axes[-1], ("input", "output"), strict=True):
        ax.set_xlabel(f"layers from the {end}")
    return drawn


def _panel(axes: Any, lines: Sequence[tuple[Pair, Sequence[float], Sequence[float]]]) -> None:
    axes.axhspan(1 / HEALTH, HEALTH, color=COLOURS["band"], zorder=0)
    ends = {}
    for pair, measured, expected in lines:
        method = METHODS[pair.method]
        colour = COLOURS[method.colour]
        shown = [min(max(value, 1e-99), 1e99) for value in measured]  # a line goes on beyond the edge
        axes.plot(shown, color=colour)
        axes.plot(expected, color=COLOURS["theory"], linewidth=0.9, linestyle=(0, (4, 3)))
        ends[method.label] = (len(shown) - 1, shown[-1], colour)
    label_ends(axes, ends)


def message(pairs: Sequence[Pair]) -> str:
    """What a comparison shows: its figure's title."""
    depth = len(pairs[0].forward) - 1
    activations = list(dict.fromkeys(pair.activation for pair in pairs))
    if len(activations) > 1:
        alive = {name: [] for name in activations}  # type: dict[str, list[str]]
        for pair in pairs:
            alive[pair.activation] += [METHODS[pair.method].label] * (pair.verdict == "lives")
        said = "; ".join(f"{name}: {', '.join(labels) or 'none'}" for name, labels in alive.items())
        return f"What keeps {depth} layers alive? {said}"
    by_verdict: dict[str, list[str]] = {}
    for pair in pairs:
        by_verdict.setdefault(pair.verdict, []).append(METHODS[pair.method].label)
    said = "; ".join(
        f"{verdict if ' ' in verdict else verdict.removesuffix('s')} with {', '.join(labels)}"
        for verdict, labels in by_verdict.items()
    )
    return f"{depth} {activations[0]} layers{':' * (' ' in next(iter(by_verdict)))} {said}"
