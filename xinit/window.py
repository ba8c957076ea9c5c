"""Windows: which part of a larger tensor a local tensor is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangular part of a larger tensor. The local tensor's own shape is the part's extent.

    A tensor filled through a window gets the very values that the same place has in the whole, and fans are those of the
    whole. So every rank can fill its own shard, without communication.

    Args:
        global_shape: the shape of the whole tensor.
        offsets: where the part begins, one index for each dimension.

    Raises:
        ValueError: if the two differ in length; by the function that fills, if the part does not lie within the whole or
            has another number of dimensions than the tensor.

    Example:
        >>> import torch, xinit
        >>> key = xinit.Key(0)
        >>> whole = xinit.xavier_normal_(torch.empty(6, 8), key=key)
        >>> part = torch.empty(2, 8)
        >>> _ = xinit.xavier_normal_(part, key=key, window=xinit.Window(global_shape=(6, 8), offsets=(4, 0)))
        >>> torch.equal(part, whole[4:])
        True
    """

    global_shape: Sequence[int]
    offsets: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "global_shape", tuple(self.global_shape))
        object.__setattr__(self, "offsets", tuple(self.offsets))
        if len(self.global_shape) != len(self.offsets):
            raise ValueError(
                f"Window: global_shape {self.global_shape} has {len(self.global_shape)} dimensions, "
                f"but offsets {self.offsets} has {len(self.offsets)}"
            )
