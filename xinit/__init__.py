"""Weight initialisation for PyTorch in which every weight is a pure function of (seed, name, index).

The same bits on the CPU and on any GPU, in any dtype, for any number of threads or shards, in any order::

    xinit.xavier_uniform_(w)                                        # torch.nn.init's functions, with its signatures
    xinit.kaiming_normal_(w, key=xinit.Key(0).fold_in("up.weight")) # from a key: these bits, everywhere
    xinit.init_(model, "llama", xinit.Key(0))                       # a whole model, by a recipe

What there is, and where to read on:

functions on tensors      help(xinit.init); import xinit as init replaces from torch.nn import init
distributions as values   kaiming_normal(), zeros(): the names without _ fill nothing, but are what many functions take
many tensors at once      fill_many_(tensors, distributions, keys)
a model, by a recipe      init_, plan, fingerprint; help(xinit.recipes)
a model, by its own code  accelerate(): at once; deferred(), materialize_, audit: later, and where it belongs
which initialisation      calculate_gain(activation), theory, critical: what becomes of signals in a deep network
a part of a tensor        key= with window=Window(global_shape, offsets)
sharded models            DTensors everywhere; without them help(xinit.parallel)
this build                build_info(); from the shell, xinit --help
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xinit import _load
from xinit.cli import grammar as _grammar

_grammar.answer()  # help and typos need not wait for torch
_load.load()  # before all that needs xinit._C

from xinit import _C
from xinit import selective as _selective  # noqa: F401
from xinit import vmap as _vmap  # noqa: F401
from xinit._torch import correct_fan as _calculate_correct_fan  # noqa: F401  # as torch.nn.init has them
from xinit._torch import fans_of as _calculate_fan_in_and_fan_out  # noqa: F401
from xinit.constants import constant_, dirac_, eye_, ones_, zeros_
from xinit.distributions import *  # its __all__
from xinit.distributions import __all__ as _distributions
from xinit.fill import fill_many_
from xinit.init import (
    kaiming_normal_,
    kaiming_uniform_,
    lecun_normal_,
    lecun_uniform_,
    normal_,
    trunc_normal_,
    uniform_,
    variance_scaling_,
    xavier_normal_,
    xavier_uniform_,
)
from xinit.keys import Key
from xinit.matrices import (
    Matrix,
    delta_orthogonal,
    delta_orthogonal_,
    dirac,
    eye,
    identity,
    orthogonal,
    orthogonal_,
    sparse,
    sparse_,
)
from xinit.scaling import calculate_gain
from xinit.window import Window

if TYPE_CHECKING:
    from xinit import parallel, recipes
    from xinit.insight.coordinates import coordinate_check
    from xinit.insight.diagnose import diagnose
    from xinit.insight.lsuv import lsuv_
    from xinit.insight.recommend import recommend
    from xinit.insight.theory import critical, theory
    from xinit.lazy.accelerate import accelerate
    from xinit.lazy.audit import audit
    from xinit.lazy.context import deferred
    from xinit.lazy.materialize import materialize_
    from xinit.models.apply import init_, plan
    from xinit.models.fingerprint import fingerprint
    from xinit.models.regenerate import regenerate
    from xinit.models.verify import verify
    from xinit.parameters.plans import Plan, Row
    from xinit.parameters.sites import unwritten

# The rooms that are entered when one of their names is first used.
_ROOMS = {
    "accelerate": "lazy.accelerate",
    "audit": "lazy.audit",
    "coordinate_check": "insight.coordinates",
    "critical": "insight.theory",
    "deferred": "lazy.context",
    "diagnose": "insight.diagnose",
    "fingerprint": "models.fingerprint",
    "init_": "models.apply",
    "lsuv_": "insight.lsuv",
    "materialize_": "lazy.materialize",
    "parallel": "parallel",
    "plan": "models.apply",
    "Plan": "parameters.plans",
    "recipes": "recipes",
    "recommend": "insight.recommend",
    "regenerate": "models.regenerate",
    "Row": "parameters.plans",
    "theory": "insight.theory",
    "unwritten": "parameters.sites",
    "verify": "models.verify",
}

__all__ = [
    "Key",
    "Matrix",
    "Plan",
    "Row",
    "Window",
    "accelerate",
    "audit",
    "build_info",
    "calculate_gain",
    "constant_",
    "coordinate_check",
    "critical",
    "deferred",
    "delta_orthogonal",
    "delta_orthogonal_",
    "diagnose",
    "dirac",
    "dirac_",
    "eye",
    "eye_",
    "fill_many_",
    "fingerprint",
    "identity",
    "init_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "lecun_normal_",
    "lecun_uniform_",
    "lsuv_",
    "materialize_",
    "normal_",
    "ones_",
    "orthogonal",
    "orthogonal_",
    "parallel",
    "plan",
    "recipes",
    "recommend",
    "regenerate",
    "sparse",
    "sparse_",
    "theory",
    "trunc_normal_",
    "uniform_",
    "unwritten",
    "variance_scaling_",
    "verify",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
    *_distributions,
]


def build_info() -> dict[str, Any]:
    """What this build is: version, contract version, the torch, compiler and CUDA it was built with, the CPU's instruction set.

    Example:
        >>> import xinit
        >>> xinit.build_info()["contract"]
        1
    """
    return dict(_C.build_info())


__version__: str = build_info()["version"]
cmake_prefix_path: str = __path__[0]  # where CMake's find_package(xinit) finds it; the headers are in its include/


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = import_module(f"xinit.{_ROOMS[name]}")
    found = room if _ROOMS[name] == name else getattr(room, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
