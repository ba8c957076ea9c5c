"""Wrapper subclasses: filled through the tensor that they hold, or refused by name before anything is touched."""

import pytest
import torch
from conftest import KEY, same
from torch import nn
from torch.utils import _pytree

import xinit
from xinit import Key
from xinit.subclasses import held


class Wrapper(torch.Tensor):
    """As torchao's: what it does with an operator is up to it; this one gives away what it holds."""

    @staticmethod
    def __new__(cls, tensor, scale=None):
        return torch.Tensor._make_wrapper_subclass(
            cls, tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )

    def __init__(self, tensor, scale=None):
        self._tensor, self._scale = tensor, scale

    def __tensor_flatten__(self):
        return ["_tensor"] + ["_scale"] * (self._scale is not None), None

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride):
        return cls(inner["_tensor"], inner.get("_scale"))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """On a copy, so that an operator that fills it fills nothing."""
        if func is torch.ops.aten.detach.default:
            return cls(args[0]._tensor, args[0]._scale)
        args, kwargs = _pytree.tree_map_only(cls, lambda t: t._tensor.clone(), (args, kwargs or {}))
        return func(*args, **kwargs)


def wrapped(scale=None):
    model = nn.Sequential(nn.Linear(5, 4))
    model[0].weight = nn.Parameter(Wrapper(model[0].weight.detach(), scale))
    return model


RECIPE = {"*.bias": xinit.zeros(), "*": xinit.xavier_normal()}


def test_functions_fill_what_it_holds():
    expected = xinit.normal_(torch.empty(4, 5), std=0.1, key=KEY)
    for fill in (
        lambda tensor: xinit.normal_(tensor, std=0.1, key=KEY),
        lambda tensor: xinit.fill_many_([torch.empty(2), tensor], [xinit.zeros(), xinit.normal(std=0.1)], [KEY, KEY]),
    ):
        for tensor in (Wrapper(torch.zeros(4, 5)), Wrapper(Wrapper(torch.zeros(4, 5)))):
            version = tensor._version
            fill(tensor)
            assert same(held(tensor, "it"), expected)
            assert tensor._version > version


def test_models_are_filled_and_fingerprinted_as_without_it():
    model, plain = wrapped(), nn.Sequential(nn.Linear(5, 4))
    xinit.init_(model, RECIPE, Key(1))
    xinit.init_(plain, RECIPE, Key(1))
    assert isinstance(model[0].weight, Wrapper)
    assert same(model[0].weight._tensor, plain[0].weight.detach())
    assert xinit.fingerprint(model) == xinit.fingerprint(plain)


def test_others_are_refused_by_name_before_anything_is_touched():
    model = wrapped(torch.ones(()))
    weight, bias = model[0].weight._tensor.clone(), model[0].bias.detach().clone()
    generator = torch.Generator().manual_seed(2)
    state = generator.get_state()
    for call in (
        lambda: xinit.normal_(model[0].weight, generator=generator),
        lambda: xinit.fill_many_([model[0].bias, model[0].weight], [xinit.ones()] * 2, [KEY] * 2),
        lambda: xinit.init_(model, RECIPE, Key(1)),
        lambda: xinit.fingerprint(model),
    ):
        with pytest.raises(
            NotImplementedError, match="is a Wrapper, whose values are made from its _tensor and _scale"
        ):
            call()
    with pytest.raises(NotImplementedError, match=r"init_: parameter 0\.weight is a Wrapper"):
        xinit.init_(model, RECIPE, Key(1))
    assert same(model[0].weight._tensor, weight)
    assert same(model[0].bias.detach(), bias)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("inside", [True, False])
def test_deferred_parameters_that_are_wrapped_before_they_have_memory(inside):
    def wrap(model):
        model[0].weight = nn.Parameter(Wrapper(model[0].weight))

    with xinit.deferred():
        model = nn.Sequential(nn.Linear(5, 4))
        if inside:
            wrap(model)
    if not inside:
        wrap(model)
    parameter = model[0].weight
    assert [name for name, _ in xinit.audit(model)] == ["0.weight", "0.bias"]
    xinit.materialize_(model, key=Key(3))
    with xinit.deferred():
        plain = nn.Sequential(nn.Linear(5, 4))
    xinit.materialize_(plain, key=Key(3))
    assert model[0].weight is parameter
    assert isinstance(parameter, Wrapper)
    assert parameter.device == torch.device("cpu")
    assert parameter.requires_grad
    assert same(parameter._tensor.detach(), plain[0].weight.detach())
    assert not xinit.audit(model)
    assert xinit.fingerprint(model) == xinit.fingerprint(plain)


# ---- torchao's ----


def gathered_in_float8():
    pytest.importorskip("torchao")
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig(enable_fsdp_float8_all_gather=True)
    return lambda model: convert_to_float8_training(model, config=config)


@pytest.mark.filterwarnings("ignore")
def test_torchaos_weights_that_are_gathered_in_float8():
    convert = gathered_in_float8()
    plain = xinit.init_(nn.Sequential(nn.Linear(64, 32)), "torch", Key(5))
    model = convert(nn.Sequential(nn.Linear(64, 32)))
    assert type(model[0].weight).__name__ == "WeightWithDynamicFloat8CastTensor"
    xinit.init_(model, "torch", Key(5))
    assert same(model[0].weight._tensor.detach(), plain[0].weight.detach())
    assert xinit.fingerprint(model) == xinit.fingerprint(plain)
    model[0].weight._precomputed_scale = torch.ones(())
    with pytest.raises(NotImplementedError, match="_precomputed_scale"):
        xinit.init_(model, "torch", Key(6))
    with xinit.deferred():
        late = nn.Sequential(nn.Linear(64, 32))
    convert(late)
    xinit.materialize_(late, key=Key(5))
    assert same(late[0].weight._tensor.detach(), plain[0].weight.detach())
    late(torch.ones(2, 64)).sum()


@pytest.mark.filterwarnings("ignore")
def test_torchaos_quantized_weights_are_refused():
    quantization = pytest.importorskip("torchao.quantization")
    for config in (quantization.Int8WeightOnlyConfig(), quantization.Float8WeightOnlyConfig()):
        model = nn.Sequential(nn.Linear(256, 256, bias=False, dtype=torch.bfloat16))
        quantization.quantize_(model, config)
        weight = model[0].weight
        before = weight.dequantize().clone()
        for call in (lambda w=weight: xinit.normal_(w), lambda m=model: xinit.init_(m, "torch", Key(0))):
            with pytest.raises(
                NotImplementedError, match=f"is a {type(weight).__name__}, whose values are made from its"
            ):
                call()
        assert torch.equal(weight.dequantize(), before)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_packed_weights_are_named():
    """They are neither parameters nor tensors."""
    if torch.backends.quantized.engine == "none" or not hasattr(torch.ao.quantization, "quantize_dynamic"):
        pytest.skip("torch cannot quantize here")
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    before = model[0].weight().dequantize()
    for use in (lambda: xinit.init_(model, "torch", KEY), lambda: xinit.fingerprint(model)):
        with pytest.warns(
            UserWarning, match="modules 0, 2 of torch.ao.quantization, whose packed weights are no parameters"
        ):
            use()
    assert torch.equal(model[0].weight().dequantize(), before)
