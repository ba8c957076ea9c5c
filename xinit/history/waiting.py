"""What was put off: done when somebody reads it, or when what it is made of is about to change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from xinit.history.storages import Data, Ref, Store, known, needed, now, on_meta, store_of

_thread = threading.local()


def is_paused() -> bool:
    """Whether this thread's operators are xinit's own, of which no history is kept."""
    return getattr(_thread, "paused", False)


@contextmanager
def paused() -> Iterator[None]:
    """For operators of its own."""
    before, _thread.paused = is_paused(), True
    try:
        yield
    finally:
        _thread.paused = before


def flush(store: Store) -> None:
    """Do what was put off."""
    storage = store.storage(meta=False)
    if not store.lazy or storage is None:
        return
    for source in {leaf.store for node in store.nodes for leaf in node.refs} - {store}:
        flush(source)
    store.lazy = False
    with paused(), torch.no_grad():
        for node in store.nodes:
            result = node.run(_real)
            for _, view in node.outputs:
                view.of(storage).copy_(result)
    store.held.clear()


def settle(store: Store) -> None:
    """Do what was put off and takes the values that a storage has now, since they are about to change."""
    for follower in store.lazy_followers():
        flush(follower)


def read(store: Store, reader: str) -> None:
    """Somebody looks at random numbers, and may decide by them: they stay what they are now, wherever they went, and are not
    drawn anew."""
    flush(store)
    time = now()
    draws = {node for node in needed(store, time) if node.random}
    others = {other for node in draws for reference in node.reached if (other := reference()) is not None}
    reached = [other for other in others if not draws.isdisjoint(needed(other, time))]
    for other in reached:
        if other.deferred:
            raise RuntimeError(
                f"deferred: {reader} takes random numbers that went into {other.label}, which is to be drawn later"
            )
    for other in reached:
        flush(other)
        with paused():
            other.become_data(read=True)


def without_values(tensor: Tensor) -> Tensor:
    """A view on the meta device of what a real tensor holds now, from now on only recorded."""
    with paused():
        return on_meta(tensor, store_of(tensor) or known(tensor))


def _real(leaf: Ref | Data) -> Tensor:
    assert isinstance(leaf, Ref)  # what is put off takes no other
    storage = leaf.store.storage(meta=False)
    assert storage is not None  # as whoever waits for its values holds it
    return leaf.of(storage)
