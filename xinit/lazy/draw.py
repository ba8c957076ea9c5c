"""What was recorded, drawn: tensors that are to get their values, all in one fill, or by doing again what no fill describes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from xinit.dtensor import cut, is_sharded
from xinit.history.replay import replay
from xinit.history.simplify import Record, box, origin
from xinit.history.storages import Node, Ref, Store, needed
from xinit.keys import Key
from xinit.parameters.writes import Write, fill_writes_
from xinit.window import Window


class Target:
    """A parameter or buffer that is to get its memory."""

    def __init__(self, name: str, tensor: Tensor, record: Record, wrapper: Tensor) -> None:
        self.name, self.tensor, self.record = name, tensor, record
        self.wrapper = wrapper  # the tensor itself, or the wrapper subclass that holds it
        self.whole = record.ref
        self.store = record.ref.store
        self.draws = 0  # how many operators drew for it by numbers of their own: the number of the next one

    def writes(self, key: Key) -> list[Write]:
        """Its parts, to be drawn from the model's key."""
        key, size = key.fold_in(self.name), self.whole.size
        return [
            Write(
                what, key, offsets, shape, Window(size, offsets) if shape != size and what.name != "constant" else None
            )
            for what, offsets, shape in self.record.parts or ()
        ]

    def written(self) -> bool:
        """Whether anything was ever written to it."""
        return self.record.parts != () or not self.whole.numel


def draw(
    targets: Sequence[Target],
    memory: Callable[[Target, bool], Tensor | None],
    device: torch.device,
    key: Key,
    op: str,
    progress: bool = False,
) -> list[Tensor]:
    """The values of all targets, in their order: fills in one batch, and everything else done again, all of it on one device.

    Args:
        memory: for the values of a target, of which is said whether it is done again; None for what that is to make itself.
    """
    needs = done_again(targets)
    keys = _keys_of(list(needs), {target.store for target in targets}, key)
    # What stays has its memory before what does not: the holes that this leaves are for the next.
    values = {target: into for target in targets if (into := memory(target, target in needs)) is not None}
    for alike in _apart(needs):
        nodes = {node for target in alike for node in needs[target]}
        storages = replay(nodes, keys, {target.store for target in alike}, device)
        for target in alike:
            whole = target.whole.among(storages, device)
            if target not in values:
                values[target] = whole.to(target.tensor.dtype)
            elif is_sharded(values[target]):
                cut(whole, values[target])
            else:
                values[target].data.copy_(whole)
        del storages, whole  # before the next ones take theirs
    jobs = [(target.name, values[target], target.writes(key)) for target in targets if target not in needs]
    fill_writes_(jobs, progress, op)
    return [values[target] for target in targets]


def done_again(targets: Sequence[Target]) -> dict[Target, list[Node]]:
    """The targets of which what was recorded is to be done again, in their order, and all that each takes."""
    needs: dict[Target, list[Node]] = {}
    read: set[Store] = set()
    owned = Counter(target.store for target in targets)
    # Two parameters that are views of one storage take their values in the order of time.
    simple = {target for target in targets if target.record.parts is not None and owned[target.store] == 1}
    while True:
        # A copy of what another target, or an operator that is to be done again, draws too must not be drawn for itself.
        shared = owned.keys() | read
        rest = [
            target
            for target in targets
            if target not in needs
            and (target not in simple or target.store in read or not shared.isdisjoint(target.record.sources))
        ]
        if not rest:
            return {target: needs[target] for target in targets if target in needs}
        for target in rest:
            needs[target] = needed(target.store, target.record.time)
            read.update(ref.store for node in needs[target] for ref in node.refs)


def _apart(needs: dict[Target, list[Node]]) -> Iterable[list[Target]]:
    """Groups of targets that have nothing to do with each other: doing one again at a time takes the memory of one."""
    groups: dict[Node | Store, list[Target]] = {}
    for target, nodes in needs.items():
        parts: list[Node | Store] = [target.store, *nodes]
        met = {id(one): one for part in parts if (one := groups.get(part))}
        group: list[Target] = next(iter(met.values()), [])
        joining = [target, *(other for joined in met.values() if joined is not group for other in joined)]
        group += joining
        for other in joining:
            groups.update(dict.fromkeys((other.store, *needs[other]), group))
    return {id(group): group for group in groups.values()}.values()


def _keys_of(again: list[Target], owned: set[Store], key: Key) -> dict[Node, tuple[Key, Ref | None]]:
    """Whose draws they are: a parameter's own if its final values come from them, else the first one's that needs them."""
    keys: dict[Node, tuple[Key, Ref | None]] = {}
    own: dict[Node, tuple[Target, Ref]] = {}
    for copied in True, False:
        for t in reversed(again):
            whole, time = origin(t.whole, t.record.time) if copied else (t.whole, t.record.time)
            if whole.store is t.store or whole.store not in owned:
                own |= {n: (t, whole) for n in whole.store.until(time) if n.fill and box(n.fill[0], whole)}
    known: set[Node] = set()
    for target in again:
        for node in needed(target.store, target.record.time, known):
            known.add(node)
            if node in own:
                keys[node] = key.fold_in(own[node][0].name), own[node][1]
            elif node.random:
                keys[node] = key.fold_in(target.name).fold_in(target.draws), None
                target.draws += 1
    return keys
