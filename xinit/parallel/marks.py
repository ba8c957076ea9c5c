"""Marks by which other libraries say that a plain parameter is one rank's part, under a name that other ranks' parts have."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from xinit.dtensor import is_sharded
from xinit.parameters.names import modules_of
from xinit.parameters.sites import some


def refuse_parts(op: str, model: nn.Module, parameters: Iterable[tuple[str, Tensor]], asked: bool = False) -> None:
    """Raise a RuntimeError if any is marked as a part: it would get the values of the others' parts, and a fan of its own.

    Args:
        asked: do so also where this process is the only one.
    """
    distributed = torch.distributed
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if not several and not asked:
        return
    found: dict[str, list[str]] = {}
    for name, parameter in parameters:
        if not is_sharded(parameter) and (mark := _mark(parameter)):
            found.setdefault(mark, []).append(name)
    for mark, names in found.items():
        raise RuntimeError(
            f"{op}: {some(names)} marked by {mark} as one rank's part of a parameter, which would get the same values on every "
            f"rank, and a part's fans: give each the layout that it has in the whole, as in xinit.parallel.parameter(name, "
            f"whole_shape, distribution).shard(dim, rank, world).fill_(parameter, key); see help(xinit.parallel)"
        )
    for _, prefix, (*_, module) in modules_of(model):
        place, number = prefix.rstrip(".").rpartition(".")[2], module.__dict__.get("layer_number")
        if place.isdecimal() and type(number) is int and number - int(place) not in (0, 1):  # counted from 0, or from 1
            raise RuntimeError(
                f"{op}: {prefix.rstrip('.')} has layer_number {number}: a pipeline stage under names of its own, "
                f"which others have too: give it the whole model's, as in xinit.parallel.renamed(stage, {{{prefix[:-1]!r}: ...}})"
            )


def _mark(parameter: Any) -> str:
    told = parameter.__dict__
    if told.get("tensor_model_parallel") is True and told.get("partition_dim", 0) >= 0:
        return "tensor_model_parallel=True" * _megatron_splits("tensor_model")
    if told.get("allreduce") is False:  # an expert, for the ranks that hold it alone to sum its gradients
        group = told.get("group_name")
        alone = group == "ep_size_1" if isinstance(group, str) else not _megatron_splits("expert_model")
        return "" if alone else "allreduce=False"
    return ""


def _megatron_splits(which: str) -> bool:
    """Whether Megatron, which marks what it might split, does: taken for granted where it does not tell."""
    state = sys.modules.get("megatron.core.parallel_state")
    if state is None or not state.model_parallel_is_initialized():
        return True
    return bool(getattr(state, f"get_{which}_parallel_world_size")() > 1)
