"""Weights that torch.nn.utils computes from other parameters: drawn as if the layer had been initialised before."""

import warnings

import pytest
import torch
from conftest import same
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize, prune

import xinit
from xinit import Key

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::FutureWarning")]
KEY = Key(0)
RECIPE = {"*.bias": xinit.zeros(), "*": xinit.normal(std=0.02)}


class Symmetric(nn.Module):
    """Without a right inverse."""

    def forward(self, x):
        return x.triu() + x.triu(1).mT


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


class Factors(nn.Module):
    """Two originals, neither of which has the weight's shape."""

    def forward(self, left, right):
        return left @ right

    def right_inverse(self, x):
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        return u * s, v


def by(*parametrizations):
    def apply(layer):
        for p in parametrizations:
            parametrize.register_parametrization(layer, "weight", p())

    return apply


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.5)


EXACT = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm by hook": utils.weight_norm,
    "doubled": by(Doubled),
    "doubled twice": by(Doubled, Doubled),
    "factors": by(Factors),
    "symmetric": by(Symmetric),
    "weight_norm, no dim": lambda layer: parametrizations.weight_norm(layer, dim=None),
}
SPECTRAL = {"spectral_norm": parametrizations.spectral_norm, "spectral_norm by hook": utils.spectral_norm}
ALL = {**EXACT, **SPECTRAL, "orthogonal": parametrizations.orthogonal, "pruned": pruned}
kinds = pytest.mark.parametrize("kind", ALL)


def layers():
    return nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 16))


def built(kind):
    model = layers()
    ALL[kind](model[0])
    return model


def weight(model):
    """As forward() uses it."""
    model.eval()(torch.randn(2, 24))
    return model[0].weight.detach()


@kinds
def test_it_is_as_if_the_layer_had_been_initialised_first(kind):
    first = xinit.init_(layers(), RECIPE, KEY)
    drawn = first[0].weight.detach().clone()
    others = first[1].weight.detach().clone()
    model, state = built(kind), torch.get_rng_state()
    for _ in range(2):
        xinit.init_(model, RECIPE, KEY)
        assert torch.equal(torch.get_rng_state(), state)
        assert same(model[1].weight.detach(), others)
    if kind == "pruned":
        mask = model[0].weight_mask
        assert mask.mean() == 0.5
        assert same(weight(model), drawn * mask)
        return
    if kind == "doubled twice":  # of which torch's second registration does not keep the weight, but assignment does
        assert same(weight(model), drawn)
    elif kind in EXACT:
        ALL[kind](first[0])
        torch.testing.assert_close(weight(model), weight(first), rtol=1e-5, atol=1e-7)
    elif kind in SPECTRAL:
        drawn /= torch.linalg.matrix_norm(drawn, 2)
        assert torch.linalg.matrix_norm(weight(model), 2).item() == pytest.approx(1, abs=0.05)
        assert torch.nn.functional.cosine_similarity(weight(model).view(-1), drawn.view(-1), 0) > 1 - 1e-5
    else:
        torch.testing.assert_close(weight(model) @ weight(model).mT, torch.eye(24), rtol=0, atol=1e-5)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    if kind == "weight_norm":
        assert model[0].weight.std().item() == pytest.approx(0.02, rel=0.1)


@kinds
def test_plans_and_patterns_have_the_weights_name(kind):
    model = built(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = xinit.plan(model, RECIPE).rows
    assert sorted((row.name, row.shape, row.method) for row in rows) == [
        *(("0.bias", (24,), "zeros"), ("0.weight", (24, 24), "normal")),
        *(("1.bias", (16,), "zeros"), ("1.weight", (16, 24), "normal")),
    ]
    xinit.init_(model, "torch", KEY, skip="0.weight")
    after = model.state_dict()
    assert {name for name in before if not same(before[name], after[name])} == {"0.bias", "1.weight", "1.bias"}
    xinit.init_(model, RECIPE, KEY, only="0.weight")
    assert [name for name in ("0.bias", "1.weight") if not same(after[name], model.state_dict()[name])] == []


@pytest.mark.parametrize("kind", [*SPECTRAL, "weight_norm", "orthogonal"])
def test_after_to_empty(kind):
    def emptied():
        model = built(kind).to_empty(device="cpu")
        for tensor in model.state_dict().values():
            tensor.fill_(float("nan"))
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)
        model, other = (xinit.init_(emptied(), RECIPE, KEY) for _ in range(2))
    reference = xinit.init_(built(kind), RECIPE, KEY)
    for one in (model, other):
        torch.testing.assert_close(weight(one), weight(reference), rtol=1e-5, atol=1e-6)


def test_other_modules():
    """An embedding's padding row, a convolution, and a bias."""
    embed, conv, linear = nn.Embedding(6, 4, padding_idx=2), nn.ConvTranspose2d(4, 6, 3), nn.Linear(4, 4)
    parametrizations.weight_norm(conv, dim=1)
    parametrize.register_parametrization(embed, "weight", Doubled())
    parametrize.register_parametrization(linear, "bias", Doubled())
    model = nn.Sequential(embed, conv, linear)
    xinit.init_(model, "torch", KEY)
    plain = nn.Sequential(nn.Embedding(6, 4, padding_idx=2), nn.ConvTranspose2d(4, 6, 3), nn.Linear(4, 4))
    xinit.init_(plain, "torch", KEY)
    for name in ("0.weight", "1.weight", "2.bias", "2.weight"):
        module, leaf = name.split(".")
        ours, theirs = getattr(model[int(module)], leaf), getattr(plain[int(module)], leaf)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert not model[0].weight[2].any()
    assert len(xinit.fingerprint(model)) == 32


PARTS = {
    "unbind": lambda weight: weight.unbind(),
    "chunk": lambda weight: [chunk.squeeze(0) for chunk in weight.chunk(3)],
    "iter": list,
    "index": lambda weight: [weight[i] for i in range(3)],
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "fill",
    [
        *(xinit.uniform_, xinit.trunc_normal_, xinit.kaiming_uniform_, xinit.xavier_normal_, xinit.variance_scaling_),
        *(xinit.ones_, xinit.eye_, xinit.orthogonal_, lambda w: xinit.sparse_(w, 0.5)),
    ],
)
def test_parts_of_a_parameter_are_filled_one_after_the_other(part, fill):
    # torch.nn.init does; autograd says nothing of one part, not even whether it is a leaf, once another one is written to.
    weight = nn.Parameter(torch.full((3, 4, 4), 7.0))
    for matrix in PARTS[part](weight):
        fill(matrix)
    assert weight.is_leaf
    assert (weight != 7).all()


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal", "doubled"])
def test_a_fill_that_would_be_lost_is_an_error(kind):
    layer = built(kind)[0]
    words = "the tensor was computed from parameters, so that what is written to it would be lost"
    state = torch.get_rng_state()
    for fill in (xinit.normal_, xinit.kaiming_uniform_):
        with pytest.raises(RuntimeError, match=rf"{fill.__name__}: {words}.*detach"):
            fill(layer.weight)
    assert torch.equal(torch.get_rng_state(), state)
    xinit.normal_(layer.bias)
    xinit.normal_(layer.bias[2:5])  # a view of a parameter
    xinit.normal_(layer.weight.detach())
    layer.weight = xinit.normal_(torch.empty(24, 24), std=0.02, key=KEY)
