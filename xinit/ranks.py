"""What takes several ranks: sums over all that hold a sharded model, and whether they agree. All else is done without a word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from xinit.keys import Key
from xinit.sharding import is_sharded


class Ranks:
    """The ranks that hold a model: those of the mesh that spans the meshes of its parameters, or of a group.

    Args:
        tensors: the model's.
        group: the process group whose ranks hold the model together, each its mesh's part, such as all stages of a pipeline.
        op: who asks.

    Raises:
        NotImplementedError: if no mesh spans the others.
    """

    def __init__(self, tensors: Iterable[Any], op: str, group: Any = None) -> None:
        self.op, self.group, self.mesh = op, group, None
        tensors = list(tensors)
        self.device = next((tensor.device for tensor in tensors if not tensor.is_meta), "cpu")
        meshes = {tensor.device_mesh: None for tensor in tensors if is_sharded(tensor)}
        self.members: dict[Any, set[int]] = {mesh: set(mesh.mesh.flatten().tolist()) for mesh in meshes}
        if meshes:
            self.mesh = self._spanning()
            self.first = int(self.mesh.mesh.flatten()[0])

    def _spanning(self) -> Any:
        largest = max(self.members, key=lambda mesh: len(self.members[mesh]))
        if all(self.members[largest] >= members for members in self.members.values()):
            return largest
        names = {name for mesh in self.members for name in mesh.mesh_dim_names or ()}
        try:
            root = largest._get_root_mesh()
            span = root[tuple(name for name in root.mesh_dim_names if name in names)]
            if all(set(span.mesh.flatten().tolist()) >= members for members in self.members.values()):
                return span
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            pass
        raise NotImplementedError(
            f"{self.op}: the parameters are on the meshes {', '.join(map(str, self.members))}, and none spans the others: "
            f"make all of them of one mesh with named dimensions"
        )

    def counts(self, tensor: Any) -> bool:
        """Whether it is this rank that answers for what it holds of a tensor: one of those that hold the same does."""
        if self.mesh is None:
            return True
        if not is_sharded(tensor):
            return bool(self.mesh.get_rank() == self.first)
        mesh = tensor.device_mesh
        replicated = zip(mesh.get_coordinate(), tensor.placements, strict=True)
        return self.first in self.members[mesh] and all(at == 0 for at, p in replicated if p.is_replicate())

    def sum(self, numbers: Sequence[int]) -> list[int]:
        """Modulo 2^64, over all ranks; of one that nothing is shared with, its own."""
        if self.mesh is None and self.group is None:
            return [number % 2**64 for number in numbers]
        signed = [(number + 2**63) % 2**64 - 2**63 for number in numbers]
        return [number % 2**64 for number in self._reduced(signed, "SUM")]

    def check_key(self, key: Key) -> None:
        """Raises a ValueError on every rank, if not all have the same key."""
        distributed = torch.distributed
        if not distributed.is_available() or not distributed.is_initialized():
            return
        halves = [half for word in (key.seed, key.stream) for half in divmod(word, 2**32)]
        most = self._reduced([*halves, *(-half for half in halves)], "MAX")
        if most[:4] != [-half for half in most[4:]]:
            raise ValueError(
                f"{self.op}: the ranks have different keys; rank {distributed.get_rank()} has {key}. Nothing has been filled"
            )

    def _reduced(self, numbers: list[int], how: str) -> list[int]:
        distributed: Any = torch.distributed
        mesh, groups = self.mesh, [self.group]
        if self.group is None and mesh is not None and mesh.size() < distributed.get_world_size():
            groups = [mesh.get_group(dim) for dim, size in enumerate(mesh.shape) if size > 1]
        total = torch.tensor(numbers, device=self.device if mesh is None else mesh.device_type)
        for group in groups:
            distributed.all_reduce(total, getattr(distributed.ReduceOp, how), group=group)
        return [int(number) for number in total.tolist()]


def reshard(model: nn.Module) -> None:
    """Put FSDP2's modules back to their shards: what is written to a gathered parameter is lost."""
    for module in _fully_sharded(model):
        module.reshard()


def offloaded(model: nn.Module) -> set[int]:
    """The ids of the parameters that FSDP2 keeps on the CPU."""
    groups = (
        group
        for module in _fully_sharded(model)
        for group in getattr(module._get_fsdp_state(), "_fsdp_param_groups", ())
    )
    return {id(held.sharded_param) for group in groups for held in group.fsdp_params if held.offload_to_cpu}


def _fully_sharded(model: nn.Module) -> list[Any]:
    """FSDP2's modules, which it gives a class of their own. A module is slow to say that it has no such attribute."""
    return [module for module in model.modules() if hasattr(type(module), "_get_fsdp_state")]
