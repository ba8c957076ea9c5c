"""Sharded training without DTensor: which part of which parameter a local tensor holds, so that each rank fills only that.

A :class:`Layout` stands for a tensor before it is filled: it knows which element of which parameter of the whole model each of
its elements is. It is made of whole parameters by :func:`parameter`, and cut, joined and padded as tensors are. Filled, a local
tensor has the very bits, drawn with the very fans, that its elements have in the unsharded, unfused model. With p = parameter:

    column-parallel, and its bias      p(name, (out, in), d).shard(0, rank, world), p(bias, (out,), d).shard(0, rank, world)
    row-parallel                       p(name, (out, in), d).shard(1, rank, world)
    vocabulary-parallel, with padding  p(name, (vocab, hidden), d).pad(0, 128 * world).shard(0, rank, world)
    fused q, k, v by head groups       interleave([q, k, v], groups, rank, world)
    fused gate and up                  cat([gate.shard(0, rank, world), up.shard(0, rank, world)])
    stacked experts                    p(name, (experts, out, in), d).shard(0, rank, world)
    experts with names of their own    stack([p(f"experts.{e}.weight", (out, in), d) for e in mine])
    a partition of a flat buffer       cat([layout.flatten().pad(0, alignment), ...]).narrow(0, begin, end - begin)

They compose: a flat partition, for example, may run across the borders of tensor-parallel shards. A pipeline stage's modules get
the names that they have in the whole model from :func:`renamed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from xinit.distributions import Distribution
from xinit.parallel.layouts import Layout, Piece, check_axis, check_rank, fill_layouts_, with_size
from xinit.parallel.ranks import is_fully_sharded, reshard
from xinit.parameters.names import canonical_name
from xinit.window import Window

__all__ = ["Layout", "cat", "fill_layouts_", "interleave", "parameter", "renamed", "stack"]


def parameter(name: str, shape: Sequence[int], distribution: Distribution) -> Layout:
    """A whole parameter of the unsharded model.

    Args:
        name: in that model, with all its prefixes, and layers and experts counted globally.
        shape: there, without padding.
        distribution: what it is drawn from; a fan is that of this shape, however the layout is cut afterwards.

    Raises:
        ValueError: if the name is empty, or the distribution does not fit the shape.

    Example:
        >>> import xinit
        >>> from xinit import parallel
        >>> parallel.parameter("down.weight", (64, 256), xinit.kaiming_normal()).shard(1, 0, 4).shape
        (64, 64)
    """
    if not name:
        raise ValueError("parameter: name is empty")
    whole = tuple(shape)
    if any(size < 0 for size in whole):
        raise ValueError(f"parameter: {name} has a size below 0 in shape {whole}")
    if not isinstance(distribution, Distribution):
        raise TypeError(f"parameter: {name} takes an xinit.Distribution, but found {type(distribution).__name__}")
    try:
        resolved = distribution.resolve(whole) if 0 not in whole else distribution
    except ValueError as error:
        raise ValueError(f"parameter: {name} of shape {whole}: {error}") from None
    nowhere = (0,) * len(whole)
    return Layout(whole, (Piece(name, resolved, nowhere, whole, Window(whole, nowhere), whole),) * (0 not in whole))


def cat(layouts: Sequence[Layout], axis: int = 0) -> Layout:
    """Layouts joined along an axis, as ``torch.cat`` joins tensors.

    Raises:
        ValueError: if there are none, or their shapes differ elsewhere.

    Example:
        >>> import torch, xinit
        >>> from xinit import parallel
        >>> key, rank, world = xinit.Key(0), 1, 2
        >>> gate, up = (parallel.parameter(f"{p}_proj.weight", (6, 4), xinit.normal()) for p in ("gate", "up"))
        >>> fused = parallel.cat([gate.shard(0, rank, world), up.shard(0, rank, world)]).fill_(torch.empty(6, 4), key)
        >>> alone = xinit.normal_(torch.empty(6, 4), key=key.fold_in("up_proj.weight"))
        >>> torch.equal(fused[3:], alone[3:])
        True
    """
    if not layouts:
        raise ValueError("cat: no layouts to join")
    first = layouts[0].shape
    axis = check_axis("cat", axis, first)
    pieces, at = list[Piece](), 0
    for i, layout in enumerate(layouts):
        if len(layout.shape) != len(first) or with_size(layout.shape, axis, 0) != with_size(first, axis, 0):
            raise ValueError(
                f"cat: layouts[{i}] has shape {layout.shape}, which differs from {first} in more than dimension {axis}"
            )
        pieces += [p.moved(axis, at) for p in layout.pieces] if at else layout.pieces
        at += layout.shape[axis]
    return Layout(with_size(first, axis, at), tuple(pieces))


def stack(layouts: Sequence[Layout]) -> Layout:
    """Layouts joined along a new first axis, as ``torch.stack`` joins tensors.

    Raises:
        ValueError: if there are none, their shapes differ, or one was flattened across the rows of its parameter.

    Example:
        >>> import xinit
        >>> from xinit import parallel
        >>> rank, each = 1, 4  # this rank's experts of all
        >>> names = [f"experts.{e}.up.weight" for e in range(rank * each, (rank + 1) * each)]
        >>> parallel.stack([parallel.parameter(name, (64, 24), xinit.kaiming_normal()) for name in names]).shape
        (4, 64, 24)
    """
    for i, layout in enumerate(layouts):
        if any(p.extent != p.shape for p in layout.pieces):
            raise ValueError(f"stack: layouts[{i}] is flat: parts of rows in one dimension")

    def lifted(p: Piece) -> Piece:
        window = Window((1, *p.window.global_shape), (0, *p.window.offsets))
        return Piece(p.name, p.distribution, (0, *p.offsets), (1, *p.shape), window, (1, *p.extent))

    return cat([Layout((1, *layout.shape), tuple(map(lifted, layout.pieces))) for layout in layouts])


def interleave(layouts: Sequence[Layout], groups: int, rank: int = 0, world: int = 1) -> Layout:
    """The rank's groups of rows: each layout's rows in so many groups, the first of all layouts before the second of all.

    Megatron fuses attention so: for each key-value head the query heads that share it, then its key, then its value; whole groups
    go to ranks. Each row has the bits that it has in q_proj, k_proj and v_proj, and their fans.

    Args:
        layouts: of whole parameters: weights, or biases.
        groups: how many, such as the number of key-value heads.
        rank: of the tensor-parallel world,
        world: and how many ranks that has.

    Raises:
        ValueError: if a layout's rows do not divide by groups, or groups by world, or rank is not in [0, world).

    Example:
        >>> import torch, xinit
        >>> from xinit import parallel
        >>> key, head, heads, kv_heads = xinit.Key(0), 2, 6, 3
        >>> sizes = {"q": heads * head, "k": kv_heads * head, "v": kv_heads * head}
        >>> parts = [parallel.parameter(f"{p}_proj.weight", (n, 12), xinit.xavier_normal()) for p, n in sizes.items()]
        >>> fused = parallel.interleave(parts, groups=kv_heads, rank=1, world=3).fill_(torch.empty(8, 12), key)
        >>> k = xinit.xavier_normal_(torch.empty(6, 12), key=key.fold_in("k_proj.weight"))
        >>> torch.equal(fused[4:6], k[2:4])
        True
    """
    check_rank("interleave", rank, world)
    if groups < 1 or groups % world:
        raise ValueError(f"interleave: groups {groups} must be a positive multiple of world {world}")
    for i, layout in enumerate(layouts):
        if not layout.shape or layout.shape[0] % groups:
            raise ValueError(
                f"interleave: dimension 0 of layouts[{i}], of shape {layout.shape}, does not divide by groups {groups}"
            )
    mine = range(rank * (groups // world), (rank + 1) * (groups // world))
    return cat([layout.shard(0, group, groups) for group in mine for layout in layouts])


def renamed(model: nn.Module, names: Mapping[str, str]) -> nn.Module:
    """A part of a model, such as a pipeline stage, under the names that it has in the whole: for the functions of whole models.

    The modules of what is given back share their parameters and buffers with the model's own, so it is to be used once and thrown
    away: ``xinit.init_(renamed(stage, names), recipe, key)``. The model itself keeps its names.

    Args:
        model: the part.
        names: what the dotted names of its modules begin with, and what they begin with in the whole; "" is before any name. Of
            those that fit, the longest counts.

    Raises:
        TypeError: if ``model`` is no module, or ``names`` no mapping.
        ValueError: if a name is no module's of the model, or two modules would share one.

    Example:
        >>> import torch, xinit
        >>> from xinit import parallel
        >>> stage, first = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(2, 2)])}), 7
        >>> names = {"": "decoder"} | {f"layers.{i}": f"decoder.layers.{first + i}" for i in range(1)}
        >>> [name for name, _ in parallel.renamed(stage, names).named_parameters()]
        ['decoder.layers.7.weight', 'decoder.layers.7.bias']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"renamed: model must be a torch.nn.Module, but found {type(model).__name__}")
    if not isinstance(names, Mapping):
        raise TypeError(f"renamed: names must be a mapping of names' beginnings, but found {type(names).__name__}")
    reshard(model)
    modules: dict[str, nn.Module] = {}  # by their names in the part,
    whole: dict[str, str] = {}  # and those by the names in the whole

    def visit(module: nn.Module, local: str, path: str) -> None:
        if whole.setdefault(path, local) != local:
            raise ValueError(f"renamed: {whole[path]!r} and {local!r} would both be {path!r} in the whole")
        if local not in modules or not _owned(
            modules[local]
        ):  # of a wrapper and what it wraps, the one with parameters
            modules[local] = module
        elif _owned(module):
            raise ValueError(f"renamed: two modules are both called {local!r} without wrappers' parts")
        for name, child in module._modules.items():
            if child is None:
                continue
            if not canonical_name(name):
                visit(child, local, path)
            else:
                inner = f"{local}.{name}" if local else name
                visit(child, inner, names.get(inner, f"{path}.{name}" if path else name))

    visit(model, "", names.get("", ""))
    for prefix in names:
        if prefix not in modules:
            raise ValueError(f"renamed: {prefix!r} is no module of the {type(model).__name__}")
    root = _alone(modules[whole[""]]) if "" in whole else nn.Module()
    for path, local in sorted(whole.items(), key=lambda item: item[0].count(".")):  # outer ones first
        if path:
            *outer, leaf = path.split(".")
            parent = root
            for part in outer:
                parent = _child(parent, part)
            parent._modules[leaf] = _alone(modules[local])
    return root


def _owned(module: nn.Module) -> bool:
    return bool(module._parameters or module._buffers)


def _alone(module: nn.Module) -> nn.Module:
    """The module with its parameters and buffers, but none of the modules in it, and without what FSDP2 does to it."""
    alone: nn.Module = object.__new__(next(c for c in type(module).__mro__ if not is_fully_sharded(c)))
    alone.__dict__.update(module.__dict__, _modules={})
    return alone


def _child(parent: nn.Module, part: str) -> nn.Module:
    child = parent._modules.get(part)
    if child is None:
        child = parent._modules[part] = nn.Module()
    return child
