"""Where a model's parameters are: storages, what of them is whose, and what was done to them since they were last drawn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from xinit._torch import identity_of
from xinit.distributions import Distribution
from xinit.dtensor import Box, is_sharded, local_of, simulated
from xinit.history.simplify import box, fills
from xinit.history.storages import Node, Ref, Store, known, now, ref, store_of
from xinit.parameters.sites import Site, some
from xinit.subclasses import plain

_aten = torch.ops.aten


class Member:
    """A parameter.

    Attributes:
        whole: itself; of a sharded one, a tensor without memory in the place of its whole.
        local: of a sharded one, what this rank has,
        boxes: and where in the whole that is.
        draws: how many operators have drawn for what is there by now, each from a key of its number.
    """

    def __init__(self, site: Site) -> None:
        self.name, self.parameter = site.name, site.parameter
        self.whole: Tensor = self.parameter
        self.local: Tensor | None = None
        self.boxes: tuple[Box, ...] = ()
        self.draws = 0
        called = f"accelerate: parameter {self.name}"
        shard: Any = self.parameter
        if is_sharded(shard):
            if simulated(shard.device_mesh):
                raise NotImplementedError(f"{called} is that of several ranks in one process: draw it by xinit.init_")
            self.local, boxes = local_of(self.parameter, called)
            self.whole = torch.empty(self.parameter.shape, dtype=self.parameter.dtype, device="meta")
            self.boxes = tuple(boxes)
        self._check(called, self.memory)

    @property
    def memory(self) -> Tensor:
        return self.whole if self.local is None else self.local

    def _check(self, called: str, memory: Tensor) -> None:
        if not plain(memory):
            raise NotImplementedError(
                f"{called} is a {type(memory).__name__}; supported are plain tensors and DTensors of them: initialise the "
                f"tensor that it is made from, or use xinit.init_"
            )
        if memory.is_meta and (memory.numel() or not memory.is_cpu):
            how = "xinit.materialize_ draws it" if store_of(memory) else "call model.to_empty(device=...) first"
            raise RuntimeError(f"{called} is on the meta device, without memory: {how}")
        if hasattr(self.parameter, "ds_id") or memory.untyped_storage().nbytes() < memory.numel() * memory.itemsize:
            raise RuntimeError(
                f"{called} has no memory here, as under DeepSpeed's ZeRO-3 or FSDP1: initialise the model before it is wrapped"
            )


class Place:
    """A storage with parameters in it.

    Attributes:
        on_data: whether what is written down begins with what was there,
        taken: and whether operators have taken values that were drawn, and so may bring them back;
        given: the names of parameters that such values went into.
    """

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.on_data = self.taken = False
        self.given: dict[str, None] = {}
        self.overwritten: Distribution | None = (
            None  # with what, if that is all that was done to it since it was last drawn
        )
        self._store: Store | None = None

    @property
    def sharded(self) -> bool:
        return self.members[0].local is not None

    @property
    def pending(self) -> bool:
        return self._store is not None or self.overwritten is not None

    @property
    def store(self) -> Store | None:
        """What was done to it since it was last drawn, if anything."""
        self.begin_if_overwritten()
        return self._store

    def begin_if_overwritten(self) -> None:
        """Write down what else is done, too: whoever asks for the history of the storage finds it."""
        if self.overwritten is not None:
            what, self.overwritten = self.overwritten, None
            store = self.begin()
            whole = ref(self.members[0].whole, store)
            store.add(Node(_aten.fill_.Scalar, (whole,), {}, (whole, what)))

    def begin(self, on_data: bool = False) -> Store:
        """Write down what is done from now on; if that is asked for, to what is there now."""
        if (store := self.store) is None:
            whole = self.members[0].whole
            self.on_data = on_data or len(self.members) > 1
            store = self._store = known(whole) if self.on_data else Store(whole.untyped_storage())
            store.defer(f"{self.members[0].name} of shape {tuple(whole.shape)}")
        return store

    def end(self) -> None:
        self.overwritten = None
        if self._store is not None:
            self._store.forget()
            self._store = None

    def overwrite(self, what: Distribution) -> None:
        """Fill all of it, of a single parameter."""
        self.end()
        self.overwritten = what

    @property
    def covered(self) -> bool:
        """Whether what was there before is of no importance any more, or known."""
        return self.store is not None and any(node.overwrites(self.store) for node in self.store.nodes)

    @property
    def repeats(self) -> bool:
        """Whether it is drawn by its name's key, from which it may have been before."""
        nodes = self._store.nodes if self._store else ()
        fills = [node.fill[1] for node in nodes if node.fill] + [self.overwritten] * (self.overwritten is not None)
        return any(what is not None and what.name != "constant" for what in fills)

    def count_draws(self) -> None:
        """From the first again, where nothing is left of what was drawn before: the same bits as if that had not been."""
        if not self.taken and (self.overwritten is not None or (self.covered and not self.on_data)):
            for member in self.members:
                member.draws = 0

    @property
    def described(self) -> bool:
        """Whether it is but fills."""
        return self.store is not None and fills(self.store, now()) is not None

    def undo(self) -> None:
        """Forget what was written down last."""
        assert self.store is not None
        self.store.nodes.pop()

    def met(self, tensor: Tensor) -> list[Member]:
        """The parameters that a view of the storage may share elements with."""
        if len(self.members) == 1 and like(tensor, self.members[0].whole):
            return self.members
        there = _extent(tensor)
        return [member for member in self.members if _share(_extent(member.whole), there)]


def part_of(tensor: Tensor, whole: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The offsets and the shape of the box of a tensor that a view of the same storage is, if it is one."""
    if like(tensor, whole):
        return (0,) * tensor.dim(), tuple(tensor.shape)
    return box(_place(tensor), _place(whole))


def check_one(met: list[Member], tensor: Tensor) -> None:
    """Raise a RuntimeError if a draw reaches across parameters, or beyond one."""
    if len(met) == 1:
        there, whole = _extent(tensor), _extent(met[0].whole)
        if whole[0] <= there[0] and there[1] <= whole[1]:
            return
    raise RuntimeError(
        f"accelerate: a draw of shape {tuple(tensor.shape)} reaches {'across' if len(met) > 1 else 'beyond'} "
        f"{some([member.name for member in met])}, in one storage: draw into each parameter for itself"
    )


def inside(tensor: Tensor, member: Member) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """The boxes of the whole, offsets and shapes, that a view of a shard's local tensor holds; None if it is no box of that."""
    assert member.local is not None
    if (local := part_of(tensor, member.local)) is None:
        return None
    found = []
    for piece in member.boxes:
        ends = zip(*local, piece.local, piece.shape, strict=True)
        spans = [(max(a, b), min(a + m, b + n)) for a, m, b, n in ends]
        if all(start < stop for start, stop in spans):
            moves = zip(spans, piece.local, piece.offsets, strict=True)
            found.append((tuple(s - b + at for (s, _), b, at in moves), tuple(stop - s for s, stop in spans)))
    return found


def identity(tensor: Tensor) -> int:
    """Of its storage."""
    found: int = identity_of(tensor.untyped_storage())
    return found


def places_of(sites: Iterable[Site]) -> tuple[dict[int, Place], dict[int, list[Member]]]:
    """By storage: where wholes are; and the sharded ones of which the local tensor is there."""
    places: dict[int, Place] = {}
    locals_: dict[int, list[Member]] = {}
    for site in sites:
        member = Member(site)
        places.setdefault(identity(member.whole), Place()).members.append(member)
        if member.local is not None:
            locals_.setdefault(identity(member.local), []).append(member)
    return places, locals_


def like(tensor: Tensor, other: Tensor | None) -> bool:
    """Whether both are the same view of a storage, if it is the same."""
    return other is not None and _place(tensor) == _place(other)


def _place(tensor: Tensor) -> Ref:
    return Ref(None, tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))  # type: ignore[arg-type]


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The first byte in the storage, and the one after the last."""
    reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    start = int(tensor.storage_offset()) * tensor.itemsize
    return start, start + (reach * tensor.itemsize if tensor.numel() else 0)


def _share(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])
