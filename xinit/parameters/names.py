"""The names of a model's parameters, from which their keys come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from xinit._torch import version

# The parts that wrappers put into a parameter's name. None of PEFT's, which makes other layers.
_WRAPPERS = {
    "module",  # DataParallel, DistributedDataParallel, AveragedModel; DeepSpeed's engine; Megatron's Float16Module
    "_orig_mod",  # torch.compile
    "_fsdp_wrapped_module",  # FullyShardedDataParallel; of torch_xla too
    "_fpw_module",  # FlattenParamsWrapper of fairscale and torch_xla
    "_checkpoint_wrapped_module",  # checkpoint_wrapper, offload_wrapper
    *("_forward_module", "_original_module"),  # Lightning Fabric, which holds the model twice
}


def canonical_name(name: str) -> str:
    """A parameter's name without its wrappers' parts.

    Example:
        >>> from xinit.parameters.names import canonical_name
        >>> canonical_name("module._orig_mod.layers.0.weight")
        'layers.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


Found = tuple[str, str, tuple[nn.Module, ...]]
Walk = Sequence[Found]  # what modules_of gives, for several to go along


def modules_of(model: nn.Module, tied: bool = False) -> Iterator[Found]:
    """The modules of a model, outer ones first: what the names of one's parameters begin with, with wrappers' parts and without,
    and the modules that it is in, itself the last. Each once; or, if asked for, under all of its names."""
    seen: set[int] = set()
    todo: list[Found] = [("", "", (model,))]
    while todo:
        found = full, prefix, path = todo.pop()
        module = path[-1]
        if id(module) in seen:
            continue
        if not tied:
            seen.add(id(module))
        yield found
        for part, child in reversed(module._modules.items()):
            if child is not None and child not in path:
                inner = f"{full}{part}."
                short = prefix if part in _WRAPPERS else inner if full is prefix else f"{prefix}{part}."
                todo.append((inner, short, (*path, child)))


def every_module(model: nn.Module) -> list[nn.Module]:
    """As ``model.modules()`` has them, but without a generator for each level, in a fraction of the time."""
    seen: dict[nn.Module, None] = {}
    todo: list[nn.Module | None] = [model]
    while todo:
        module = todo.pop()
        if module is not None and module not in seen:
            seen[module] = None
            todo.extend(reversed(module._modules.values()))
    return list(seen)


def tensors_of(modules: Walk) -> list[tuple[str, Tensor]]:
    """A model's parameters and then its buffers, each once, with the first of its names, without wrappers' parts; and then what
    else :func:`xinit.deferred` has found its modules to hold.

    Raises:
        ValueError: if two parameters would share a name, and so their values.
    """
    parameters: dict[str, tuple[str, Tensor]] = {}
    buffers: list[tuple[str, Tensor]] = []
    others: list[tuple[str, Tensor]] = []
    seen: set[int] = set()
    for full, prefix, path in modules:
        module = path[-1]
        for leaf, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                other, _ = parameters.setdefault(prefix + leaf, (full + leaf, parameter))
                if other != full + leaf:
                    raise ValueError(
                        f"parameters {other} and {full}{leaf} are both {prefix}{leaf} without wrappers' parts"
                    )
        for leaf, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in seen:
                seen.add(id(buffer))
                buffers.append((prefix + leaf, buffer))
        others += [(prefix + name, tensor) for name, tensor in module.__dict__.get("_xinit_held", ())]
    rest = [(name, tensor) for name, tensor in others if id(tensor) not in seen]
    return [*((name, parameter) for name, (_, parameter) in parameters.items()), *buffers, *rest]


def version_of(tensor: Tensor) -> int:
    """How often it was written to; a tensor that was made in ``torch.inference_mode`` does not count that."""
    return 0 if tensor.is_inference() else version(tensor)
