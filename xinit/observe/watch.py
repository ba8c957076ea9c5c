"""One forward pass of a model, and one backward, watched: by hooks on its layers, and a mode that sees what lies between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from xinit._torch import DisableTorchFunction
from xinit.observe.activations import NAMES, Activation, probe, self_gated
from xinit.observe.flow import (
    ADDITIONS,
    MATMULS,
    MULTIPLICATIONS,
    NORMS,
    PRODUCTS,
    Call,
    Layer,
    Stream,
    Tag,
    comes_from,
    computed_in,
    is_norm,
    layers_of,
    merged,
    tensors,
    unit_axis,
)
from xinit.observe.meter import Meter, local
from xinit.parameters.names import canonical_name


class Watch(TorchFunctionMode):
    """What happens in a model, while it is entered with :meth:`on`.

    A module without children that holds weights, or normalises, is seen as a whole. Of others, the functions that they call are
    seen, so that a product with a parameter is a layer too.

    Attributes:
        calls: every use of a layer, in the order of execution.
        streams: every sum of a residual path.
        reached: the names of the modules that are running.
    """

    def __init__(self, model: nn.Module, meter: Meter) -> None:
        super().__init__()
        self.meter = meter
        self.calls: list[Call] = []
        self.streams: list[Stream] = []
        self.reached: list[str] = []
        self.parameters: dict[int, nn.Parameter] = {}  # that require gradients, as the model has used them
        named = dict(model.named_modules())
        self._names = {module: canonical_name(name) for name, module in named.items()}
        self._owned = layers_of(named)
        self._computed = computed_in(named)
        self._layers: dict[Any, Layer] = {}
        # Some compute a weight before their module is entered.
        self._by_parameter = {id(module._parameters[leaf]): (module, leaf) for module, leaf in self._computed}
        self._tags: Any = WeakTensorKeyDictionary()
        self._behind: Any = WeakTensorKeyDictionary()  # what an activation has made, and of which call
        self._whole: list[tuple[nn.Module, Tag, Call | Activation | None]] = []  # modules that are seen as a whole
        self._probed: dict[Any, Activation | None] = {}
        self._handles: list[Any] = []
        self._listening = True
        self._one = frozenset((meter.note(1, torch.ones((), device="cpu"), torch.ones((), device="cpu")),))

    @contextmanager
    def on(self) -> Iterator[None]:
        """Hooks and the mode, until the forward pass is over; gradients are heard until :meth:`off`."""
        try:
            for module in self._names:
                self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
            with self:
                yield
        finally:
            self._listening = False

    def off(self) -> None:
        """Take away all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._tags.clear()
        self._behind.clear()

    def layer_of(self, module: nn.Module, leaf: str = "") -> Layer:
        """The layer that a module is, or that one of its weights is."""
        weights = self._owned[module]
        own = leaf not in ("", "weight") and sum(p.dim() > 1 for p in weights.values()) > 0
        place = module, leaf if own else ""
        if place not in self._layers:
            owner, name = self._computed.get(place, place)
            full = ".".join(filter(None, (self._names[owner], name if name != "weight" else "")))
            held = {leaf: weights[leaf]} if own else weights
            held = {self._computed.get((module, leaf), (module, leaf))[1]: p for leaf, p in held.items()}
            self._layers[place] = Layer(full or "(model)", owner, held)
        return self._layers[place]

    def start(self, inputs: Any) -> None:
        """What the model is called with."""
        for tensor in tensors(inputs):
            if tensor.is_floating_point() or tensor.is_complex():
                self._tags[tensor] = Tag(scale=frozenset((self.meter.measure(tensor),)))

    def tag(self, tensor: Tensor) -> Tag | None:
        """What is known of a tensor."""
        tag: Tag | None = self._tags.get(tensor)
        return tag

    # ---- modules ----

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._listening:
            return
        self.reached.append(self._names[module])
        weights = module._parameters
        for leaf, parameter in weights.items():  # those in use now: FSDP2 has others in their place
            if parameter is not None and module in self._owned:
                self._by_parameter[id(parameter)] = module, leaf
                if parameter.requires_grad:
                    self.parameters[id(parameter)] = parameter
        if self._whole or next(module.children(), None) is not None:
            return
        with torch.no_grad(), DisableTorchFunction():
            tensor = next((t for t in tensors((args, kwargs)) if t.is_floating_point()), None)
            tag = Tag() if tensor is None else self._tagged(tensor)
            if module in self._owned and sum(p.dim() > 1 for p in self._owned[module].values()) < 2:
                if isinstance(module, nn.PReLU) and tensor is not None and (kind := self._kind_of(module)) is not None:
                    self._before(kind, tensor, tag)
                self._whole.append((module, tag, self._call(self.layer_of(module), tensor, tag)))
            elif is_norm(module):
                self._whole.append((module, tag, None))
            elif module not in self._owned and tensor is not None and (kind := self._kind_of(module)) is not None:
                self._before(kind, tensor, tag)
                self._whole.append((module, tag, kind))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self._listening:
            return
        self.reached.pop()
        if not self._whole or self._whole[-1][0] is not module:
            return
        _, tag, what = self._whole.pop()
        with torch.no_grad(), DisableTorchFunction():
            if isinstance(what, Activation):
                for tensor in tensors(output):
                    self._after(what, tag, tensor)
            elif what is not None:
                self._left(what, output, _padded(module, args, kwargs))
                before = _latest(tag)
                if isinstance(module, nn.PReLU) and before is not None and before.activated is None:
                    before.activated = what.left
            else:
                for tensor in tensors(output):
                    self._tags[tensor] = Tag(tag.calls, self._one)

    def _kind_of(self, module: nn.Module) -> Activation | None:
        """The activation that a module without weights is."""
        if isinstance(module, nn.Identity | nn.Dropout | nn.AlphaDropout) or next(module.buffers(), None) is not None:
            return None
        if module not in self._probed:
            call: Any = module.forward
            if isinstance(module, nn.PReLU):  # may have a slope for each unit
                call = nn.LeakyReLU(float(local(module.weight).mean()))
            self._probed[module] = probe(call, type(module).__name__)
        return self._probed[module]

    # ---- layers ----

    def _tagged(self, tensor: Tensor) -> Tag:
        """What is known of it; if nothing is, the signal begins here."""
        tag = self._tags.get(tensor)
        if tag is None or tag.weight is not None:
            tag = Tag(scale=frozenset((self.meter.measure(tensor),)))
            self._tags[tensor] = tag
        return tag  # type: ignore[no-any-return]

    def _call(self, layer: Layer, tensor: Tensor | None, tag: Tag) -> Call:
        call = Call(layer, tag, None if tensor is None else self.meter.measure(tensor))
        layer.calls.append(call)
        self.calls.append(call)
        return call

    def _left(self, call: Call, output: Any, padded: Tensor | None = None) -> None:
        found = [tensor for tensor in tensors(output) if tensor.is_floating_point() or tensor.is_complex()]
        if not found:
            return
        if call.activated is None:  # or it was measured before the layer's own activation
            call.left = self.meter.measure(found[0])
        call.units = found[0].shape[unit_axis(call.layer, found[0])] if found[0].dim() else 1
        call.scale = self._one if call.layer.is_norm else call.source.scale or frozenset((call.left or 0,))
        tag = Tag(frozenset((call,)), call.scale)
        for tensor in found:
            self._tags[tensor] = tag
        if found[0].requires_grad:
            hook: Any = found[0].register_hook
            self._handles.append(hook(lambda gradient: self._gradient(call, gradient, padded)))

    def _gradient(self, call: Call, gradient: Tensor, padded: Tensor | None) -> None:
        with torch.no_grad(), DisableTorchFunction():
            if padded is not None and padded.shape == gradient.shape[:-1] and not padded.all():
                gradient = gradient[~padded]
            call.gradient = self.meter.measure(gradient)

    # ---- activations ----

    def _before(self, kind: Activation, tensor: Tensor, tag: Tag) -> None:
        call = _latest(tag)
        if call is None or call.activation is not None:
            return
        call.activation = kind
        values = local(tensor)
        axis = 1 if values.dim() > 1 and values.shape[1] == call.units and values.shape[-1] != call.units else -1
        if values.dim() > 2 and values.shape[1] == call.units and unit_axis(call.layer, tensor) == 1:
            axis = 1
        if kind.rectifies and values.dim() > 1 and values.numel():
            highest = values.amax([d for d in range(values.dim()) if d != axis % values.dim()])
            call.dead = self.meter.note(highest.numel(), (highest <= kind.low).sum())
        if kind.high < float("inf") or not kind.rectifies:
            low = -math.inf if kind.rectifies else kind.low
            call.saturated = self.meter.measure_beyond(values, low, kind.high)

    def _after(self, kind: Activation, tag: Tag, result: Tensor) -> None:
        call = _latest(tag)
        if call is not None and call.activation is not None:
            if call.activation is kind and call.activated is None:
                call.activated = self.meter.measure(result)
            self._behind[result] = call
        self._tags[result] = tag

    def _gate(self, name: str, args: Any, result: Tensor) -> None:
        """Of a product of what a layer gives with its own activation: an activation of another kind, such as x * sigmoid(x); or
        none, where the one half opens for the other."""
        pair = [tensor for tensor in args if isinstance(tensor, Tensor)]
        calls = [self._behind.get(tensor) for tensor in pair]
        if len(pair) == 1 and calls[0] is not None:  # 1 + tanh(x)
            self._behind[result] = calls[0]
        if name not in MULTIPLICATIONS or len(pair) < 2 or (calls[0] is None) == (calls[1] is None):
            return
        other, call = (pair[1], calls[0]) if calls[1] is None else (pair[0], calls[1])
        tag = self._tags.get(other)
        if tag is None or tag.calls != {call}:
            return
        made = self_gated(local(other), local(result)) if other.shape == result.shape else None
        if made is None and call.activation.high == math.inf:
            return  # a ReLU or the like is one by whatever it is multiplied
        call.activation = call.activated = call.dead = call.saturated = None
        if made is not None:
            self._before(made, other, tag)
            self._after(made, tag, result)

    # ---- functions ----

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._whole and not (isinstance(self._whole[-1][2], Call) and name in NAMES):
            return func(*args, **kwargs)
        if name in NAMES and args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            return self._activate(func, name, args, kwargs)
        if self._whole:
            return func(*args, **kwargs)
        if PRODUCTS.fullmatch(name) or MATMULS.fullmatch(name) or NORMS.fullmatch(name):
            return self._product(func, name, args, kwargs)
        known = [tag for tensor in tensors((args, kwargs)) if (tag := self._known(tensor)) is not None]
        result = func(*args, **kwargs)
        if known:
            with torch.no_grad():
                self._spread(name, args, known, result)
                if name in MULTIPLICATIONS or name in ADDITIONS:
                    self._gate(name, args, result)
        return result

    def _known(self, tensor: Tensor) -> Tag | None:
        if id(tensor) in self._by_parameter:
            return Tag(weight=self.layer_of(*self._by_parameter[id(tensor)]))
        tag: Tag | None = self._tags.get(tensor)
        return tag

    def _activate(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        inside = self._whole[-1][2] if self._whole else None
        tag = Tag(frozenset((inside,))) if isinstance(inside, Call) else self._tags.get(args[0])
        kind = None
        if tag is not None and tag.calls:
            rest = {key: value for key, value in kwargs.items() if key != "inplace"}
            of = func, repr(args[1:]), repr(rest)
            if of not in self._probed and not any(True for _ in tensors((args[1:], rest))):
                self._probed[of] = probe(lambda x: func(x, *args[1:], **rest), name.rstrip("_"))
            kind = self._probed.get(of)
        if kind is None or tag is None:
            known = [tag] if tag is not None else []
            result = func(*args, **kwargs)
            if known and not self._whole:
                self._spread(name, args, known, result)
            return result
        with torch.no_grad():
            if isinstance(inside, Call) and inside.activation is None:
                inside.left, inside.units = self.meter.measure(args[0]), args[0].shape[-1]
            self._before(kind, args[0], tag)
        result = func(*args, **kwargs)
        with torch.no_grad():
            if isinstance(inside, Call):
                if inside.activation is kind and inside.activated is None:
                    inside.activated = self.meter.measure(result)
            else:
                self._after(kind, tag, result)
        return result

    def _product(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """A product with a weight is a layer; one of two things that flow is not."""
        given = list(tensors((args, kwargs)))
        known = [(tensor, tag) for tensor in given if (tag := self._known(tensor)) is not None]
        weights = [tag.weight for tensor, tag in known if tag.weight and (tensor.dim() > 1 or NORMS.fullmatch(name))]
        flowing = [t for t in given if t.is_floating_point() and not ((tag := self._known(t)) and tag.weight)]
        if not weights or (not flowing and not name.startswith("embedding")):
            result = func(*args, **kwargs)
            if NORMS.fullmatch(name) and known and flowing:  # or it is a weight that is normalised
                with torch.no_grad():
                    calls = merged(tag for _, tag in known).calls
                    self._tags[result] = Tag(calls, self._one)
            elif known:
                self._spread(name, args, [tag for _, tag in known], result)
            return result
        with torch.no_grad():
            tensor = flowing[0] if flowing else None
            whole = len(weights) > 1 and len({weight.module for weight in weights}) == 1  # as of an LSTM
            layer = self.layer_of(weights[0].module) if whole else weights[0]
            call = self._call(layer, tensor, Tag() if tensor is None else self._tagged(tensor))
            if MATMULS.fullmatch(name) and tensor is not None:
                matrix = next(p for p in layer.weights.values() if p.dim() > 1)
                square, inputs = matrix.shape[-1] == matrix.shape[-2], tensor.shape[-1]
                call.transposed = any(t is matrix for t in given) if square else matrix.shape[-2] == inputs
        result = func(*args, **kwargs)
        with torch.no_grad():
            self._left(call, result)
        return result

    def _spread(self, name: str, args: Any, known: list[Tag], result: Any) -> None:
        """What is known of a function's arguments, to what it gives."""
        if all(tag.weight is not None for tag in known):
            tag = known[0]
        elif name in ADDITIONS and len(known) == 2 and known[0].weight is None and known[1].weight is None:
            tag = self._sum(known[0], known[1], args, result)
        else:
            tag = merged(known)
        for tensor in (args[0],) if name == "__setitem__" else tensors(result):
            self._tags[tensor] = tag

    def _sum(self, one: Tag, other: Tag, args: Any, result: Tensor) -> Tag:
        for call in one.calls ^ other.calls:
            call.added = True
        stream, branch = (other, one) if comes_from(one, other) else (one, other)
        if not comes_from(branch, stream) or any(a.shape != result.shape for a in args if isinstance(a, Tensor)):
            return merged((one, other))
        before = stream.stream
        last = _latest(stream)
        first = max(stream.scale) if last is None else last.left if last.activated is None else last.activated
        start = before.start if before is not None else first or 0
        made = Stream(before, start, self.meter.measure(result), branch.calls, branch.scale)
        self.streams.append(made)
        return Tag(branch.calls if before is not None else branch.calls | stream.calls, stream.scale, made)


def _padded(module: nn.Module, args: Any, kwargs: Any) -> Tensor | None:
    """Which tokens of an embedding are padding. Zero rows come of them, which norms magnify on the way back, for nothing: these
    rows do not learn."""
    if not isinstance(module, nn.Embedding) or module.padding_idx is None:
        return None
    chosen: Tensor = next(tensors((args, kwargs))) == module.padding_idx
    return chosen if type(chosen) is Tensor else None


def _latest(tag: Tag) -> Call | None:
    """The call that comes last among those that something comes from."""
    return max(tag.calls, key=lambda call: call.left or -1, default=None)
