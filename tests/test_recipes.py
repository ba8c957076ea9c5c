"""The recipes: distribution for distribution what their sources ask for, on real modules and names."""

import inspect
import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import xinit
from xinit import _C, Key, recipes

pytestmark = pytest.mark.usefixtures("one_thread")
KEY = Key(20261).fold_in("recipes")
COUNTS = {"constant": 1, "uniform": 2, "normal": 2, "truncated_normal": 4}  # of a distribution's parameters


class Draws(TorchDispatchMode):
    """What ATen's and xinit's fills are asked to draw: by address and number of elements, the last one counts."""

    def __init__(self):
        super().__init__()
        self.last = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        op = func._schema.name
        if op == "xinit::fill_many_":
            for tensor, description in zip(*args[:2], strict=True):
                name, parameters = _C.resolve(description, tensor.shape)
                self.note(tensor, name, parameters[: COUNTS[name]])
        elif op == "aten::uniform_":
            self.note(args[0], "uniform", (*args[1:], 0, 1)[:2])
        elif op == "aten::normal_":
            self.note(args[0], "normal", args[1:3] or (0, 1))
        elif op in ("aten::fill_", "aten::zero_"):
            self.note(args[0], "constant", (*args[1:], 0)[:1])
        result = func(*args, **(kwargs or {}))
        if op == "aten::clone" and (drawn := self.last.get((args[0].data_ptr(), args[0].numel()))):
            self.note(result, *drawn)  # nn.Transformer copies its layers
        return result

    def note(self, tensor, name, parameters):
        self.last[tensor.data_ptr(), tensor.numel()] = name, [float(p) for p in parameters]

    def of(self, parameter):
        """The fill of the whole, and those of single rows."""
        rows = parameter.unbind() if parameter.dim() == 2 and len(parameter) > 1 else ()
        rows = {i: self.last[at] for i, row in enumerate(rows) if (at := (row.data_ptr(), row.numel())) in self.last}
        return self.last.get((parameter.data_ptr(), parameter.numel())), rows


def assert_same_draws(model, mine, theirs, skip=()):
    for name, parameter in model.named_parameters():
        if name in skip:
            continue
        (got, got_rows), (expected, expected_rows) = mine.of(parameter), theirs.of(parameter)
        assert expected is not None, name
        assert got is not None, name
        # U(0, 0) of a bias without inputs, N(0, 0) and a constant are the same.
        assert got[0] == expected[0], name
        assert got[1] == pytest.approx(expected[1], rel=1e-12, abs=0), name
        assert got_rows == expected_rows, name


def called(module, *shape):
    """A lazy module, after its first call."""
    module(torch.zeros(shape))
    return module


def quietly(make):
    """Without torch's warnings: that lazy modules may change, that a weight has no elements."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


# Every module of torch.nn that has parameters, in the variants that change their number, shape or distribution.
MODULES = {
    "Linear": lambda: nn.Linear(30, 20),
    "Linear, no bias": lambda: nn.Linear(30, 20, bias=False),
    "Linear, no inputs": lambda: nn.Linear(0, 20),
    "LazyLinear": lambda: called(nn.LazyLinear(20), 2, 30),
    "Bilinear": lambda: nn.Bilinear(5, 7, 11),
    "Identity": nn.Identity,
    "Conv1d": lambda: nn.Conv1d(6, 8, 3),
    "Conv2d, groups": lambda: nn.Conv2d(6, 9, (3, 5), groups=3),
    "Conv3d": lambda: nn.Conv3d(2, 4, 3, bias=False),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(6, 8, 3),
    "ConvTranspose2d, groups": lambda: nn.ConvTranspose2d(6, 9, (3, 5), groups=3),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(2, 4, 3),
    "LazyConv1d": lambda: called(nn.LazyConv1d(8, 3), 1, 6, 9),
    "LazyConv2d": lambda: called(nn.LazyConv2d(8, 3, groups=2), 1, 6, 9, 9),
    "LazyConv3d": lambda: called(nn.LazyConv3d(8, 3), 1, 6, 5, 5, 5),
    "LazyConvTranspose1d": lambda: called(nn.LazyConvTranspose1d(8, 3), 1, 6, 9),
    "LazyConvTranspose2d": lambda: called(nn.LazyConvTranspose2d(8, 3), 1, 6, 9, 9),
    "LazyConvTranspose3d": lambda: called(nn.LazyConvTranspose3d(8, 3), 1, 6, 5, 5, 5),
    "Embedding": lambda: nn.Embedding(10, 4),
    "Embedding, padding": lambda: nn.Embedding(10, 4, padding_idx=3),
    "Embedding, negative padding": lambda: nn.Embedding(10, 4, padding_idx=-1),
    "EmbeddingBag": lambda: nn.EmbeddingBag(10, 4, padding_idx=0),
    "BatchNorm1d": lambda: nn.BatchNorm1d(5),
    "BatchNorm2d": lambda: nn.BatchNorm2d(5),
    "BatchNorm3d": lambda: nn.BatchNorm3d(5),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(5),
    "LazyBatchNorm1d": lambda: called(nn.LazyBatchNorm1d(), 4, 5),
    "LazyBatchNorm2d": lambda: called(nn.LazyBatchNorm2d(), 4, 5, 2, 2),
    "LazyBatchNorm3d": lambda: called(nn.LazyBatchNorm3d(), 4, 5, 2, 2, 2),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(5, affine=True),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(5, affine=True),
    "InstanceNorm3d": lambda: nn.InstanceNorm3d(5, affine=True),
    "LazyInstanceNorm1d": lambda: called(nn.LazyInstanceNorm1d(affine=True), 2, 5, 9),
    "LazyInstanceNorm2d": lambda: called(nn.LazyInstanceNorm2d(affine=True), 2, 5, 3, 3),
    "LazyInstanceNorm3d": lambda: called(nn.LazyInstanceNorm3d(affine=True), 2, 5, 3, 3, 3),
    "GroupNorm": lambda: nn.GroupNorm(2, 6),
    "LayerNorm": lambda: nn.LayerNorm((5, 3)),
    "LayerNorm, no bias": lambda: nn.LayerNorm(5, bias=False),
    "RMSNorm": lambda: nn.RMSNorm(5),
    "RNN": lambda: nn.RNN(5, 7, nonlinearity="relu"),
    "LSTM": lambda: nn.LSTM(5, 7, num_layers=2, bidirectional=True, proj_size=3),
    "GRU": lambda: nn.GRU(5, 7, bias=False),
    "RNNCell": lambda: nn.RNNCell(5, 7),
    "LSTMCell": lambda: nn.LSTMCell(5, 7),
    "GRUCell": lambda: nn.GRUCell(5, 7, bias=False),
    "MultiheadAttention": lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True),
    "MultiheadAttention, kdim": lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=10),
    "MultiheadAttention, no bias": lambda: nn.MultiheadAttention(8, 2, bias=False, add_bias_kv=True),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "TransformerDecoderLayer": lambda: nn.TransformerDecoderLayer(8, 2, 16, bias=False),
    "Transformer": lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
    "Transformer in a model": lambda: nn.ModuleList(
        [nn.Transformer(8, 2, 1, 1, 16, batch_first=True), nn.Linear(8, 4)]
    ),
    "PReLU": lambda: nn.PReLU(3, init=0.125),
    "AdaptiveLogSoftmaxWithLoss": lambda: nn.AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10], div_value=2.0, head_bias=True),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_torch_asks_for_what_reset_parameters_asks_for(make):
    with Draws() as theirs:
        model = quietly(make)
    empty = [name for name, parameter in model.named_parameters() if not parameter.numel()]
    with Draws() as mine:
        xinit.init_(model, "torch", KEY, skip=empty or None)
    assert_same_draws(model, mine, theirs, skip=empty)


def test_no_module_of_torch_nn_that_has_parameters_is_forgotten():
    tested = {type(module) for make in MODULES.values() for module in quietly(make).modules()}
    # Lazy modules turn into the others; these two hold what they are given.
    exempt = {nn.ParameterList, nn.ParameterDict, nn.Module}
    classes = {kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.Module)}
    assert len(classes) > 150

    def has_parameters(kind):
        inits = {base.__init__ for base in kind.__mro__ if base not in (nn.Module, object) and "__init__" in vars(base)}
        return any("Parameter(" in inspect.getsource(init) for init in inits)

    missing = {kind for kind in classes - tested - exempt if has_parameters(kind)}
    bases = {nn.RNNBase, nn.RNNCellBase}
    assert {kind for kind in missing - bases if not kind.__name__.startswith("Lazy")} == set()
    lazies = {kind.__name__ for kind in missing if kind.__name__.startswith("Lazy")}
    assert lazies <= set(MODULES)
    resets = {kind for kind in classes if "reset_parameters" in vars(kind) or "_reset_parameters" in vars(kind)}
    assert all(any(issubclass(t, kind) for t in tested) for kind in resets if not kind.__name__.startswith("Lazy"))


def standard_errors(parameter, std, fourth):
    """How far mean and mean square are from those of a symmetric distribution with that std, in standard errors."""
    z, n = parameter.detach().double() / std, parameter.numel()
    return abs(z.mean().item()) * n**0.5, abs(z.square().mean().item() - 1) / ((fourth - 1) / n) ** 0.5


LARGE = {
    "Linear": lambda: nn.Linear(300, 200),
    "Conv2d": lambda: nn.Conv2d(32, 64, 5, groups=2),
    "LSTM": lambda: nn.LSTM(100, 90),
    "MultiheadAttention": lambda: nn.MultiheadAttention(120, 2, add_bias_kv=True),
    "Embedding": lambda: nn.Embedding(500, 100),
    "Transformer": lambda: nn.Transformer(64, 2, 1, 1, 256, batch_first=True),
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_moments_and_bounds_agree_with_the_constructors(make):
    """All parameters of at least 300 elements, ours and torch's, within 5 standard errors of what the plan says."""
    torch.manual_seed(1)
    theirs, ours = make(), xinit.init_(make(), "torch", KEY)
    rows, seen = {row.name: row for row in xinit.plan(ours, "torch").rows}, 0
    for (name, mine), eager in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        row = rows[name]
        if not row.std:
            assert mine.unique().tolist() == eager.unique().tolist()
        elif mine.numel() >= 300:
            seen += 1
            normal = row.method in ("normal", "xavier_normal")
            for values in (mine, eager):
                assert max(standard_errors(values, row.std, 3.0 if normal else 1.8)) < 5, name
                if not normal:
                    bound = math.sqrt(3) * row.std
                    assert bound * (1 - 20 / values.numel()) < values.abs().max() <= bound * (1 + 1e-6), name
    assert seen


def test_a_subclass_with_a_reset_of_its_own_is_left_to_other_patterns():
    class Mine(nn.Linear):
        def reset_parameters(self):
            nn.init.ones_(self.weight)

    class Same(nn.Linear):
        pass

    model = nn.Sequential(Mine(3, 2), Same(3, 2))
    assert [row.name for row in xinit.plan(model, "torch").problems] == ["0.weight", "0.bias"]
    weight_norm = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    plan = xinit.plan(weight_norm, "torch")
    methods = {"weight": "U(±1/sqrt(fan_in))", "bias": "uniform ±0.577"}
    assert {row.name: row.method for row in plan.rows} == methods


# ---- transformers' own initialisers, call for call ----


def small(name, **options):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "intermediate_size": 24,
    }
    config = getattr(transformers, f"{name}Config")(**sizes | options)
    models = {"GPT2": "GPT2LMHeadModel", "ViT": "ViTForImageClassification"}
    return getattr(transformers, models.get(name, f"{name}ForCausalLM")), config


@pytest.mark.parametrize(
    ("name", "recipe", "options"),
    [
        ("GPT2", "gpt2", {"n_positions": 20}),
        ("Llama", "llama", {"num_key_value_heads": 1, "pad_token_id": 3}),
        ("Llama", "llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("Mixtral", "llama", {"num_key_value_heads": 1, "num_local_experts": 4}),
        ("Qwen2", "llama", {"num_key_value_heads": 1}),
    ],
)
def test_gpt2_and_llama_are_transformers_own(name, recipe, options):
    model, config = small(name, **options)
    with Draws() as theirs:
        model = model(config)
    with Draws() as mine:
        xinit.init_(model, recipe, KEY)
    assert_same_draws(model, mine, theirs)


def test_vit_truncates_as_transformers_and_timm_do():
    kind, config = small("ViT", image_size=8, patch_size=4)
    model = kind(config)
    with Draws() as mine:
        xinit.init_(model, "vit", KEY)
    for name, parameter in model.named_parameters():
        expected = ("truncated_normal", [0.0, 0.02, -2.0, 2.0])
        if parameter.dim() < 2:
            expected = ("constant", [float(name.endswith("weight"))])
        assert mine.of(parameter)[0] == expected, name
    assert "constant" not in mine.of(model.vit.embeddings.cls_token)[0]
    tokens = nn.ParameterDict({"mask_token": torch.ones(1, 1, 64), "pos_embed": torch.zeros(1, 300, 64)})
    xinit.init_(tokens, recipes.vit(bound=0.04), KEY)
    assert not tokens["mask_token"].any()
    assert 0.0399 < tokens["pos_embed"].abs().max() <= 0.04


# ---- other libraries' names ----


def block(width, **names):
    return nn.ModuleDict({name: nn.Linear(inputs, outputs, bias=False) for name, (inputs, outputs) in names.items()})


def titan(layers, width=8):
    """The names that torchtitan and Meta's own code give a Llama."""
    square = (width, width)
    return nn.ModuleDict(
        {
            "tok_embeddings": nn.Embedding(20, width),
            "layers": nn.ModuleDict(
                {
                    str(i): nn.ModuleDict(
                        {
                            "attention": block(width, wq=square, wk=square, wv=square, wo=square),
                            "feed_forward": block(width, w1=square, w2=square, w3=square),
                            "attention_norm": nn.RMSNorm(width),
                            "ffn_norm": nn.RMSNorm(width),
                        }
                    )
                    for i in range(layers)
                }
            ),
            "norm": nn.RMSNorm(width),
            "output": nn.Linear(width, 20, bias=False),
        }
    )


def stds(model, recipe, **selection):
    plan = xinit.plan(model, recipe, **selection)
    assert plan.problems == ()
    return {row.name: row.std for row in plan.rows}


def test_llama_and_gpt2_know_torchtitans_names():
    model = titan(6)
    llama, gpt2 = stds(model, "llama"), stds(model, "gpt2")
    for name, parameter in model.named_parameters():
        assert llama[name] == (0.02 if parameter.dim() == 2 else 0)
        residual = name.endswith(("wo.weight", "w2.weight"))
        assert gpt2[name] == pytest.approx(llama[name] / (math.sqrt(12) if residual else 1))
    assert stds(model, recipes.llama(std=0.006))["output.weight"] == 0.006


class Custom(nn.Module):
    """A norm of another library: only its class's name or its own tells."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x / x.square().mean(-1, keepdim=True).sqrt() * self.weight + self.bias


class FancyRMSNorm(Custom):
    pass


def test_norms_are_known_by_their_class_or_name_and_nothing_else_is():
    model = nn.ModuleDict({"a": FancyRMSNorm(4), "ln_1": Custom(4), "final_norm": Custom(4), "gate": Custom(4)})
    plan = xinit.plan(model, "llama")
    assert [row.name for row in plan.problems] == ["gate.weight"]
    # No module of torch's, which writes its parameters in place, tells that the model does not come from to_empty().
    with pytest.warns(UserWarning, match="nothing has written to"):
        xinit.init_(model, "llama", KEY, skip="gate.weight")
    for name in ("a", "ln_1", "final_norm"):
        assert model[name].weight.tolist() == [1] * 4
        assert model[name].bias.tolist() == [0] * 4


STACKS = {
    "one stack": ({f"h.{i}.c_proj": 0 for i in range(5)}, {"h": 5}),
    "one layer": ({"h.0.c_proj": 0}, {"h": 1}),
    "from 3 on": ({f"h.{i}.c_proj": 0 for i in range(3, 9)}, {"h": 6}),
    "encoder and decoder": (
        {f"encoder.{i}.wo": 0 for i in range(4)} | {f"decoder.{i}.wo": 0 for i in range(7)},
        {"encoder": 4, "decoder": 7},
    ),
    "inside a Sequential": ({f"1.{i}.attn.c_proj": 0 for i in range(5)}, {"1": 5}),
    "experts in every other layer": (
        {f"layers.{i}.o_proj": 0 for i in range(6)}
        | {f"layers.{i}.experts.{e}.w2": 0 for i in range(0, 6, 2) for e in range(4)},
        {"layers": 6},
    ),
}


def nested(names, make):
    root = nn.Module()
    for name in names:
        *path, last = name.split(".")
        at = root
        for part in path:
            if not hasattr(at, part):
                at.add_module(part, nn.Module())
            at = getattr(at, part)
        at.add_module(last, make())
    return root


@pytest.mark.parametrize(("names", "layers"), STACKS.values(), ids=STACKS)
def test_gpt2_counts_the_layers_of_each_stack(names, layers):
    model = nested(names, partial(nn.Linear, 2, 2, bias=False))
    for name, std in stds(model, "gpt2").items():
        stack = next(stack for stack in layers if name.startswith(f"{stack}."))
        assert std == pytest.approx(0.02 / math.sqrt(2 * layers[stack])), name


def test_gpt2_takes_the_number_of_layers_it_is_told():
    model = nested([f"h.{i}.c_proj" for i in range(3)], partial(nn.Linear, 2, 2, bias=False))
    assert stds(model, recipes.gpt2(layers=50))["h.1.c_proj.weight"] == 0.002
    model.config = type("Config", (), {"n_layer": 8})()
    assert stds(model, "gpt2")["h.1.c_proj.weight"] == 0.005
    assert stds(nn.DataParallel(model), "gpt2")["h.1.c_proj.weight"] == 0.005
    assert stds(model, recipes.gpt2(layers=50))["h.1.c_proj.weight"] == 0.002
    assert stds(model, recipes.gpt2(residual=()))["h.1.c_proj.weight"] == 0.02
    assert stds(model, recipes.gpt2(std=0.01, residual="h.1.*"))["h.1.c_proj.weight"] == 0.0025


def test_gpt2_says_what_it_cannot_find():
    with pytest.raises(ValueError, match=r"gpt2: no parameter's name matches residual=\('\*\.c_proj\.weight'"):
        xinit.plan(nn.Linear(3, 3), "gpt2")
    model = nested(["block.c_proj"], partial(nn.Linear, 2, 2))
    assert "layers=" in xinit.plan(model, "gpt2").problems[0].problem
    with pytest.raises(ValueError, match=r"block\.c_proj\.weight \(2, 2\): neither a config nor the name tells"):
        xinit.init_(model, "gpt2", KEY)
    positions = nn.ModuleDict(
        {"wpe": nn.Embedding(4, 3), "h": nn.ModuleList([nn.ModuleDict({"c_proj": nn.Linear(3, 3)})])}
    )
    assert stds(positions, recipes.gpt2(position_std=0.01))["wpe.weight"] == 0.01


# ---- mup ----


def mlp(width, bias=True):
    layers = {
        "embed": nn.Embedding(30, width),
        "conv": nn.Conv1d(width, width, 3, groups=2, bias=bias),
        "up": nn.ConvTranspose1d(width, width // 2, 3, groups=2, bias=bias),
        "hidden": nn.Linear(width // 2, width, bias=bias),
        "norm": nn.LayerNorm(width),
        "head": nn.Linear(width, 10, bias=bias),
    }
    return nn.ModuleDict(layers)


@pytest.mark.parametrize("width", [16, 64, 256])
def test_mup_scales_with_the_width_as_table_3_says(width):
    got = stds(mlp(width), recipes.mup(gain=1.5, base_width=16, embedding_std=0.3))
    assert got["embed.weight"] == 0.3
    assert got["conv.weight"] == pytest.approx(1.5 / math.sqrt(width // 2 * 3))
    assert got["up.weight"] == pytest.approx(1.5 / math.sqrt(width // 2 * 3))  # its inputs lie along axis 0
    assert got["hidden.weight"] == pytest.approx(1.5 / math.sqrt(width // 2))
    assert got["head.weight"] == pytest.approx(1.5 * math.sqrt(16) / width)
    assert {got[name] for name in got if name.endswith("bias") or name.startswith("norm")} == {0.0}
    if width == 16:  # the base width: the output layer is as any other
        assert got["head.weight"] == pytest.approx(1.5 / math.sqrt(16))
    assert stds(mlp(width), recipes.mup(zero_outputs=True))["head.weight"] == 0


def test_mup_keeps_hidden_activations_and_shrinks_outputs_with_the_width():
    """A coordinate check at initialisation: hidden values O(1), outputs falling as 1 / sqrt(width)."""
    sizes, inputs = (64, 256, 1024), xinit.normal_(torch.empty(256, 20), key=KEY.fold_in("inputs"))
    hidden, outputs = [], []
    for width in sizes:
        names = ("first", 20, width), ("second", width, width), ("head", width, 8)
        model = nn.ModuleDict({name: nn.Linear(i, o, bias=False) for name, i, o in names})
        xinit.init_(model, "mup", KEY)
        with torch.no_grad():
            values = model["second"](model["first"](inputs))
            hidden.append(values.std().item())
            outputs.append(model["head"](values).std().item() * math.sqrt(width))
    assert hidden == pytest.approx([1] * 3, rel=0.3)
    assert outputs == pytest.approx([1] * 3, rel=0.5)


def test_mup_says_what_it_cannot_scale():
    with pytest.raises(ValueError, match=r"mup: no parameter's name matches outputs="):
        xinit.plan(nn.Sequential(nn.Linear(3, 3)), "mup")
    assert stds(nn.Sequential(nn.Linear(4, 3)), recipes.mup(outputs=()))["0.weight"] == 0.5
    kind, config = small("GPT2", n_positions=20)
    model = kind(config)
    with pytest.raises(ValueError, match=r"mup: lm_head\.weight is tied to an embedding"):
        xinit.plan(model, "mup")
    got = stds(model, recipes.mup(tied=True))
    assert got["transformer.wte.weight"] == 1
    assert got["transformer.h.0.attn.c_attn.weight"] == 0.25  # Conv1D: 16 inputs, along axis 0
    assert got["transformer.h.0.mlp.c_proj.weight"] == 0.125  # 64 inputs
    kind, config = small("Mixtral", num_local_experts=4)
    plan = xinit.plan(kind(config), "mup")
    unmatched = {"mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    assert {row.name.split(".", 3)[-1] for row in plan.problems} == unmatched
    experts = xinit.kaiming_normal(nonlinearity="linear", batch_axis=0, out_axis=1, in_axis=2)
    more = {"*.experts.*": experts, "*.gate.weight": xinit.normal(std=1 / 16)}
    assert stds(kind(config), [more, "mup"])["model.layers.0.mlp.experts.gate_up_proj"] == 0.25


# ---- kinds of recipes ----


def test_a_recipe_is_a_name_a_mapping_a_function_or_a_sequence():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    rules = {"1.*": xinit.zeros(), nn.Linear: xinit.normal(std=0.5)}
    expected = {"0.weight": 0.5, "0.bias": 0.5, "1.weight": 0, "1.bias": 0}
    assert stds(model, rules) == expected
    assert stds(model, lambda model: {f"{len(model) - 1}.*": xinit.zeros(), "*": xinit.normal(std=0.5)}) == expected
    assert stds(model, [{"1.*": xinit.zeros()}, {"*": xinit.normal(std=0.5)}]) == expected
    assert stds(model, ({"1.*": xinit.zeros()}, "torch"))["0.weight"] == pytest.approx(0.5 / math.sqrt(3))
    assert stds(model, recipes.torch) == stds(model, recipes.torch()) == stds(model, "torch")
    assert stds(model, {lambda name, p, module: p.dim() == 1: xinit.ones(), "*": xinit.normal()})["0.bias"] == 0

    def by_width(name, parameter, module):
        return xinit.normal(std=module.in_features) if parameter.dim() > 1 else None

    by_shape = {"*": by_width, "*.bias": xinit.ones()}
    assert stds(model, by_shape) == {"0.weight": 4, "0.bias": 0, "1.weight": 3, "1.bias": 0}


@pytest.mark.parametrize(
    ("recipe", "error", "words"),
    [
        (
            "gpt3",
            ValueError,
            r"unknown recipe 'gpt3'; the known ones are torch, xavier, kaiming, gpt2, llama, vit, mup",
        ),
        (3, TypeError, r"a recipe must be a name, a mapping .* but found 3"),
        (nn.Linear, TypeError, r"a recipe must be"),
        ({"*": 0.02}, TypeError, r"for 0\.weight it gives 0\.02"),
        ({"*": lambda name, p, module: "normal"}, TypeError, r"for 0\.weight it gives 'normal'"),
        ({3: xinit.ones()}, TypeError, r"a pattern must be a glob, a module type or a predicate, but found 3"),
        ({int: xinit.ones()}, TypeError, r"a pattern must be .* but found <class 'int'>"),
    ],
)
@pytest.mark.parametrize("use", [xinit.plan, partial(xinit.init_, key=KEY)], ids=["plan", "init_"])
def test_what_is_no_recipe(recipe, error, words, use):
    model = nn.Sequential(nn.Linear(4, 3))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(error, match=words):
        use(model, recipe)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
