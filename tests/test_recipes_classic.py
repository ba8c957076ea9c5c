"""The recipes "xavier" and "kaiming": each matrix by the gain of what follows it."""

import math

import pytest
import torch
from torch import nn

import xinit


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(50, 50), nn.Linear(50, 50)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def stds(model, recipe):
    return [row.std for row in xinit.plan(model, recipe, only="*weight").rows]


def test_the_order_of_modules_tells_what_follows():
    model = nn.Sequential(
        *(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(50, 50), nn.Dropout(), nn.GELU()),
        *(nn.Linear(50, 50), nn.LeakyReLU(0.2), nn.Linear(50, 25)),
    )
    gains = [math.sqrt(2), None, xinit.calculate_gain("gelu"), xinit.calculate_gain("leaky_relu", 0.2), 1]
    for recipe, fans in (("kaiming", (18, None, 50, 50, 50)), ("xavier", (45, None, 50, 50, 37.5))):
        found = stds(model, recipe)
        for std, gain, fan in zip(found, gains, fans, strict=True):
            assert std == (0 if gain is None else pytest.approx(gain / fan**0.5))
    xinit.init_(model, "kaiming", xinit.Key(0))
    assert not model[0].bias.any()
    uniform = xinit.init_(model, xinit.recipes.kaiming("uniform"), xinit.Key(0))[9].weight
    assert uniform.abs().max() < (3 / 50) ** 0.5


def test_without_modules_relu_is_taken_to_follow_unless_a_batch_tells():
    assert stds(Functional(), "kaiming") == pytest.approx([0.2, 0.02**0.5])
    seen = xinit.recommend(Functional(), torch.ones(2, 50)).activations
    assert seen == {"first.weight": "tanh"}
    assert stds(Functional(), xinit.recipes.kaiming(activations=seen)) == pytest.approx([5 / 3 / 50**0.5, 1 / 50**0.5])
    assert stds(Functional(), xinit.recipes.xavier(activations=seen)) == pytest.approx([5 / 3 / 50**0.5, 1 / 50**0.5])


def test_a_batch_tells_what_follows():
    """Also where modules are made in another order than they run, and what follows is no module."""
    model = nn.ModuleDict({"head": nn.Linear(50, 10), "one": nn.Linear(50, 50), "two": nn.Linear(50, 50)})
    model.add_module("act", nn.Tanh())

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x, scale=1.0):
            x = torch.nn.functional.gelu(self.parts["one"](x)) * scale
            return self.parts["head"](self.parts["act"](self.parts["two"](x)))

    net, x = Net(), torch.ones(2, 50)
    gains = [1, xinit.calculate_gain("gelu"), 5 / 3]  # of head, one, two
    for inputs in (x, (x,), (x, 2.0), {"x": x, "scale": 2.0}):
        for recipe, fans in ((xinit.recipes.kaiming, (50, 50, 50)), (xinit.recipes.xavier, (30, 50, 50))):
            expected = [gain / fan**0.5 for gain, fan in zip(gains, fans, strict=True)]
            assert stds(net, recipe(inputs=inputs)) == pytest.approx(expected)
    assert stds(net, "kaiming") != pytest.approx([gain / 50**0.5 for gain in gains])  # by the order of modules
    state = torch.get_rng_state()
    xinit.init_(net, xinit.recipes.kaiming("uniform", inputs=x), xinit.Key(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert net.parts["one"].weight.abs().max() < gains[1] * (3 / 50) ** 0.5
    assert xinit.diagnose(net, xinit.normal_(torch.empty(64, 50), key=xinit.Key(1))).sound


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"inputs": torch.ones(2, 50), "activations": {}}, ValueError, "xavier: either inputs or activations"),
        ({"inputs": torch.ones(2, 49)}, RuntimeError, "mat1 and mat2"),
        ({"inputs": torch.full((2, 50), torch.nan)}, ValueError, "xavier: input 0 holds NaN or infinity"),
        ({"inputs": ()}, ValueError, "xavier: inputs is empty"),
        ({"activations": {"first.weight": "relo"}}, ValueError, "Unsupported nonlinearity relo"),
        ({"activations": {"frist.weight": "relu"}}, ValueError, r"xavier: activations names frist\.weight"),
    ],
)
def test_bad_batches_leave_the_model_as_it_was(options, error, words):
    model = Functional()
    before = xinit.fingerprint(model)
    with pytest.raises(error, match=words):
        xinit.init_(model, xinit.recipes.xavier(**options), xinit.Key(0))
    assert xinit.fingerprint(model) == before
    assert not model.first._forward_hooks
    with torch.device("meta"):
        model = Functional()
    with pytest.raises(RuntimeError, match=r"kaiming: .* on the meta device"):
        xinit.plan(model, xinit.recipes.kaiming(inputs=torch.ones(2, 50)))


def test_what_the_model_makes_constant_is_not_overruled():
    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

        def _init_weights(self, module):
            if module is self.head:
                nn.init.zeros_(module.weight)

    with pytest.raises(ValueError, match=r"head\.weight.*kaiming would give .*its own init zeros"):
        xinit.init_(Zero(), "kaiming", xinit.Key(0))
    with pytest.raises(ValueError, match="Distribution cauchy"):
        xinit.recipes.xavier("cauchy")
