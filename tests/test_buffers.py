"""Buffers of models that came out of ``to_empty``: statistics, what a module's own methods make, and what nobody can know."""

import copy
import io
import warnings

import pytest
import torch
from conftest import same
from torch import nn

import xinit
from xinit import Key

pytestmark = pytest.mark.usefixtures("one_thread")
KEY = Key(0)
RECIPE = {"*": xinit.normal(std=0.02)}


def emptied(construct):
    """A model that is built without memory and then given some, which holds what no constructor writes."""
    with torch.device("meta"):
        model = construct()
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.view(-1).view(torch.uint8).fill_(77)  # of .data, it does not count as written
    return model


def buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def assert_same(model, expected):
    assert {name: same(buffer, expected[name]) for name, buffer in model.named_buffers()} == dict.fromkeys(
        expected, True
    )


class Mask(nn.Module):
    """As in nanoGPT: nobody but the constructor knows the buffer."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.register_buffer("mask", torch.tril(torch.ones(4, 4)))


class Rotary(nn.Module):
    """As in torchtitan: without parameters, and with a method of its own."""

    def __init__(self, method):
        super().__init__()
        self.register_buffer("freqs", self.made(), persistent=False)
        setattr(self, method, self.write)

    def made(self):
        return torch.polar(torch.ones(5, 3), torch.outer(torch.arange(5.0), torch.arange(3.0)))

    def write(self):
        self.freqs = self.made()


class Titan(nn.Module):
    """Whose outermost module makes the buffers of all that is in it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.calls = 0
        self.rope = nn.Module()
        self.rope.register_buffer("freqs", torch.arange(4.0), persistent=False)

    def init_weights(self, buffer_device=None):
        self.calls += 1
        for layer in self.layers:
            nn.init.normal_(layer.weight)
        self.rope.freqs.copy_(torch.arange(4.0))


class Applied(nn.Module):
    """Whose ``_init_weights`` is applied to each part, and which draws one buffer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        for layer in self.layers:
            layer.register_buffer("index", torch.arange(4))
            layer.register_buffer("noise", torch.randn(3), persistent=False)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
            module.index.copy_(torch.arange(4))
            module.noise.normal_()


def norms():
    """The issue's model, and the other modules of torch with statistics."""
    return nn.Sequential(
        *(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8, affine=False)),
        *(nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.SyncBatchNorm(8)),
    )


@pytest.mark.parametrize("recipe", ["torch", RECIPE], ids=["torch", "other"])
def test_statistics_are_reset_with_the_parameters_of_their_module(recipe):
    expected = buffers(norms())
    model = xinit.init_(emptied(norms), recipe, KEY)
    assert_same(model, expected)
    assert not xinit.audit(model)
    model[1](torch.randn(5, 8))
    assert model[1].running_mean.any()  # as of a trained one
    trained = buffers(model)
    xinit.init_(model, recipe, KEY, skip=nn.BatchNorm1d)
    assert_same(model, trained)
    xinit.init_(model, recipe, KEY, only="0.*")
    assert_same(model, trained)
    xinit.init_(model, recipe, KEY, only="1.weight")
    assert_same(model, expected)


def test_statistics_without_parameters_stay_if_a_part_around_them_does():
    model = norms()
    model[2](torch.randn(5, 8))
    trained = buffers(model)
    xinit.init_(model, RECIPE, KEY, only="3.*")
    assert_same(model, trained)
    xinit.init_(model, RECIPE, KEY)
    assert not model[2].running_mean.any()


@pytest.mark.parametrize("method", ["reset_parameters", "init_weights", "_init_buffers", "_build_freqs"])
def test_a_modules_own_method_makes_its_buffers(method):
    model = emptied(lambda: nn.Sequential(nn.Linear(3, 3), Rotary(method)))
    kept = model[1].freqs
    xinit.init_(model, RECIPE, KEY)
    assert model[1].freqs is kept
    assert torch.equal(model[1].freqs, model[1].made())
    assert not xinit.audit(model)


def test_the_methods_of_modules_around_it_do_too_and_change_nothing_else():
    model = emptied(Titan)
    xinit.init_(model, RECIPE, KEY)
    assert torch.equal(model.rope.freqs, torch.arange(4.0))
    assert model.calls == 0
    plain = xinit.init_(Titan(), RECIPE, KEY)
    assert xinit.fingerprint(model) == xinit.fingerprint(plain)
    model, state = emptied(Applied), torch.get_rng_state()
    xinit.init_(model, RECIPE, KEY)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(layer.index, torch.arange(4)) for layer in model.layers)
    torch.manual_seed(5)
    again = xinit.init_(emptied(Applied), RECIPE, KEY)
    noise = [layer.noise for m in (model, again) for layer in m.layers]
    assert same(noise[0], noise[2])
    assert same(noise[1], noise[3])
    assert not same(noise[0], noise[1])


@pytest.mark.parametrize(
    "broken",
    [lambda self: None, lambda self: self.mask.mul_(2), lambda self: self.mask[:2].zero_(), lambda self: self.nothing],
)
def test_what_no_method_makes_is_named(broken):
    """Nor one that takes what is there, or makes a part of it, or fails."""
    model = emptied(type("Model", (Mask,), {"reset_parameters": broken}))
    words = r"init_: buffer mask, which nothing has written to since to_empty\(\).*skip=.*xinit\.deferred"
    with pytest.warns(UserWarning, match=words):
        xinit.init_(model, RECIPE, KEY)
    assert xinit.audit(model) == [("mask", "never written")]
    with pytest.warns(UserWarning, match=words):  # still
        xinit.init_(model, RECIPE, KEY)
    xinit.init_(model, RECIPE, KEY, skip="mask")
    model.mask.copy_(torch.tril(torch.ones(4, 4)))
    assert not xinit.audit(model)
    xinit.init_(model, RECIPE, KEY)


class Tutorial(nn.Module):
    """As in PyTorch's tutorial: torch's encoder copies its layers, which then look as if nothing had written to them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.pos = nn.Module()
        self.pos.register_buffer("pe", torch.sin(torch.arange(4.0)))
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2, enable_nested_tensor=False)


@pytest.mark.parametrize("construct", [Mask, Titan, Applied, Tutorial, norms])
def test_a_model_with_real_buffers_keeps_them_without_a_word(construct):
    model = construct()
    expected = buffers(model)
    for only in (None, "*.weight", "*.bias"):
        xinit.init_(model, RECIPE, KEY, only=only)
        assert_same(model, expected)
    for convert in (torch.nn.Module.half, torch.nn.Module.float):
        xinit.init_(convert(model), RECIPE, KEY)
    loaded = construct()
    loaded.load_state_dict(model.state_dict())
    xinit.init_(loaded, RECIPE, KEY)


def warned(function):
    """What is warned of while it runs."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        function()
    return [str(warning.message) for warning in seen]


def pickled(model):
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


def assigned(model, convert=copy.deepcopy):
    state = {name: convert(tensor) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


def converted(model):
    """By tensors that nothing was written to in place."""
    return assigned(model, lambda tensor: tensor.double().float())


BIAS, MASK = "parameter proj.bias, skipped, which", "buffer mask, which"


@pytest.mark.parametrize(
    ("copied", "said", "skipping"),
    [(pickled, [], []), (assigned, [], []), (copy.deepcopy, [], [BIAS]), (converted, [MASK], [BIAS, MASK])],
)
def test_copies_and_loaded_models_keep_their_buffers(copied, said, skipping):
    """Where they look as to_empty() leaves them, a warning says so, and audit() does not claim that it is so."""
    for skip, expected in ((None, said), ("*.bias", skipping)):
        model = copied(Mask())
        heard = warned(lambda model=model, skip=skip: xinit.init_(model, RECIPE, KEY, skip=skip))
        assert len(heard) == len(expected)
        assert all(f"init_: {start}" in words for words, start in zip(heard, expected, strict=True))
        assert torch.equal(model.mask, torch.tril(torch.ones(4, 4)))
        assert not xinit.audit(model)


def remembering(construct):
    """After to_empty(), which got memory that held weights before."""
    model = emptied(construct)
    for tensor in (*model.parameters(), *model.buffers()):
        values = torch.randn(tensor.shape) / 8
        tensor.data.copy_(values)
    return model


def test_memory_that_held_weights_is_not_taken_for_them():
    model = remembering(lambda: nn.Sequential(Mask(), Rotary("reset_parameters"), Kept()))
    heard = warned(lambda: xinit.init_(model, RECIPE, KEY))
    assert len(heard) == 2
    assert "buffer 0.mask, which nothing has written to" in heard[0]
    assert "buffers 1.freqs, 2.scale, which nothing has written to" in heard[1]
    assert torch.equal(model[1].freqs, model[1].made())
    assert (model[2].scale == 2).all()
    model = remembering(Mask)
    heard = warned(lambda: xinit.init_(model, RECIPE, KEY, skip="*.weight"))
    assert "parameter proj.weight, skipped, which nothing has written to" in heard[0]
    assert "buffer mask, which nothing has written to" in heard[1]


def test_parts_of_an_emptied_model():
    model = emptied(lambda: nn.Sequential(Mask(), Mask(), Rotary("reset_parameters")))
    with pytest.warns(UserWarning, match=r"buffer 0\.mask, which"):
        xinit.init_(model, RECIPE, KEY, only="0.*")
    assert torch.equal(model[2].freqs, model[2].made())
    with pytest.warns(UserWarning, match=r"buffer 1\.mask, which"):
        xinit.init_(model, RECIPE, KEY, only="1.*")
    assert [name for name, _ in xinit.audit(model)] == ["0.mask", "1.mask"]
    assert xinit.fingerprint(model) == xinit.fingerprint(xinit.init_(nn.Sequential(Mask(), Mask()), RECIPE, KEY))


class Kept(nn.Module):
    """A buffer of checkpoints, which its own method makes too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.empty(4))
        self.reset_parameters()

    def reset_parameters(self):
        self.scale.fill_(2.0)


def test_what_checkpoints_hold_is_made_with_all_parameters_around_it_alone():
    model = emptied(lambda: nn.Sequential(nn.Linear(3, 3), Kept()))
    with pytest.warns(UserWarning, match=r"buffer 1\.scale, which"):
        xinit.init_(model, RECIPE, KEY, only="*.weight")
    xinit.init_(model, RECIPE, KEY)
    assert (model[1].scale == 2).all()


def test_what_was_written_after_to_empty_stays():
    model = emptied(lambda: nn.Sequential(nn.Linear(3, 3), Kept()))
    model[1].scale.fill_(3.0)
    xinit.init_(model, RECIPE, KEY)
    assert (model[1].scale == 3).all()


def test_checks_come_first():
    model = emptied(norms)
    before = buffers(model)
    with pytest.raises(ValueError, match="cannot be initialised"):
        xinit.init_(model, {"0.*": xinit.normal()}, KEY)
    assert_same(model, before)
    with pytest.raises(ValueError, match=r"skip='\*\.running_men' matches none"):
        xinit.init_(model, RECIPE, KEY, skip="*.running_men")


@pytest.mark.parametrize("kind", ["Llama", "Gemma3Text", "Bert", "Swin", "MobileNetV2"])
def test_models_of_transformers_are_as_built(kind):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "head_dim": 8,
    }
    more = {"depths": [2, 2], "num_heads": [2, 4], "embed_dim": 16, "depth_multiplier": 0.1, "vocab_size": 64}
    config = getattr(transformers, f"{kind}Config")()
    for name, value in {**sizes, **more}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    build = getattr(transformers, f"{kind}Model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = build(config)
        model = emptied(lambda: build(config))
    expected = buffers(plain)
    assert expected
    xinit.init_(plain, RECIPE, KEY)
    assert_same(plain, expected)
    xinit.init_(model, RECIPE, KEY)
    assert_same(model, expected)


DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16]
DTYPES += [torch.float32, torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("persistent", [True, False])
def test_a_fingerprint_counts_buffers_if_asked_to(dtype, persistent):
    def model(flip=None, name="table"):
        m = nn.Linear(3, 2)
        xinit.init_(m, "torch", KEY)
        table = torch.arange(6).remainder(2).to(dtype).view(2, 3)
        if flip is not None:
            table.view(-1).view(torch.uint8)[flip] ^= 1
        m.register_buffer(name, table, persistent)
        return m

    plain = xinit.fingerprint(model())
    assert plain == xinit.fingerprint(nn.Sequential(model(5))[0])
    found = [xinit.fingerprint(model(flip), buffers=True) for flip in (None, 0, 5)]
    found += [plain, xinit.fingerprint(model(name="other"), buffers=True)]
    assert len(set(found)) == 5
    strided = model()
    strided.table = strided.table.t().contiguous().t()
    assert xinit.fingerprint(strided, buffers=True) == found[0]
    assert xinit.fingerprint(nn.DataParallel(model()), buffers=True) == found[0]
    other = model()
    other.table = other.table.to(torch.complex64)
    assert (xinit.fingerprint(other, buffers=True) == found[0]) == (dtype == torch.complex64)


def test_a_fingerprint_of_buffers_without_memory():
    model = nn.Linear(3, 2)
    model.register_buffer("table", torch.ones(3, device="meta"))
    assert len(xinit.fingerprint(model)) == 32
    with pytest.raises(RuntimeError, match="fingerprint: buffer table is on the meta device, without memory"):
        xinit.fingerprint(model, buffers=True)


def test_what_to_empty_has_untied_is_named():
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 20,
    }
    config = transformers.LlamaConfig(**sizes, tie_word_embeddings=True)
    with pytest.warns(UserWarning, match=r"parameter lm_head\.weight no longer tied.*tie_weights\(\) after to_empty"):
        xinit.init_(emptied(lambda: transformers.LlamaForCausalLM(config)), RECIPE, KEY)
    model = emptied(lambda: transformers.LlamaForCausalLM(config))
    model.tie_weights()
    expected = xinit.init_(transformers.LlamaForCausalLM(config), RECIPE, KEY)
    assert xinit.fingerprint(xinit.init_(model, RECIPE, KEY), buffers=True) == xinit.fingerprint(expected, buffers=True)


def test_parameters_that_are_skipped_in_raw_memory_are_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.log = nn.Linear(3, 3), nn.Parameter(torch.arange(1.0, 4).log())

    xinit.init_(Model(), "torch", KEY, skip="log")  # built: it is what its constructor makes it
    model = emptied(Model)
    with pytest.warns(
        UserWarning, match=r"init_: parameter log, skipped, which nothing has written to since to_empty\(\)"
    ):
        xinit.init_(model, "torch", KEY, skip="log")
    assert xinit.audit(model) == [("log", "never written")]
    with torch.no_grad():
        model.log.copy_(torch.arange(1.0, 4).log())
    assert not xinit.audit(model)
    xinit.init_(model, "torch", KEY, skip="log")
    loaded = Model()
    loaded.load_state_dict(model.state_dict())
    xinit.init_(loaded, "torch", KEY, skip=["log", "*.bias"])
