"""What cannot be looked at: a clear error from each that looks, and nothing left changed."""

import pytest
import torch
from networks import batch
from torch import nn

import xinit
from xinit.insight import compare

X = batch(8, 8)


class Two(nn.Module):
    """Two layers with something between or behind them."""

    def __init__(self, between=nn.Identity(), behind=nn.Identity()):  # noqa: B008
        super().__init__()
        self.first, self.between, self.last, self.behind = nn.Linear(8, 8), between, nn.Linear(8, 8), behind

    def forward(self, x):
        return self.behind(self.last(self.between(self.first(x))))


class Raises(nn.Module):
    def forward(self, x):
        raise KeyError("mine")


class Stuck(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.relu()

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("no derivative")


class Rectify(nn.Module):
    def forward(self, x):
        return Stuck.apply(x)


class Detach(nn.Module):
    def forward(self, x):
        return x.detach()


ENTRIES = {
    "diagnose": lambda model, *inputs: xinit.diagnose(model, *inputs),
    "recommend": lambda model, *inputs: xinit.recommend(model, *inputs),
    "lsuv_": lambda model, *inputs: xinit.lsuv_(model, *inputs, key=xinit.Key(0)),
    "coordinate_check": lambda model, *inputs: xinit.coordinate_check(lambda width: model, (8, 16), *inputs),
    "kaiming": lambda model, *inputs: xinit.init_(model, xinit.recipes.kaiming(inputs=inputs), xinit.Key(0)),
}
LEARN = ("diagnose", "coordinate_check")  # which take a backward pass; the others need none

ROWS = {  # the model, its batch, the error, what it says, and of whom
    "a forward that raises": (lambda: Two(Raises()), (X,), KeyError, "mine", ENTRIES),
    "another shape": (Two, (batch(8, 7),), RuntimeError, "mat1 and mat2", ENTRIES),
    "no parameters": (nn.ReLU, (X,), ValueError, "ReLU has no parameters", ENTRIES),
    "no batch": (Two, (), ValueError, "without a batch|inputs is empty", ENTRIES),
    "an empty batch": (Two, (X[:0],), ValueError, r"input 0, of shape \(0, 8\), is empty", ENTRIES),
    "NaN": (Two, (X * torch.nan,), ValueError, "input 0 holds NaN or infinity, in 64 of its 64 elements", ENTRIES),
    "no gradient": (lambda: Two(behind=Detach()), (X,), ValueError, "the output has no gradient", LEARN),
    "frozen": (lambda: Two().requires_grad_(False), (X,), ValueError, "no parameter|no gradient", LEARN),
    "no derivative": (lambda: Two(Rectify()), (X,), NotImplementedError, "no derivative", LEARN),
    "no module": (lambda: 3, (X,), TypeError, r"torch\.nn\.Module, but (found|gave) int", ENTRIES),
    "no memory": (lambda: Two().to("meta"), (X,), RuntimeError, "on the meta device", ENTRIES),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("row", ROWS)
def test_models_and_batches(row, entry):
    make, inputs, error, words, whose = ROWS[row]
    model, state = make(), torch.get_rng_state()
    held = {name: (id(value), value.clone()) for name, value in getattr(model, "state_dict", dict)().items()}
    if entry in whose:
        with pytest.raises(error, match=words) as caught:
            ENTRIES[entry](model, *inputs)
        if error in (KeyError, NotImplementedError) and hasattr(caught.value, "__notes__"):
            (note,) = caught.value.__notes__
            assert note.startswith(entry)
            assert ("in between" in note) if error is KeyError else ("in the backward pass" in note)
        for name, value in getattr(model, "state_dict", dict)().items():
            assert value.is_meta or torch.equal(value, held[name][1])
    else:
        ENTRIES[entry](model, *inputs)
    assert torch.equal(torch.get_rng_state(), state)
    for module in model.modules() if isinstance(model, nn.Module) else ():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert module.training
    if entry != "coordinate_check" and isinstance(model, nn.Module):
        assert all(parameter.grad is None for parameter in model.parameters())


def step(x):
    return (x > 0).to(x.dtype)


SLOPES = ("theory", "critical", "compare")  # of which a gain alone needs none
OF_FUNCTIONS = {
    "calculate_gain": xinit.calculate_gain,
    "theory": xinit.theory,
    "critical": xinit.critical,
    "compare": lambda f: compare.compare([f], ["torch"], 3, 4),
}
FUNCTIONS = {
    "no derivative": (Stuck.apply, r"autograd cannot differentiate it \(no derivative\)", SLOPES),
    "a step": (step, "autograd cannot differentiate it", SLOPES),
    "detached": (lambda x: x.detach().tanh(), "autograd cannot differentiate it", SLOPES),
    "NaN": (torch.log, "log: it gives nan at -16", OF_FUNCTIONS),
    "not elementwise": (lambda x: x - x.mean(), "it is not elementwise", OF_FUNCTIONS),
    "no such name": ("relo", "Unsupported nonlinearity relo: relu is one", OF_FUNCTIONS),
    "it raises": (Raises(), r"Raises: it is not a function of one tensor \('mine'\)", OF_FUNCTIONS),
    "none": (None, "Unsupported nonlinearity None", OF_FUNCTIONS),
    "flat": (lambda x: x * 0, "second moment .* is 0|has no point where", OF_FUNCTIONS),
}


@pytest.mark.parametrize("entry", OF_FUNCTIONS)
@pytest.mark.parametrize("row", FUNCTIONS)
def test_activations(row, entry):
    function, words, whose = FUNCTIONS[row]
    state = torch.get_rng_state()
    if entry in whose:
        with pytest.raises(ValueError, match=words):
            OF_FUNCTIONS[entry](function)
    else:
        assert OF_FUNCTIONS[entry](function) > 0
    assert torch.equal(torch.get_rng_state(), state)
