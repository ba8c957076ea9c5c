"""What else is done to models, on the way to their weights: conversions, copies, records of them, adapters."""

import copy
import io
import pickle

import pytest
import torch
from conftest import KEY, same
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.package import PackageExporter, PackageImporter

import xinit

RECIPE = {"*": xinit.normal(std=0.02)}


def build():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def for_quantization(model):
    quantization = pytest.importorskip("torch.ao.quantization")
    if not hasattr(quantization, "prepare_qat"):
        pytest.skip("it went to torchao")
    model.qconfig = quantization.get_default_qat_qconfig()
    return quantization.prepare_qat(model.train())


def compiled_in_place(model):
    model.compile()
    return model


CONVERSIONS = {
    "traced by fx": torch.fx.symbolic_trace,
    "exported": lambda model: torch.export.export(model.eval(), (torch.ones(2, 8),)).module(),
    "compiled in place": compiled_in_place,
    "in shared memory": nn.Module.share_memory,
    "for quantization": for_quantization,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_conversions_keep_the_weights_of_the_names(convert):
    expected = xinit.fingerprint(xinit.init_(build(), RECIPE, KEY))
    model = xinit.init_(convert(build()), RECIPE, KEY)
    assert xinit.fingerprint(model) == expected
    assert not xinit.audit(model)


def packaged(value):
    file = io.BytesIO()
    with PackageExporter(file) as exporter:
        exporter.extern("**")
        exporter.save_pickle("package", "value.pkl", value)
    file.seek(0)
    return PackageImporter(file).load_pickle("package", "value.pkl")


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value)), packaged])
def test_copies_of_what_tells_of_weights_tell_the_same(copied):
    for value in (
        KEY.fold_in("a"),
        xinit.Window((5, 4), (2, 0)),
        xinit.kaiming_normal(nonlinearity="gelu"),
        xinit.orthogonal(),
        xinit.rows(2, 4, xinit.zeros()),
        xinit.plan(build(), RECIPE),
    ):
        assert copied(value) == value
    with xinit.deferred() as plan:
        model = build()
    assert str(copied(plan)) == str(plan)
    model = xinit.materialize_(model, key=KEY)
    assert xinit.fingerprint(copied(model)) == xinit.fingerprint(model)


def test_averages_of_models_without_memory():
    """One made within the context is a copy; one made later is, too, and has the same weights."""
    with xinit.deferred():
        model = build()
        within = AveragedModel(model, use_buffers=True)
    later = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for each in model, within, later:
        assert not xinit.audit(xinit.materialize_(each, key=KEY))
    for p, q, r in zip(model.parameters(), within.parameters(), later.parameters(), strict=True):
        assert same(p, q)
        assert same(p, r)
    with torch.no_grad():
        model[0].bias += 1
    later.update_parameters(model)
    assert torch.equal(later.module[0].bias, model[0].bias)


def test_parameters_that_take_the_place_of_a_models():
    """torch's own way to call a model with others fills these, and not the model's."""

    class Filled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = build()

        def forward(self):
            xinit.init_(self.net, RECIPE, KEY)

    model = Filled()
    others = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.func.functional_call(model, others, ())
    for name, p in model.named_parameters():
        assert same(p, before[name])
        expected = xinit.normal_(torch.empty(p.shape), std=0.02, key=KEY.fold_in(name.removeprefix("net.")))
        assert same(others[name], expected)


def test_an_optimizer_made_before_there_is_memory():
    with xinit.deferred():
        model = build()
    optimizer = torch.optim.AdamW(model.parameters())
    xinit.materialize_(model, key=KEY)
    before = model[0].weight.detach().clone()
    model(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [True, "gaussian", "olora", "pissa", "orthogonal", "dora"])
def test_adapters_of_a_model_without_memory(kind):
    """What peft computes from the weights, as their principal parts, is computed from those that they get."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=160
    )
    options = {"use_dora": True} if kind == "dora" else {"init_lora_weights": kind}
    lora = peft.LoraConfig(target_modules=["q_proj"], r=4, **options)
    with xinit.deferred():
        plain = transformers.LlamaForCausalLM(config)
    x = torch.arange(12).view(2, 6)
    with xinit.deferred():
        model = peft.get_peft_model(transformers.LlamaForCausalLM(config), lora)
    assert not xinit.audit(xinit.materialize_(model, key=KEY))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.std() > 0
    whole = layer.base_layer.weight + layer.scaling["default"] * (b @ a)
    drawn = xinit.materialize_(plain, key=KEY).model.layers[0].self_attn.q_proj.weight
    assert (whole.std() / drawn.std()).item() == pytest.approx(1, abs=0.2)
    if kind in (True, "gaussian", "dora"):
        assert not b.any()
        assert model(x).logits.isfinite().all()


class Hiding(nn.Module):
    """Layers in a list, which torch does not take as parts of the model, and a layer that knows its model."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.hidden = {"layers": [nn.Linear(8, 8), (nn.Linear(8, 4),)]}
        self.up.owner = [self]

    def forward(self, x):
        first, (second,) = self.hidden["layers"]
        return second(first(self.up(x)))


def test_layers_in_lists_are_named():
    """A forward pass would return a tensor without values, and no error."""
    with xinit.deferred():
        model = Hiding()
    with pytest.warns(
        UserWarning, match=r"hidden\.layers\.0\.weight, .* and are still without memory: .*nn\.ModuleList"
    ):
        xinit.materialize_(model, key=KEY)
    assert [name for name, _ in xinit.audit(model)] == [
        f"hidden.layers.{i}.{leaf}" for i in ("0", "1.0") for leaf in ("weight", "bias")
    ]
    first, (second,) = model.hidden["layers"]
    for layer in first, second:
        xinit.materialize_(layer, key=KEY)
    assert not xinit.audit(model)
    assert model(torch.ones(2, 4)).isfinite().all()
