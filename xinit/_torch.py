"""Private names of torch: each one once, with what it is for, and what could be in its place without it.

Where a torch has lost one, xinit is imported all the same, and fills; what needs the name raises :class:`Lacking`, which says so.
``tests/test_torch_private.py`` takes each away, and ``tests/test_house.py`` lets no other module name one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from operator import attrgetter
from pkgutil import resolve_name
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn


class Lacking(ImportError):
    """Says what this torch has not, and what would need it."""

    def __init__(self, name: str, feature: str) -> None:
        super().__init__(f"torch {torch.__version__} has no {name.replace(':', '.')}, which is needed for {feature}")


class Missing:
    """In the place of such a name: false, and an error where it is called, looked into, or asked for its instances."""

    def __init__(self, name: str, feature: str) -> None:
        self.what = name, feature

    def __bool__(self) -> bool:
        return False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise Lacking(*self.what)

    __getattr__ = __instancecheck__ = __subclasscheck__ = __call__

    def __mro_entries__(self, bases: Any) -> tuple[type]:
        return (type("Missing", (), {"__new__": self}),)  # a class can be derived from it, but no instance made


def private(name: str, feature: str) -> Any:
    """What torch has under a name, ``module:path``; looked up once, so that it costs no more than any other."""
    try:
        return resolve_name(name)
    except (AttributeError, ImportError):
        return Missing(name, feature)


class attribute:
    """A function that gives an attribute of torch's objects, of which no class may know, so that it is looked up at each call."""

    def __init__(self, name: str, feature: str) -> None:
        self.what, self.name = (name, feature), name.rpartition(".")[2]
        self.get = attrgetter(self.name)

    def set(self, of: Any, value: Any) -> None:
        setattr(of, self.name, value)

    def __call__(self, of: Any) -> Any:
        try:
            return self.get(of)
        except AttributeError:
            raise Lacking(*self.what) from None


# What sees operators and functions, and what keeps it from seeing them.

# torch documents it, but not where it is. Instead: a TorchFunctionMode, which does not see what C++ calls.
TorchDispatchMode = private("torch.utils._python_dispatch:TorchDispatchMode", "accelerate() and deferred()")
# No mode is to see what is xinit's own business. Instead: nothing; without it factories only leave their checks to the fill.
without_modes = private(
    "torch.utils._python_dispatch:_disable_current_modes",
    "materialize_, init_ with a recipe, and DTensors without a key",
)
# No subclass either. Both are in torch's guide to extending it; instead: torch.DisableTorchFunction, the same object.
DisableTorchFunction = private("torch:_C.DisableTorchFunction", "deferred() and materialize_")
DisableTorchFunctionSubclass = private("torch:_C.DisableTorchFunctionSubclass", "tensors after deferred()")
# deferred() makes tensors that it must not record. Instead: leave its mode and enter it again.
DisableTorchDispatch = private("torch:_C._DisableTorchDispatch", "deferred()")

# torch.vmap. Instead: torch.library.register_vmap, whose rules are not asked where no argument is batched.

_VMAP = "fills under torch.vmap"
# The innermost level, with its size and its randomness.
current_vmap = private("torch:_functorch.pyfunctorch.retrieve_current_functorch_interpreter", _VMAP)
# A level's tensor of all members and its axis of them, or the tensor and None; and back.
unwrap_batched = private("torch:_C._functorch._unwrap_batched", _VMAP)
wrap_batched = private("torch:_C._functorch._add_batch_dim", "torch.vmap of torch.func.functionalize of a fill")
# The key that asks xinit's rules, and what keeps it from asking them again within.
vmap_key = private("torch:_C.DispatchKey.FuncTorchVmapMode", _VMAP)
_key_set = vmap_key and private("torch:_C.DispatchKeySet", _VMAP)
_excluded = private("torch:_C._ExcludeDispatchKeyGuard", _VMAP)


def below_vmap() -> Any:
    """Within it, ops do not come back to their rules for vmap."""
    return _excluded(_key_set(vmap_key))


# Tensors.

# How often a tensor was written to. Instead: nothing; torch only lets it be moved on.
version = attribute("Tensor._version", "init_ and deferred(), which ask whether somebody has written to a tensor")
# torch refuses to say how some views were computed. Instead: nothing; fills of computed weights would be lost in silence.
is_view = attribute("Tensor._is_view", "filling a tensor that requires grad and is no parameter")
# What a DTensor is a view of: torch may have gathered it. Instead: nothing; fills of those would be lost in silence.
base_of = attribute("Tensor._base", "fills of DTensors")
# As of another class, whose constructor might refuse. Instead: as_subclass, detached, and requires_grad_.
of_class = private("torch:Tensor._make_subclass", "deferred() and materialize_")
# Memory for a tensor, which stays the object that others hold. Instead: torch.utils.swap_tensors, which swaps too much, and
# refuses those with weak references.
_swap_tensor = private("torch:_C._swap_tensor_impl", "deferred() and materialize_")
# Hooks are called by what is swapped, and kept by the object. Instead: nothing; the hooks of parameters would be lost in silence.
_HOOKS = "_backward_hooks", "_post_accumulate_grad_hooks"


def swap_tensor(tensor: Tensor, other: Tensor) -> None:
    _swap_tensor(tensor, other)
    for name in _HOOKS:
        if hooks := getattr(tensor, name, None):
            setattr(tensor, name, hooks)


# A storage's identity, also without memory. Instead: multiprocessing.reductions.StorageWeakRef(storage).cdata.
identity_of = attribute("UntypedStorage._cdata", "deferred(), materialize_ and fills of DTensors")
# The storage of a weak reference. Instead: weakref.ref of the Python object, which may go before its storage does.
storage_at = private("torch:UntypedStorage._new_with_weak_ptr", "deferred() and materialize_")
# deferred() refuses them. Instead: nothing; FakeTensorMode is as private.
FakeTensor = private("torch:_subclasses.FakeTensor", "deferred()")


# torch takes a tensor of another class as an nn.Parameter, if it has this. Instead: a class derived from both.
IS_PARAMETER = "_is_param"


def mark_parameter(tensor: Any) -> None:
    setattr(tensor, IS_PARAMETER, True)
    if not isinstance(tensor, nn.Parameter):
        raise Lacking("Tensor._is_param", "deferred()")


# Operators.

# Whether and where an operator writes. Instead: OpOverload.tags, which say less.
schema_of = attribute("OpOverload._schema", "deferred() and materialize_")
# Copies and views; one that is no more is not met either. Instead: nothing.
to_copy = private("torch:ops.aten._to_copy.default", "nothing: it would not be called")
unsafe_view = private("torch:ops.aten._unsafe_view.default", "nothing: it would not be called")
reshape_alias = private("torch:ops.aten._reshape_alias.default", "nothing: it would not be called")
# Arguments of operators, however nested. Instead: fifteen lines for lists, tuples and dictionaries.
tree_leaves = private("torch.utils._pytree:tree_leaves", "deferred() and materialize_")
tree_map = private("torch.utils._pytree:tree_map", "deferred() and materialize_")

# Modules. What nn.Module calls _parameters, _buffers and _modules is written to and read all over the world: it is used freely.

# Whether a checkpoint holds a buffer. Instead: whether state_dict() does.
not_persistent = attribute("Module._non_persistent_buffers_set", "init_ and materialize_ of models with buffers")
# Weights that hooks compute: torch.nn.utils' weight_norm, spectral_norm and prune. Instead: nothing.
pre_hooks = attribute("Module._forward_pre_hooks", "init_, plan and fingerprint of models")
pruned_name = attribute("BasePruningMethod._tensor_name", "init_ of a pruned layer")
# All convolutions, and all batch and instance norms. Instead: a list of the public classes.
ConvNd = private("torch.nn.modules.conv:_ConvNd", "recipes")
NormBase = private("torch.nn.modules.batchnorm:_NormBase", "recipes and buffers")
# torch.nn.init's, which some call, so xinit has them. Instead: xinit.scaling.
fans_of = private("torch.nn.init:_calculate_fan_in_and_fan_out", "xinit demo, and under this name")
correct_fan = private("torch.nn.init:_calculate_correct_fan", "this name of torch.nn.init in xinit")
# In which every trunc_normal_ ends, under whatever name it was imported. Instead: torch's loop, at torch's speed.
trunc_normal = attribute("nn.init._no_grad_trunc_normal_", "accelerate() and deferred()")
# Who asks a tensor after deferred() where it is. Without these names an error and a warning are worded less well.
NO_GRAD, LOADS = "_no_grad_", "_load_from_state_dict"

# What is sharded.

# to_local() gives a view, and is differentiated. Instead: to_local() under no_grad, and from_local, five times as slow.
local_tensor = attribute("DTensor._local_tensor", "whatever is sharded")
spec_of = attribute("DTensor._spec", "materialize_ of DTensors")
# From a mesh to the one that it is a part of. Instead: the user's, passed on.
root_mesh = attribute("DeviceMesh._get_root_mesh", "models on several meshes")
# LocalTensorMode's ranks, all of them in this process. Instead: nothing.
_parts = attribute("LocalTensor._local_tensors", "DTensors in LocalTensorMode")
_coordinates = attribute("LocalIntNode._local_ints", "DTensors in LocalTensorMode")
# Which parameters FSDP2 keeps on the CPU. Instead: ask the user.
_fsdp_state = attribute("FSDPModule._get_fsdp_state", "materialize_ of FSDP2's modules")
_fsdp_group = attribute("FSDPState._fsdp_param_group", "materialize_ of FSDP2's modules")


def simulated_ranks(local: Any, coordinate: Any) -> list[tuple[Tensor, tuple[int, ...]]]:
    """Each simulated rank's part of a ``LocalTensor``, and its coordinate in the mesh."""
    at = [_coordinates(axis.node) for axis in coordinate]
    return [(part, tuple(axis[rank] for axis in at)) for rank, part in sorted(_parts(local).items())]


def fsdp_parameters(module: Any) -> list[Any]:
    """FSDP2's own objects for a module's parameters."""
    state = _fsdp_state(module)()
    groups = getattr(state, "_fsdp_param_groups", None)  # torch 2.11 has not more than one
    return [p for group in (groups or [_fsdp_group(state)]) if group for p in group.fsdp_params]


# Marks that torch.compile looks for on functions: what sets them imports the compiler, seconds of work. Where it looks for others
# nothing can be said; the tests compare these with what torch sets.

F = TypeVar("F", bound=Callable[..., Any])


def constant_when_compiled(function: F) -> F:
    """``torch.compiler.assume_constant_result``. Without it: no keys that are folded in compiled functions."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def specialized(numbers: tuple[float, ...]) -> tuple[float, ...]:
    """The numbers that a compiled function takes, as constants: it is compiled anew for others. Without it: ``fill_many_`` in
    compiled functions, of distributions whose parameters vary."""
    if not torch.compiler.is_compiling():
        return numbers
    from torch.fx.experimental.symbolic_shapes import guard_scalar

    return tuple([guard_scalar(number) for number in numbers])


def not_compiled(why: str) -> Callable[[F], F]:
    """``torch.compiler.disable``, once there is a compiler. Without it: no fills of DTensors in compiled functions."""

    def mark(function: F) -> F:
        disabled: Any = None

        @wraps(function)
        def outside(*args: Any, **kwargs: Any) -> Any:
            nonlocal disabled
            if disabled is None and "torch._dynamo" in sys.modules:
                disabled = torch.compiler.disable(function, reason=why)  # type: ignore[no-untyped-call]
            return (disabled or function)(*args, **kwargs)

        outside._torchdynamo_disable = True  # type: ignore[attr-defined]
        outside._torchdynamo_disable_msg = why  # type: ignore[attr-defined]
        return cast(F, outside)

    return mark
