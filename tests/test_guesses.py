"""What a recipe gives is held against the model's own init: nothing that this makes constant, or computes, is lost unsaid."""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from architectures import build, classes, held_against
from torch import nn

import xinit
from xinit import Key, recipes
from xinit.recipes import guesses

pytestmark = pytest.mark.usefixtures("one_thread")
KEY = Key(20262).fold_in("guesses")


def problems(model, recipe, **selection):
    return {row.name: row.problem for row in xinit.plan(model, recipe, **selection).problems}


def unchanged(model, error, use):
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=error):
        use()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


# ---- transformers ----

FAMILIES = {
    "LlamaForCausalLM": ("llama", {"llama", "gpt2", "vit"}),
    "GPT2LMHeadModel": ("gpt2", {"llama", "gpt2", "vit"}),
    "ViTForImageClassification": ("vit", {"llama", "gpt2", "vit"}),
    "BertForMaskedLM": ("bert", {"llama", "gpt2", "vit"}),
    "T5ForConditionalGeneration": ("t5", {"llama", "gpt2", "vit"}),
    "MixtralForCausalLM": ("mixtral", {"llama", "gpt2", "vit"}),
    "Gemma2ForCausalLM": ("gemma2", set()),
    "Gemma3ForCausalLM": ("gemma3", set()),
    "Qwen3NextForCausalLM": ("qwen3_next", set()),
    "Qwen3_5ForCausalLM": ("qwen3_5", set()),
    "MambaForCausalLM": ("mamba", set()),
    "xLSTMForCausalLM": ("xlstm", set()),
    "DeepseekV3ForCausalLM": ("deepseek_v3", {"llama", "gpt2", "vit"}),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("empty", [False, True], ids=["built", "to_empty"])
def test_no_recipe_loses_what_the_models_own_init_makes_constant(name, empty):
    """``python tests/architectures.py`` does this for all of them."""
    pytest.importorskip("transformers")
    family, good = FAMILIES[name]
    report = held_against(build(classes(family)[name]), empty=empty)
    done = {recipe: found for recipe, found in report.items() if "error" not in found}
    assert len(done) >= 5
    for recipe, found in done.items():
        assert found["wrong"] == {}, recipe
        assert found["constant"] > 0
        refused = found["refused constant"] + found["refused computed"] + len(found["refused random"])
        if recipe in good:  # the families that a recipe is for, it does without a word
            assert refused + found["unmatched"] == 0, recipe
        elif not good:
            assert refused > 0, recipe


def transformer(name, **options):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
    config = getattr(transformers, name + ("TextConfig" if name == "Gemma3" else "Config"))(**sizes | options)
    return getattr(transformers, name + "ForCausalLM"), config


@pytest.mark.parametrize("name", ["Gemma", "Gemma2", "Gemma3"])
def test_the_line_of_the_error_makes_gemma_right(name):
    kind, config = transformer(name)
    model = kind(config)
    norms = [n for n, _ in model.named_parameters() if "norm" in n]
    unchanged(model, r"llama would give ones, its own init zeros", lambda: xinit.init_(model, "llama", KEY))
    assert set(problems(model, "llama")) == set(norms)
    problem = problems(model, "llama")["model.layers.1.input_layernorm.weight"]
    assert "put {'model.layers.*.input_layernorm.weight': xinit.zeros()}, or what you want, before llama" in problem
    xinit.init_(model, [{"*norm.weight": xinit.zeros()}, "llama"], KEY)
    assert not any(p.any() for n, p in model.named_parameters() if n in norms)
    xinit.init_(model, [{"*norm.weight": xinit.constant(0.5)}, "llama"], KEY)  # what is explicit is done
    with torch.device("meta"):
        empty = kind(config)
    assert set(problems(empty, "llama")) == set(norms)
    assert set(problems(empty.to_empty(device="cpu"), "llama")) == set(norms)
    with xinit.deferred():
        later = kind(config)
    assert set(problems(later, "llama")) == set(norms)
    wrapped = nn.ModuleDict({"lm": nn.DataParallel(model), "head": nn.Linear(3, 2)})
    assert set(problems(wrapped, "llama")) == {f"lm.{name}" for name in norms}


def test_mambas_and_xlstms_values_are_kept_by_the_line_of_the_error():
    kind, config = transformer("Mamba", state_size=4)
    model = kind(config)
    before = {n: p.clone() for n, p in model.named_parameters()}
    found = problems(model, "llama")
    assert {name.rpartition("mixer.")[2] for name in found} == {"A_log", "D", "dt_proj.bias"}
    assert "skip='backbone.layers.*.mixer.A_log' leaves it as it is" in found["backbone.layers.0.mixer.A_log"]
    assert "its own init ones: put {'backbone.layers.*.mixer.D': xinit.ones()}" in found["backbone.layers.0.mixer.D"]
    xinit.init_(model, "llama", KEY, skip=["*.A_log", "*.D", "*.dt_proj.bias"])
    kept = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert kept == {name for name in before if name in found or "norm" in name or "conv1d.bias" in name}


def test_asking_the_models_code_takes_no_random_numbers_and_changes_nothing():
    kind, config = transformer("Mamba", state_size=4)
    model = kind(config)
    flags = [(module, dict(vars(module))) for module in model.modules()]
    buffers = [b.clone() for b in model.buffers()]
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 (what other code may use)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert problems(model, "llama")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    assert all(vars(module) == held for module, held in flags)
    assert all(torch.equal(b, old) for b, old in zip(model.buffers(), buffers, strict=True))


def test_code_that_raises_only_means_that_nothing_is_known():
    kind, config = transformer("Llama")

    class Broken(kind):
        built = False

        def __init__(self, config):
            if Broken.built:
                raise RuntimeError("only once")
            super().__init__(config)
            Broken.built = True

        def _init_weights(self, module):
            if Broken.built:
                raise RuntimeError("not now")

    model = Broken(config)
    assert problems(model, "llama") == {}  # its norms are seen to be norms


# ---- models of one's own ----


class RMSNorm(nn.Module):
    def __init__(self, width, start=1.0):
        super().__init__()
        self.weight, self.start = nn.Parameter(torch.full((width,), start)), start

    def forward(self, x):
        scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return scaled * (self.weight + 1 - self.start)


class LayerNorm2d(RMSNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class UnclearNorm(RMSNorm):
    def forward(self, x, residual):
        return super().forward(x + residual)


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm2d])
def test_a_norm_of_ones_own_is_asked_where_it_normalises(kind):
    def model():
        return nn.ModuleDict({"norm": kind(8), "lm_head": nn.Linear(8, 8)})

    with torch.device("meta"):
        empty = model().to_empty(device="cpu")
    for each in (model(), empty):
        xinit.init_(each, "llama", KEY)
        assert each["norm"].weight.tolist() == [1] * 8
    found = problems(nn.ModuleDict({"norm": kind(8, 0.0)}), "llama")
    assert "normalises at zeros: put {'norm.weight': xinit.zeros()}" in found["norm.weight"]


def test_a_norm_that_cannot_be_asked_is_taken_as_it_is_or_refused():
    assert problems(nn.ModuleDict({"norm": UnclearNorm(8)}), "llama") == {}  # ones are what it holds
    found = problems(nn.ModuleDict({"norm": UnclearNorm(8, 0.0)}), "llama")
    assert (
        "it cannot be told whether this UnclearNorm is then a norm: put {'norm.weight': xinit.ones()}"
        in found["norm.weight"]
    )


class Mixer(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, 5).repeat(width, 1)))
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))
        self.pos_embed = nn.Parameter(torch.randn(1, 4, width))
        self.in_proj = nn.Linear(width, width)


def test_a_bare_parameter_is_decided_only_if_it_has_a_familiar_name():
    patterns = {"A_log": xinit.uniform(0, 1), "layer_scale": xinit.constant(1e-6)}
    for model in (Mixer(), emptied(Mixer)):
        for recipe in ("llama", "vit", recipes.gpt2(residual=())):
            found = problems(model, recipe)
            assert set(found) == {"A_log", "layer_scale"}
            assert "does not know A_log of a Mixer" in found["A_log"]
        xinit.init_(model, [patterns, "llama"], KEY, only=list(patterns))
    xinit.init_(Mixer(), [patterns, "llama"], KEY)
    with pytest.warns(UserWarning, match="constructors of Mixer may"):
        xinit.init_(emptied(Mixer), [patterns, "llama"], KEY)


def test_what_no_pattern_matches_is_said_with_the_way_out():
    class Ones(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(4))

    class Scaled(nn.Module):
        def __init__(self, start):
            super().__init__()
            self.gamma = nn.Parameter(torch.full((4,), start))

    model = nn.Sequential(nn.Linear(4, 4), Ones())
    words = "no pattern matches it; it belongs to a Ones; its own init ones: put {'*.gamma': xinit.ones()}, or what you want"
    assert problems(model, "llama") == {"1.gamma": words + ", before llama"}
    model[1] = Scaled(start=1.0)
    words = "no pattern matches it; it belongs to a Scaled, which llama does not know: put {'*.gamma': ...} before llama, or"
    assert problems(model, "llama") == {"1.gamma": words + " skip= it"}


def test_a_list_of_parameters_says_nothing_of_what_they_are():
    model = nn.ModuleDict({"lin": nn.Linear(4, 4)})
    model.list = nn.ParameterList([torch.empty(4, 4), torch.empty(4)])
    found = problems(model, "llama")
    assert found.keys() == {"list.0", "list.1"}
    assert all("ParameterList" in said and "put {'list.*': ...} before llama" in said for said in found.values())
    xinit.init_(model, [{"list.*": xinit.normal()}, "llama"], KEY)
    assert torch.equal(model.list[0], xinit.normal_(torch.empty(4, 4), key=KEY.fold_in("list.0")))


def test_what_was_set_to_a_constant_is_not_drawn_over():
    model = nn.ModuleDict({"in": nn.Linear(8, 8), "lm_head": nn.Linear(8, 8)})
    nn.init.zeros_(model["lm_head"].weight)
    nn.init.constant_(model["lm_head"].bias, -4.6)
    found = problems(model, "llama")
    assert "it was set to zeros: put {'lm_head.weight': xinit.zeros()}" in found["lm_head.weight"]
    assert "xinit.constant(-4.6)" in found["lm_head.bias"]
    unchanged(model, "it was set to constant -4.6", lambda: xinit.init_(model, "llama", KEY))
    # But what a recipe has set, another one may set.
    xinit.init_(model, {"*": xinit.zeros()}, KEY)
    xinit.init_(model, "llama", KEY)
    assert model["lm_head"].weight.std() > 0
    empty = nn.Linear(300, 300, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        empty.weight.data.zero_()  # as fresh memory is
    assert problems(empty, "llama") == {}


def test_reset_parameters_and_init_weights_of_ones_own_are_asked():
    class Gate(nn.Linear):
        def reset_parameters(self):
            nn.init.zeros_(self.weight)
            nn.init.constant_(self.bias, -2.0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head, self.gate = nn.Embedding(4, 8), nn.Linear(8, 8), Gate(8, 8)
            self.apply(self._init_weights)

        def _init_weights(self, module):
            if type(module) is nn.Linear:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.ones_(module.bias)

    with torch.device("meta"):
        empty = Net().to_empty(device="cpu")
    for model in (Net(), empty):
        assert set(problems(model, "llama")) == {"head.bias", "gate.weight", "gate.bias"}
        assert "its own init constant -2" in problems(model, "llama")["gate.bias"]


class Residual(nn.Module):
    """Whose constructor makes it begin as the identity, as of GPT-like and diffusion models, and says so."""

    def __init__(self, width, hidden=16, *, zero=True):
        super().__init__()
        self.norm, self.up, self.out = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        if zero:
            nn.init.zeros_(self.norm.weight)
            nn.init.zeros_(self.out.weight)
            nn.init.constant_(self.out.bias, -4.0)
        print("built")


class Told(Residual):
    """Attributes have the names of all arguments."""

    def __init__(self, width, hidden=16, *, zero=True):
        super().__init__(width, hidden, zero=zero)
        self.width, self._hidden, self.zero = width, hidden, zero


class Half(Residual):
    """Of one argument they have not."""

    def __init__(self, width, zero=True):
        super().__init__(width, zero=zero)
        self.width = width


def stack(kind, *args, **options):
    return nn.Sequential(nn.Linear(4, 8), *(kind(8, *args, **options) for _ in range(2)))


def emptied(construct, byte=77):
    """Of memory that held one byte before, or weights."""
    with torch.device("meta"):
        model = construct()
    for p in model.to_empty(device="cpu").parameters():
        if byte == "weights":
            p.data.copy_(torch.randn_like(p) / 8)
        else:
            p.data.view(torch.uint8).fill_(byte)
    return model


SET = {"norm.weight": "zeros", "out.weight": "zeros", "out.bias": "constant -4"}


@pytest.mark.parametrize("byte", [0, 77, "weights"])
def test_a_constructor_is_run_again_after_to_empty_where_attributes_tell_its_arguments(byte, capsys):
    model = emptied(lambda: stack(Told, 12), byte)
    capsys.readouterr()
    found = problems(model, "llama")
    assert {(n.partition(".")[2], p.split("own init ")[1].split(":")[0]) for n, p in found.items()} == set(SET.items())
    assert len(found) == 6
    unchanged(model, "llama would give ones, its own init zeros", lambda: xinit.init_(model, "llama", KEY))
    xinit.init_(emptied(lambda: stack(Told, 12, zero=False), byte), "llama", KEY)
    copied = copy.deepcopy(stack(Told, 12))
    assert problems(copied, "llama").keys() == found.keys()
    assert capsys.readouterr().out == "built\n" * 4  # two that were built here


def test_of_what_no_attributes_tell_a_warning_names_the_class():
    for kind in Residual, Half:
        # Of a copy nothing but its values tells that it is none of to_empty's, which may have got memory that held weights.
        for construct in emptied, lambda build: emptied(build, "weights"), lambda build: copy.deepcopy(build()):
            with pytest.warns(
                UserWarning, match=rf"what the constructors of {kind.__name__} may have set is lost.*deferred"
            ):
                xinit.init_(construct(lambda kind=kind: stack(kind, zero=False)), "llama", KEY)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            xinit.init_(emptied(lambda kind=kind: stack(kind)), {"*": xinit.normal()}, KEY)  # the user's own
            xinit.init_(stack(kind, zero=False), "llama", KEY)  # built for real
    copied = copy.deepcopy(stack(Residual))
    found = problems(copied, "llama")
    assert {n.partition(".")[2] for n in found} == {"out.bias"}
    assert all("and it was set to constant -4" in problem for problem in found.values())
    with pytest.warns(
        UserWarning, match="what the constructors of Residual may have set"
    ):  # its zeros may be fresh memory
        xinit.init_(copied, "llama", KEY, skip="*.out.bias")


def test_fresh_memory_among_what_was_used_before_is_not_taken_for_set():
    """to_empty() gives some parameters what weights have left, and others zeros."""
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(300, 300) for _ in range(4)))
    model.to_empty(device="cpu")
    for i, p in enumerate(model.parameters()):
        p.data.copy_(torch.zeros_like(p) if i in (2, 3) else torch.randn_like(p))
    assert problems(model, "torch") == {}


@pytest.mark.parametrize("empty", [False, True], ids=["built", "to_empty"])
def test_timms_constructors_are_asked(empty):
    timm = pytest.importorskip("timm")
    report = held_against(lambda: timm.create_model("test_vit4", pretrained=False), ["llama", "vit", "torch"], empty)
    assert [found["wrong"] for found in report.values()] == [{}, {}, {}]
    report = held_against(lambda: timm.create_model("levit_128s", pretrained=False), ["llama"], empty)
    assert report["llama"]["wrong"] == {}
    assert report["llama"]["refused constant"] > 10


@pytest.mark.parametrize("empty", [False, True], ids=["built", "to_empty"])
def test_diffusers_constructors_are_asked(empty):
    diffusers = pytest.importorskip("diffusers")

    def build():
        return diffusers.ControlNetModel(
            block_out_channels=(16, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            norm_num_groups=8,
            cross_attention_dim=8,
            attention_head_dim=2,
            conditioning_embedding_out_channels=(8, 8),
        )

    with torch.device("meta" if empty else "cpu"):
        model = build()
    model.to_empty(device="cpu") if empty else None
    zero = {name: "zeros" for name, p in build().named_parameters() if "norm" not in name and not p.any()}
    assert len(zero) > 10
    found = problems(model, "torch")
    assert found.keys() == zero.keys()
    assert all("zeros: put" in problem for problem in found.values())


def test_what_only_looks_drawn_is_not():
    class Positions(nn.Embedding):
        def reset_parameters(self):
            super().reset_parameters()
            with torch.no_grad():
                self.weight.copy_(torch.outer(torch.arange(6.0), torch.ones(4)).sin())

    class Levels(nn.Embedding):
        def reset_parameters(self):
            nn.init.normal_(self.weight, std=0.0)  # no draw at all

    assert "its own init zeros" in problems(nn.ModuleDict({"levels": Levels(6, 4)}), "llama")["levels.weight"]
    found = problems(nn.ModuleDict({"wpe": Positions(6, 4)}), "llama")
    assert "its own init computes it by copy_: skip='wpe.weight'" in found["wpe.weight"]


def test_lora_is_not_known():
    adapted = nn.ModuleDict(
        {"base_layer": nn.Linear(8, 8), "lora_B": nn.ModuleDict({"default": nn.Linear(2, 8, bias=False)})}
    )
    assert set(problems(nn.ModuleDict({"q_proj": adapted}), "llama")) == {"q_proj.lora_B.default.weight"}


def test_layers_that_look_alike_are_asked_first_and_last():
    class Block(nn.Linear):
        def __init__(self, number):
            super().__init__(4, 4)
            self.index = number

        def reset_parameters(self):
            super().reset_parameters()
            if getattr(self, "index", 0) == 5:
                nn.init.zeros_(self.weight)

    with torch.device("meta"):
        model = nn.ModuleDict({"h": nn.ModuleList(Block(i) for i in range(6))}).to_empty(device="cpu")
    assert set(problems(model, "llama")) == {"h.5.weight"}


@pytest.mark.parametrize(("mean", "agree"), [(3.0, False), (0.05, True)])
def test_random_numbers_around_another_mean_are_others(mean, agree):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(8, 8))
            self.reset_parameters()

        def reset_parameters(self):
            nn.init.normal_(self.weight, mean, 0.1)

    found = problems(nn.Sequential(Shifted()), "llama")
    assert [*found] == ([] if agree else ["0.weight"])
    assert agree or "its own init normal mean 3 of std 0.1: put {'*.weight': xinit.normal(3, 0.1)}" in found["0.weight"]


def test_equal_ends_make_no_constant():
    model = nn.Linear(8, 8)
    with torch.no_grad():
        model.weight[0, 0] = model.weight[-1, -1] = 0.0
    assert problems(model, "llama") == {}


def signed_zeros():
    return torch.tensor([0.0, 2.0, -1.0]).mul_(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (lambda: torch.full((3, 4), 0.5), 0.5),
        (signed_zeros, 0.0),
        (lambda: torch.full((6, 6), 2.0).t()[1:, ::2], 2.0),
        (lambda: torch.tensor([1.0, 2.0, 1.0]), None),
        (lambda: torch.tensor([1.0, 1.0, 2.0]), None),
        (lambda: torch.full((3,), torch.nan), None),
        (lambda: torch.ones(1), None),
    ],
)
def test_the_value_that_all_elements_have(values, expected, dtype):
    parameter = nn.Parameter(values().to(dtype))
    assert guesses._constants([parameter]).get(id(parameter)) == expected
