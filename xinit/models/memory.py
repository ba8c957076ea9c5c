"""Whether all of a model's parameters are there, to be written to and read from."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from xinit.distributions import DTYPES
from xinit.dtensor import is_sharded, local_of
from xinit.parameters.sites import Site, some
from xinit.subclasses import PLAIN, held, holds_tensors, plain


def check_memory(op: str, sites: Iterable[Site]) -> None:
    """Whether all of them are there to be written to and read from."""
    meta, empty, owners = [], [], dict[tuple[torch.device, int], str]()
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
        if not size or not parameter.untyped_storage().nbytes():
            empty.append(name)
        else:
            owner = owners.setdefault((parameter.device, parameter.data_ptr()), name)
            if owner is not name:
                raise ValueError(
                    f"{op}: {owner} and {name} are two parameters, but share their memory: tie them, or clone one"
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
