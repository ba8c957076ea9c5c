"""What is not to be initialised is left as it is: what torch.nn.init's functions leave, xinit's leave."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from conftest import same
from torch import nn
from torch.overrides import TorchFunctionMode

import xinit

KEY = xinit.Key(0)
REQUIRED = {"constant_": (0.25,), "sparse_": (0.5,)}
SHAPES = {"dirac_": (4, 4, 3)}
TORCHS = [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_") and name in xinit.__all__]
DRAWS = [
    "uniform_",
    "normal_",
    "trunc_normal_",
    "xavier_uniform_",
    "xavier_normal_",
    "kaiming_uniform_",
    "kaiming_normal_",
]
OURS = [*TORCHS, "variance_scaling_", "lecun_normal_", "lecun_uniform_"]
LIKE = {"variance_scaling_": "trunc_normal_", "lecun_normal_": "trunc_normal_", "lecun_uniform_": "uniform_"}


def sevens(name="normal_"):
    return torch.full(SHAPES.get(name, (4, 4)), 7.0)


def fills(module, name, tensor=None):
    """Whether the function of that name changes a tensor, which it returns in any case."""
    tensor = sevens(name) if tensor is None else tensor
    result = getattr(module, name)(tensor, *REQUIRED.get(name, ()))
    assert module is nn.init or result is tensor
    return not (tensor == 7).all()


class Names(TorchFunctionMode):
    """Answers for some functions, by what they are."""

    def __init__(self, *functions):
        self.functions = functions

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        return kwargs["tensor"] if func in self.functions else func(*args, **kwargs)


class Methods(Names):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func in self.functions else func(*args, **kwargs or {})


class Sees(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **kwargs or {})


@contextmanager
def replaced(*names):
    """As the loaders of quantised models do it."""

    def skip(*args, **kwargs):
        pass

    before = {name: getattr(nn.init, name) for name in names}
    try:
        for name in names:
            setattr(nn.init, name, skip)
        yield
    finally:
        for name, function in before.items():
            setattr(nn.init, name, function)


@contextmanager
def seen():
    """Replaced, by what does the same."""
    before = nn.init.normal_
    nn.init.normal_ = lambda tensor, *args, **kwargs: before(tensor, *args, **kwargs)
    try:
        yield
    finally:
        nn.init.normal_ = before


def transformers_context(name):
    initialization = pytest.importorskip("transformers.initialization")
    return getattr(initialization, name)()


def lightning():
    fabric = pytest.importorskip("lightning.fabric")
    return fabric.Fabric(accelerator="cpu", devices=1).init_module(empty_init=True)


CONTEXTS = {
    "none": nullcontext,
    "no_init_weights": lambda: transformers_context("no_init_weights"),
    "guard_torch_init_functions": lambda: transformers_context("guard_torch_init_functions"),
    "lightning": lightning,
    "replaced": lambda: replaced("kaiming_uniform_", "uniform_", "normal_"),
    "seen": seen,
    "a device": lambda: torch.device("cpu"),
    "accelerate": xinit.accelerate,
    "a mode that sees": Sees,
    "a mode by function": lambda: Names(nn.init.normal_, nn.init.kaiming_uniform_),
    "a mode by method": lambda: Methods(torch.Tensor.normal_, torch.Tensor.fill_),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", OURS)
def test_what_skips_torchs_skips_xinits(name, context):
    with CONTEXTS[context]():
        expected = fills(nn.init, LIKE.get(name, name))
        state = torch.get_rng_state()
        assert fills(xinit, name) == expected
    if not expected:
        assert torch.equal(torch.get_rng_state(), state)
    assert fills(xinit, name)


def test_some_contexts_skip_all_and_some_nothing():
    for context, count in (
        ("no_init_weights", len(TORCHS)),
        ("lightning", 4),
        ("replaced", 3),
        ("seen", 0),
        ("none", 0),
    ):
        with CONTEXTS[context]():
            assert sum(not fills(xinit, name) for name in TORCHS) == count


def test_values_within_a_mode_that_skips_nothing_are_the_same():
    for name in DRAWS:
        expected = getattr(xinit, name)(sevens(), key=KEY)
        for context in ("a device", "a mode that sees", "seen", "accelerate", "guard_torch_init_functions"):
            with CONTEXTS[context]():
                assert same(getattr(xinit, name)(sevens(), key=KEY), expected)
                torch.manual_seed(3)
                drawn = getattr(xinit, name)(sevens())
            torch.manual_seed(3)
            assert same(drawn, getattr(xinit, name)(sevens()))


def test_errors_within_a_mode_are_the_same():
    for context in ("a device", "a mode that sees", "seen"):
        with CONTEXTS[context]():
            with pytest.raises(RuntimeError, match="std >= 0"):
                xinit.normal_(sevens(), std=-1)
            with pytest.raises(ValueError, match="is empty"):
                xinit.trunc_normal_(sevens().to("meta"), a=1, b=0)
            with pytest.raises(TypeError, match="tensor must be a"):
                xinit.normal_([1.0])


@pytest.mark.parametrize("name", OURS)
def test_a_flag_is_looked_at_everywhere(name):
    for context in ("guard_torch_init_functions", "none"):
        tensor = sevens(name)
        tensor._is_hf_initialized = True
        state = torch.get_rng_state()
        called = "variance_scaling_" if name.startswith("lecun") else name
        warns = pytest.warns(
            UserWarning, match=f"^{called}.*was loaded from a checkpoint.*del tensor._is_hf_initialized"
        )
        with CONTEXTS[context](), warns if context == "none" else nullcontext():
            assert not fills(xinit, name, tensor)
        assert torch.equal(torch.get_rng_state(), state)
        tensor._is_hf_initialized = False
        assert fills(xinit, name, tensor)


def test_accelerates_empty_weights():
    accelerate = pytest.importorskip("accelerate")

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(4, 4))
            xinit.kaiming_normal_(self.weight)

    with accelerate.init_empty_weights():
        layer = Layer()
    assert layer.weight.is_meta


def test_lightnings_module_that_initialises_itself():
    class Layer(nn.Linear):
        def reset_parameters(self):
            with torch.no_grad():
                self.weight.data = torch.full((4, 4), 7.0)
            xinit.normal_(self.weight)
            xinit.kaiming_uniform_(self.weight)

    with lightning():
        assert (Layer(4, 4, bias=False).weight == 7).all()
    assert not (Layer(4, 4, bias=False).weight == 7).all()


def test_skip_init():
    class Layer(nn.Linear):
        def reset_parameters(self):
            xinit.normal_(self.weight)
            xinit.zeros_(self.bias)

    state = torch.get_rng_state()
    torch.nn.utils.skip_init(Layer, 4, 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_whole_model_where_nothing_is_to_be_initialised():
    model = nn.Linear(4, 4)
    before = xinit.fingerprint(model)
    for context in ("no_init_weights", "lightning", "replaced"):
        with CONTEXTS[context](), pytest.warns(UserWarning, match="init_: the model is left as it is"):
            assert xinit.init_(model, "torch", KEY) is model
        assert xinit.fingerprint(model) == before
    with CONTEXTS["a device"]():
        assert xinit.fingerprint(xinit.init_(model, "torch", KEY)) != before


def test_a_whole_model_with_what_was_loaded():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    recipe = {"*.bias": xinit.zeros(), "*": xinit.normal()}
    expected = xinit.fingerprint(xinit.init_(model, recipe, KEY))
    loaded = [model[0].weight, model[0].bias, model[1].weight]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    for parameter in loaded:
        parameter._is_hf_initialized = True
    plan = xinit.plan(model, recipe)
    assert [row.name for row in plan.rows] == ["1.bias"]
    assert plan.loaded == 3
    assert not plan.unused
    assert "3 parameters left as loaded from a checkpoint" in str(plan)
    with pytest.warns(UserWarning, match=r"init_: 3 of 4 parameters were loaded from a checkpoint.*loaded=True"):
        xinit.init_(model, recipe, KEY)
    assert all((parameter == 7).all() for parameter in loaded)
    assert not model[1].bias.any()
    with CONTEXTS["guard_torch_init_functions"]():
        xinit.init_(model, recipe, KEY)  # transformers says what it loads
    assert all((parameter == 7).all() for parameter in loaded)
    assert xinit.plan(model, recipe, loaded=True).loaded == 0
    assert xinit.fingerprint(xinit.init_(model, recipe, KEY, loaded=True)) == expected


def test_deferred_weights_that_are_flagged():
    with xinit.deferred():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        for layer in model:
            xinit.constant_(layer.weight, 7.0)
        model[0].weight._is_hf_initialized = True
        with CONTEXTS["guard_torch_init_functions"]():
            for layer in model:
                xinit.normal_(layer.weight)
    xinit.materialize_(model, key=KEY)
    assert (model[0].weight == 7).all()
    assert same(model[1].weight.detach(), xinit.normal_(sevens(), key=KEY.fold_in("1.weight")))


def save(model, folder, without):
    """A checkpoint that lacks some weights."""
    files = pytest.importorskip("safetensors.torch")
    model.save_pretrained(folder)
    weights = files.load_file(folder / "model.safetensors")
    files.save_file(
        {n: w for n, w in weights.items() if n not in without}, folder / "model.safetensors", {"format": "pt"}
    )
    return weights


def model_of(init):
    transformers = pytest.importorskip("transformers")

    class Config(transformers.PretrainedConfig):
        model_type = "xinit-test"

    class Model(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.layers = nn.ModuleDict({name.strip("_"): nn.Linear(4, 4) for name in OURS if name != "dirac_"})
            self.layers["dirac"] = nn.Conv1d(4, 4, 3)
            self.post_init()

        def _init_weights(self, module):
            for name in OURS:
                if module is self.layers[name.strip("_")]:
                    getattr(init, name)(module.weight, *REQUIRED.get(name, ()))
                    init.constant_(module.bias, 3.0)

    return Model, Config


def test_a_checkpoint_that_lacks_biases(tmp_path):
    model_class, config = model_of(xinit)
    model = model_class(config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(10, 11)
    weights = save(model, tmp_path, {name for name, _ in model.named_parameters() if name.endswith(".bias")})
    for context in (nullcontext, xinit.accelerate):
        with context():
            loaded = model_class.from_pretrained(tmp_path)
        for name, parameter in loaded.named_parameters():
            if name.endswith(".weight"):
                assert same(parameter.detach(), weights[name]), name
            else:
                assert (parameter == 3).all(), name


def test_a_checkpoint_that_lacks_weights(tmp_path):
    model_class, config = model_of(xinit)
    model = model_class(config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(10, 11)
    weights = save(model, tmp_path, {name for name, _ in model.named_parameters() if name.endswith(".weight")})
    loaded = model_class.from_pretrained(tmp_path)
    for name, parameter in loaded.named_parameters():
        if name.endswith(".bias"):
            assert same(parameter.detach(), weights[name]), name
        else:
            assert parameter.abs().max() < 9, name
    with pytest.warns(UserWarning, match="of 34 parameters were loaded"):
        xinit.init_(loaded, {"*": xinit.zeros()}, KEY)
    assert same(loaded.layers["normal"].bias.detach(), weights["layers.normal.bias"])
    assert not loaded.layers["normal"].weight.any()
