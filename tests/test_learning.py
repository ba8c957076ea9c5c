"""What the methods are for: small models learn from their weights, and deep ones keep the size of their activations."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xinit
from xinit import Key

pytestmark = pytest.mark.usefixtures("one_thread")


class Example(NamedTuple):
    """A way to initialise Linear(10, 5) -> activation -> Linear(5, 2)."""

    activation: nn.Module
    fill: Callable[..., Tensor]
    options: dict[str, str]
    std: float  # that theory gives the first layer: fan_in 10, fan_out 5
    bound: float = math.inf


EXAMPLES = {
    "xavier_uniform, tanh": Example(nn.Tanh(), xinit.xavier_uniform_, {}, (2 / 15) ** 0.5, (6 / 15) ** 0.5),
    "kaiming_uniform, relu": Example(
        nn.ReLU(), xinit.kaiming_uniform_, {"nonlinearity": "relu"}, (2 / 10) ** 0.5, (6 / 10) ** 0.5
    ),
    "kaiming_normal, relu": Example(nn.ReLU(), xinit.kaiming_normal_, {"nonlinearity": "relu"}, (2 / 10) ** 0.5),
}
examples = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)


def initialised(example: Example, key: Key) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(10, 5), example.activation, nn.Linear(5, 2))
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            example.fill(parameter, **example.options, key=key.fold_in(name))
        else:
            xinit.zeros_(parameter)
    return model


@examples
@pytest.mark.parametrize("seed", range(3))
def test_the_model_learns(example: Example, seed: int) -> None:
    inputs = xinit.normal_(torch.empty(512, 10), key=Key(2026))
    targets = torch.stack([inputs[:, 0], inputs[:, 1].abs()], dim=1)
    baseline = targets.var(dim=0, correction=0).mean().item()  # the loss of the best constant
    model = initialised(example, Key(seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(500):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * baseline
    assert losses[-1] < 0.3 * losses[0]


@examples
def test_the_first_layer_has_the_mean_and_std_of_theory(example: Example) -> None:
    """Over 4096 keys, 204 800 weights; within 4 standard errors."""
    keys = 4096
    weights = torch.stack([initialised(example, Key(seed))[0].weight.detach() for seed in range(keys)]).double()
    z = weights / example.std
    n, fourth = z.numel(), 1.8 if example.bound < math.inf else 3.0
    assert abs(z.mean().item()) * n**0.5 < 4
    assert abs(z.square().mean().item() - 1) / ((fourth - 1) / n) ** 0.5 < 4
    assert weights.abs().max() < example.bound
    # Nor is one place of the 50 unlike the others: its own mean square, over the keys.
    places = (z.square().mean(dim=0) - 1) / ((fourth - 1) / keys) ** 0.5
    assert places.abs().max() < 4.5


WIDTH, LAYERS, KEYS = 512, 30, 16


class Deep(NamedTuple):
    activation: Callable[[Tensor], Tensor]
    fill: Callable[..., Tensor]
    arguments: tuple[float | str, ...]
    variance: float  # of the weights, times the width
    input_std: float
    least: float  # bounds of the mean square of layer 30's activations over that of layer 1's
    most: float


# tanh with gain 1 takes the mean square q of small activations to q - 2 q^2, so that 1 / q grows by 2 in each layer: 30
# layers keep q within a factor of 2 where it begins below 1 / 60. Inputs of std 1 also end near 1 / 60.
# With tanh's own gain of 5/3 there is a fixed point, q = 0.42, and inputs of std 1 stay near it.
#
# ReLU multiplies q, whatever it is, by half the variance of the weights times the width: 1 for Kaiming, 1/2 for Xavier,
# and 1/3 for U(-b, b) with b^2 = 2 / fan, which is often quoted as Kaiming's.
DEEP = {
    "tanh, xavier_uniform": Deep(torch.tanh, xinit.xavier_uniform_, (1.0,), 1, 0.1, 1 / 2, 2),
    "tanh, xavier_normal": Deep(torch.tanh, xinit.xavier_normal_, (1.0,), 1, 0.1, 1 / 2, 2),
    "tanh, xavier_uniform, wide": Deep(torch.tanh, xinit.xavier_uniform_, (1.0,), 1, 1.0, 1 / 30, 1 / 15),
    "tanh, xavier_uniform, gain 5/3": Deep(torch.tanh, xinit.xavier_uniform_, (5 / 3,), 25 / 9, 1.0, 1 / 2, 2),
    "relu, kaiming_uniform": Deep(torch.relu, xinit.kaiming_uniform_, (0.0, "fan_in", "relu"), 2, 1.0, 1 / 2, 2),
    "relu, kaiming_normal": Deep(torch.relu, xinit.kaiming_normal_, (0.0, "fan_in", "relu"), 2, 1.0, 1 / 2, 2),
    "relu, xavier_uniform": Deep(torch.relu, xinit.xavier_uniform_, (1.0,), 1, 1.0, 0, 1e-8),
    "relu, bound sqrt(2/fan)": Deep(
        torch.relu, xinit.uniform_, (-((2 / WIDTH) ** 0.5), (2 / WIDTH) ** 0.5), 2 / 3, 1.0, 0, 1e-13
    ),
}


def mean_squares(deep: Deep, seed: int) -> list[float]:
    """The mean square of the activations of 64 inputs, layer by layer."""
    activations = xinit.normal_(torch.empty(64, WIDTH), std=deep.input_std, key=Key(seed).fold_in("inputs"))
    weight, squares = torch.empty(WIDTH, WIDTH), []
    for layer in range(LAYERS):
        deep.fill(weight, *deep.arguments, key=Key(seed).fold_in(layer))
        activations = deep.activation(activations @ weight.T)
        squares.append(activations.double().square().mean().item())
    return squares


def expected_mean_squares(deep: Deep) -> list[float]:
    """In the limit of great width: E f(z)^2 for a normal z of the layer before's mean square times `variance`."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(101)
    squares = [deep.input_std**2]
    for _ in range(LAYERS):
        values = deep.activation(torch.from_numpy(math.sqrt(deep.variance * squares[-1]) * nodes)).numpy()
        squares.append(float(masses @ values**2 / masses.sum()))
    return squares[1:]


@pytest.mark.parametrize("deep", DEEP.values(), ids=DEEP)
def test_thirty_layers_keep_or_lose_the_activations(deep: Deep) -> None:
    measured = np.mean([mean_squares(deep, seed) for seed in range(KEYS)], axis=0)
    # At width 512 one network's mean square at layer 30 scatters by 36 % (ReLU): 50 % are more than 5 standard errors.
    np.testing.assert_allclose(measured, expected_mean_squares(deep), rtol=0.5)
    ratios = measured / measured[0]
    assert deep.least < ratios[-1] < deep.most
    if deep.least == 1 / 2:
        assert 1 / 2 < ratios.min() <= ratios.max() < 2
