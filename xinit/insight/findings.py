"""From what was measured to what is wrong: flags, each with the layer that is to blame and the line that mends it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from xinit.insight.methods import suited
from xinit.insight.weights import Weights
from xinit.observe.flow import Call, Layer, Stream, fans, paths
from xinit.observe.meter import Moments

LOW, HIGH = 1e-3, 1e3  # of a signal or gradient, beside where it set out
DEAD, SATURATED = 0.6, 0.5
SEEN = 0.01  # the RMS of what is no longer small beside a norm's epsilon
GROWN = 3.0  # times what as many branches of unit size add up to

_ORDER = (
    *("non-finite", "never written", "symmetric", "dead", "vanishing", "exploding", "saturated", "residual growth"),
)


@dataclass(frozen=True, slots=True)
class Flag:
    """What is wrong with a layer.

    Attributes:
        kind: "non-finite", "never written", "symmetric", "dead", "vanishing", "exploding", "saturated" or "residual growth".
        layer: its name, or that of a parameter.
        cause: why, most likely.
        fix: the line that mends it.
    """

    kind: str
    layer: str
    cause: str
    fix: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.layer}: {self.cause}"


@dataclass(slots=True)
class Findings:
    """What is wrong in one pass.

    Args:
        calls: every use of a layer, in the order of execution.
        streams: every sum of a residual path.
        values: the meter's.
        weights: what was measured of the layers' weights, of those that were not used too.
        unwritten: names of parameters, and what :func:`xinit.audit` says of them.
    """

    calls: Sequence[Call]
    streams: Sequence[Stream]
    values: Sequence[Moments]
    weights: dict[Layer, Weights]
    unwritten: Iterable[tuple[str, str]] = ()
    found: list[Flag] = field(default_factory=list)

    def flags(self) -> list[Flag]:
        """All of them, the worst first; of one layer each kind once."""
        self._weights()
        self._non_finite()
        self._flat()
        self._signal()
        self._streams()
        self._gradient()
        once = {(flag.kind, flag.layer): flag for flag in reversed(self.found)}
        return sorted(reversed(once.values()), key=lambda flag: _ORDER.index(flag.kind))

    # ---- what is to be read from one layer alone ----

    def _weights(self) -> None:
        for layer, weights in self.weights.items():
            for leaf, moments in weights.all.items():
                if not moments.finite:
                    cause = "it holds NaN or infinity: it was overwritten, or is memory that nothing was written to"
                    self._flag("non-finite", layer, f"{leaf}: {cause}", self._again(layer))
            silent = fans(layer) is not None and weights.matrices.norm == 0
            if silent and any(call.activation and self.values[call.left or 0].norm for call in layer.calls):
                cause = "its weights are all zero: it gives its bias, whatever comes in"
                self._flag("vanishing", layer, cause, self._again(layer))
            share, width = weights.equal.mean, fans(layer) or (0, 0)
            if layer.calls and share > 0.5 and (width[0] >= 4 or share > 0.99):
                cause = (
                    f"{share:.0%} of its units have the weights of another one: they stay alike, and learn as one unit"
                )
                self._flag("symmetric", layer, cause, self._again(layer))
        for name, problem in self.unwritten:
            fix = f'xinit.init_(model, "torch", xinit.Key(0), only="{name}")'
            self.found.append(Flag("never written", name, f"{problem}: it holds what the memory held", fix))

    def _non_finite(self) -> None:
        for call in self.calls:
            left = self._of(call.left)
            if left is None or left.finite:
                continue
            if not any(f.kind == "non-finite" and f.layer == call.layer.name for f in self.found):
                entered = self._of(call.entered)
                into = "what comes in is finite: its values go beyond what the dtype holds"
                if entered is not None and not entered.finite:
                    into = "what comes in is not finite already: an operation before it divides by zero or overflows"
                self._flag("non-finite", call.layer, into, self._again(call.layer))
            return  # those behind it have it from there
        for call in reversed(self.calls):
            gradient = self._of(call.gradient)
            if gradient is not None and not gradient.finite:
                cause = "its gradient is not finite, though what it gives is: a function behind it has no slope there"
                self._flag("non-finite", call.layer, cause, self._again(call.layer))
                return

    def _flat(self) -> None:
        for layer in self.weights:
            silent = [self.values[call.dead] for call in layer.calls if call.dead is not None and self._heard(call)]
            units, share, _ = Moments.together(silent)
            # By chance half the units of a layer whose inputs are much alike are dead.
            if share > min(0.999, DEAD + 1.5 / math.sqrt(max(units, 1))) and (units >= 16 or self._silent(layer)):
                kind, left = layer.calls[0].activation, self._of(layer.calls[0].left)
                assert kind is not None
                assert left is not None
                cause = (
                    f"{share:.0%} of its units stay where {kind.name} is flat for the whole batch: before it their values "
                    f"have mean {left.mean:.2g} and std {left.std:.2g}"
                )
                self._flag("dead", layer, cause + self._bias(layer), self._again(layer))
            flat = [self.values[call.saturated] for call in layer.calls if call.saturated is not None]
            share = Moments.together(flat).mean
            if share > SATURATED:
                kind, left = layer.calls[0].activation, self._of(layer.calls[0].left)
                assert kind is not None
                assert left is not None
                cause = (
                    f"{share:.0%} of its values are where {kind.name} is flat, beyond {kind.low:.2g} and {kind.high:.2g}: "
                    f"before it they have RMS {left.rms:.2g}"
                )
                self._flag("saturated", layer, cause + self._bias(layer), self._again(layer))

    def _heard(self, call: Call) -> bool:
        """Whether there is a signal at all."""
        size, left = self._size(call), self._of(call.left)
        return (size is None or size >= LOW) and left is not None and left.norm > 0

    def _silent(self, layer: Layer) -> bool:
        gradients = [self.values[call.gradient] for call in layer.calls if call.gradient is not None]
        return bool(gradients) and all(gradient.norm == 0 for gradient in gradients)

    def _bias(self, layer: Layer) -> str:
        bias = self.weights[layer].all.get("bias")
        return f", and the bias has mean {bias.mean:.2g}" if bias is not None and abs(bias.mean) > 0.5 else ""

    # ---- what is to be read from the way of a signal ----

    def _signal(self) -> None:
        ends = set(self.calls) - {call for other in self.calls for call in other.source.calls}
        sizes = {call: size for call in self.calls if (size := self._size(call)) is not None}
        for call, size in sizes.items():
            before = [sizes.get(other, 1.0) for other in call.source.calls]
            if size < LOW and call.layer.is_norm and (entered := self._of(call.entered)) and entered.rms > SEEN:
                cause = (
                    "what it normalises is all the same, as where all examples of a batch are: nothing is left of it"
                )
                self._flag("vanishing", call.layer, cause, "# give it a batch of different examples")
            elif size < LOW and all(other >= LOW for other in before) and not self._begins_at_zero(call):
                self._blame("vanishing", call, size)
            if size > HIGH and all(other <= HIGH for other in before):
                self._blame("exploding", call, size)
            elif call in ends and not call.layer.is_norm and not any(other > HIGH for other in (*before, size)):
                left, scale = self._of(call.left), self._scale(call)
                if left is not None and scale and left.finite and left.rms / scale > HIGH:
                    self._blame("exploding", call, left.rms / scale, out=True)

    def _begins_at_zero(self, call: Call) -> bool:
        """Whether what comes in is the end of a branch that is zero as yet, and adds nothing, on its way to a gate."""
        return any(c.added and (left := self._of(c.left)) is not None and left.norm == 0 for c in call.source.calls)

    def _size(self, call: Call) -> float | None:
        """What comes into a layer, beside where it set out; of a norm, what goes out, beside what its weights ask for."""
        entered, left = self._of(call.entered), self._of(call.left)
        if call.layer.is_norm:
            weight = self.weights[call.layer].all.get("weight")
            asked = 1.0 if weight is None else weight.rms
            return left.rms / asked if left is not None and asked and left.finite else None
        scale = self._scale(call, before=True)
        return entered.rms / scale if entered is not None and scale and entered.finite else None

    def _scale(self, call: Call, before: bool = False) -> float:
        scale = call.source.scale if before else call.scale
        return max((self.values[i].rms for i in scale), default=0.0)

    def _blame(self, kind: str, call: Call, size: float, out: bool = False) -> None:
        """Flag the one layer that does most of it, or all on the way."""
        worst = min if kind == "vanishing" else max
        way: list[tuple[Call, float]] = []
        here, arrived = call, self._of(call.left if out else call.entered)
        if out:
            entered = self._of(call.entered)
            way.append((call, _ratio(arrived, None if entered is None else entered.rms)))
            arrived = entered
        while arrived is not None and here.source.calls:
            above = worst(here.source.calls, key=lambda c: (self._of(c.left) or Moments()).rms)
            entered = None if above.layer.is_norm else self._of(above.entered)
            way.append((above, _ratio(arrived, self._scale(above) if entered is None else entered.rms)))
            if entered is None:
                break
            here, arrived = above, entered
        if not way:
            return
        self._flag_way(kind, [(c, g) for c, g in way if not c.layer.is_norm] or way, call, size, "signal")

    def _flag_way(self, kind: str, way: list[tuple[Call, float]], call: Call, size: float, what: str) -> None:
        worst = min if kind == "vanishing" else max
        logs = [math.log(gain) if gain else -math.inf for _, gain in way]
        one, gain = worst(way, key=lambda step: step[1])
        total = math.log(size) if size else -math.inf
        if len(way) == 1 or not math.isfinite(total) or worst(logs) / total > 0.5:
            self._flag(kind, one.layer, self._reason(one.layer, gain, what), self._again(one.layer))
            return
        first, last = (way[-1][0], way[0][0]) if what == "signal" else (way[0][0], way[-1][0])
        each = math.exp(total / len(way))
        cause = (
            f"{size:.2g} of the {what} is left: each of the {len(way)} layers from {first.layer.name} to "
            f"{last.layer.name} passes on {each:.2g} times what it gets"
        )
        self._flag(kind, call.layer, cause, self._all({one.layer: None for one, _ in way}))

    def _reason(self, layer: Layer, gain: float, what: str) -> str:
        weights = self.weights[layer]
        cause = f"it passes on {gain:.2g} times the {what} it gets"
        if weights.matrices.norm == 0:
            return f"{cause}: its weights are all zero"
        std, width = weights.matrices.std, fans(layer)
        own = weights.own_std or (1 / math.sqrt(width[0]) if width else None)
        if own and not 0.2 < std / own < 5:
            return f"{cause}: its weights have std {std:.2g}, and {own:.2g} where its own method draws them"
        return cause

    # ---- residual paths ----

    def _streams(self) -> None:
        for sums in paths(self.streams):
            stream = sums[0]
            start = self.values[stream.start].rms
            scales = [self.values[i].rms for one in sums for i in one.scale]
            grown = self.values[stream.value].rms / max(start, *scales, 1e-30)
            if len(sums) < 3 or not grown > GROWN * math.sqrt(1 + len(sums)):
                continue
            writers = {
                call: self.values[call.left].rms for one in sums for call in one.writers if call.left is not None
            }
            ranked = sorted(writers, key=lambda call: -writers[call])
            if not ranked:
                continue
            top = ranked[0]
            if len(ranked) > 1 and writers[top] > 4 * writers[ranked[1]] and self._early(top, writers):
                entered = self._of(top.entered)
                gain = _ratio(self._of(top.left), None if entered is None else entered.rms)
                self._flag("exploding", top.layer, self._reason(top.layer, gain, "signal"), self._again(top.layer))
                continue
            cause = (
                f"the residual stream grows {grown:.3g}-fold over {len(sums)} branches, of which this one and others add "
                f"RMS {writers[top]:.2g}: they are to be scaled by 1 / sqrt({len(sums)})"
            )
            first = next(
                call for call in sorted(writers, key=lambda c: c.left or 0) if writers[call] > 0.5 * writers[top]
            )
            layers = {call.layer: None for call in sorted(writers, key=lambda c: c.left or 0)}
            self._flag("residual growth", first.layer, cause, self._all(layers, 1 / math.sqrt(len(sums))))

    def _early(self, top: Call, writers: dict[Call, float]) -> bool:
        """Whether it is the layer itself that gives more than what it gets, not only the last of a stream that grows."""
        entered, left = self._of(top.entered), self._of(top.left)
        return entered is not None and left is not None and left.rms > 10 * entered.rms

    # ---- gradients ----

    def _gradient(self) -> None:
        if any(
            flag.kind in ("vanishing", "exploding", "non-finite", "dead", "saturated", "residual growth")
            for flag in self.found
        ):
            return  # of which it would be the same again
        behind: dict[Call, list[Call]] = {call: [] for call in self.calls}
        for call in self.calls:
            for other in call.source.calls:
                behind[other].append(call)
        sizes = {call: g.norm for call in self.calls if (g := self._of(call.gradient)) is not None and g.finite}
        last = max((size for call, size in sizes.items() if not behind[call]), default=0.0)
        first = {call: sizes[call] / last for call in self.calls if last and not call.source.calls and call in sizes}
        if not first:
            return
        for kind, worst in (("vanishing", min), ("exploding", max)):
            call = worst(first, key=lambda c: first[c])
            if LOW <= first[call] <= HIGH or (kind == "vanishing") != (first[call] < LOW):
                continue
            way: list[tuple[Call, float]] = []
            here = call
            while ahead := [other for other in behind[here] if other in sizes and other is not here]:
                following = max(ahead, key=lambda c: sizes[c])
                way.append((following, _ratio(sizes[here], sizes[following])))
                if any(following is c for c, _ in way[:-1]):
                    break
                here = following
            if any(not gain and not self.weights[c.layer].matrices.norm for c, gain in way):
                continue  # a last layer that begins at zero lets gradients through after its first step
            lost = [
                (one, other) for one, (other, gain) in zip((call, *(c for c, _ in way)), way, strict=False) if not gain
            ]
            if lost:
                (one, other), fix = lost[-1], "# put a function that has a slope between them"
                cause = f"no gradient comes back to it from {other.layer.name}: a function without a slope lies between"
                self._flag(kind, one.layer, cause, fix)
            elif way:
                self._flag_way(kind, way, call, first[call], "gradient")

    # ---- words ----

    def _of(self, index: int | None) -> Moments | None:
        return None if index is None else self.values[index]

    def _flag(self, kind: str, layer: Layer, cause: str, fix: str) -> None:
        if kind == "vanishing" and any(f.layer == layer.name and f.kind == "dead" for f in self.found):
            return  # that is why
        self.found.append(Flag(kind, layer.name, cause, fix))

    def _again(self, layer: Layer) -> str:
        return self._all({layer: None})

    def _all(self, layers: Iterable[Layer], scale: float = 1.0) -> str:
        """The line that draws the weights of these layers anew, in the way that suits what follows each."""
        layers = list(layers)
        if len(layers) > 3:
            return "xinit.init_(model, xinit.recommend(model, *inputs), xinit.Key(0))"
        recipe: dict[str, str] = {}
        for layer in layers:
            for leaf, parameter in layer.weights.items():
                if parameter.dim() > 1:
                    what = str(suited(layer, scale, self.weights[layer].own_std))
                else:
                    what = "xinit.ones()" if layer.is_norm and leaf == "weight" else "xinit.zeros()"
                recipe[layer.parameter_name(leaf)] = what
        text = ", ".join(f'"{name}": {what}' for name, what in recipe.items())
        return f"recipe = {{{text}}}; xinit.init_(model, recipe, xinit.Key(0), only=[*recipe])"


def _ratio(out: Moments | float | None, into: float | None) -> float:
    out = out.rms if isinstance(out, Moments) else out
    return out / into if out is not None and into else 1.0
