"""Whether all of a model's parameters are there, to be written to and read from."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from xinit.distributions import DTYPES
from xinit.dtensor import is_sharded, local_of
from xinit.parameters.names import Walk
from xinit.parameters.sites import Site, some
from xinit.subclasses import PLAIN, held, holds_tensors, plain


def warn_of_packed(op: str, modules: Walk) -> None:
    """Of modules whose weights are neither parameters nor tensors, but objects of C++."""
    if "torch.ao.nn.quantized" not in sys.modules:
        return
    packed = dict.fromkeys(
        prefix.removesuffix(".").removesuffix("._packed_params")
        for _, prefix, (*_, module) in modules
        if any(isinstance(value, torch.ScriptObject) for value in module.__dict__.values())
    )
    if packed:
        warnings.warn(
            f"{op}: {some(packed, 'module')} of torch.ao.quantization, whose packed weights are no parameters, and are left out: "
            f"call {op} before the model is quantized",
            stacklevel=3,
        )


def check_memory(op: str, sites: Iterable[Site]) -> None:
    """Whether all of them are there to be written to and read from."""
    meta, empty, storages = [], [], dict[tuple[torch.device, int], list[tuple[str, Tensor]]]()
    for site in sites:
        name = site.name
        parameter: Tensor = site.parameter
        if parameter.is_meta:
            meta.append(name)
            continue
        if type(parameter) not in PLAIN:
            called = f"{op}: parameter {name}"
            parameter = held(parameter, called)
            if is_sharded(parameter):
                parameter, boxes = local_of(parameter, called)
                if not boxes and site.parameter.numel():
                    continue  # all of its elements are on other ranks
        _check_kind(op, name, parameter)
        size = parameter.numel()
        if (not size and _empty_by_shape(site)) or not plain(parameter):
            continue  # the latter is fake: a shape and a dtype, but no memory to share
        storage = parameter.untyped_storage()
        if not size or not storage.nbytes():
            empty.append(name)
        else:
            storages.setdefault((parameter.device, storage.data_ptr()), []).append((name, parameter))
    for views in storages.values():
        if len(views) > 1 and (pair := _overlapping(views)):
            one, two = pair
            raise ValueError(
                f"{op}: {one} and {two} are two parameters, but share their memory: tie them, or clone one"
            )
    if meta:
        raise RuntimeError(
            f"{op}: {some(meta)} on the meta device, without memory: call model.to_empty(device=...) first, or use "
            f"xinit.deferred and xinit.materialize_"
        )
    if empty:
        raise RuntimeError(
            f"{op}: {some(empty)} without elements: has a sharding wrapper released the memory? Initialise the model before "
            f"it is wrapped, or skip= them"
        )


def _overlapping(views: list[tuple[str, Tensor]]) -> tuple[str, str] | None:
    """The names of two tensors of one storage that have an element in common."""
    views = sorted(views, key=lambda view: view[1].data_ptr())
    for i, (name, one) in enumerate(views):
        end = one.data_ptr() + _span(one) * one.element_size()
        for other, two in views[i + 1 :]:
            if two.data_ptr() >= end:
                break
            if _overlap(one, two):
                return name, other
    return None


def _span(tensor: Tensor) -> int:
    """From its first element to behind its last one."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _overlap(one: Tensor, two: Tensor) -> bool:
    """Of two tensors of which the second begins within the first."""
    if (one.is_contiguous() and two.is_contiguous()) or one.dtype != two.dtype:
        return True
    ahead = two.storage_offset() - one.storage_offset()
    used = torch.zeros(max(_span(one), ahead + _span(two)), dtype=torch.bool)
    used.as_strided(one.shape, one.stride()).fill_(True)
    return bool(used.as_strided(two.shape, two.stride(), ahead).any())


def _check_kind(op: str, name: str, parameter: Tensor) -> None:
    what = ""
    if type(parameter) not in PLAIN and holds_tensors(parameter):
        kind = type(parameter).__name__
        what = f"is a {kind}; supported are plain tensors, DTensors of them, and wrappers of these"
    elif parameter.layout is not torch.strided:
        what = f"has layout {parameter.layout}; supported is torch.strided"
    elif parameter.dtype not in DTYPES:
        supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        what = f"has dtype {parameter.dtype}; supported are {supported}"
    if what:
        raise NotImplementedError(f"{op}: parameter {name} {what}")


_SIZES = (
    *("out_features", "out_channels", "num_features", "num_channels", "num_parameters"),
    *("normalized_shape", "embed_dim", "hidden_size"),
)


def _empty_by_shape(site: Site) -> bool:
    """Whether it is for its module to have no elements there, not for a sharding wrapper, which leaves one dimension."""
    if hasattr(site.parameter, "ds_id"):  # DeepSpeed's, which ZeRO has taken to other ranks
        return False
    sizes = [getattr(site.module, name, None) for name in _SIZES]
    others = [p for p in site.module._parameters.values() if p is not None]
    return (
        site.parameter.dim() > 1
        or any(size == 0 if isinstance(size, int) else isinstance(size, tuple) and 0 in size for size in sizes)
        or any(other.dim() > 1 and 0 in other.shape for other in others)
    )
