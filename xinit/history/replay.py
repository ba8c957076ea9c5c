"""Histories done again: on another device, with random numbers that follow from a key and a parameter's name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from xinit._torch import schema_of, tree_leaves, tree_map
from xinit.dtensor import view
from xinit.fill import fill_many_
from xinit.history.operators import sized_by_values, told
from xinit.history.simplify import box
from xinit.history.storages import Data, Node, Ref, Store, is_ref, memory_like, needed
from xinit.keys import Key
from xinit.matrices import one_thread
from xinit.window import Window


def replay(
    nodes: Iterable[Node],
    keys: Mapping[Node, tuple[Key, Ref | None]],
    kept: Iterable[Store],
    device: torch.device,
) -> dict[Store, torch.UntypedStorage]:
    """Do operators again, in the order of time.

    Args:
        nodes: all that are needed.
        keys: for each that draws its key, and the parameter of which it fills a box if the key is that parameter's own.
        kept: whose values are wanted; all others are given up after their last use.
        device: where.
    """
    nodes = sorted(nodes, key=lambda node: node.time)
    kept = set(kept)
    storages: dict[Store, torch.UntypedStorage] = {}
    last = {store: node for node in nodes for store in node.stores}

    def tensor(leaf: Ref | Data) -> Tensor:
        return leaf.tensor.to(device) if isinstance(leaf, Data) else leaf.among(storages, device)

    with torch.no_grad():
        for node in nodes:
            if node.fill:
                _fill(node.fill, keys.get(node), tensor)
            else:
                results = tree_leaves(_run(node, keys.get(node), tensor, device))
                # Of what nobody looks at, such as saved statistics, devices make different things.
                outputs = [(i, ref) for i, ref in node.outputs if last[ref.store] is not node or ref.store in kept]
                expected: list[Any] = [node.answer] if node.answer is not None else [ref.size for _, ref in outputs]
                found = results if node.answer is not None else [tuple(results[i].shape) for i, _ in outputs]
                if expected != found:
                    raise RuntimeError(
                        f"materialize_: the model was built for {node.func} to give {expected}, but with these values it "
                        f"gives {found}"
                    )
                for i, ref in outputs:
                    result = results[i]
                    storage = result.untyped_storage()
                    same = (tuple(result.shape), result.stride(), result.storage_offset()) == ref[2:]
                    if same and storage.nbytes() == ref.store.nbytes and storage.device == device:
                        storages[ref.store] = storage
                    else:
                        tensor(ref).copy_(result)
            for store in node.stores:
                if last[store] is node and store not in kept:
                    storages.pop(store, None)
    return storages


def _fill(fill: Any, keyed: tuple[Key, Ref | None] | None, tensor: Any) -> None:
    target, what = fill
    key, parameter = keyed or (Key(0), None)  # a constant takes none
    where = box(target, parameter) if parameter else None
    if where is None or parameter is None:
        fill_many_([tensor(target)], [what], [key])
    else:
        fill_many_([view(tensor(parameter), *where)], [what], [key], [Window(parameter.size, where[0])])


def _run(node: Node, keyed: tuple[Key, Ref | None] | None, tensor: Any, device: torch.device) -> Any:
    if keyed is None:
        with one_thread() if "linalg" in node.func.name() else nullcontext():
            return node.run(tensor, device)
    key = keyed[0]
    if node.func.namespace == "xinit":
        return node.run(tensor, device, key=key.words)
    # Numbers that xinit does not draw: torch's, on the CPU, so that they are the same on every device.
    copies: dict[Ref, Tensor] = {}

    def on_cpu(leaf: Ref | Data) -> Tensor:
        if isinstance(leaf, Data):
            return leaf.tensor.cpu()
        return copies.setdefault(leaf, tensor(leaf).cpu())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key.fold_in("torch").stream)
        results = node.run(on_cpu, torch.device("cpu"))
    if schema_of(node.func).is_mutable:
        for ref, copy in copies.items():
            tensor(ref).copy_(copy)
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, results)


def rehearse(node: Node, label: str, error: Exception) -> Any:
    """What an operator returns that the meta device cannot tell: from values that have been drawn to no other end.

    Only what does not depend on the numbers: shapes, and the answer to a question. That it does not is checked when the
    parameters get their values. What no random number went into is known anyway.
    """
    stores = {ref.store for ref in node.refs}
    nodes = [other for store in stores for other in needed(store, node.time)]
    answers = {ref.store for ref in tree_leaves(told(node.func, node.args, is_ref), is_leaf=is_ref) if is_ref(ref)}
    if any(other.random for store in answers for other in needed(store, node.time)) and sized_by_values(node.func):
        raise RuntimeError(
            f"deferred: {node.func} cannot be recorded: the size of what it returns depends on the values of {label}, which "
            f"has none yet"
        ) from error
    keys = {other: (Key(0).fold_in(i), None) for i, other in enumerate(nodes) if other.random}
    try:
        storages = replay(nodes, keys, stores, torch.device("cpu"))
        output = node.run(
            lambda leaf: leaf.of(storages[leaf.store]) if isinstance(leaf, Ref) else leaf.tensor.cpu(),
            torch.device("cpu"),
        )
    except Exception:
        output = None
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if isinstance(output, bool) and keys:
        node.answer = output
        for store in {store for other in nodes for store in other.stores}:
            store.add(node)
    elif output is None or (keys and not tensors):
        raise RuntimeError(
            f"deferred: {node.func} cannot be recorded: it takes the values of {label}, which has none yet "
            f"({str(error).splitlines()[0].split('. ')[0]})"
        ) from error
    return tree_map(lambda leaf: memory_like(leaf, torch.device("meta")) if isinstance(leaf, Tensor) else leaf, output)
