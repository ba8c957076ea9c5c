"""Did the initialisation work? One forward and one backward pass, measured layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from xinit.insight.findings import Findings, Flag
from xinit.insight.report import LayerRow, Report
from xinit.insight.weights import Weights, weigh, weights_of
from xinit.lazy.audit import audit
from xinit.observe.flow import Call, Layer, fans
from xinit.observe.meter import Moments
from xinit.observe.passes import Pass, watched
from xinit.recipes.own import OwnInit


def diagnose(
    model: nn.Module,
    *inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    backward: bool = True,
    **kwargs: Any,
) -> Report:
    """Whether signals and gradients come through a model: one forward and one backward pass, measured layer by layer.

    Args:
        model: on any device, in any dtype, with weights that have memory; sharded too, and then called by all ranks alike: they
            add up what they measure in one small all-reduce.
        inputs: a batch, as the model is called with, and so are ``kwargs``; 32 examples are enough, and a few hundred say more of
            units that are dead.
        loss: from the model's output to a number. By default the output is projected on random numbers, so that gradients of unit
            size arrive at it.
        backward: whether to look at gradients.

    Returns:
        A report that prints as a summary, a table with a row for each layer that holds weights, and flags. Each flag names a
        layer, why, and the line that mends it:

        - vanishing, exploding: a signal is a thousandth, or a thousandfold, of what it was at the model's input, an embedding or
          the last norm; or a gradient at a first layer, of the gradient at the last one;
        - dead: most units of a layer stay where their activation is flat, as ReLU below zero, for the whole batch;
        - saturated: most values are where the activation has less than 5 % of its steepest slope;
        - residual growth: the sums of a residual path outgrow three times what as many branches of unit size add up to;
        - symmetric: units with equal weights; never written, as :func:`xinit.audit` has it; non-finite.

    Model, gradients, buffers and generators are afterwards what they were, also after an error. torch's generators follow a key
    meanwhile, so that dropout, and the report, are the same every time. Beyond what a forward and a backward pass take themselves
    it holds some numbers a layer, and no activations.

    Raises:
        TypeError: if ``model`` is no module, or ``loss`` no function.
        ValueError: without parameters, without a batch or with an empty one, for inputs that hold NaN or infinity, for lazy
            parameters, and for an output or loss without a gradient, as within ``torch.inference_mode``.
        RuntimeError: for parameters without memory.
        Exception: the model's own, with a note of the layer that was reached.

    Source: Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, figures 6 and 7,
    for what is looked at.

    Example:
        >>> import torch, xinit
        >>> layers = [m for _ in range(30) for m in (torch.nn.Linear(64, 64), torch.nn.ReLU())]
        >>> recipe = {"*.bias": xinit.zeros(), "*": xinit.xavier_normal()}
        >>> model = xinit.init_(torch.nn.Sequential(*layers), recipe, xinit.Key(0))
        >>> batch = xinit.normal_(torch.empty(128, 64), key=xinit.Key(1))
        >>> [flag.kind for flag in xinit.diagnose(model, batch).flags]
        ['vanishing']
    """
    seen = watched("diagnose", model, inputs, kwargs, backward=backward, loss=loss)
    numbers = {layer: weigh(layer, seen.meter) for layer in seen.layers}
    values = seen.meter.read(seen.ranks)
    own = OwnInit(seen.model)
    weights = {layer: weights_of(layer, numbers[layer], values, own) for layer in seen.layers}
    calls = seen.watch.calls
    flags = Findings(calls, seen.watch.streams, values, weights, audit(seen.model)).flags()
    return Report(
        type(seen.model).__name__, _rows_of(seen, weights, values, flags), tuple(flags), *_gains(calls, values)
    )


def _rows_of(
    seen: Pass, weights: Mapping[Layer, Weights], values: Sequence[Moments], flags: Sequence[Flag]
) -> tuple[LayerRow, ...]:
    """One for each layer, but for vectors of a module that has a row already, such as a bias."""
    layers = seen.layers
    calls = (call for layer in layers for call in layer.calls)
    first = next((rms for call in calls if (rms := _rms(values, call.entered) or _rms(values, call.left))), None)
    used = {layer.module for layer in layers if layer.calls}
    shown = [
        layer
        for layer in layers
        if layer.calls or layer.module not in used or any(p.dim() > 1 for p in layer.weights.values())
    ]
    sums = {call: stream.value for stream in seen.watch.streams for call in stream.writers}
    return tuple(_row(layer, weights[layer], values, sums, flags, first) for layer in shown)


def _together(values: Sequence[Moments], numbers: Iterable[int | None]) -> Moments | None:
    """Of several measurements as of one; None if nothing was measured."""
    moments = Moments.together([values[number] for number in numbers if number is not None])
    return moments if moments.number else None


def _rms(values: Sequence[Moments], number: int | None) -> float | None:
    return None if number is None else values[number].rms


def _row(
    layer: Layer,
    weights: Weights,
    values: Sequence[Moments],
    sums: Mapping[Call, int],
    flags: Sequence[Flag],
    first: float | None,
) -> LayerRow:
    calls = layer.calls
    entered = _together(values, (call.entered for call in calls))
    left = _together(values, (call.left for call in calls))
    post = _together(values, (call.activated for call in calls))
    gradient = _together(values, (call.gradient for call in calls))
    dead = _together(values, (call.dead for call in calls))
    saturated = _together(values, (call.saturated for call in calls))
    stream = _together(values, (sums.get(call) for call in calls))
    out = post or left
    width = fans(layer) or (None, None)
    own = {layer.name, *(f"{layer.name}.{leaf}" for leaf in layer.weights)}
    return LayerRow(
        name=layer.name,
        type=layer.kind,
        calls=len(calls),
        fan_in=width[0],
        fan_out=width[1],
        weight_std=weights.matrices.std,
        own_std=weights.own_std,
        in_rms=entered and entered.rms,
        in_mean=entered and entered.mean,
        out_rms=left and left.rms,
        out_mean=left and left.mean,
        activation=next((call.activation.name for call in calls if call.activation), ""),
        post_rms=post and post.rms,
        post_mean=post and post.mean,
        grad_rms=gradient and gradient.rms,
        gain=out.rms / entered.rms if out and entered and entered.rms else None,
        net_gain=out.rms / first if out and first else None,
        stream_rms=stream and stream.rms,
        dead=dead and dead.mean,
        saturated=saturated and saturated.mean,
        flags=tuple(flag.kind for flag in flags if flag.layer in own),
    )


def _gains(calls: Sequence[Call], values: Sequence[Moments]) -> tuple[float | None, float | None]:
    """Of the signal through the whole model, and of the gradient."""
    into = next((rms for call in calls if (rms := _rms(values, call.entered) or _rms(values, call.left))), None)
    out = next(
        (r for c in reversed(calls) if (r := _rms(values, c.left if c.activated is None else c.activated)) is not None),
        None,
    )
    norms = [values[call.gradient].norm for call in calls if call.gradient is not None]
    return out / into if out is not None and into else None, norms[0] / norms[-1] if norms and norms[-1] else None
