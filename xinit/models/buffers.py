"""Buffers: statistics, which are reset with the parameters of their module, and raw memory, as ``to_empty`` leaves it."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from xinit._torch import NormBase, not_persistent
from xinit.dtensor import is_sharded
from xinit.generators import governed
from xinit.keys import Key
from xinit.parameters.names import Walk
from xinit.parameters.sites import Place, Site, emptied, known_unwritten, mark_unwritten, never_written, raw
from xinit.recipes.torch_modules import resets_as, rule_of

# How modules make their buffers, by the names under which torch, timm, torchtitan and others have it; without arguments.
_OWN = (
    *("init_non_persistent_buffers", "_init_buffers", "init_buffers", "reset_buffers", "_reset_buffers"),
    *("reset_parameters", "_reset_parameters", "init_weights", "_init_weights", "initialize_weights"),
)
_MAKES = tuple(
    mark + verb + "_" for verb in ("define", "init", "reset", "make", "build") for mark in ("", "_")
)  # and its name


@dataclass(slots=True, eq=False)
class Buffer:
    name: str
    leaf: str
    tensor: Tensor
    path: tuple[nn.Module, ...]  # from the model to the module that owns it

    @property
    def module(self) -> nn.Module:
        return self.path[-1]

    @property
    def place(self) -> Place:
        return self.name, self.tensor, self.module

    @property
    def derived(self) -> bool:
        """Whether no checkpoint holds it, so that its values follow from how the module was built."""
        return self.leaf in not_persistent(self.module)

    def like(self, fill: int) -> Tensor:
        new = torch.full_like(self.tensor, fill, memory_format=torch.contiguous_format)
        return new if fill == 0 or not new.is_floating_point() else new.fill_(float("nan"))


class Buffers:
    """What is to be done to a model's buffers when some of its parameters are drawn.

    Args:
        modules: of the model, before anything of it changes.
        every: the sites of all its parameters.
        chosen: those that are drawn.
        left: whether a buffer is to be left alone.
        key: the model's, for buffers that are random.
        unwritten: whether all that nothing was written to is to be made, wherever it is.
    """

    def __init__(
        self,
        modules: Walk,
        every: Sequence[Site],
        chosen: Sequence[Site],
        left: Callable[[Place], bool],
        key: Key,
        unwritten: bool = False,
    ) -> None:
        self.values: list[tuple[Tensor, Tensor | float]] = []
        self.unknown: list[Buffer] = []
        # Of those, and of what is made anew: they may as well have been copied or sharded.
        self.unsure: set[Buffer] = set()
        self.changed: list[Buffer] = []
        set_elsewhere = {id(module) for site in chosen if site.computed for module in site.computed.modules}
        buffers = [b for b in buffers_of(modules) if not left(b.place) and id(b.module) not in set_elsewhere]
        if not buffers or not every:
            return
        parameters = _Parameters({id(part.parameter) for site in chosen for part in site.parts})
        raw: list[Buffer] = []
        for buffer in buffers:
            some, all_ = parameters.chosen(buffer.path)
            rule = statistic(buffer.module, buffer.leaf)
            if all_ and rule is not None:
                self.values.append((buffer.tensor, rule))
            elif unwritten and never_written(buffer.tensor):
                raw.append(buffer)
            elif some and (known_unwritten(buffer.tensor) or parameters.emptied(buffer)):
                if not (known_unwritten(buffer.tensor) or parameters.raw(buffer)):
                    self.unsure.add(buffer)
                (raw if all_ or buffer.derived else self.unknown).append(buffer)
        found = _made_anew(raw, key)
        self.values += [(buffer.tensor, value) for buffer, value in found.items()]
        self.changed = [b for b, value in found.items() if b in self.unsure and not _same(b.tensor, value)]
        self.unknown += [buffer for buffer in raw if buffer not in found]

    def write(self) -> tuple[list[str], list[str]]:
        """Returns the names of those that may be raw memory still; and of those that may not have been, and have other values."""
        with torch.no_grad():
            for tensor, value in self.values:
                tensor.copy_(value) if isinstance(value, Tensor) else tensor.fill_(value)
        for buffer in self.unknown:
            if buffer not in self.unsure:
                mark_unwritten(buffer.tensor)
        return [buffer.name for buffer in self.unknown], [buffer.name for buffer in self.changed]


def statistic(module: nn.Module, leaf: str) -> float | None:
    """What batch and instance norms make their running statistics in ``reset_parameters``; and the count of averaged models."""
    if isinstance(module, AveragedModel):
        return 0.0 if leaf == "n_averaged" else None
    if not isinstance(module, NormBase) or not resets_as(type(module), NormBase):
        return None
    return {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}.get(leaf)


class _Parameters:
    """Those of modules and all that is in them."""

    def __init__(self, chosen: set[int]) -> None:
        self.ids = chosen
        self.cache: dict[int, list[tuple[nn.Parameter, bool]]] = {}

    def within(self, module: nn.Module) -> list[tuple[nn.Parameter, bool]]:
        """And whether each is of a module of torch, all of which write their parameters as they are built."""
        found = self.cache.get(id(module))
        if found is None:
            kind: Any = type(module)
            known = rule_of(kind) is not None
            found = [(p, known) for p in module._parameters.values() if p is not None]
            found += [entry for child in module._modules.values() if child is not None for entry in self.within(child)]
            self.cache[id(module)] = found
        return found

    def chosen(self, path: Sequence[nn.Module]) -> tuple[bool, bool]:
        """Whether some and all of the parameters are drawn that a buffer goes with: those of its module, or, if it has none, of
        the innermost module around it that has some. Of its module, all are if one is."""
        own = [id(p) in self.ids for p in path[-1]._parameters.values() if p is not None]
        if own:
            return any(own), any(own)
        for module in reversed(path):
            if around := [id(p) in self.ids for p, _ in self.within(module)]:
                return any(around), all(around)
        return False, False

    def emptied(self, buffer: Buffer) -> bool:
        """Whether it may be raw memory: never written, and nor were the parameters around it, though their constructors write."""
        return never_written(buffer.tensor) and emptied(self._around(buffer))

    def raw(self, buffer: Buffer) -> bool:
        """Whether it surely is."""
        return raw(self._around(buffer))

    def _around(self, buffer: Buffer) -> list[nn.Parameter]:
        """Those of torch's modules, where there are any: constructors like ``nn.Parameter(torch.ones(8))`` do not write."""
        for module in reversed(buffer.path):
            if around := [p for p, known in self.within(module) if known]:
                return around
        return [p for p, _ in self.within(buffer.path[0])]


def buffers_of(modules: Walk, meta: bool = False) -> Iterator[Buffer]:
    """Those with elements and memory, or on the meta device, if these are wanted too; each once."""
    seen: set[int] = set()
    for _, prefix, path in modules:
        for leaf, tensor in path[-1]._buffers.items():
            if tensor is not None and (meta or not tensor.is_meta) and id(tensor) not in seen and tensor.numel():
                seen.add(id(tensor))
                yield Buffer(prefix + leaf, leaf, tensor, path)


def as_floats(tensor: Tensor, name: str) -> Tensor:
    """Floating-point numbers that have its bits, whatever its dtype; of complex ones, a last dimension more.

    Raises:
        NotImplementedError: for a buffer that is not of plain numbers.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise NotImplementedError(
            f"fingerprint: buffer {name} is not of plain numbers: {tensor.dtype}, {tensor.layout}"
        )
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    if tensor.dtype.itemsize == 1:
        tensor = tensor.view(torch.uint8).to(torch.int16)
    return tensor.view({2: torch.float16, 4: torch.float32, 8: torch.float64}[tensor.dtype.itemsize])


# ---- a module's own way ----


def _made_anew(wanted: Iterable[Buffer], key: Key) -> dict[Buffer, Tensor]:
    """What modules' own methods make of their buffers, as far as these methods determine them.

    They are called on twins of the modules, whose parameters are on the meta device, so that neither model nor generators
    change; twice, upon different memory: a buffer is determined by a method if both times it comes out the same.
    """
    found: dict[Buffer, Tensor] = {}
    rest = [buffer for buffer in wanted if not is_sharded(buffer.tensor)]
    for way in _ways(rest):
        here = [b for b in rest if b not in found and any(module is way.root for module in b.path)]
        if here:
            found.update(way.determined(here, key.fold_in(here[0].name)))
    return found


@dataclass(slots=True)
class _Way:
    root: nn.Module  # of what a twin is made
    method: str
    owner: nn.Module | None = None  # whose method is called with the twin; its own, without arguments, if None

    def determined(self, buffers: Sequence[Buffer], key: Key) -> dict[Buffer, Tensor]:
        runs = []
        for fill in (0, 1):
            with governed(key, *(b.tensor.device for b in buffers)):
                runs.append(self._run(buffers, fill))
        first, second = runs
        return {b: x for b, x in first.items() if b in second and x.shape == b.tensor.shape and _same(x, second[b])}

    def _run(self, buffers: Sequence[Buffer], fill: int) -> dict[Buffer, Tensor]:
        try:
            memo: dict[int, Any] = {id(b.tensor): b.like(fill) for b in buffers}
            twin = _twin(self.root, memo)
            owner = memo.get(id(self.owner), self.owner)
            with torch.no_grad():
                getattr(twin, self.method)() if owner is None else getattr(owner, self.method)(twin)
            return {b: x for b in buffers if (x := memo[id(b.module)]._buffers.get(b.leaf)) is not None}
        except Exception:  # of code that was not written to be called like this: it is no way then
            return {}


def _ways(buffers: Sequence[Buffer]) -> Iterator[_Way]:
    """In the order in which they have the last word: what a model does to its parts, what a module does itself, and what those
    around it do to themselves, from the innermost on."""
    modules = {id(b.module): b.path for b in buffers}.values()
    for path in modules:
        for owner in reversed(path):
            if _takes(owner, "_init_weights", 1):
                yield _Way(path[-1], "_init_weights", owner)
                break
    around = {id(module): module for path in modules for module in reversed(path)}
    for buffer in buffers:
        named = (prefix + buffer.leaf for prefix in _MAKES)
        yield from (_Way(buffer.module, method) for method in named if _takes(buffer.module, method, 0))
    for module in [*(path[-1] for path in modules), *around.values()]:
        yield from (_Way(module, method) for method in _OWN if _takes(module, method, 0))


def _takes(module: nn.Module, method: str, count: int) -> bool:
    function = getattr(module, method, None)
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*(None,) * count)
    except (TypeError, ValueError):
        return False
    return True


def _twin(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Modules of the same classes and attributes, with parameters on the meta device, and copies of the buffers."""
    if id(module) in memo:
        known: nn.Module = memo[id(module)]
        return known
    twin: nn.Module = module.__class__.__new__(module.__class__)
    memo[id(module)] = twin
    own = {n: v.copy() if type(v) in (dict, OrderedDict, set, list) else v for n, v in module.__dict__.items()}
    bound = {n: v for n, v in own.items() if isinstance(v, MethodType) and v.__self__ is module}
    own |= {n: MethodType(v.__func__, twin) for n, v in bound.items()}
    twin.__dict__.update(own)
    for leaf, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is not None and id(tensor) not in memo:
            memo[id(tensor)] = _on_meta(tensor) if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
        own["_parameters" if leaf in module._parameters else "_buffers"][leaf] = (
            tensor if tensor is None else memo[id(tensor)]
        )
    own["_modules"].update((leaf, _twin(child, memo)) for leaf, child in module._modules.items() if child is not None)
    return twin


def _on_meta(parameter: nn.Parameter) -> nn.Parameter:
    meta = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
    return nn.Parameter(meta, parameter.requires_grad)


def _same(x: Tensor, y: Tensor) -> bool:
    """Bit by bit; on the meta device nothing is."""
    if x.is_meta or (x.dtype, x.device, x.shape) != (y.dtype, y.device, y.shape):
        return False
    bits = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in (x, y)]
    return torch.equal(*bits)
