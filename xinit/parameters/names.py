"""The names of a model's parameters, from which their keys come."""

from __future__ import annotations

from typing import Any

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


def tensors_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    """A model's parameters and then its buffers, each once, with the first of its names, without wrappers' parts; and then what
    else :func:`xinit.deferred` has found its modules to hold.

    Raises:
        ValueError: if two parameters would share a name, and so their values.
    """
    parameters: dict[str, tuple[str, Tensor]] = {}
    buffers: list[tuple[str, Tensor]] = []
    others: list[tuple[str, Tensor]] = []
    seen: set[Any] = set()
    todo = [("", "", model)]  # the path, that without wrappers' parts, and the module; the next one last
    while todo:
        path, prefix, module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        for leaf, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                name = prefix + leaf
                if name in parameters:
                    full = parameters[name][0], path + leaf
                    raise ValueError(f"parameters {' and '.join(full)} are both {name} without wrappers' parts")
                parameters[name] = path + leaf, parameter
        for leaf, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in seen:
                seen.add(id(buffer))
                buffers.append((prefix + leaf, buffer))
        for name, tensor in module.__dict__.get("_xinit_held", ()):
            others.append((prefix + name, tensor))
        for part, child in reversed(module._modules.items()):
            if child is not None:
                todo.append((f"{path}{part}.", prefix if part in _WRAPPERS else f"{prefix}{part}.", child))
    rest = [(name, tensor) for name, tensor in others if id(tensor) not in seen]
    return [*((name, parameter) for name, (_, parameter) in parameters.items()), *buffers, *rest]


def version_of(tensor: Tensor) -> int:
    """How often it was written to; a tensor that was made in ``torch.inference_mode`` does not count that."""
    return 0 if tensor.is_inference() else int(version(tensor))
