"""Private names of torch: without each of them xinit is imported and fills, and only what needs it fails, and says so."""

import ast
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from xinit import _torch

DEFERRED = {"deferred", "after_deferred", "fsdp2", "own_code"}  # a recipe asks the model's own code by deferred()
VMAP = {"vmap", "functional_vmap"}
# What private_worker.py's features lose without each. "checks": what is wrong with a distribution, the fill says.
LOST = {
    "torch.utils._python_dispatch:TorchDispatchMode": DEFERRED | {"accelerate", "fake"},
    "torch.utils._python_dispatch:_disable_current_modes": DEFERRED | {"checks", "dtensor_without_a_key"},
    "torch:_C.DisableTorchFunction": DEFERRED | {"checks", "fake"},
    "torch:_C.DisableTorchFunctionSubclass": {"after_deferred", "fsdp2"},
    "torch:_C._DisableTorchDispatch": DEFERRED,
    "torch:_functorch.pyfunctorch.retrieve_current_functorch_interpreter": VMAP,
    "torch:_C._functorch._unwrap_batched": VMAP,
    "torch:_C._functorch._add_batch_dim": {"functional_vmap"},
    "torch:_C.DispatchKey.FuncTorchVmapMode": {"checks", "vmap"},
    "torch:_C.DispatchKeySet": VMAP | {"checks"},
    "torch:_C._ExcludeDispatchKeyGuard": VMAP | {"checks"},
    "Tensor._version": DEFERRED | {"buffers", "derived_buffers", "pruned", "recipe"},
    "Tensor._is_view": {"grad"},
    "Tensor._base": {"dtensor", "dtensor_without_a_key", "simulated"},
    "Tensor._is_param": DEFERRED,
    "torch:Tensor._make_subclass": DEFERRED,
    "torch:_C._swap_tensor_impl": DEFERRED,
    "UntypedStorage._cdata": DEFERRED,
    "torch:UntypedStorage._new_with_weak_ptr": DEFERRED,
    "torch:_subclasses.FakeTensor": {"fake"},
    "OpOverload._schema": DEFERRED,
    "torch:ops.aten._to_copy.default": set(),
    "torch:ops.aten._unsafe_view.default": set(),
    "torch:ops.aten._reshape_alias.default": set(),
    "torch.utils._pytree:tree_leaves": {"deferred", "fsdp2"},
    "torch.utils._pytree:tree_map": {"deferred", "fsdp2"},
    "Module._non_persistent_buffers_set": {"derived_buffers"},
    "Module._forward_pre_hooks": {"buffers", "derived_buffers", "own_code", "patterns", "pruned", "recipe"},
    "BasePruningMethod._tensor_name": {"pruned"},
    "torch.nn.modules.conv:_ConvNd": {"derived_buffers", "recipe"},
    "torch.nn.modules.batchnorm:_NormBase": {"buffers", "derived_buffers", "pruned", "recipe"},
    "torch.nn.init:_calculate_fan_in_and_fan_out": {"demo", "names_of_torch"},
    "torch.nn.init:_calculate_correct_fan": {"old_fan"},
    "nn.init._no_grad_trunc_normal_": DEFERRED | {"accelerate", "fake"},
    "DTensor._local_tensor": {"dtensor", "dtensor_without_a_key", "fsdp2", "meshes", "simulated"},
    "DTensor._spec": {"fsdp2"},
    "DeviceMesh._get_root_mesh": {"meshes"},
    "LocalTensor._local_tensors": {"simulated"},
    "LocalIntNode._local_ints": {"simulated"},
    "FSDPModule._get_fsdp_state": {"fsdp2"},
    "FSDPState._fsdp_param_group": {"fsdp2"},
}
# Where xinit is not asked any more, torch says why.
TORCHS = {("torch:_C.DispatchKey.FuncTorchVmapMode", "vmap"): "Batching rule not implemented"}


# Each takes a process, so that only these are quick: what most depends on.
QUICK = (
    "torch.utils._python_dispatch:TorchDispatchMode",
    "Tensor._version",
    "Module._forward_pre_hooks",
    "DTensor._local_tensor",
)
NAMES = ["", *(name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LOST)]


@pytest.fixture(scope="module")
def failing(request):
    """What fails without each of the names that are asked for, or without none."""
    names = [item.callspec.params["name"] for item in request.session.items if "failing" in item.fixturenames]
    command = [sys.executable, Path(__file__).with_name("private_worker.py"), *names]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_only_what_needs_it_fails(name, failing):
    assert failing[name].keys() == LOST.get(name, set())
    path = name.replace(":", ".")
    for feature, said in failing[name].items():
        if feature != "checks":
            assert (
                TORCHS.get((name, feature), f"Lacking: torch {torch.__version__} has no {path}, which is needed for ")
                in said
            )


def test_every_name_is_taken_away():
    calls = (node for node in ast.walk(ast.parse(Path(_torch.__file__).read_text())) if isinstance(node, ast.Call))
    first = [call.args[0] for call in calls if getattr(call.func, "id", "") in ("private", "attribute", "Lacking")]
    named = {name.value for name in first if isinstance(name, ast.Constant)}
    assert named == LOST.keys()


def test_marks_for_the_compiler_are_torchs():
    def function():
        pass

    def marks(marked):
        return {name for name in vars(marked) if name.startswith("_")}

    assert marks(_torch.constant_when_compiled(function)) == {"_dynamo_marked_constant"}
    assert marks(torch.compiler.assume_constant_result(lambda: None)) == {"_dynamo_marked_constant"}
    ours = marks(_torch.not_compiled("why")(lambda: None)) - {"__wrapped__"}
    assert ours <= marks(torch.compiler.disable(lambda: None, reason="why"))
    assert len(ours) == 2


def test_missing():
    missing = _torch.private("torch:nowhere", "dreams")
    assert not missing
    for use in (
        missing,
        lambda: missing.attribute,
        lambda: isinstance(3, missing),
        lambda: issubclass(nn.Linear, missing),
        lambda: types.new_class("Derived", (missing,))(),
    ):
        with pytest.raises(ImportError, match=r"has no torch\.nowhere, which is needed for dreams"):
            use()
