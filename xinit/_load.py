"""Loads xinit._C, or says in one line why it cannot be. Reads without torch what libxinit.so, which it links, says of itself."""

import sys
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

_LIBRARY = "libxinit.so"
_MARK = b"libxinit "
_BUILT_WITH = " built with torch "


def built() -> tuple[str, str]:
    """The versions of xinit and of the torch it was built with, found in the file of libxinit.so.

    Raises:
        ImportError: there is no such file, or no xinit._C for this Python, or they are not of this xinit.
    """
    here = Path(__file__).parent
    file = here / _LIBRARY
    # Only beside this file: an editable install of another checkout offers its own for any xinit._C that is missing.
    if not (file.exists() and any((here / f"_C{suffix}").exists() for suffix in EXTENSION_SUFFIXES)):
        python = ".".join(map(str, sys.version_info[:2]))
        raise ImportError(
            f"xinit is not built for Python {python} in {here}: run pip install --no-build-isolation -e {here.parent}, "
            "or import an installed xinit from another directory"
        )
    contents = file.read_bytes()
    at = contents.find(_MARK)
    if at < 0:
        raise ImportError(f"{file} is of an earlier xinit: build it again, as README's Install says")
    version, _, torch = contents[at + len(_MARK) : contents.index(b"\0", at)].decode().partition(_BUILT_WITH)
    return version, torch


def load() -> None:
    """Import xinit._C.

    Raises:
        ImportError: it is not built, or was built with another minor release of torch: one whose ABI is another, so that it
            cannot be loaded, or can be but does not understand torch's exceptions.
    """
    _, built_with = built()
    import torch

    here = str(torch.__version__)
    why = ""
    if built_with.split(".")[:2] == here.split(".")[:2]:
        try:
            import_module("xinit._C")
            return
        except ImportError as error:
            why = f" ({error})"
    raise ImportError(
        f"xinit was built with torch {built_with} and cannot be used with torch {here}{why}: "
        "build it again, with pip install --no-build-isolation --no-deps --force-reinstall"
    ) from None
