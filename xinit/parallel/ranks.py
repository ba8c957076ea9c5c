"""What takes several ranks: sums over all that hold a sharded model, and whether they agree. All else is done without a word."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xinit._torch import fsdp_parameters, root_mesh
from xinit.dtensor import first_words, is_sharded, simulated
from xinit.keys import Key
from xinit.parameters.names import Walk, every_module
from xinit.parameters.sites import Site, sites_of, walk


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
        if any(simulated(mesh) for mesh in meshes):
            self.members = {}  # all of them are here
        elif meshes:
            self.mesh = self._spanning()

    def _spanning(self) -> Any:
        largest = max(self.members, key=lambda mesh: len(self.members[mesh]))
        if all(self.members[largest] >= members for members in self.members.values()):
            return largest
        names = {name for mesh in self.members for name in mesh.mesh_dim_names or ()}
        try:
            root = root_mesh(largest)()
            span = root[tuple(name for name in root.mesh_dim_names if name in names)]
            if all(set(span.mesh.flatten().tolist()) >= members for members in self.members.values()):
                return span
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            pass
        raise NotImplementedError(
            f"{self.op}: the parameters are on the meshes {', '.join(map(str, self.members))}, and none spans the others: "
            f"make all of them of one mesh with named dimensions"
        )

    def first_key(self, key: Key) -> Key:
        """The first rank's, on all of them."""
        return key if self.mesh is None else Key(*first_words(self.mesh, key.words))

    def copies(self, tensor: Any) -> list[tuple[Any, int]]:
        """The dimensions of meshes along which the ranks hold the same of a tensor as this one.

        Of one that is not sharded, all; of one on a part of the mesh, such as that of its tensor-parallel ranks, also those along
        which other ranks have such a part.
        """
        if self.mesh is None:
            return []
        if not is_sharded(tensor):
            return [(self.mesh, dim) for dim in range(self.mesh.ndim)]
        mesh, here = tensor.device_mesh, self.mesh.get_coordinate()
        along = [(mesh, dim) for dim, placement in enumerate(tensor.placements) if placement.is_replicate()]
        if mesh != self.mesh and here is not None:
            for dim in range(self.mesh.ndim):
                line = self.mesh.mesh[(*here[:dim], slice(None), *here[dim + 1 :])].tolist()
                if len(self.members[mesh].intersection(line)) == 1:
                    along.append((self.mesh, dim))
        return along

    def counts(self, tensor: Any) -> bool:
        """Whether it is this rank that answers for what it holds of a tensor: one of those that hold the same does."""
        inside = all(mesh is None or mesh.get_coordinate() is not None for mesh in (self.mesh, _mesh_of(tensor)))
        return inside and all(mesh.get_coordinate()[dim] == 0 for mesh, dim in self.copies(tensor))

    def differing(self, tensors: Sequence[Any], digests: Tensor) -> list[int]:
        """Of which tensors, by their indices, the ranks that should hold the same do not: of a row of two numbers for each.

        One small all-reduce over each dimension of a mesh along which anything is held more than once; if a difference is found
        anywhere, one more that says where.
        """
        shared: dict[tuple[Any, int], list[int]] = {}
        for i, tensor in enumerate(tensors):
            for mesh, dim in self.copies(tensor):
                if mesh.size(dim) > 1 and mesh.get_coordinate() is not None:
                    shared.setdefault((mesh, dim), []).append(i)
        found: set[int] = set()
        for (mesh, dim), indices in shared.items():
            if _unequal(digests[indices].sum(0), mesh, dim).any():
                at = _unequal(digests[indices].flatten(), mesh, dim).view(-1, 2).any(1)
                found.update(i for i, differs in zip(indices, at.tolist(), strict=True) if differs)
        return sorted(found)

    def check_names(self, holders: dict[str, Any]) -> None:
        """Raises a ValueError on every rank of the group, if two of them hold different tensors of one name."""
        if self.group is None:
            return
        distributed: Any = torch.distributed
        mine = {
            name: tuple(sorted(self.members[mesh]))
            if (mesh := _mesh_of(tensor) or self.mesh)
            else distributed.get_rank()
            for name, tensor in holders.items()
        }
        everyone: list[Any] = [None] * distributed.get_world_size(self.group)
        distributed.all_gather_object(everyone, mine, group=self.group)
        owners: dict[str, dict[Any, None]] = {}
        for held in everyone:
            for name, ranks in held.items():
                owners.setdefault(name, {})[ranks] = None
        if twice := [name for name, ranks in owners.items() if len(ranks) > 1]:
            where = " and ".join(map(str, owners[twice[0]]))
            raise ValueError(
                f"{self.op}: the group's ranks {where} each have a parameter {twice[0]} of their own, as for "
                f"{len(twice) - 1} other names: give a pipeline's stages the names of the whole model, see "
                f"xinit.parallel.renamed; the group is that of one model's parts, not of its copies"
            )

    def sum(self, numbers: Sequence[int]) -> list[int]:
        """Modulo 2^64, over all ranks; of one that nothing is shared with, or that is outside the mesh, its own."""
        if self.group is None and (self.mesh is None or self.mesh.get_coordinate() is None):
            return [number % 2**64 for number in numbers]
        signed = torch.tensor([(number + 2**63) % 2**64 - 2**63 for number in numbers])
        return [int(number) % 2**64 for number in self._all(signed, "SUM", self._groups(self.mesh)).tolist()]

    def check(self, key: Key, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raises a ValueError on every rank, if not all have the same key, or two have different tensors of one name.

        One small all-reduce; another, of the names, where not all have the same ones, as in a pipeline.

        Args:
            key: the model's.
            shapes: of the whole tensors, by their names.
        """
        distributed: Any = torch.distributed
        if not distributed.is_available() or not distributed.is_initialized():
            return
        if self.mesh is not None and self.mesh.get_coordinate() is None:
            return  # it fills nothing
        held = tuple((name, tuple(shape)) for name, shape in shapes.items())
        words = (key.seed, key.stream, Key(0).fold_in(repr(held)).stream)
        halves = [half for word in words for half in divmod(word, 2**32)]
        groups = self._groups(self._root())
        most = self._all(torch.tensor([*halves, *(-half for half in halves)]), "MAX", groups).tolist()
        same = [a == -b for a, b in zip(most[:6], most[6:], strict=True)]
        if not all(same[:4]):
            raise ValueError(
                f"{self.op}: the ranks have different keys; rank {distributed.get_rank()} has {key}. Nothing has been filled"
            )
        if not all(same[4:]):
            self._check_apart(held, groups)

    def _check_apart(self, held: tuple[tuple[str, tuple[int, ...]], ...], groups: Sequence[Any]) -> None:
        """Whether the ranks that hold different tensors have different names for them."""
        first = {held: int(torch.distributed.get_rank())}  # one rank of those that hold the same
        for group in groups:
            everyone: list[Any] = [None] * torch.distributed.get_world_size(group)
            torch.distributed.all_gather_object(everyone, first, group=group)
            first = {tensors: rank for ranks in reversed(everyone) for tensors, rank in ranks.items()}
        owners: dict[str, tuple[int, tuple[int, ...]]] = {}
        for tensors, rank in sorted(first.items(), key=operator.itemgetter(1)):
            for name, shape in tensors:
                other, seen = owners.setdefault(name, (rank, shape))
                if other != rank:
                    raise ValueError(
                        f"{self.op}: ranks {other} and {rank} do not hold the same parameters, but each a {name}, of shapes "
                        f"{seen} and {shape}, which would get the same values: give a pipeline's stages the names of the whole "
                        f"model, see xinit.parallel.renamed, and parts their layouts; if it is one parameter that both hold, "
                        f"leave check= out. Nothing has been filled"
                    )

    def total(self, numbers: Tensor) -> Tensor:
        """The sum of each number over all ranks, in one all-reduce; of one that nothing is shared with, its own."""
        if (self.mesh is None or self.mesh.get_coordinate() is None) and self.group is None:
            return numbers
        return self._all(numbers, "SUM", self._groups(self.mesh))

    def _all(self, numbers: Tensor, how: str, groups: Iterable[Any]) -> Tensor:
        distributed: Any = torch.distributed
        reduced = numbers.to(self.device if self.mesh is None else self.mesh.device_type)
        for group in groups:
            distributed.all_reduce(reduced, getattr(distributed.ReduceOp, how), group=group)
        return reduced.cpu()

    def _root(self) -> Any:
        """The mesh that this one is part of, with the stages of a pipeline as one of its dimensions."""
        try:
            root = root_mesh(self.mesh)() if self.mesh is not None else None
        except AttributeError:  # a torch without it
            return self.mesh
        return self.mesh if root is None or root.get_coordinate() is None else root

    def _groups(self, mesh: Any) -> list[Any]:
        """The process groups, one after the other, over which something reaches all ranks of the mesh."""
        if self.group is None and mesh is not None and mesh.size() < torch.distributed.get_world_size():
            return [mesh.get_group(dim) for dim, size in enumerate(mesh.shape) if size > 1]
        return [self.group]


def _mesh_of(tensor: Any) -> Any:
    return tensor.device_mesh if is_sharded(tensor) else None


def _unequal(numbers: Tensor, mesh: Any, dim: int) -> Tensor:
    """Which of the 64-bit numbers are not the same on all ranks along that dimension of the mesh."""
    both = torch.stack((numbers, ~numbers)).to(mesh.device_type)  # ~x orders as -x does, without an overflow
    torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX, group=mesh.get_group(dim))
    return both[0].cpu() != ~both[1].cpu()


def sharded_sites(model: nn.Module, op: str, computed: bool = False, modules: Walk | None = None) -> list[Site]:
    """Of a model with its parameters in shards, if it is sharded."""
    modules = walk(model, op) if modules is None else modules
    if fsdp := sys.modules.get("torch.distributed.fsdp"):
        kinds = {type(path[-1]) for *_, path in modules}
        if any(issubclass(kind, fsdp.FullyShardedDataParallel) for kind in kinds):
            raise NotImplementedError(
                f"{op}: FullyShardedDataParallel keeps parameters in flat pieces without their shapes: call {op} before it "
                f"wraps the model, or use torch.distributed.fsdp.fully_shard"
            )
        if any(map(is_fully_sharded, kinds)):
            reshard(model)
    return sites_of(model, op, computed, modules)


def reshard(model: nn.Module) -> None:
    """Put FSDP2's modules back to their shards: what is written to a gathered parameter is lost."""
    for module in fully_sharded(model):
        module.reshard()


def offloaded(model: nn.Module) -> set[int]:
    """The ids of the parameters that FSDP2 keeps on the CPU."""
    held = (parameter for module in fully_sharded(model) for parameter in fsdp_parameters(module))
    return {id(parameter.sharded_param) for parameter in held if parameter.offload_to_cpu}


def fully_sharded(model: nn.Module) -> list[Any]:
    """FSDP2's modules, which it gives a class of their own."""
    if "torch.distributed.fsdp" not in sys.modules:
        return []
    return [module for module in every_module(model) if is_fully_sharded(type(module))]


def is_fully_sharded(kind: type) -> bool:
    """Whether FSDP2 has made a class, for a module of its own."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # which nobody has to import that does not use it
    return fsdp is not None and issubclass(kind, fsdp.FSDPModule)
