"""What became of initial weights: each kind of change is told from the others; and any part of any weight is there again."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import same
from torch import nn

import xinit
from xinit import Key

KEY = Key(11)


def mlp(dtype=torch.float32):
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.LayerNorm(64), nn.Linear(64, 8)).to(
        dtype
    )


def states(model, recipe="torch", key=KEY, **kwargs):
    found = xinit.verify(model, key, recipe, **kwargs)
    return {row.name: row.state for row in found.rows}


def trained(model, inputs, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_was_drawn_is_as_drawn(dtype):
    model = xinit.init_(mlp(dtype), "torch", KEY)
    before = xinit.fingerprint(model)
    found = xinit.verify(model, KEY, "torch")
    assert found.names("drawn") == [name for name, _ in model.named_parameters()]
    assert all((row.changed, row.moved) == (0, 0) for row in found.rows)
    assert str(found) == "8 parameters: 8 drawn"
    assert xinit.fingerprint(model) == before


def test_values_of_every_kind():
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(50, 16, padding_idx=3),
            "orthogonal": nn.Linear(16, 16, bias=False),
            "qkv": nn.Linear(16, 48, bias=False),
            "rows": nn.Linear(16, 20, bias=False),
            "complex": nn.Linear(16, 16, bias=False, dtype=torch.cfloat),
            "conv": nn.Conv3d(3, 5, 2),
            "scalar": nn.ParameterDict({"gain": nn.Parameter(torch.empty(()))}),
        }
    )
    model["tied"] = model["table"]
    recipe = {
        "rows.weight": xinit.rows(10, 20, xinit.normal()),
        "orthogonal.weight": xinit.orthogonal(),
        "qkv.weight": xinit.blocks("qkv", {part: (16, xinit.xavier_normal()) for part in "qkv"}),
        "scalar.gain": xinit.constant(3),
        "*": xinit.normal(0.5, 2),
    }
    xinit.init_(model, recipe, KEY)
    assert set(states(model, recipe).values()) == {"drawn"}
    model["rows"].weight.data[:10] = 7  # what the recipe leaves as it is
    assert set(states(model, recipe).values()) == {"drawn"}
    for name, parameter in model.named_parameters():
        before = parameter.detach().clone()
        parameter.data.view(-1)[-1] += 1
        rest = states(model, recipe)
        assert rest.pop(name) != "drawn", name
        assert set(rest.values()) == {"drawn"}, name
        parameter.data.copy_(before)


def test_blocks_of_every_shape(monkeypatch):
    """Smaller than a row, a row, several."""
    model = nn.ModuleList([nn.Linear(30, 7), nn.Conv2d(4, 6, 3), nn.Linear(1, 50)])
    xinit.init_(model, {"*": xinit.normal()}, KEY)
    for size in 1, 7, 30, 64, 1000:
        monkeypatch.setattr("xinit.models.verify._BLOCK", size)
        assert set(states(model, {"*": xinit.normal()}).values()) == {"drawn"}
        with torch.no_grad():
            model[1].weight[5, 3, 2, 2] *= -1
            found = xinit.verify(model, KEY, {"*": xinit.normal()})
            model[1].weight[5, 3, 2, 2] *= -1
        (row,) = [row for row in found.rows if row.state != "drawn"]
        assert (row.name, round(row.changed * 216)) == ("1.weight", 1)


def test_what_training_moves():
    torch.manual_seed(0)
    model = trained(xinit.init_(mlp(), "torch", KEY), torch.randn(32, 64))
    found = xinit.verify(model, KEY, "torch")
    assert found.names("trained") == [name for name, _ in model.named_parameters()]
    weight = next(row for row in found.rows if row.name == "0.weight")
    assert weight.correlation > 0.99
    drawn = xinit.regenerate("0.weight", (128, 64), torch.float32, xinit.kaiming_uniform(5**0.5), KEY)
    assert weight.moved == pytest.approx((model[0].weight - drawn).square().mean().sqrt().item(), rel=1e-5)

    words = xinit.init_(nn.Sequential(nn.Embedding(1000, 32), nn.Linear(32, 4)), "torch", KEY)  # few rows
    assert set(states(trained(words, torch.tensor([[5, 17, 600]]))).values()) == {"trained"}
    x = torch.zeros(8, 1000)
    x[:, 40:50] = torch.randn(8, 10)  # few columns
    assert set(states(trained(xinit.init_(nn.Linear(1000, 32), "torch", KEY), x)).values()) == {"trained"}


def test_steps_that_bfloat16_rounds_away():
    """At a warm-up's learning rate only the smallest weights move, here and there."""
    torch.manual_seed(0)
    recipe = {"*": xinit.normal(std=0.05)}
    model = xinit.init_(mlp().bfloat16(), recipe, KEY)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-6)
    model(torch.randn(32, 64, dtype=torch.bfloat16)).square().mean().backward()
    optimizer.step()
    found = xinit.verify(model, KEY, recipe)
    assert max(row.changed for row in found.rows if row.shape[1:]) < 0.05
    assert not found.names("corrupt")


def lose(weight):
    weight[3, 5] = torch.nan


def flip(weight):
    weight.view(torch.int32)[9, 9] ^= 1 << 12


def stuck(weight):
    weight.view(torch.int32).view(-1)[::97] ^= 1 << 20


def another(weight):
    xinit.kaiming_uniform_(weight, 5**0.5, key=KEY.fold_in("another.weight"))


def moved(weight):
    weight.copy_(weight.roll(1, 0))  # another rank's rows


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (lose, "1 of 8,192 elements are NaN or infinite"),
        (flip, "1 scattered elements of 8,192 differ, and all others are as drawn"),
        (stuck, "85 scattered elements of 8,192 differ"),
        (another, "nothing in it resembles what was drawn: a correlation of"),
        (moved, "nothing in it resembles what was drawn"),
        (torch.Tensor.zero_, "nothing in it resembles what was drawn"),
    ],
)
def test_what_is_corrupt(fault, why):
    model = xinit.init_(mlp(), "torch", KEY)
    with torch.no_grad():
        fault(model[0].weight)
    found = xinit.verify(model, KEY, "torch")
    assert found.names("corrupt") == ["0.weight"]
    assert len(found.names("drawn")) == 7
    assert why in found.rows[0].why
    assert str(found).startswith("8 parameters: 7 drawn, 1 corrupt\n\ncount  name")
    assert f"\n  0.weight: {found.rows[0].why}"[:60] in str(found)
    assert states(model, only="2.*") == {"2.weight": "drawn", "2.bias": "drawn"}


def test_the_wrong_key_or_recipe():
    model = xinit.init_(mlp(), "torch", KEY)
    weights = [f"{i}.weight" for i in (0, 2, 4)]
    assert set(weights) <= set(xinit.verify(model, Key(12), "torch").names("corrupt"))
    assert xinit.verify(model, KEY, {"*": xinit.normal()}).names("drawn") == []


class Own(nn.Module):
    """By fills, and by operators that no fill describes."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(100, 24)
        self.inner = nn.Linear(24, 24)
        self.head = nn.Linear(24, 100, bias=False)
        nn.init.orthogonal_(self.inner.weight)
        nn.init.normal_(self.table.weight, std=0.02)
        self.copy = nn.Parameter(self.inner.bias.detach().clone())
        self.head.weight = self.table.weight


def test_a_deferred_model():
    with xinit.deferred():
        model = Own()
    xinit.materialize_(model, key=KEY)
    with xinit.deferred():
        twin = Own()
    for _ in range(2):  # it stays as it was
        assert set(states(model, twin).values()) == {"drawn"}
    with torch.no_grad():
        model.inner.weight.neg_()
        model.copy[0] = torch.inf
    assert states(model, twin) == {
        "copy": "corrupt",
        "table.weight": "drawn",
        "inner.weight": "trained",
        "inner.bias": "drawn",
    }
    assert states(model, twin, only="table.*") == {"table.weight": "drawn"}
    with pytest.raises(ValueError, match=r"verify: the deferred model has no parameter 0\.weight"):
        xinit.verify(mlp(), KEY, twin)
    with pytest.raises(ValueError, match=r"verify: parameter copy has shape and dtype .*float64.*, but the deferred"):
        xinit.verify(Own().double(), KEY, twin)
    with pytest.raises(RuntimeError, match=r"of the deferred model, no parameters can be drawn: build it anew"):
        xinit.verify(model, KEY, model)


def test_what_nothing_is_known_of():
    norm = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    model = xinit.init_(nn.Sequential(nn.Linear(8, 8), norm), {"*": xinit.normal()}, KEY)
    found = xinit.verify(model, KEY, {"0.*": xinit.normal()})
    assert found.names("drawn") == ["0.weight", "0.bias"]
    assert found.names("unknown") == ["1.weight", "1.bias"]
    assert xinit.verify(model, KEY, {"*": xinit.normal()}).names("unknown") == ["1.weight"]  # computed


def test_bad_input():
    model = mlp()
    with pytest.raises(TypeError, match=r"verify: key must be an xinit\.Key, but found int"):
        xinit.verify(model, 3, "torch")
    with pytest.raises(TypeError, match=r"verify: model must be a torch\.nn\.Module"):
        xinit.verify(3, KEY, "torch")
    with pytest.raises(ValueError, match=r"verify: only='nothing' matches none"):
        xinit.verify(model, KEY, "torch", only="nothing")
    with pytest.raises(RuntimeError, match="on the meta device"):
        xinit.verify(nn.Linear(4, 2, device="meta"), KEY, "torch")
    draw = partial(xinit.regenerate, "weight", (4, 2), torch.float32)
    with pytest.raises(TypeError, match=r"regenerate: key must be an xinit\.Key, but found int"):
        draw(xinit.normal(), 3)
    with pytest.raises(TypeError, match="regenerate: distribution must be a recipe's value, but found str"):
        draw("normal", KEY)
    with pytest.raises(TypeError, match="regenerate: shape must be a sequence of sizes, but found 5"):
        xinit.regenerate("weight", 5, torch.float32, xinit.normal(), KEY)
    with pytest.raises(TypeError, match=r"regenerate: window must be an xinit\.Window, but found tuple"):
        draw(xinit.normal(), KEY, (4, 2))
    for window in xinit.Window((4,), (0,)), xinit.Window((4, 3), (1, 0)), xinit.Window((4, 3), (0, -1)):
        with pytest.raises(ValueError, match="regenerate: weight: a part of shape"):
            draw(xinit.normal(), KEY, window)
    with pytest.raises((NotImplementedError, RuntimeError)):
        xinit.regenerate("weight", (4, 2), torch.int64, xinit.normal(), KEY)


def test_parts_of_weights():
    model = nn.ModuleDict({"qkv": nn.Linear(16, 48, bias=False)})
    blocks = xinit.blocks("qkv", {part: (16, xinit.xavier_normal()) for part in "qkv"})
    whole = xinit.init_(model, {"*": blocks}, KEY)["qkv"].weight.detach()
    window = xinit.Window((48, 16), (10, 3))
    assert same(xinit.regenerate("qkv.weight", (30, 5), torch.float32, blocks, KEY, window), whole[10:40, 3:8])
    assert same(xinit.regenerate("qkv.weight", (48, 16), torch.bfloat16, blocks, KEY), whole.bfloat16())
    part = xinit.regenerate("w", (6, 3), torch.float32, xinit.rows(2, 4, xinit.normal()), KEY)
    assert same(part[2:4], xinit.normal_(torch.empty(6, 3), key=KEY.fold_in("w"))[2:4])
    assert not part[:2].any()
    assert not part[4:].any()
    q = xinit.regenerate("q", (8, 8), torch.float32, xinit.orthogonal(), KEY)
    assert (q @ q.T - torch.eye(8)).abs().max() < 1e-5
    assert xinit.regenerate("s", (), torch.float32, xinit.normal(), KEY).shape == ()


PEAK = """
import resource, torch, xinit
from torch import nn
model = xinit.init_(nn.Sequential(nn.Linear(8192, 8192), nn.Embedding(70000, 512)), "torch", xinit.Key(0))
small = xinit.init_(nn.Linear(512, 512), "torch", xinit.Key(0))
xinit.verify(small, xinit.Key(0), "torch")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(xinit.verify(model, xinit.Key(0), "torch").names("drawn")) == 3
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory():
    """A quarter of one of its parameters."""
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 64 * 1024
