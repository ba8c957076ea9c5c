"""What becomes of a deferred model between its context and materialize_: recorded too, or refused; never other values."""

import copy
import re
import warnings
from functools import partial

import pytest
import torch
from conftest import KEY
from torch import nn
from torch.nn import init
from torch.nn.utils import parametrizations, parametrize, prune

import xinit

pytestmark = pytest.mark.usefixtures("one_thread")


def linear():
    with xinit.deferred():
        return nn.Linear(4, 5)


def own(shape=(5, 4), dtype=torch.float32):
    """What its weight would have been."""
    return xinit.uniform_(torch.empty(shape, dtype=dtype), -0.5, 0.5, key=KEY.fold_in("weight"))


def own_again():
    """What is drawn of it where it is but a part of the weight, or the weight a part of it."""
    return xinit.uniform_(torch.empty(5, 4), -0.5, 0.5, key=KEY.fold_in("weight").fold_in(0))


def without_grad(change):
    def changed(m):
        with torch.no_grad():
            return change(m)

    return changed


def replaced(what):
    def change(m):
        m.weight = nn.Parameter(what(m.weight))

    return change


def data(what):
    def change(m):
        m.weight.data = what(m.weight.data)

    return change


# What is done, and what the weight is then.
CHANGES = {
    "init.zeros_": (lambda m: init.zeros_(m.weight), torch.zeros_like),
    "init.zeros_ of the data": (lambda m: init.zeros_(m.weight.data), torch.zeros_like),
    "init.normal_": (
        lambda m: init.normal_(m.weight, std=5.0),
        lambda w: xinit.normal_(w.clone(), 0.0, 5.0, key=KEY.fold_in("weight")),
    ),
    "xinit.trunc_normal_": (
        lambda m: xinit.trunc_normal_(m.weight.data, std=0.5),
        lambda w: xinit.trunc_normal_(w.clone(), 0.0, 0.5, key=KEY.fold_in("weight")),
    ),
    "xinit.normal_": (
        lambda m: xinit.normal_(m.weight, std=5.0),
        lambda w: xinit.normal_(w.clone(), 0.0, 5.0, key=KEY.fold_in("weight")),
    ),
    "detach().fill_": (lambda m: m.weight.detach().fill_(3), lambda w: torch.full_like(w, 3)),
    "scaled": (lambda m: m.weight.data.mul_(0.5), lambda w: w / 2),
    "scaled by a number in the data": (lambda m: setattr(m.weight, "data", m.weight.data * 0.5), lambda w: w / 2),
    "a row": (without_grad(lambda m: m.weight[0].fill_(1)), lambda w: torch.cat([torch.ones(1, 4), w[1:]])),
    "a slice": (lambda m: m.weight.data[1:].zero_(), lambda w: torch.cat([w[:1], torch.zeros(4, 4)])),
    "an index": (
        without_grad(lambda m: m.weight.__setitem__([0, 2], 7.0)),
        lambda w: w.index_fill(0, torch.tensor([0, 2]), 7),
    ),
    "copied from data": (
        lambda m: m.weight.data.copy_(torch.arange(20.0).view(5, 4)),
        lambda w: torch.arange(20.0).view(5, 4),
    ),
    "many at once": (lambda m: torch._foreach_mul_([p.data for p in m.parameters()], 2.0), lambda w: w * 2),
    "half": (lambda m: m.half(), lambda w: own(dtype=torch.float16)),
    "half and back": (lambda m: m.half().float(), lambda w: w),
    "half, then scaled": (lambda m: m.half().weight.data.mul_(2), lambda w: own(dtype=torch.float16) * 2),
    "the data in half": (data(torch.Tensor.half), lambda w: own(dtype=torch.float16)),
    "on the meta device": (lambda m: m.to("meta"), lambda w: w),
    "rows cut off": (replaced(lambda w: w[:3]), lambda w: own_again()[:3]),
    "rows added": (
        replaced(lambda w: torch.cat([w, torch.zeros_like(w[:2])])),
        lambda w: torch.cat([w, torch.zeros(2, 4)]),
    ),
    "another parameter": (replaced(lambda w: w.detach().clone()), lambda w: w),
    "the same parameter": (replaced(lambda w: w), lambda w: w),
    "loaded": (
        lambda m: m.load_state_dict({"weight": torch.ones(5, 4)}, strict=False),
        torch.ones_like,
    ),
    "assigned": (
        lambda m: m.load_state_dict({"weight": torch.ones(5, 4)}, strict=False, assign=True),
        torch.ones_like,
    ),
    "in another context": (lambda m: _within(lambda: init.ones_(m.weight)), torch.ones_like),
    "before and in another context": (
        lambda m: (init.ones_(m.weight), _within(lambda: m.weight.data.mul_(3))),
        lambda w: torch.full_like(w, 3),
    ),
}


def _within(change):
    with xinit.deferred():
        change()


@pytest.mark.parametrize("copied", [False, True], ids=["itself", "a deep copy"])
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.filterwarnings("error:for weight. copying from a non-meta parameter")  # which is no no-op here
def test_what_is_done_after_the_context_counts(name, copied):
    change, expected = CHANGES[name]
    model = linear()
    if copied:
        model = copy.deepcopy(model)
    change(model)
    xinit.materialize_(model, key=KEY)
    assert type(model.weight) is nn.Parameter
    assert torch.equal(model.weight, expected(own()))
    assert model.weight.dtype == expected(own()).dtype
    assert model.weight.requires_grad
    assert model.weight.__dict__ == {}
    assert not xinit.audit(model)


UNKNOWN = {
    "another tensor": lambda m: setattr(m.weight, "data", torch.zeros(5, 4, device="meta")),
    "of another dtype": lambda m: setattr(m.weight, "data", torch.zeros(5, 4, device="meta", dtype=torch.float64)),
    "of another shape": lambda m: setattr(m.weight, "data", torch.empty(15, 4, device="meta")),
    "another parameter": lambda m: setattr(m, "weight", nn.Parameter(torch.zeros(5, 4, device="meta"))),
    "new rows": replaced(lambda w: torch.cat([w, torch.zeros(2, 4, device="meta")])),
    "rows of another one": lambda m: m.weight.data[:2].copy_(torch.zeros(2, 4, device="meta")),
    "a product": data(lambda w: w * torch.ones(5, 4, device="meta")),
    "put into another one": lambda m: _resized(m),
}


def _resized(m):
    """As a tied resize_token_embeddings() does."""
    new = nn.Embedding(9, 4, device="meta")
    new.weight.data[:5] = m.weight.data[:5]
    m.weight.data = new.weight.data


@pytest.mark.parametrize("then", ["itself", "a deep copy", "in another context"])
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_nobody_knows_is_refused(name, then):
    model = linear()
    if then == "a deep copy":
        model = copy.deepcopy(model)
    UNKNOWN[name](model)
    if then == "in another context":
        _within(lambda: nn.Sequential(model))
    assert [row[0] for row in xinit.audit(model) if "outside of deferred" in row[1]] == ["weight"]
    with pytest.raises(RuntimeError, match=r"materialize_: (nothing is known of )?parameter weight.*another"):
        xinit.materialize_(model, key=KEY)
    assert model.weight.is_meta
    assert model.bias.is_meta


@pytest.mark.parametrize(
    "fill",
    [
        init.trunc_normal_,
        init.orthogonal_,
        partial(init.sparse_, sparsity=0.5),
        xinit.orthogonal_,
        partial(xinit.sparse_, sparsity=0.5),
    ],
)
def test_what_torch_does_not_do_on_the_meta_device_is_refused(fill):
    """It would return without a word, and so be ignored; torch 2.11's functions do not return, and are recorded."""
    model = linear()
    try:
        fill(model.weight)
    except RuntimeError as error:
        assert re.search(r"deferred: \w+_ does nothing .* within another xinit.deferred", str(error))  # noqa: PT017
        with xinit.deferred():
            fill(model.weight)
    xinit.materialize_(model, key=KEY)
    assert not torch.equal(model.weight, own())


def test_what_overwrites_the_unknown_is_known():
    model = linear()
    model.weight.data.copy_(torch.zeros(5, 4, device="meta"))
    init.ones_(model.weight)
    assert torch.equal(xinit.materialize_(model, key=KEY).weight, torch.ones(5, 4))


def test_memory_without_values_is_told():
    with xinit.deferred():
        model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6))
    model[0].to_empty(device="cpu")
    problems = dict(xinit.audit(model))
    assert problems["0.weight"] == problems["0.bias"] == "has memory by to_empty(), but no values"
    with pytest.raises(RuntimeError, match=r"to_empty\(\) has replaced parameters 0.weight, 0.bias .*leave it out"):
        xinit.materialize_(model, key=KEY)
    for parameter in model[0].parameters():
        parameter.data.normal_()
    before = model[0].weight.clone()
    xinit.materialize_(model, key=KEY)
    assert torch.equal(model[0].weight, before)
    assert not xinit.audit(model)


@pytest.mark.parametrize("move", [lambda m: m.to("cpu"), lambda m: m.cpu(), lambda m: m.weight.to("cpu")])
def test_a_move_says_what_moves(move):
    """torch's advice, to_empty(), would lose what is known."""
    with pytest.raises(NotImplementedError, match=r"materialize_\(model, device\)"):
        move(linear())


def test_parts_that_are_replaced_by_real_ones_stay():
    with xinit.deferred():
        model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6))
    model[1] = nn.Linear(5, 9)
    before = model[1].weight.clone()
    xinit.materialize_(model, key=KEY)
    assert torch.equal(model[1].weight, before)


def test_a_forward_pass_without_memory_changes_nothing():
    with xinit.deferred():
        model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    assert model(torch.empty(3, 4, device="meta")).shape == (3, 4)
    xinit.materialize_(model, key=KEY)
    assert torch.equal(model[0].weight, xinit.uniform_(torch.empty(4, 4), -0.5, 0.5, key=KEY.fold_in("0.weight")))


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).mT


def square(change):
    with xinit.deferred():
        model = nn.Linear(5, 5)
    change(model)
    xinit.materialize_(model, key=KEY)
    assert not xinit.audit(model)
    return model


def test_parametrizations_registered_later():
    model = square(parametrizations.spectral_norm).eval()
    assert torch.linalg.matrix_norm(model.weight, 2).item() == pytest.approx(1, rel=1e-2)
    model = square(parametrizations.weight_norm)
    parts = model.parametrizations.weight
    assert torch.allclose(parts.original0, parts.original1.norm(dim=1, keepdim=True))
    model = square(lambda m: parametrize.register_parametrization(m, "weight", Symmetric()))
    assert torch.equal(model.weight, model.weight.mT)
    assert model.parametrizations.weight.original.std() > 0.1
    with pytest.raises(
        RuntimeError, match=r"deferred: .* within another such context"
    ):  # it makes an identity to compare with
        square(parametrizations.orthogonal)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_hooks_registered_later():
    """They leave a tensor of the weight's name with the module, to be computed anew before each call."""
    model = square(nn.utils.weight_norm)
    assert torch.allclose(model.weight_g, model.weight_v.norm(dim=1, keepdim=True))
    assert torch.allclose(model.weight, model.weight_v)
    model = square(partial(prune.l1_unstructured, name="weight", amount=10))
    assert (model.weight == 0).sum() == 10
    smallest = model.weight_orig.detach().abs().flatten().topk(10, largest=False).indices
    assert not model.weight_mask.flatten()[smallest].any()
    assert torch.equal(model.weight, model.weight_orig * model.weight_mask)


def test_what_is_seen_of_it_is_what_a_parameter_shows():
    model = linear()
    weight = model.weight
    assert isinstance(weight, nn.Parameter)
    assert not isinstance(weight.detach(), nn.Parameter)
    assert isinstance(copy.deepcopy(weight), nn.Parameter)
    assert repr(weight).startswith("Parameter containing:\ntensor(..., device='meta', size=(5, 4)")
    assert weight.is_meta
    assert weight.is_leaf
    assert list(model.state_dict()) == ["weight", "bias"]
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        model.to("cpu")
    made = type(weight)(torch.ones(2, 2), requires_grad=False)  # as accelerate makes parameters with memory
    assert type(made) is nn.Parameter
    with pytest.raises(RuntimeError, match=r"Linear.weight of shape \(5, 4\)"):
        weight.sum().item()


def test_subclasses_of_parameters_stay_that():
    class Marked(nn.Parameter):
        pass

    with xinit.deferred():
        model = nn.Module()
        model.w = Marked(torch.ones(3))
    twin = copy.deepcopy(model)
    twin.w.data.mul_(2)
    for module, value in (model, 1), (twin, 2):
        assert isinstance(module.w, Marked)
        xinit.materialize_(module, key=KEY)
        assert type(module.w) is Marked
        assert torch.equal(module.w, torch.full((3,), value))


# transformers: vocabularies that grow and shrink


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.mark.parametrize("mean_resizing", [True, False])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_resized_embeddings(transformers, kind, tied, mean_resizing):
    def build():
        if kind == "gpt2":
            config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=64, vocab_size=128)
        else:
            config = transformers.LlamaConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=128
            )
        config.tie_word_embeddings = tied
        return getattr(transformers, {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[kind])(config)

    def resize(model, rows):
        model.resize_token_embeddings(rows, mean_resizing=mean_resizing)
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with xinit.deferred():
            plain, within, second, cut, after = (build() for _ in range(5))
            resize(within, 140)
        with xinit.deferred():
            resize(second, 140)
        resize(cut, 100)
        # torch's own error, of the covariance's eigenvalues; or ours, of the new rows
        with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta|within it, or within another one"):
            xinit.materialize_(resize(after, 140), key=KEY)
        for model in plain, within, second, cut:
            xinit.materialize_(model, key=KEY)
            assert not xinit.audit(model)
    for get in "get_input_embeddings", "get_output_embeddings":
        old, one, two, less = (getattr(model, get)().weight for model in (plain, within, second, cut))
        assert one.shape == (140, 32)
        assert torch.equal(one, two)
        assert old.std().item() == pytest.approx(0.02, rel=0.1)
        assert one[:128].std().item() == pytest.approx(0.02, rel=0.1)
        assert less.std().item() == pytest.approx(0.02, rel=0.1)
        spread = one[128:].std().item()
        assert 1e-3 < spread < 3e-3 if mean_resizing else spread == pytest.approx(0.02, rel=0.2)
    assert (within.get_input_embeddings().weight is within.get_output_embeddings().weight) == tied


def emptied(module, device):
    for parameter in module.parameters(recurse=False):
        parameter.data = torch.empty(0, device=device)


def test_parameters_whose_values_are_elsewhere():
    """As DeepSpeed's ZeRO-3 leaves them, in the context and after it, by its mark or without elements."""
    with xinit.deferred():
        within = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6))
        emptied(within[1], "cpu")
    after, marked = linear(), linear()
    emptied(after, "meta")
    marked.weight.ds_id = 0
    for model, name in (within, "1.weight, 1.bias"), (after, "weight, bias"), (marked, "weight"):
        assert dict(xinit.audit(model))[name.split(",")[0]].startswith("without elements since")
        with pytest.raises(RuntimeError, match=f"{name} .*no elements any more.*materialize_ the model first"):
            xinit.materialize_(model, key=KEY)
    with xinit.deferred():
        model = nn.Embedding(0, 4)  # has none to begin with
    assert not xinit.materialize_(model).weight.numel()
