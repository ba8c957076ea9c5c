"""``fingerprint()``: a digest of a whole model, wherever its parts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xinit.dtensor import pieces
from xinit.fill import bar_of
from xinit.keys import Key
from xinit.models.buffers import as_floats, buffers_of
from xinit.models.memory import check_memory, warn_of_packed
from xinit.parallel.ranks import Ranks, sharded_sites
from xinit.parameters.sites import some, walk


def fingerprint(model: nn.Module, progress: bool = False, group: Any = None, *, buffers: bool = False) -> str:
    """A digest of all parameters of a model, and of its buffers if asked for: 32 hexadecimal digits.

    The sum, modulo 2^64 twice, of a function of every element's parameter name, dtype, index and bits. So it is the same on every
    device, in every memory layout, order of parameters and wrapper; a tied parameter counts once, under its first name.
    Of a sharded model, it is that of the whole, on all ranks: each digests what it holds, and an all-reduce adds that up. What
    several ranks hold alike counts once, and is compared. A rank outside of the model's mesh holds none of it, and is not told:
    it gets 32 zeros, unless ``group`` is one that it is in.
    Models of equal fingerprints may differ in their buffers, which do not count by default: running statistics change by use,
    and tables that are computed on different devices differ in their last bits.
    It tells differences that happen from each other, not those that someone takes pains to hide.

    Args:
        model: with parameters that have memory, on any devices.
        progress: show a bar, with tqdm.
        group: the process group whose ranks hold the model together, if it is more than the ranks of the parameters' meshes:
            the stages of a pipeline.
        buffers: whether buffers count, persistent or not, of any dtype; those that two stages have in common, in each.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: for a ``DTensor`` that :func:`init_` could not fill; on all ranks of the group, if two parts of the model have
            a name in common.
        RuntimeError: for parameters on the meta device, or whose memory was released; on all ranks, if some that should hold the
            same of a parameter do not.
        NotImplementedError: for dtypes and layouts that :func:`init_` does not support; for parameters on meshes none of which
            spans the others.
        ImportError: for ``progress`` without tqdm.

    Example:
        >>> import torch, xinit
        >>> model = xinit.init_(torch.nn.Linear(4, 3), "torch", xinit.Key(0))
        >>> before = xinit.fingerprint(model)
        >>> with torch.no_grad():
        ...     _ = model.bias[1].neg_()
        >>> xinit.fingerprint(model) == before
        False
    """
    modules = walk(model, "fingerprint")
    sites = sharded_sites(model, "fingerprint", modules=modules)
    warn_of_packed("fingerprint", modules)
    check_memory("fingerprint", sites)
    ranks = Ranks((site.parameter for site in sites), "fingerprint", group)
    ranks.check_names({site.name: site.parameter for site in sites})
    tensors: list[Tensor] = [site.parameter for site in sites]
    names = [site.name for site in sites]
    parts = [
        (i, part, Key(0).fold_in(names[i]).words, where)
        for i, tensor in enumerate(tensors)
        for part, where in _once(pieces(tensor, f"fingerprint: parameter {names[i]}"))
    ]
    for buffer in buffers_of(modules, meta=True) if buffers else ():
        if buffer.tensor.is_meta:
            raise RuntimeError(f"fingerprint: buffer {buffer.name} is on the meta device, without memory")
        key = Key(0).fold_in(buffer.name).fold_in(str(buffer.tensor.dtype))
        there = _once(pieces(buffer.tensor, f"fingerprint: buffer {buffer.name}"))
        parts += [(len(tensors), as_floats(part, buffer.name), key.words, where) for part, where in there]
        tensors.append(buffer.tensor)
        names.append(buffer.name)
    digests = _digests(parts, len(tensors), progress)
    differing = ranks.differing(tensors, digests)
    counted = digests[[i for i, tensor in enumerate(tensors) if ranks.counts(tensor)]].sum(0).tolist()
    first, second, wrong = ranks.sum([*counted, len(differing)])
    if wrong:
        here = some([names[i] for i in differing]) if differing else "parameters of other ranks"
        raise RuntimeError(
            f"fingerprint: the ranks that should hold the same of {here} do not: was each initialised with a key of its own?"
        )
    return f"{first:016x}{second:016x}"


def _digests(parts: Sequence[tuple[int, Tensor, Any, Any]], count: int, progress: bool) -> Tensor:
    """For each of so many tensors the sum of what its parts have, each given with the tensor's index, a key's words, a window."""
    found: dict[torch.device, list[tuple[int, Tensor]]] = {}  # one a device, so that nothing waits before the end
    with bar_of("fingerprint", (part for _, part, _, _ in parts), progress) as bar:
        for i, part, words, where in parts:
            window = () if where is None else (where.global_shape, where.offsets)
            digest = torch.ops.xinit.digest(part.detach(), words, *window)
            found.setdefault(part.device, []).append((i, digest))
            if progress:
                digest.cpu()  # or the bar would run ahead of the device
                bar.update(part.nbytes)
    digests = torch.zeros(count, 2, dtype=torch.int64)
    for on_one in found.values():
        indices = torch.tensor([i for i, _ in on_one])
        digests.index_add_(0, indices, torch.stack([digest for _, digest in on_one]).cpu())
    return digests


def _once(parts: Sequence[tuple[Tensor, Any]]) -> list[tuple[Tensor, Any]]:
    """Without those that hold the same of the whole, as simulated ranks in one process do."""
    return list({where and (where.offsets, part.shape): (part, where) for part, where in reversed(parts)}.values())
