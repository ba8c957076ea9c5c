"""Generators that are governed by a key for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from xinit.calls import default_generator
from xinit.keys import Key


@contextmanager
def governed(key: Key, *devices: torch.device) -> Iterator[None]:
    """torch's default generators of these devices and of the CPU follow the key; afterwards they are as they were."""
    generators = {torch.default_generator: None} | {default_generator(device): None for device in devices}
    states = [(generator, generator.get_state()) for generator in generators]
    try:
        for generator, _ in states:
            generator.manual_seed(key.stream % 2**63)
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
