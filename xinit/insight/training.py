"""What the papers showed, again, in small: deep ReLU nets that train or stall, and what tanh layers pass on.

He et al. 2015, figures 2 and 3: with 22 ReLU layers Xavier's initialisation learns later than Kaiming's, with 30 not at all.
Glorot & Bengio 2010, figures 6 and 7: with U(±1/sqrt(n)) tanh layers pass on less and less, with Xavier's the same. The data are
scikit-learn's digits: 1,797 images of 8 × 8 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xinit.insight.compare import METHODS
from xinit.insight.pictures import COLOURS, figure, headline, label_ends
from xinit.keys import Key
from xinit.parameters.table import table

WIDTH, EPOCHS, BATCH, RATE, MOMENTUM = 128, 20, 64, 0.005, 0.9
RUNS = tuple(
    (depth, method, seed) for depth in (22, 30) for method in ("kaiming_normal", "xavier_normal") for seed in (0, 1)
)
LAYERS = 5  # of tanh
CHANCE = 0.9


@dataclass(frozen=True)
class Curve:
    """How a network of `depth` layers learns: the share of test images that it gets wrong, before and after each epoch."""

    depth: int
    method: str
    seed: int
    errors: tuple[float, ...]

    @property
    def verdict(self) -> str:
        return "stalls" if min(self.errors) > CHANCE - 0.15 else "learns"


@dataclass(frozen=True)
class Passed:
    """What tanh layers pass on at initialisation: activations forward and gradients back, all values of each layer."""

    method: str
    activations: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]


def digits() -> tuple[Tensor, Tensor]:
    """Images, standardised, and their classes.

    Raises:
        ImportError: if there is no scikit-learn; it says how to get it.
    """
    try:
        found = import_module("sklearn.datasets").load_digits()
    except ImportError as error:
        raise ImportError(f"--train takes scikit-learn's digits ({error}): pip install 'xinit[insight]'") from error
    images = torch.tensor(found.data, dtype=torch.float32)
    return (images - images.mean()) / images.std(), torch.tensor(found.target)


def network(depth: int, method: str, activation: str, key: Key) -> list[Tensor]:
    """The weights of `depth` layers, 64 inputs and 10 outputs among them. Biases are left out: they begin at 0."""
    sizes = [64, *[WIDTH] * (depth - 1), 10]
    weights = [torch.empty(sizes[i + 1], sizes[i]) for i in range(depth)]
    for i, weight in enumerate(weights):
        METHODS[method].fill_(weight, activation, key.fold_in(i))
        weight.requires_grad_()
    return weights


def learn(depth: int, method: str, seed: int, data: tuple[Tensor, Tensor]) -> Curve:
    """Stochastic gradient descent with momentum on four fifths of the images; errors on the others."""
    images, classes = data
    test = torch.arange(len(images)) % 5 == 0
    key = Key(seed)
    weights = network(depth, method, "relu", key)
    biases = [torch.zeros(weight.shape[0], requires_grad=True) for weight in weights]
    parameters = [*weights, *biases]
    speeds = [torch.zeros_like(p) for p in parameters]

    def outputs(x: Tensor) -> Tensor:
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = torch.relu(torch.addmm(bias, x, weight.T))
        return torch.addmm(biases[-1], x, weights[-1].T)

    def error() -> float:
        with torch.no_grad():
            return float((outputs(images[test]).argmax(1) != classes[test]).float().mean())

    errors, train, order = [error()], (~test).nonzero().flatten(), torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for batch in torch.split(train[torch.randperm(len(train), generator=order)], BATCH):
            loss = F.cross_entropy(outputs(images[batch]), classes[batch])
            for p, speed, slope in zip(parameters, speeds, torch.autograd.grad(loss, parameters), strict=True):
                speed.mul_(MOMENTUM).add_(slope)
                p.data.sub_(speed, alpha=RATE)
        errors.append(error())
    return Curve(depth, method, seed, tuple(errors))


def pass_on(method: str, data: tuple[Tensor, Tensor], key: Key) -> Passed:
    """300 images forward and the loss's gradient back, through hidden layers of tanh."""
    images, classes = data[0][:300], data[1][:300]
    *hidden, last = network(LAYERS + 1, method, "tanh", key)
    layers = [images]
    for weight in hidden:
        layers.append(torch.tanh(layers[-1] @ weight.T))
    gradients = torch.autograd.grad(F.cross_entropy(layers[-1] @ last.T, classes), layers[1:])
    return Passed(method, tuple(layer.detach() for layer in layers[1:]), gradients)


def repeat(progress: Callable[[Sequence[Any]], Iterable[Any]] = iter) -> tuple[list[Curve], list[Passed]]:
    """All of it, in less than two minutes on two cores."""
    data = digits()
    curves = [learn(depth, method, seed, data) for depth, method, seed in progress(RUNS)]
    return curves, [pass_on(method, data, Key(0)) for method in ("torch", "xavier_uniform")]


def as_published(curves: Sequence[Curve], passed: Sequence[Passed]) -> bool:
    """Whether Kaiming's nets learn, Xavier's of 30 layers stall, and Xavier's tanh layers pass on more than U(±1/sqrt(n))'s."""
    expected = {"kaiming_normal": "learns", "xavier_normal": "stalls"}
    learnt = all(c.verdict == expected[c.method] for c in curves if c.depth == 30 or c.method == "kaiming_normal")
    standard, xavier = (float(p.activations[-1].std() / p.activations[0].std()) for p in passed)
    return learnt and xavier > 2 * standard


def report(curves: Sequence[Curve], passed: Sequence[Passed]) -> str:
    """Two tables."""
    epochs = 0, EPOCHS // 3, EPOCHS
    learnt = table(
        ("layers", "method", "seed", *(f"epoch {n}" for n in epochs), "verdict"),
        [
            (str(c.depth), c.method, str(c.seed), *(f"{100 * c.errors[n]:.0f} %" for n in epochs), c.verdict)
            for c in curves
        ],
    )
    kept = table(
        ("method", "std of", *(f"layer {n + 1}" for n in range(LAYERS))),
        [
            (p.method, what, *(f"{float(layer.std()):.1e}" for layer in getattr(p, what)))
            for what in ("activations", "gradients")
            for p in passed
        ],
    )
    return (
        f"Test images of scikit-learn's digits that ReLU nets get wrong (He et al. 2015, figures 2 and 3)\n\n{learnt}\n\n"
        f"What tanh layers pass on, at initialisation (Glorot & Bengio 2010, figures 6 and 7)\n\n{kept}"
    )


def draw_curves(curves: Sequence[Curve]) -> Any:
    """He et al.'s figures 2 and 3."""
    note = (
        f"ReLU layers of {WIDTH} units on scikit-learn's digits; SGD, rate {RATE}, momentum {MOMENTUM}, batches of {BATCH}; "
        "two seeds each, and their mean. After He et al. 2015, figures 2 and 3"
    )
    depths = sorted({curve.depth for curve in curves})
    wrong = [f"{name} gets {share:.0%} wrong" for name, share in _wrong(curves, depths[-1]).items()]
    title = f"With {depths[-1]} ReLU layers {', '.join(wrong)}"
    drawn, axes = figure(title, note, ncols=len(depths), sharey=True)
    for ax, depth in zip(axes[0], depths, strict=True):
        headline(ax, f"{depth} layers")
        ends = {}
        for curve in curves:
            if curve.depth == depth:
                method = METHODS[curve.method]
                percent = [100 * error for error in curve.errors]
                ax.plot(percent, color=COLOURS[method.colour], linewidth=1.6)
                name = method.label.removesuffix(" normal")
                share = _wrong(curves, depth)[name]
                ends[f"{name} {share:.0%}"] = (len(percent) - 1, 100 * share, COLOURS[method.colour])
        ax.set_ylim(0, 100)
        ax.set_xlabel("epoch")
        ax.axhline(100 * CHANCE, color=COLOURS["quiet"], linewidth=0.9, linestyle=(0, (4, 3)))
        label_ends(ax, ends)
    axes[0, 0].text(EPOCHS, 100 * CHANCE + 1, "chance", color=COLOURS["quiet"], ha="right", fontsize=9)
    axes[0, 0].set_ylabel("test images wrong, %")
    return drawn


def _wrong(curves: Sequence[Curve], depth: int) -> dict[str, float]:
    """In the end, by method, on average over seeds."""
    last: dict[str, list[float]] = {}
    for curve in curves:
        if curve.depth == depth:
            last.setdefault(METHODS[curve.method].label.removesuffix(" normal"), []).append(curve.errors[-1])
    return {name: fmean(errors) for name, errors in last.items()}


def _name(passed: Passed) -> str:
    return "U(±1/√n)" if passed.method == "torch" else METHODS[passed.method].label


def draw_passed(passed: Sequence[Passed]) -> Any:
    """Of Glorot & Bengio's figures 6 and 7, which show distributions, their widths."""
    note = (
        f"{LAYERS} hidden tanh layers of {WIDTH} units at initialisation, 300 of scikit-learn's digits. "
        "After Glorot & Bengio 2010, figures 6 and 7"
    )
    left = {_name(p): f"{float(p.activations[-1].std() / p.activations[0].std()):.0%}" for p in passed}
    said = ", ".join(f"{share} with {name}" for name, share in sorted(left.items(), reverse=True))
    title = f"{LAYERS} tanh layers pass on {said}"
    drawn, axes = figure(title, note, ncols=2)
    for ax, what in zip(axes[0], ("activations", "gradients"), strict=True):
        headline(ax, what)
        ends, order = {}, range(1, LAYERS + 1) if what == "activations" else range(LAYERS, 0, -1)
        for p in passed:
            stds = [float(getattr(p, what)[n - 1].std()) for n in order]
            kept = [std / stds[0] for std in stds]
            method = METHODS[p.method]
            ax.plot(order, kept, color=COLOURS[method.colour], marker="o", markersize=4, clip_on=False)
            ends[f"{_name(p)} {kept[-1]:.0%}"] = (order[-1], kept[-1], COLOURS[method.colour])
        ax.set_ylim(0, 1.05)
        ax.set_xlim(order[0], order[-1])
        ax.set_xticks(order)
        ax.set_xlabel("layer")
        ax.set_ylabel(f"standard deviation, of layer {order[0]} = 1")
        label_ends(ax, ends)
    return drawn
