"""What of xinit works where torch lacks one of its private names: for each, a process of its own, in which xinit cannot see it.

Prints, as JSON, the features that fail without each of the names given, and what they say.
"""

import importlib
import json
import os
import sys
import warnings
from contextlib import suppress
from inspect import getattr_static
from pkgutil import resolve_name
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import _local_tensor as local_tensors
from torch.distributed import fsdp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.utils import prune
from torch.testing._internal.distributed.fake_pg import FakeStore

OWNERS = {
    "Tensor": torch.Tensor,
    "UntypedStorage": torch.UntypedStorage,
    "OpOverload": torch._ops.OpOverload,
    "Module": nn.Module,
    "BasePruningMethod": prune.BasePruningMethod,
    "nn.init": nn.init,
    "DTensor": DTensor,
    "DeviceMesh": DeviceMesh,
    "LocalTensor": local_tensors.LocalTensor,
    "LocalIntNode": local_tensors.LocalIntNode,
    "FSDPModule": fsdp.FSDPModule,
    "FSDPState": FSDPState,
}


def asked_by_xinit():
    """Whether it is for xinit's one door that whoever asks this looks something up."""
    return sys._getframe(2).f_globals.get("__name__", "").startswith(("xinit._torch", "pkgutil"))


class Hidden:
    """An attribute of a class that all but xinit see."""

    def __init__(self, owner, name):
        self.name, self.found = name, getattr_static(owner, name, None)

    def __get__(self, instance, owner):
        if asked_by_xinit():
            raise AttributeError(self.name)
        if hasattr(self.found, "__get__"):
            return self.found.__get__(instance, owner)
        return instance.__dict__[self.name] if self.found is None and instance is not None else self.found

    def __set__(self, instance, value):
        if hasattr(self.found, "__set__"):
            self.found.__set__(instance, value)
        else:
            instance.__dict__[self.name] = value


def hide(name):
    """From xinit alone: torch needs its names itself."""
    module, _, path = name.rpartition(":")
    outer, _, leaf = path.rpartition(".")
    if name == "Tensor._is_param":  # torch looks for it, not xinit
        ask = type(nn.Parameter).__instancecheck__
        type(nn.Parameter).__instancecheck__ = lambda kind, it: not hasattr(it, "_xinit_class") and ask(kind, it)
        return
    if leaf == "_fsdp_param_group":  # or by its newer name
        hide("FSDPState._fsdp_param_groups")
    if module == "torch" and outer.startswith("ops"):
        outer, leaf = outer.rpartition(".")[::2]
    owner = resolve_name(f"{module}:{outer}" if outer else module) if module else OWNERS[outer]
    if isinstance(owner, ModuleType):

        class Hiding(type(owner)):
            def __getattribute__(self, asked):
                if asked == leaf and asked_by_xinit():
                    raise AttributeError(asked)
                return super().__getattribute__(asked)

            def __getattr__(self, asked):
                return _raise(asked) if asked == leaf else super().__getattr__(asked)

        owner.__class__ = Hiding
    else:
        setattr(owner, leaf, Hidden(owner, leaf))
        if found := getattr(owner, "__getattr__", None):
            owner.__getattr__ = lambda self, asked: _raise(asked) if asked == leaf else found(self, asked)


def _raise(name):
    raise AttributeError(name)


def core(xinit):
    key = xinit.Key(0).fold_in("w")
    window = xinit.Window((10, 8), (1, 2))
    for name in xinit.__all__:
        shape = (6, 4, 3) if "dirac" in name or "delta" in name else (6, 4)
        if not name.endswith("_") or name == "fill_many_" or name in xinit._ROOMS:
            continue
        fill, tensor = getattr(xinit, name), torch.empty(shape)
        arguments = {"constant_": (1.0,), "variance_scaling_": (1.0, "fan_in", "normal"), "sparse_": (0.5,)}.get(
            name, ()
        )
        fill(tensor, *arguments)
        fill(nn.Parameter(tensor), *arguments)
        if name not in ("constant_", "dirac_", "eye_", "ones_", "zeros_"):
            fill(tensor, *arguments, key=key)
            fill(tensor, *arguments, generator=torch.Generator())
    assert xinit.normal_(torch.empty(2, 3), key=key, window=window).std() > 0
    what = [xinit.kaiming_normal(), xinit.zeros(), xinit.orthogonal()]
    xinit.fill_many_([torch.empty(3, 3) for _ in what], what, [key] * 3)


def checks(xinit):
    with pytest.raises(RuntimeError, match="std"):
        xinit.normal(std=-1)


def grad(xinit):
    xinit.normal_(torch.zeros(3, requires_grad=True))


def names_of_torch(xinit):
    assert xinit._calculate_fan_in_and_fan_out(torch.empty(3, 2)) == (2, 3)


def old_fan(xinit):
    assert xinit._calculate_correct_fan(torch.empty(3, 2), "fan_in") == 2


def demo(xinit):
    from xinit.cli.demo import RULES, measured

    rule = next(rule for rule in RULES if rule.method == "xavier_uniform_")
    assert measured(rule, [xinit.xavier_uniform_(torch.empty(64, 64))])


def small():
    return nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6))


def patterns(xinit):
    xinit.init_(nn.Sequential(nn.Linear(4, 6)), {"*": xinit.normal()}, xinit.Key(0))


def recipe(xinit):
    model = xinit.init_(small(), "llama", xinit.Key(0))
    assert xinit.plan(model, "torch").rows


def fingerprint(xinit):
    assert len(xinit.fingerprint(nn.Linear(3, 3))) > 8


def buffers(xinit):
    with torch.device("meta"):
        model = nn.BatchNorm1d(4)
    xinit.init_(model.to_empty(device="cpu"), {"*": xinit.ones()}, xinit.Key(0))
    assert (model.running_var == 1).all()


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("positions", torch.arange(4), persistent=False)


def derived_buffers(xinit):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3), Positions())
    xinit.init_(model.to_empty(device="cpu"), {"*": xinit.ones()}, xinit.Key(0), only="*.weight")


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 4))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.zeros_(self.weight)


def own_code(xinit):
    with pytest.raises(ValueError, match="its own init zeros"):
        xinit.init_(Scaled(), "llama", xinit.Key(0))


def pruned(xinit):
    layer = prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)
    xinit.init_(layer, {"*": xinit.ones()}, xinit.Key(0))
    assert layer.weight.sum() == 8


def accelerate(xinit):
    with xinit.accelerate():
        nn.init.trunc_normal_(nn.Linear(4, 4).weight)


def deferred(xinit):
    with xinit.deferred():
        model = small()
        nn.init.trunc_normal_(model[0].weight)
        model[0].weight.data.mul_(2.0)
        model[0].bias.data = model[0].bias.data.to(torch.float64).to(torch.float32)
    xinit.materialize_(model, key=xinit.Key(0))
    assert model[0].weight.std() > 0


def after_deferred(xinit):
    with xinit.deferred():
        model = nn.Linear(4, 4)
    nn.init.ones_(model.weight)
    assert isinstance(model.weight, nn.Parameter)
    xinit.materialize_(model, key=xinit.Key(0))
    assert (model.weight == 1).all()


def fake(xinit):
    with torch._subclasses.FakeTensorMode(), xinit.deferred(), pytest.raises(RuntimeError, match="FakeTensorMode"):
        nn.Linear(4, 4)


def vmap(xinit):
    drawn = torch.vmap(lambda x: xinit.normal_(torch.empty_like(x)), randomness="different")(torch.zeros(3, 4))
    assert drawn.std() > 0


def functional_vmap(xinit):
    one = torch.func.functionalize(lambda x: xinit.normal_(torch.empty_like(x)))
    assert torch.vmap(one, randomness="different")(torch.zeros(3, 4)).std() > 0


def mesh(*shape, names=("dp", "tp")):
    if not dist.is_initialized():
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    return init_device_mesh("cpu", shape, mesh_dim_names=names[: len(shape)])


def dtensor(xinit):
    tensor = distribute_tensor(torch.zeros(8, 4), mesh(4), [Shard(0)], src_data_rank=None)
    xinit.normal_(tensor, key=xinit.Key(0))
    assert tensor.to_local().std() > 0


def dtensor_without_a_key(xinit):
    xinit.normal_(distribute_tensor(torch.zeros(8, 4), mesh(4), [Shard(0)], src_data_rank=None))


def meshes(xinit):
    both, model = mesh(2, 2), nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    for layer, name in zip(model, ("dp", "tp"), strict=True):
        layer.weight = nn.Parameter(
            distribute_tensor(layer.weight.detach(), both[name], [Shard(0)], src_data_rank=None)
        )
    xinit.fingerprint(model)


def fsdp2(xinit):
    from xinit.parallel.ranks import offloaded

    with xinit.deferred():
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    fsdp.fully_shard(model, mesh=mesh(4), offload_policy=fsdp.CPUOffloadPolicy())
    assert offloaded(model) == {id(parameter) for parameter in model.parameters()}
    xinit.materialize_(model, key=xinit.Key(0))
    assert model[0].weight.to_local().std() > 0


def simulated(xinit):
    with local_tensors.LocalTensorMode(4):
        tensor = distribute_tensor(torch.zeros(8, 4), mesh(4), [Shard(0)], src_data_rank=None)
        xinit.normal_(tensor, key=xinit.Key(0))


FEATURES = [value for value in list(globals().values()) if callable(value) and value.__module__ == __name__]
FEATURES = [f for f in FEATURES if not isinstance(f, type) and f.__code__.co_varnames[:1] == ("xinit",)]


def failing(name):
    """The features that fail without a private name, and how."""
    if name:
        hide(name)
    import xinit

    failed = {}
    for feature in FEATURES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                feature(xinit)
            except (Exception, pytest.fail.Exception) as error:
                failed[feature.__name__] = f"{type(error).__name__}: {error}"
    return failed


def apart(name):
    """The same, in a process of its own; and which modules other than xinit's were imported for that."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        before = {*sys.modules}
        os.write(write, json.dumps([failing(name), sorted({*sys.modules} - before)]).encode())
        os._exit(0)
    os.close(write)
    with open(read) as answer:
        failed, imported = json.loads(answer.read() or "[{}, []]")
    if os.waitpid(child, 0)[1]:
        failed["all"] = "the process has died"
    return failed, [module for module in imported if module.partition(".")[0] != "xinit"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for module in apart("")[1]:  # once for all
        with suppress(ImportError):
            importlib.import_module(module)
    print(json.dumps({name: apart(name)[0] for name in sys.argv[1:]}))
