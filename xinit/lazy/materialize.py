"""``materialize_()``: what :func:`xinit.deferred` has recorded, drawn."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from xinit._torch import DisableTorchFunction, local_tensor, of_class, swap_tensor, without_modes
from xinit.dtensor import is_sharded, outside, with_memory
from xinit.history.storages import memory_like, ordinary_tensors, purge
from xinit.keys import Key
from xinit.lazy.draw import Target, draw
from xinit.lazy.late import left_of, own_class, release
from xinit.lazy.shards import Shard, holds_deferred, let_go, whole_of, written_unseen
from xinit.lazy.targets import CHANGED, EMPTIED, OUTSIDE, RAW, hidden_in, places_of, targets_of
from xinit.parallel.marks import refuse_parts
from xinit.parallel.ranks import Ranks, fully_sharded, offloaded
from xinit.parameters.names import canonical_name, every_module, version_of
from xinit.parameters.sites import mark_unwritten, some
from xinit.subclasses import rewrap

_REFUSED = {
    RAW: "to_empty() has replaced {names} by memory without values, and buffers likewise: leave it out, "
    "materialize_(model, device) gives them their memory",
    CHANGED: "{names} changed after the xinit.deferred() context, with tensors of which nothing is known, such as the new rows "
    "of a resized embedding: do that within it, or within another one",
    EMPTIED: "{names} have no elements any more, as under DeepSpeed's ZeRO-3: materialize_ the model first, and partition it "
    "then, by deepspeed.zero.Init(module=model) or deepspeed.initialize",
    OUTSIDE: "nothing is known of {names}, on the meta device: built outside of xinit.deferred(), or put there since{hint}? Do "
    "it within another context",
}


def _refuse(unknown: dict[str, str], model: nn.Module) -> None:
    """Raise an error for the first kind of them."""
    why = next(iter(unknown.values()))
    names = some([name for name, other in unknown.items() if other is why])
    sharded = any(is_sharded(parameter) and parameter.is_meta for parameter in model.parameters())
    hint = ", or sharded within it: shard a model after the context" if sharded else ""
    raise RuntimeError(f"materialize_: {_REFUSED[why].format(names=names, hint=hint)}")


def materialize_(
    model: nn.Module,
    device: torch.device | str | None = None,
    key: Key | None = None,
    progress: bool = False,
    check: bool = False,
) -> nn.Module:
    """Give the parameters of a model built within :func:`deferred` their memory and their values, all in one fill.

    Each parameter is drawn as the constructor would have drawn it, in its dtype, from ``key.fold_in(name)`` with its fully
    qualified name, once, however often the constructor did. What is not a fill is done again, its random numbers keyed by the
    name of the parameter that they are for and their number. A parameter that is a copy of another one of the model is a copy
    here too; one that was copied from a template that is not part of the model, as in ``nn.TransformerEncoder``, is drawn
    for itself. Parameters stay the same objects; buffers, and parameters that are real already, are moved.

    Of a model that ``fully_shard`` or ``parallelize_module`` has sharded, each rank draws what it holds, with the bits of the
    whole, without communication. What is done again, it does as a whole, and then keeps its part.

    Args:
        model: what was built, or a part of it, or a module that it is part of. A part's names are those within it, so that one
            key draws equal parts alike: ``xinit.parallel.renamed(layer, {"": "layers.0"})`` is drawn as in the whole.
        device: where; the CPU by default. What FSDP2 offloads to the CPU goes there.
        key: the model's; by default one drawn from torch's default generator, so that ``torch.manual_seed`` governs: of a sharded
            model from that of the mesh's first rank, which tells the others in a small broadcast.
        progress: show a bar; takes tqdm.
        check: whether the ranks first compare their keys, and the names and shapes of what they hold, in one small all-reduce.

    Returns:
        the model.

    Raises:
        TypeError: if model, device or key are not of these types.
        ValueError: for a ``DTensor`` that :mod:`xinit.init` cannot fill; on all ranks, if ``check`` finds different keys, or
            ranks that hold different parameters of one name, as a pipeline's stages under names of their own do.
        RuntimeError: before anything has changed: if the model has no deferred parameters, or some that were put on the meta
            device elsewhere, changed after the context so that it is not known how, or given memory without values by
            ``to_empty``, which are named; where there are several ranks, or with ``check``, for parameters that Megatron or
            DeepSpeed have marked as one rank's part of the whole, and for layers whose ``layer_number`` is not their name's.

    Warns:
        UserWarning: of parameters that the constructor never wrote; they hold what the memory held. Of those of modules in lists,
            which are no parts of the model, and get no memory.

    Example:
        >>> import torch, xinit
        >>> with xinit.deferred():
        ...     model = torch.nn.Linear(100, 200)
        >>> _ = xinit.materialize_(model, key=xinit.Key(0))
        >>> weight = xinit.uniform_(torch.empty(200, 100), -0.1, 0.1, key=xinit.Key(0).fold_in("weight"))
        >>> torch.allclose(model.weight, weight)
        True
    """
    # Within a deferred() too, this is for real.
    with without_modes(), DisableTorchFunction(), _without_collector(), ordinary_tensors():
        unwritten = _materialize_(model, device, key, progress, check)
    if unwritten:
        warnings.warn(
            f"materialize_: {some(unwritten, 'tensor')} never written by the model's constructor", stacklevel=2
        )
    if hidden := [*hidden_in(model)]:
        warnings.warn(
            f"materialize_: {some(hidden)} are of modules in a list or the like, no parts of the model, and are still without "
            f"memory: use nn.ModuleList or nn.ModuleDict, or materialize_ them too",
            stacklevel=2,
        )
    return model


@contextmanager
def _without_collector() -> Iterator[None]:
    """A device waits while the work for it is put together, of many small objects none of which is garbage yet; the collector
    would look at all of the process's, more than once, for as long as all the rest takes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check(model: nn.Module, targets: list[Target], real: list[Tensor], unknown: dict[str, str]) -> None:
    """Raise if not all can be drawn, or there is nothing to draw."""
    if unknown:
        _refuse(unknown, model)
    if not targets and (lazy := [canonical_name(name) for name, p in model.named_parameters() if is_lazy(p)]):
        raise RuntimeError(
            f"materialize_: {some(lazy)} of lazy modules have no shape yet: call the model with an input first, within the "
            f"xinit.deferred() that builds it if they are to be drawn from the key"
        )
    if not targets and not any(map(outside, real)):
        if any(map(holds_deferred, model.modules())):
            raise RuntimeError(
                "materialize_: other tensors have taken the place of all deferred parameters: leave to_empty() out, "
                "materialize_(model, device) gives them their memory; a model that was loaded whole needs neither"
            )
        raise RuntimeError(
            "materialize_: the model has no deferred parameters: they have their memory already, or were not built within "
            "xinit.deferred()"
        )
    late = [target.name for target in targets if _written_unseen(target)]
    if late:
        raise RuntimeError(
            f"materialize_: {some(late)} written to after the xinit.deferred() context, so that it is not known how: do that "
            f"within another such context, before the model is sharded"
        )


def _materialize_(
    model: nn.Module, device: torch.device | str | None, key: Key | None, progress: bool, check: bool
) -> list[str]:
    """Returns the names of what was never written."""
    targets, real, unknown = targets_of(model, "materialize_")
    if key is not None and not isinstance(key, Key):
        raise TypeError(f"materialize_: key must be an xinit.Key, but found {type(key).__name__}")
    where = torch.empty(0, device=device or "cpu").device  # with its index
    _check(model, targets, real, unknown)
    if broken := _broken_ties(model, targets):
        _tie(model, broken)
        targets = [target for target in targets if all(target is not other for _, other in broken)]
    if key is None:
        key = Ranks(model.parameters(), "materialize_").first_key(Key.drawn(torch.default_generator))
    if check:
        shapes = {target.name: target.tensor.shape for target in targets}
        Ranks(model.parameters(), "materialize_").check(key, shapes)
    # Not before, or a rank that is refused, as a later stage is, would leave the others waiting.
    refuse_parts("materialize_", model, ((target.name, target.tensor) for target in targets), check)
    elsewhere = [tensor for tensor in real if tensor.device != where]
    on_cpu = offloaded(model) if elsewhere or any(is_sharded(target.tensor) for target in targets) else set()
    # Copied before the fill is launched, which a copy to a GPU would wait for; one from a GPU must be waited for.
    behind = where.type != "cpu"
    moved = [(t, t.data.to(where, non_blocking=behind)) for t in elsewhere if id(t) not in on_cpu]

    def memory(target: Target, again: bool) -> Tensor | None:
        tensor = target.tensor
        if is_sharded(tensor):
            return with_memory(tensor, torch.device("cpu") if id(tensor) in on_cpu else where)
        return None if again else memory_like(tensor, where)

    values = draw(targets, memory, where, key, "materialize_", progress)
    _give(model, targets, values)
    for tensor, value in moved:
        tensor.data = value
    purge()
    return [target.name for target in targets if not target.written()]


def _give(model: nn.Module, targets: list[Target], values: list[Tensor]) -> None:
    """Give the targets their memory, and leave nothing of what deferred() has left with the model."""
    modules = every_module(model)
    scripted = [
        (module, name, tensor)
        for module in modules
        if isinstance(module, torch.jit.ScriptModule)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]
    ]
    for target, value in zip(targets, values, strict=True):
        tensor: Any = target.tensor
        if is_sharded(tensor):
            local_tensor.set(tensor, local_tensor(value))
        elif isinstance(tensor, nn.Parameter):
            value = of_class(own_class(tensor), value, tensor.requires_grad)
        release(tensor)
        swap_tensor(tensor, value)
        rewrap(target.wrapper, target.tensor)
        for told in "_xinit_left", "_xinit_whole", "_xinit_seen", "_xinit_local":
            tensor.__dict__.pop(told, None)
        if not target.written():
            mark_unwritten(target.tensor)
    for module in modules:
        let_go(module)
        module.__dict__.pop("_xinit_held", None)
    for module, name, tensor in scripted:
        setattr(module, name, tensor)  # it holds what the object was, not the object


def _broken_ties(model: nn.Module, targets: list[Target]) -> list[tuple[Target, Target]]:
    """The shards of parameters that modules shared, each after the first with the first one, in whose place it can be put.

    They would start as equals and be trained apart.
    """
    first: dict[int, Target] = {}
    pairs = [(one, t) for t in targets if (one := first.setdefault(id(whole_of(t.tensor)), t)) is not t]
    for one, other in pairs:
        places = [(getattr(t.tensor, "device_mesh", None), getattr(t.tensor, "placements", None)) for t in (one, other)]
        if places[0] != places[1] or fully_sharded(model):
            raise RuntimeError(
                f"materialize_: {one.name} and {other.name} were one parameter, and are two since the model was sharded, placed "
                f"by {places[0][1]} and {places[1][1]}: tie them again before fully_shard and materialize_, as in "
                f"model.output.weight = model.embedding.weight"
            )
    return pairs


def _tie(model: nn.Module, pairs: list[tuple[Target, Target]]) -> None:
    places = places_of(model)
    for one, other in pairs:
        for module, name in places[id(other.wrapper)]:
            module._parameters[name] = one.wrapper  # type: ignore[assignment]


def _written_unseen(target: Target) -> bool:
    """Whether something was done to it after the context of which nothing is recorded."""
    tensor = target.tensor
    if isinstance(tensor, Shard):
        return written_unseen(tensor)
    left = left_of(tensor)
    return left is not None and version_of(tensor) != left.version and not target.store.since(left.record.time)
