"""xinit: weight initialisation in which every weight is a pure function of (seed, name, index).

``import xinit as init`` replaces ``from torch.nn import init``. What there is:

functions on tensors      kaiming_normal_(w, key=Key(0).fold_in("w")) and its like: see help(xinit.init)
many tensors at once      fill_many_(tensors, [kaiming_normal(), zeros()], keys): names without _ are distributions
a model, by a recipe      init_(model, "llama", Key(0)), plan, fingerprint: see help(xinit.recipes)
a model, by its own code  accelerate(): at once; deferred(), materialize_, audit: later, and where it belongs
a part of a tensor        key= with window=Window(global_shape, offsets)
sharded models            DTensors everywhere; without them see help(xinit.parallel)
this build                build_info(); from the shell, xinit --help
"""

import sys
from contextlib import suppress
from typing import Any

from xinit import _load, command_line

if command_line.is_running():
    command_line.parse(sys.argv[1:])  # help and typos need not wait for torch
_load.load()  # before all that needs xinit._C

with suppress(ImportError):  # they are not public, but called, and may go
    from torch.nn.init import _calculate_correct_fan as _calculate_correct_fan
    from torch.nn.init import _calculate_fan_in_and_fan_out as _calculate_fan_in_and_fan_out

from xinit import _C, parallel, recipes
from xinit import selective as _selective  # noqa: F401
from xinit import vmap as _vmap  # noqa: F401
from xinit.accelerate import accelerate
from xinit.constants import constant_, dirac_, eye_, ones_, zeros_
from xinit.deferred import deferred
from xinit.distributions import (
    Blocks,
    Distribution,
    Rows,
    blocks,
    constant,
    fill_many_,
    kaiming_normal,
    kaiming_uniform,
    normal,
    ones,
    rows,
    trunc_normal,
    uniform,
    variance_scaling,
    xavier_normal,
    xavier_uniform,
    zeros,
)
from xinit.init import (
    calculate_gain,
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
from xinit.materialize import audit, materialize_
from xinit.matrices import (
    Matrix,
    delta_orthogonal,
    delta_orthogonal_,
    dirac,
    identity,
    orthogonal,
    orthogonal_,
    sparse,
    sparse_,
)
from xinit.model import fingerprint, init_, plan
from xinit.old_names import eye
from xinit.plans import Plan, Row
from xinit.sites import unwritten
from xinit.window import Window

__all__ = [
    "Blocks",
    "Distribution",
    "Key",
    "Matrix",
    "Plan",
    "Row",
    "Rows",
    "Window",
    "accelerate",
    "audit",
    "blocks",
    "build_info",
    "calculate_gain",
    "constant",
    "constant_",
    "deferred",
    "delta_orthogonal",
    "delta_orthogonal_",
    "dirac",
    "dirac_",
    "eye",
    "eye_",
    "fill_many_",
    "fingerprint",
    "identity",
    "init_",
    "kaiming_normal",
    "kaiming_normal_",
    "kaiming_uniform",
    "kaiming_uniform_",
    "lecun_normal_",
    "lecun_uniform_",
    "materialize_",
    "normal",
    "normal_",
    "ones",
    "ones_",
    "orthogonal",
    "orthogonal_",
    "parallel",
    "plan",
    "recipes",
    "rows",
    "sparse",
    "sparse_",
    "trunc_normal",
    "trunc_normal_",
    "uniform",
    "uniform_",
    "unwritten",
    "variance_scaling",
    "variance_scaling_",
    "xavier_normal",
    "xavier_normal_",
    "xavier_uniform",
    "xavier_uniform_",
    "zeros",
    "zeros_",
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
