"""A model left as it was: whatever a pass through it changes is put back, also after an error."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from xinit.generators import governed
from xinit.keys import Key

_EMBEDDINGS = nn.Embedding, nn.EmbeddingBag


@contextmanager
def left_as_it_was(model: nn.Module, *, weights: bool = True) -> Iterator[None]:
    """Buffers, attributes, training modes, requires_grad, gradients and generators are afterwards what they were before. So are
    the weights of embeddings with a ``max_norm``, which a pass rescales.

    Within, torch's generators follow one key, so that dropout is the same every time.

    Args:
        model: what a pass may change.
        weights: whether parameters that the pass itself has replaced are put back too.
    """
    modules = list(model.modules())
    training = [module.training for module in modules]
    owned = [(dict(module._buffers), dict(module._parameters)) for module in modules]
    kept = [(dict(module._modules), dict(vars(module))) for module in modules]
    held = {id(b): b for buffers, _ in owned for b in buffers.values() if b is not None}
    held |= {id(m.weight): m.weight for m in modules if getattr(m, "max_norm", None) and isinstance(m, _EMBEDDINGS)}
    saved = [(buffer, buffer.detach().clone()) for buffer in held.values()]
    parameters = list(model.parameters())
    wanted = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]
    devices = {tensor.device for tensor in (*parameters, *held.values()) if not tensor.is_meta}
    numpy: Any = sys.modules.get("numpy")
    states = random.getstate(), numpy and numpy.random.get_state()
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        with governed(Key(0), *devices), eager:
            yield
    finally:
        random.setstate(states[0])
        if numpy:
            numpy.random.set_state(states[1])
        for module, mode, (buffers, own), (children, attributes) in zip(modules, training, owned, kept, strict=True):
            _put_back(module._modules, children)
            _put_back(vars(module), attributes)
            module.training = mode
            _put_back(module._buffers, buffers)
            if weights:
                _put_back(module._parameters, own)
        with torch.no_grad():
            for buffer, value in saved:  # batch norm's kernels write without counting a version
                if buffer.shape != value.shape or not torch.equal(buffer, value):
                    _copy(buffer, value)
        for parameter, requires_grad, gradient in wanted:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not gradient:
                parameter.grad = gradient


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    if now.keys() != before.keys() or any(now[name] is not before[name] for name in before):
        now.clear()
        now.update(before)


def _copy(buffer: Tensor, value: Tensor) -> None:
    if buffer.shape != value.shape:
        buffer.resize_(value.shape)
    buffer.copy_(value)
