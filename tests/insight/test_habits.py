"""What people do to their models: weights that are computed, renormalised or quantised, values kept from a pass, rectifiers that
are squared. Seen as it is, or refused in words; and what a pass changes is put back."""

import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from networks import SMALL, batch, deep, of_transformers, tokens
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, prune

import xinit

KEY = xinit.Key(0)
LOOKS = {
    "diagnose": lambda model, *inputs, **kwargs: xinit.diagnose(model, *inputs, **kwargs),
    "recommend": lambda model, *inputs, **kwargs: xinit.recommend(model, *inputs, **kwargs),
    "lsuv_": lambda model, *inputs, **kwargs: xinit.lsuv_(model, *inputs, key=KEY, **kwargs),
}


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.mark.parametrize("look", LOOKS)
def test_an_embedding_that_a_pass_renormalises_is_put_back(look):
    model = nn.Sequential(nn.Embedding(100, 16, max_norm=1.0), nn.Linear(16, 4))
    before = model[0].weight.detach().clone()
    LOOKS[look](model, tokens())
    assert torch.equal(model[0].weight, before)


class Keeps(nn.Module):
    """What many do in a forward pass: count, keep an auxiliary loss with its history, and make a layer at the first call."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.calls, self.auxiliary = nn.Linear(8, 8), None, 0, None

    def forward(self, x):
        x = self.first(x)
        if self.last is None:
            self.last = nn.Linear(8, 4)
        self.calls, self.auxiliary, self.more = self.calls + 1, x.square().mean(), 1
        return self.last(x)


@pytest.mark.parametrize("look", LOOKS)
def test_what_a_pass_keeps_in_a_model_is_let_go(look):
    model = Keeps()
    LOOKS[look](model, batch(16, 8))
    assert (model.calls, model.auxiliary, model.last, hasattr(model, "more")) == (0, None, None, False)
    assert [*model._modules] == ["first"]


class Squared(nn.Module):
    def forward(self, x):
        return torch.relu(x).square()


def test_the_unbounded_slope_of_a_squared_relu_makes_no_unit_dead():
    model = xinit.init_(nn.Sequential(nn.Linear(32, 32), Squared(), nn.Linear(32, 4)), "torch", KEY)
    assert xinit.diagnose(model, batch(64, 32)).sound
    model[0].bias.data.fill_(-20)
    assert ("dead", "0") in [(flag.kind, flag.layer) for flag in xinit.diagnose(model, batch(64, 32)).flags]


COMPUTED = {
    "parametrized": lambda layer: parametrizations.weight_norm(layer),
    "spectral": lambda layer: parametrizations.spectral_norm(layer),
    "weight_norm": utils.weight_norm,
    "spectral_norm": utils.spectral_norm,
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", amount=0.1),
}


def computed(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that some are deprecated
        first, second = COMPUTED[name](nn.Conv2d(3, 16, 3)), COMPUTED[name](nn.Linear(576, 64))
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), second, nn.GELU(), nn.Linear(64, 4))


@pytest.mark.parametrize("name", COMPUTED)
def test_a_weight_that_is_computed_is_its_layers(name):
    """Named as init_ names it, with its layer's fans, and drawn by what follows."""
    model, x = computed(name), batch(16, 3, 8, 8)
    plain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 64), nn.GELU(), nn.Linear(64, 4))
    report, expected = xinit.diagnose(model, x), xinit.diagnose(plain, x)
    assert [(row.name, row.fan_in, row.fan_out, row.activation, row.own_std) for row in report.rows if row.calls] == [
        (row.name, row.fan_in, row.fan_out, row.activation, row.own_std) for row in expected.rows
    ]
    recipe, wanted = xinit.recommend(model, x), xinit.recommend(plain, x)
    assert {row.name: (row.activation, row.method, row.std) for row in recipe.rows} == {
        row.name: (row.activation, row.method, row.std) for row in wanted.rows
    }
    for how in (recipe, xinit.recipes.kaiming(inputs=x), "kaiming"):
        xinit.init_(model, how, KEY)
        xinit.init_(plain, wanted if how is recipe else how, KEY)
        part = {"weight_norm": "weight_v", "spectral_norm": "weight_orig", "pruned": "weight_orig"}.get(name)
        for i in (0, 3):
            held = model[i]._parameters if part else model[i].parametrizations.weight._parameters
            assert torch.equal(held[part or [*held][-1]], plain[i].weight)


@pytest.mark.parametrize("name", COMPUTED)
def test_lsuv_says_that_it_leaves_computed_weights(name):
    model, x = computed(name), batch(16, 3, 8, 8)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.warns(UserWarning, match="lsuv_: modules 0, 3 left as they are: .* computed"):
        xinit.lsuv_(model, x, key=KEY)
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == ["5.weight", "5.bias"]


@pytest.mark.filterwarnings("ignore:Complex modules are")
def test_complex_models_have_unit_variance_too():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).to(torch.complex64)
    x = torch.complex(batch(64, 8), batch(64, 8).flip(0))
    xinit.lsuv_(model, x, key=KEY)
    assert torch.view_as_real(model(x)).var(unbiased=False).item() == pytest.approx(1, abs=0.011)


def test_rows_of_padding_are_not_where_gradients_explode():
    """Their embedding is zero, which norms magnify: on the way back without bound, to a row that does not learn."""
    model = of_transformers("LlamaForCausalLM", **SMALL, vocab_size=100, num_key_value_heads=2, pad_token_id=0)
    assert xinit.diagnose(model, tokens()).sound  # 0 is among them
    only = nn.Sequential(nn.Embedding(100, 16, padding_idx=0), nn.Linear(16, 4))
    assert xinit.diagnose(only, torch.zeros(2, 8, dtype=torch.long)).rows[0].grad_rms > 0


def test_adapters_begin_as_they_do():
    peft = pytest.importorskip("peft")
    base = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["0"]))
    xinit.init_(model, xinit.recommend(model, batch(16, 32)), KEY)
    named = dict(model.named_parameters())
    assert not named["base_model.model.0.lora_B.default.weight"].any()
    assert named["base_model.model.0.lora_A.default.weight"].std() > 0


class Heads(nn.Module):
    """With a matrix and a bias for each head."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 8, 8)), nn.Parameter(torch.ones(4, 8))

    def forward(self, x):
        return (torch.einsum("bi,hij->bhj", x, self.weight) + self.bias).flatten(1)


def test_a_bias_for_each_head_is_a_bias():
    model = nn.Sequential(nn.Linear(8, 8), Heads(), nn.Linear(32, 4))
    recipe = xinit.recommend(model, batch(16, 8))
    assert recipe["1.bias"] == xinit.zeros()
    assert not xinit.init_(model, recipe, KEY)[1].bias.any()


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        state = x.new_zeros(len(x), 16)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


def test_a_cell_that_runs_again_and_again_is_no_head():
    why = {row.name: row.why for row in xinit.recommend(Cell(), batch(4, 6, 8)).rows}
    assert (why["cell.weight_hh"], why["head.weight"]) == ("no activation", "head")


class Wrapped(nn.Module):
    def forward(self, x):
        return SimpleNamespace(value=x)


def small():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def test_whatever_goes_on_around_it():
    model, x = small(), batch(16, 8)
    plain = xinit.diagnose(model, x)
    with torch.no_grad():
        assert xinit.diagnose(model, x) == plain
        assert xinit.coordinate_check(lambda width: small(), (8, 16), x).rows
    with torch.device("meta"):
        assert xinit.diagnose(model, x) == plain
        xinit.lsuv_(model, x, key=KEY)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"diagnose: .*torch\.inference_mode"):
        xinit.diagnose(model, x)


@pytest.mark.parametrize(
    ("behind", "loss", "error", "words"),
    [
        (nn.Identity(), "mse", TypeError, "diagnose: loss must be a function of the model's output, but found str"),
        (nn.Identity(), nn.MSELoss(), TypeError, "target"),
        (Wrapped(), None, ValueError, "the output, a SimpleNamespace, has no gradient.*pass loss="),
    ],
)
def test_a_loss_or_output_of_another_kind(behind, loss, error, words):
    model = nn.Sequential(nn.Linear(8, 4), behind)
    with pytest.raises(error, match=words) as caught:
        xinit.diagnose(model, batch(4, 8), loss=loss)
    if "target" in words and sys.version_info >= (3, 11):
        assert caught.value.__notes__ == ["diagnose: in the loss"]


def test_a_batch_of_one_and_the_same_example_is_said_as_such():
    """A batch norm takes all of it away, which is not the fault of the layer before it."""
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    (flag,) = (flag for flag in xinit.diagnose(model, torch.ones(16, 8)).flags if flag.kind == "vanishing")
    assert flag.layer == "1"
    assert "the same" in flag.cause
    assert "batch" in flag.fix


def test_a_function_without_a_slope_is_not_the_fault_of_the_layer_behind_it():
    class Rounds(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 4)

        def forward(self, x):
            return self.last((4 * self.first(x)).round())

    (flag,) = xinit.diagnose(Rounds(), batch(16, 8)).flags
    assert (flag.kind, flag.layer) == ("vanishing", "first")
    assert "without a slope" in flag.cause


def test_saturating_functions_keep_gradients_in_deep_networks():
    """By the slope that they have at zero, as the guide says of tanh: 5/3 made them explode."""
    for activation in (nn.Tanh, nn.Hardtanh, nn.Softsign):
        model = deep(100, activation, xinit.xavier_normal())
        recipe, x = xinit.recommend(model, batch(64, 64)), batch(64, 64)
        assert recipe["0.weight"] == xinit.xavier_normal(1.0)
        assert xinit.diagnose(xinit.init_(model, recipe, KEY), x).sound
    assert xinit.recommend(nn.Linear(4, 4), batch(4, 4))["weight"] == xinit.kaiming_normal(nonlinearity="linear")
    signs = nn.Sequential(nn.Linear(4, 4), Sign(), nn.Linear(4, 4))
    assert xinit.recommend(signs, batch(4, 4))["0.weight"] == xinit.xavier_normal(1.0)  # which has no slope


class Sign(nn.Module):
    def forward(self, x):
        return x.sign()


def test_a_layer_that_is_not_used_is_one_row():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    names = [row.name for row in xinit.diagnose(model, batch(4, 3, 16)).rows]
    assert "self_attn.out_proj" in names
    assert "self_attn.out_proj.bias" not in names


def test_quantised_weights_are_measured_as_they_act():
    quantization = pytest.importorskip("torchao.quantization")
    model = xinit.init_(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)), "torch", KEY)
    plain = xinit.diagnose(model, batch(16, 64)).rows[0].weight_std
    quantization.quantize_(model[0], quantization.Int8WeightOnlyConfig())
    assert xinit.diagnose(model, batch(16, 64)).rows[0].weight_std == pytest.approx(plain, rel=0.02)


def test_prelu_is_an_activation_that_has_weights():
    for slopes in (1, 64):
        layers = [layer for _ in range(30) for layer in (nn.Linear(64, 64), nn.PReLU(slopes))]
        model = nn.Sequential(*layers, nn.Linear(64, 10))
        recipe = xinit.recommend(model, batch(64, 64))
        assert recipe["0.weight"].resolve((64, 64)).std == pytest.approx(xinit.calculate_gain(nn.PReLU()) / 8, rel=1e-3)
        assert recipe["1.weight"] == xinit.constant(0.25)
        report = xinit.diagnose(xinit.init_(model, recipe, KEY), batch(64, 64))
        assert report.sound
        assert [(row.type, row.activation, row.calls) for row in report.rows[:2]] == [
            ("Linear", "PReLU", 1),
            ("PReLU", "", 1),
        ]
        assert report.rows[0].post_rms == pytest.approx(report.rows[1].out_rms)


def test_weights_of_zero_behind_biases_that_are_not():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    xinit.init_(model, "torch", KEY)
    xinit.diagnose(model, batch(16, 8))
    model[4].weight.data.zero_()
    assert xinit.diagnose(model, batch(16, 8)).sound  # a head may begin so
    for module in (model[0], model[2]):
        module.weight.data.zero_()
    flags = xinit.diagnose(model, batch(16, 8)).flags
    assert [(flag.kind, flag.layer) for flag in flags] == [("vanishing", "0"), ("vanishing", "2")]
    assert "its weights are all zero" in flags[0].cause


class Gated(nn.Module):
    def __init__(self, gate, halves=False):
        super().__init__()
        self.gate, self.halves = gate, halves
        self.first, self.second = nn.Linear(16, 64), nn.Linear(32 if halves else 64, 4)

    def forward(self, x):
        x = self.first(x)
        return self.second(self.gate(*x.chunk(2, -1)) if self.halves else self.gate(x))


@pytest.mark.parametrize(
    ("gate", "name"),
    [
        (lambda x: x * torch.sigmoid(x), "silu"),
        (lambda x: x.sigmoid().mul(x), "silu"),
        (lambda x: x * torch.sigmoid(1.702 * x), "quick_gelu"),
        (lambda x: x * torch.tanh(nn.functional.softplus(x)), "mish"),
        (lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3))), "gelu"),
        (lambda x: torch.relu(x) * torch.relu(x), "relu"),
        (lambda x: x + torch.tanh(x), "tanh"),
    ],
)
def test_what_gates_itself_is_an_activation_of_its_own(gate, name):
    x = batch(64, 16)
    layer = Gated(gate)
    report = xinit.diagnose(layer, x)
    assert report.rows[0].activation == name
    if name not in ("relu", "tanh"):
        behind = gate(layer.first(x))
        assert report.rows[0].post_rms == pytest.approx(behind.square().mean().sqrt().item(), rel=1e-3)
        assert report.rows[0].post_mean == pytest.approx(behind.mean().item(), abs=1e-3)


@pytest.mark.parametrize("half", [torch.sigmoid, torch.tanh, nn.functional.hardsigmoid])
def test_what_opens_for_another_half_is_no_activation(half):
    model = Gated(lambda a, b: a * half(b), halves=True)
    assert xinit.diagnose(model, batch(64, 16)).rows[0].activation == ""
    assert "sigmoid" not in str(xinit.recommend(model, batch(64, 16)))
    gelu = Gated(lambda a, b: a * nn.functional.gelu(b), halves=True)
    assert xinit.diagnose(gelu, batch(64, 16)).rows[0].activation == "gelu"


def test_a_sparse_batch_is_refused_in_words():
    with pytest.raises(ValueError, match=r"diagnose: input 0 is a torch\.sparse_coo tensor"):
        xinit.diagnose(nn.Linear(8, 4), batch(4, 8).to_sparse())
    with pytest.raises(ValueError, match="widths must be at least two different integers"):
        xinit.coordinate_check(lambda width: nn.Linear(8, width), 16, batch(4, 8))
