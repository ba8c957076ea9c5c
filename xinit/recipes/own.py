"""What a model's own code initialises its parameters to: its methods and its constructor, run again on a copy without memory."""

from __future__ import annotations

import copy
import inspect
import io
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xinit._torch import Lacking, without_modes
from xinit.distributions import Distribution, constant
from xinit.guards import FLAG
from xinit.history.simplify import Record
from xinit.history.storages import needed
from xinit.keys import Key
from xinit.lazy.context import deferred, is_deferring
from xinit.lazy.materialize import materialize_
from xinit.lazy.targets import record_of
from xinit.parameters.names import canonical_name, every_module
from xinit.parameters.plans import describe
from xinit.subclasses import plain

_SMALL = 1 << 16  # elements: what is computed, rather than drawn, is looked at up to this size


@dataclass(frozen=True, slots=True)
class Own:
    """What a parameter's own init gives.

    Attributes:
        distribution: of all of it, or of most; None if it is computed.
        random: whether random numbers go into it.
        ops: the names of the operators that compute it.
    """

    distribution: Distribution | None
    random: bool = False
    ops: tuple[str, ...] = ()

    @property
    def constant(self) -> float | None:
        """The value that all of its elements have, if they have the same."""
        what = self.distribution
        return what.parameters[0] if what is not None and what.name == "constant" else None

    def __str__(self) -> str:
        if self.distribution is not None:
            std = "" if self.constant is not None else f" of std {self.distribution.std:.3g}"
            return describe(self.distribution) + std
        drawn = "draws it by" if self.random else "computes it by"
        return f"{drawn} {', '.join(self.ops)}" if self.ops else "gives it values of its own"


class OwnInit:
    """What is known of a model's own initialisation, by parameter.

    Its code runs once, when it is first asked for: ``reset_parameters`` and ``_init_weights`` on a copy of the model without
    memory, and where these leave something out a constructor: of transformers, timm or diffusers, or another one whose arguments
    attributes of the same names tell. No random number is taken, and an error in that code only means that nothing is known.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._built: dict[int, dict[int, Own]] = {}

    @cached_property
    def modules(self) -> list[nn.Module]:
        return every_module(self.model)

    @cached_property
    def _pretrained(self) -> list[nn.Module]:
        return [*pretrained(self.model)]

    @cached_property
    def _known(self) -> dict[int, Own]:
        return _by_methods(self.model, [*_methods(self.modules, self._pretrained)])

    @cached_property
    def _places(self) -> dict[int, Place]:
        return _places_of(self.model)

    def of(self, parameter: nn.Parameter) -> tuple[Own | None, bool]:
        """What its own init gives a parameter, None if that is not known; and whether nothing else can have written it since."""
        if is_deferring():
            return None, False
        real = type(parameter) is nn.Parameter and not parameter.is_meta
        if not real and (record := record_of(parameter)) is not None:
            return own_of(record), True
        own = self._known.get(id(parameter))
        if not self._pretrained:
            return own, False
        place = self._places.get(id(parameter))
        by_config = place is not None and place.build is _by_config
        if own is None and by_config:
            own = self.by_constructor(parameter)
        return own, own is not None and by_config

    def by_constructor(self, parameter: nn.Parameter) -> Own | None:
        """What the constructor of the module that it is part of gives it, if that is one that is known how to build again."""
        place = self._places.get(id(parameter))
        if place is None or place.build is None:
            return None
        module = place.module
        if id(module) not in self._built:
            found = _rebuilt(module, place.build)
            owns = ((id(p), found.get((canonical_name(name), p.shape))) for name, p in module.named_parameters())
            self._built[id(module)] = {key: own for key, own in owns if own is not None}
        return self._built[id(module)].get(id(parameter))

    def in_doubt(self, parameter: nn.Parameter) -> tuple[nn.Module, ...]:
        """The modules around it whose constructors may set it, and of which it is not known to what."""
        place = self._places.get(id(parameter))
        if place is None:
            return ()
        lost = place.build is not None and self.by_constructor(parameter) is None
        return (*place.untold, *((place.module,) if lost else ()))


def own_of(record: Record) -> Own | None:
    """What a record says; None if the whole of it was never written."""
    parts, store = record.parts, record.ref.store
    if parts is not None:
        if not parts or parts[0][2] != record.ref.size:
            return None
        whats = [what for what, _, _ in parts]
        whats = [what if what.std else constant(what.parameters[0]) for what in whats]  # N(m, 0) is one too
        drawn = [what for what in whats if what.name != "constant"]
        if drawn:
            return Own(drawn[0], random=True)
        return Own(whats[0]) if len(set(whats)) == 1 else Own(None, ops=tuple(map(describe, whats)))
    ops = tuple(dict.fromkeys(node.func.overloadpacket.__name__ for node in store.until(record.time)))
    return Own(None, any(node.random for node in needed(store, record.time)), ops)


def _look(parameter: nn.Parameter, own: Own | None) -> Own | None:
    """The same, but for what was computed to be one number."""
    if own is None or own.distribution is not None or own.random or parameter.numel() > _SMALL:
        return own
    holder = nn.Module()
    holder.register_parameter("parameter", parameter)
    materialize_(holder, key=Key(0))
    values = parameter.detach()
    first = values.flatten()[0]
    return Own(constant(float(first))) if bool((values == first).all()) else own


Builder = Callable[[Any], nn.Module]
Method = tuple[nn.Module, Callable[[Any], object]]


class Place(NamedTuple):
    """The outermost module around a parameter that can be built again, and how; and those around it of which that is not told."""

    module: nn.Module
    build: Builder | None
    untold: tuple[nn.Module, ...]


def _places_of(model: nn.Module) -> dict[int, Place]:
    """By the parameters' ids."""
    places: dict[int, Place] = {}
    todo: list[tuple[nn.Module, tuple[nn.Module, ...]]] = [(model, ())]
    while todo:
        module, untold = todo.pop()
        build, told = _builder(module)
        untold = untold if told else (*untold, module)
        place = Place(module, build, untold)
        for parameter in module._parameters.values() if build is None else module.parameters():
            if parameter is not None:
                places.setdefault(id(parameter), place)
        if build is None:
            todo += [(child, untold) for child in module._modules.values() if child is not None]
    return places


def _builder(module: Any) -> tuple[Builder | None, bool]:
    """How a module is built again, if that is known; and whether nothing else is that its constructor may have done to it."""
    if _is_pretrained(module):
        return _by_config, True
    if "_internal_dict" in module.__dict__ and hasattr(type(module), "from_config"):  # diffusers
        return lambda module: type(module).from_config(module.config), True
    if type(module).__module__.startswith("timm.") and isinstance(getattr(module, "pretrained_cfg", None), dict):
        return _by_architecture, True  # but for its options
    kind: Any = type(module)
    if (getattr(kind.__init__, "__module__", "") or "").startswith("torch."):  # None in what exec ran
        return None, True
    names = _arguments(kind)
    if names is None:
        return None, False
    given = {name: module.__dict__.get(name, module.__dict__.get(f"_{name}", _UNTOLD)) for name in names}
    if any(value is _UNTOLD or isinstance(value, Tensor | nn.Module) for value in given.values()):
        return None, False
    return lambda module: type(module)(**copy.deepcopy(given)), True


_UNTOLD = object()


@lru_cache  # of a model's modules, many are alike
def _arguments(kind: Any) -> list[str] | None:
    """The names of a constructor's arguments, if all of them can be given by name."""
    try:
        _, *arguments = inspect.signature(kind.__init__).parameters.values()
    except (TypeError, ValueError):  # written in C
        return None
    by_name = all(argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY) for argument in arguments)
    return [argument.name for argument in arguments] if by_name else None


def _by_config(module: Any) -> nn.Module:
    built: nn.Module = type(module)(copy.deepcopy(module.config))
    return built


def _by_architecture(module: Any) -> nn.Module:
    timm: Any = sys.modules["timm"]
    built: nn.Module = timm.create_model(module.pretrained_cfg["architecture"], pretrained=False)
    return built


def _is_pretrained(module: Any) -> bool:
    """Whether it is a model of transformers. By the class: a wrapper may pass attributes on."""
    kind: Any = type(module)
    return _initializes(kind) and hasattr(module, "config")


@lru_cache
def _initializes(kind: Any) -> bool:
    return hasattr(kind, "initialize_weights") and hasattr(kind, "_init_weights")


def pretrained(model: nn.Module) -> Iterator[nn.Module]:
    """The models of transformers in it, without those that are parts of others."""
    todo = [model]  # the next one last
    while todo:
        module = todo.pop()
        if _is_pretrained(module):
            yield module
        else:
            todo += [child for child in reversed(module._modules.values()) if child is not None]


@contextmanager
def _apart() -> Iterator[None]:
    """For code that is run to see what it would do: no output, no warnings, no mode, no generator sees anything of it."""
    numpy: Any = sys.modules.get("numpy")
    with ExitStack() as stack:
        stack.enter_context(without_modes())
        stack.enter_context(redirect_stdout(io.StringIO()))
        states = random.getstate(), torch.get_rng_state(), numpy and numpy.random.get_state()
        try:
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            stack.enter_context(torch.no_grad())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            yield
        finally:
            random.setstate(states[0])
            torch.set_rng_state(states[1])
            if numpy:
                numpy.random.set_state(states[2])


def _by_methods(model: nn.Module, methods: Sequence[Method]) -> dict[int, Own]:
    """What the model's methods write, by the ids of the model's parameters."""
    if not methods:
        return {}
    try:
        with _apart():
            with deferred():
                twins = _Twins()
                twins.module(model)
                for module, method in methods:
                    method(twins.module(module))
            return _looked({key: p for key, p in twins.parameters.items()})
    except Lacking:
        raise
    except Exception:  # whatever a method of others raises
        return {}


def _looked(parameters: dict[Any, nn.Parameter]) -> dict[Any, Own]:
    found = ((key, p, record_of(p)) for key, p in parameters.items())
    owns = {key: _look(p, own_of(record)) for key, p, record in found if record is not None}
    return {key: own for key, own in owns.items() if own is not None}


def _rebuilt(module: nn.Module, build: Builder) -> dict[tuple[str, torch.Size], Own]:
    """What a model's constructor writes, by name and shape."""
    try:
        with _apart():
            with deferred():
                built = build(module)
            return _looked({(canonical_name(n), p.shape): p for n, p in built.named_parameters(remove_duplicate=False)})
    except Lacking:
        raise
    except Exception:
        return {}


def _methods(modules: Sequence[nn.Module], theirs: Sequence[nn.Module]) -> Iterator[Method]:
    """The modules that set parameters by a method of their own, and how to call it, in the order of a constructor; of those in
    models of transformers, these alone."""
    inside = {id(part) for module in theirs for part in every_module(module)}
    others = [module for module in reversed(modules) if id(module) not in inside]
    for name, count, call in (
        ("reset_parameters", 0, lambda twin: twin.reset_parameters()),
        ("_init_weights", 1, lambda twin: twin.apply(twin._init_weights)),
    ):
        have = {kind for kind in {type(module) for module in others} if _has(kind, name, count)}
        yield from ((module, call) for module in others if type(module) in have)
    for module in theirs:
        yield module, lambda twin: twin.initialize_weights()


def _has(kind: type[nn.Module], name: str, arguments: int) -> bool:
    """Whether a class has a method of that name with so many arguments, which is none of torch's."""
    method = getattr(kind, name, None)
    if method is None or method.__module__.startswith("torch."):
        return False
    try:
        inspect.signature(method).bind(None, *(None,) * arguments)
    except (TypeError, ValueError):
        return False
    return True


class _Twins:
    """Copies of modules and of what they hold, whose parameters are those of a :func:`deferred` context."""

    def __init__(self) -> None:
        self.parameters: dict[int, nn.Parameter] = {}
        self._modules: dict[int, nn.Module] = {}

    def module(self, module: nn.Module) -> nn.Module:
        twin = self._modules.get(id(module))
        if twin is not None:
            return twin
        twin = self._modules[id(module)] = object.__new__(type(module))
        held = module.__dict__
        twin.__dict__.update(held)
        twin.__dict__.pop(FLAG, None)
        twin.__dict__.update(
            _parameters=dict.fromkeys(module._parameters),
            _buffers={name: self.tensor(buffer) for name, buffer in module._buffers.items()},
            _modules=self.children(module),
        )
        for name, parameter in module._parameters.items():
            if parameter is not None:
                nn.Module.register_parameter(twin, name, self.parameter(parameter))
        for name, value in held.items():
            if isinstance(value, Tensor | nn.Module):
                twin.__dict__[name] = self.value(value)
            elif type(value) in (list, tuple) and name not in ("_parameters", "_buffers", "_modules"):
                twin.__dict__[name] = type(value)(map(self.value, value))
        return twin

    def children(self, module: nn.Module) -> dict[str, nn.Module | None]:
        """Of layers that look alike only the first and the last; the others are taken to be as the first."""
        children = module._modules
        if isinstance(module, nn.ModuleList) and len(children) > 2:
            alike: dict[Any, list[nn.Module]] = {}
            for child in filter(None, children.values()):
                shapes = tuple((name, p.shape) for name, p in child.named_parameters())
                alike.setdefault((type(child), shapes), []).append(child)
            for first, *others in alike.values():
                for other in others[:-1]:
                    if id(other) not in self._modules:
                        self._stand_in(self.module(first), first, other)
        return {name: child and self.module(child) for name, child in children.items()}

    def _stand_in(self, twin: nn.Module, module: nn.Module, other: nn.Module) -> None:
        self._modules[id(other)] = twin
        for one, two in zip(module.parameters(), other.parameters(), strict=True):
            self.parameters.setdefault(id(two), self.parameters[id(one)])

    def value(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return self.module(value)
        return self.tensor(value) if isinstance(value, Tensor) else value

    def tensor(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None or isinstance(tensor, nn.Parameter):
            return tensor if tensor is None else self.parameter(tensor)
        if plain(tensor) and tensor.numel() <= _SMALL and not tensor.is_meta:
            return tensor.detach().clone()
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    def parameter(self, parameter: nn.Parameter) -> nn.Parameter:
        twin = self.parameters.get(id(parameter))
        if twin is None:
            floating = parameter.dtype.is_floating_point or parameter.dtype.is_complex
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            twin = self.parameters[id(parameter)] = nn.Parameter(empty, requires_grad=floating)
        return twin
