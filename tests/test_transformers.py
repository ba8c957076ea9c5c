"""Models of the transformers library, from small configurations: built by its own code, drawn by xinit."""

import functools
import warnings
from contextlib import nullcontext

import pytest
import torch
from agreement import agree, eager, outputs_agree

import xinit
from xinit import Key

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("one_thread")
KEY = Key(7)
SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
TOKENS = {"vocab_size": 128, "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}
IDS = torch.arange(48).view(2, 24)


def build(kind, config, **sizes):
    library = transformers
    return getattr(library, kind)(getattr(library, config)(**sizes))


def tokens(model):
    return model(input_ids=IDS).logits


MODELS = {
    "gpt2": (
        functools.partial(
            build, "GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=2, n_head=4, n_positions=64, **TOKENS
        ),
        tokens,
    ),
    "llama": (
        functools.partial(build, "LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, **SIZES, **TOKENS),
        tokens,
    ),
    "bert": (functools.partial(build, "BertForMaskedLM", "BertConfig", **SIZES, **TOKENS), tokens),
    "vit": (
        functools.partial(build, "ViTForImageClassification", "ViTConfig", image_size=32, patch_size=8, **SIZES),
        lambda model: model(torch.randn(4, 3, 32, 32)).logits,
    ),
    "t5": (
        functools.partial(
            build,
            "T5ForConditionalGeneration",
            "T5Config",
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            vocab_size=128,
        ),
        lambda model: model(input_ids=IDS, decoder_input_ids=IDS).logits,
    ),
    "mixtral": (
        functools.partial(
            build, "MixtralForCausalLM", "MixtralConfig", num_key_value_heads=2, num_local_experts=4, **SIZES, **TOKENS
        ),
        tokens,
    ),
    # A weight_norm that reads the weight, and draws that are scaled by hand.
    "wav2vec2": (
        functools.partial(
            build,
            "Wav2Vec2Model",
            "Wav2Vec2Config",
            conv_dim=(32,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            mask_time_prob=0.0,
            **SIZES,
        ),
        lambda model: model(torch.randn(2, 4000)).last_hidden_state,
    ),
}
models = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(autouse=True)
def _quiet():
    """The library's own warnings are its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def references(model):
    return eager(MODELS[model][0])


@models
def test_deferred_agrees_with_the_constructor(model):
    construct, forward = MODELS[model]
    with xinit.deferred() as plan:
        ours = construct()
    assert {parameter.device.type for parameter in ours.parameters()} == {"meta"}
    assert all(torch.equal(*pair) for pair in zip(ours.buffers(), references(model)[0].buffers(), strict=True))
    assert [row.name for row in plan.rows] == [name for name, _ in ours.named_parameters()]
    assert [name for name, _ in xinit.audit(ours)] == [row.name for row in plan.rows]
    xinit.materialize_(ours, key=KEY)
    assert not xinit.audit(ours)
    agree(ours, references(model))
    outputs_agree(ours, references(model), forward)


@pytest.mark.parametrize("default", [True, False], ids=["as default", "around it"])
def test_the_meta_device_around_the_context(default):
    """transformers' own initialisation, of std 0.02, is one that it skips there; within the context that is said."""
    construct, _ = MODELS["llama"]

    def check(model):
        weight = xinit.materialize_(model, key=KEY).get_input_embeddings().weight
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)

    if default:
        torch.set_default_device("meta")
    try:
        with nullcontext() if default else torch.device("meta"), xinit.deferred():
            model = construct()
    finally:
        torch.set_default_device(None)
    check(model)
    said = pytest.warns(UserWarning, match="transformers does not run its initialisation")
    with said, xinit.deferred(), torch.device("meta"):
        model = construct()
    assert not xinit.audit(xinit.materialize_(model, key=KEY))


@models
def test_accelerate_agrees_with_the_constructor(model):
    construct, forward = MODELS[model]
    torch.manual_seed(0)
    with xinit.accelerate():
        ours = construct()
    assert any(
        not torch.equal(*pair) for pair in zip(ours.parameters(), references(model)[0].parameters(), strict=True)
    )
    agree(ours, references(model))
    outputs_agree(ours, references(model), forward)


def own_code(model):
    """All of it, once more."""
    for module in model.modules():
        getattr(module, "reset_parameters", getattr(module, "_reset_parameters", lambda: None))()
    for part in (*model.modules(), *model.parameters()):
        part.__dict__.pop("_is_hf_initialized", None)
    model.init_weights()


@models
def test_accelerate_with_a_key_gives_what_materialize_gives(model):
    with xinit.deferred():
        wanted = MODELS[model][0]()
        own_code(wanted)
    wanted = dict(xinit.materialize_(wanted, key=KEY).named_parameters())
    ours = MODELS[model][0]()
    with xinit.accelerate(key=KEY, model=ours):
        own_code(ours)
    for name, parameter in ours.named_parameters():
        # What is drawn into a weight that is computed from others is lost, as it is in torch.
        assert ".parametrizations." in name or torch.equal(parameter, wanted[name]), name


def test_each_parameter_is_drawn_once_and_by_its_name():
    """Though torch's constructor draws it, and transformers' again; and whatever stands before it."""

    def llama(layers):
        with xinit.deferred():
            model = MODELS["llama"][0](num_hidden_layers=layers)
        return xinit.materialize_(model, key=KEY)

    alone = dict(llama(1).named_parameters())
    for name, parameter in llama(3).named_parameters():
        if name in alone:
            assert torch.equal(parameter, alone[name]), name
        if parameter.dim() > 1:
            expected = xinit.normal_(torch.empty(parameter.shape), 0.0, 0.02, key=KEY.fold_in(name))
            if name == "model.embed_tokens.weight":
                expected[3] = 0.0  # the padding
            assert torch.equal(parameter, expected), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_the_rounded_float32(dtype):
    with xinit.deferred():
        single = MODELS["llama"][0]()
        low = transformers.LlamaForCausalLM._from_config(single.config, dtype=dtype)
    xinit.materialize_(single, key=KEY)
    xinit.materialize_(low, key=KEY)
    for (name, x), y in zip(single.named_parameters(), low.parameters(), strict=True):
        assert y.dtype == dtype
        assert torch.equal(x.to(dtype), y), name


@pytest.mark.parametrize("how", [xinit.accelerate, xinit.deferred])
def test_loaded_weights_are_not_touched(how, tmp_path):
    """Not one bit; and what the file does not have is drawn."""
    saved = references("bert")[0]
    saved.save_pretrained(tmp_path)
    with how():
        loaded = transformers.BertForMaskedLM.from_pretrained(tmp_path)
        more = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    if how is xinit.deferred:
        xinit.materialize_(loaded, key=KEY)
        xinit.materialize_(more, key=KEY)
    expected = saved.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    missing = {name for name, tensor in more.state_dict().items() if name not in expected}
    assert "classifier.weight" in missing
    for name, tensor in more.state_dict().items():
        assert name in missing or torch.equal(tensor, expected[name]), name
    assert more.classifier.weight.std().item() == pytest.approx(0.02, rel=0.5)
    assert not more.classifier.bias.any()
