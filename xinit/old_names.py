"""A name that filled a tensor in ``torch.nn.init``, and that no distribution has here: see :func:`xinit.identity`."""

from __future__ import annotations

from typing import Any, NoReturn


def eye(*args: Any, **kwargs: Any) -> NoReturn:
    """The old name of :func:`xinit.eye_`.

    Raises:
        TypeError: always.
    """
    raise TypeError("eye: fills nothing; eye_ fills a tensor, and identity makes a distribution")
