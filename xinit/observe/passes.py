"""A model's forward and backward pass, watched, with all that can be wrong with what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xinit.init import normal_
from xinit.keys import Key
from xinit.observe.flow import Layer, layers_of, tensors
from xinit.observe.meter import Meter, local
from xinit.observe.restore import left_as_it_was
from xinit.observe.watch import Watch
from xinit.parallel.ranks import Ranks, reshard
from xinit.parameters.names import canonical_name
from xinit.parameters.sites import sites_of, some

_WRAPPERS = {"DistributedDataParallel": "module", "DataParallel": "module", "OptimizedModule": "_orig_mod"}


@dataclass(frozen=True, slots=True)
class Pass:
    """What was seen.

    Attributes:
        model: without wrappers.
        watch: that saw it.
        meter: that has measured.
        ranks: that hold the model.
        layers: in the order of execution; those that were not used, or are added without being multiplied by, come last.
    """

    model: nn.Module
    watch: Watch
    meter: Meter
    ranks: Ranks
    layers: tuple[Layer, ...]


def watched(
    op: str,
    model: nn.Module,
    inputs: Any,
    kwargs: Any,
    *,
    backward: bool = False,
    loss: Callable[[Any], Tensor] | None = None,
) -> Pass:
    """One forward pass, and one backward if asked for, after which everything is as it was.

    Raises:
        As :func:`xinit.diagnose` does; ``op`` is who asks.
    """
    model = unwrapped(model)
    check(op, model, inputs, kwargs)
    if loss is not None and not callable(loss):
        raise TypeError(f"{op}: loss must be a function of the model's output, but found {type(loss).__name__}")
    if backward and torch.is_inference_mode_enabled():
        raise ValueError(f"{op}: within torch.inference_mode there are no gradients: leave it, or pass backward=False")
    meter = Meter()
    watch = Watch(model, meter)
    ranks = Ranks(model.parameters(), op)
    try:
        with left_as_it_was(model), torch.enable_grad() if backward else torch.no_grad():
            output = _forward(op, model, watch, inputs, kwargs)
            if backward:
                _backward(op, watch, output, loss)
    finally:
        watch.off()
        reshard(model)
    layers = dict.fromkeys(call.layer for call in watch.calls)
    covered = {id(parameter) for layer in layers for parameter in layer.weights.values()}
    for module, weights in layers_of(dict(model.named_modules())).items():
        for leaf, parameter in weights.items():
            if id(parameter) not in covered:
                layer = watch.layer_of(module, leaf)
                layers[layer] = None
                covered |= {id(p) for p in layer.weights.values()}
    return Pass(model, watch, meter, ranks, tuple(layers))


def unwrapped(model: nn.Module) -> nn.Module:
    """Without what makes a model run elsewhere, or compiled: it is to be seen running here."""
    while isinstance(model, nn.Module) and (inner := _WRAPPERS.get(type(model).__name__)):
        model = getattr(model, inner)
    return model


def check(op: str, model: nn.Module, inputs: Any, kwargs: Any) -> None:
    """Whether it can be called with that."""
    sites = sites_of(model, op)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{op}: {name or module.original_name} is a torch.jit.ScriptModule, of which nothing is seen, and whose hooks "
                f"cannot be taken away: give the module that it was made from"
            )
    if not sites:
        raise ValueError(f"{op}: {type(model).__name__} has no parameters")
    if meta := [site.name for site in sites if site.parameter.is_meta]:
        raise RuntimeError(
            f"{op}: {some(meta)} on the meta device, without memory: call xinit.materialize_ first, or model.to_empty and "
            f"xinit.init_"
        )
    if not inputs and not kwargs:
        raise ValueError(f"{op}: without a batch: pass what the model is called with, as in {op}(model, inputs)")
    given = [(f"input {i}", value) for i, value in enumerate(inputs)] + list(kwargs.items())
    for name, tensor in ((name, tensor) for name, value in given for tensor in tensors(value)):
        if not tensor.numel():
            raise ValueError(f"{op}: {name}, of shape {tuple(tensor.shape)}, is empty")
        if tensor.is_floating_point() and tensor.layout is not torch.strided:
            raise ValueError(f"{op}: {name} is a {tensor.layout} tensor, which is not measured: give a dense one")
        if tensor.is_floating_point() and not (finite := local(tensor).isfinite()).all():
            wrong = int((~finite).sum())
            raise ValueError(f"{op}: {name} holds NaN or infinity, in {wrong:,} of its {tensor.numel():,} elements")


def called(op: str, model: nn.Module, inputs: Any, kwargs: Any) -> Any:
    """What a model gives. An error gets a note of the layer that was reached."""
    running: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda module, args: running.append(name)

    def leave(module: Any, args: Any, output: Any) -> None:
        running.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(canonical_name(name))))
        handles.append(module.register_forward_hook(leave))
    try:
        return model(*inputs, **kwargs)
    except Exception as error:
        note(error, f"{op}: in the forward pass, in {next(filter(None, reversed(running)), 'the model itself')}")
        raise
    finally:
        for handle in handles:
            handle.remove()


def _forward(op: str, model: nn.Module, watch: Watch, inputs: Any, kwargs: Any) -> Any:
    watch.start((inputs, kwargs))
    try:
        with watch.on():
            return model(*inputs, **kwargs)
    except Exception as error:
        reached = next((name for name in reversed(watch.reached) if name), "")
        note(error, f"{op}: in the forward pass, in {reached or 'the model itself'}" + _last(watch))
        raise


def _backward(op: str, watch: Watch, output: Any, loss: Callable[[Any], Tensor] | None) -> None:
    """Without touching ``.grad``: an optimizer that works within the backward pass is not woken."""
    if loss is not None:
        value = _lost(op, loss, output)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{op}: loss must give a tensor of one element, but found {shape}")
        ends, directions = [value] * value.requires_grad, None
    else:
        ends = [t for t in tensors(output) if t.requires_grad and (t.is_floating_point() or t.is_complex())]
        key = Key(0).fold_in("diagnose")
        directions = [normal_(torch.empty_like(end), key=key.fold_in(i)) for i, end in enumerate(ends)]
    if not ends and loss is None and next(tensors(output), None) is None:
        raise ValueError(
            f"{op}: the output, a {type(output).__name__}, has no gradient, for no tensor is found in it: pass loss=, a function "
            f"from it to a number, or backward=False"
        )
    if not ends:
        raise ValueError(
            f"{op}: the {'loss' if loss else 'output'} has no gradient: no parameter requires one, or something that cannot be "
            f"differentiated lies between; pass backward=False"
        )
    if not watch.parameters:
        raise ValueError(f"{op}: no parameter that is used requires a gradient: pass backward=False")
    try:
        torch.autograd.grad(ends, [*watch.parameters.values()], directions, allow_unused=True)
    except Exception as error:
        got = next((call.layer.name for call in watch.calls if call.gradient is not None), None)
        note(error, f"{op}: in the backward pass, " + (f"behind {got}, which got one" if got else "at its beginning"))
        raise


def _lost(op: str, loss: Callable[[Any], Tensor], output: Any) -> Any:
    try:
        return loss(output)
    except Exception as error:
        note(error, f"{op}: in the loss")
        raise


def _last(watch: Watch) -> str:
    return f"; the last layer with weights was {watch.calls[-1].layer.name}" if watch.calls else ""


def note(error: Exception, text: str) -> None:
    """Add it to what an error says of itself."""
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(text)
    elif error.args and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{text}", *error.args[1:])
