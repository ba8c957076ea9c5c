"""Planted faults of every kind are named with their layer, and mended by the line that is printed; sound networks raise no flag;
nothing stays behind."""

import copy
import json
import os
import random
import re
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from networks import SMALL, SOUND, Transformer, batch, deep, gpt2, image, of_transformers, seeded, tokens
from torch import nn

import xinit
from xinit.cli import main

KAIMING = xinit.kaiming_normal(nonlinearity="relu")
relu = partial(deep, 8, nn.ReLU, KAIMING)


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.mark.parametrize("name", SOUND)
def test_sound_networks_raise_no_flag(name):
    model, inputs = SOUND[name]()
    report = xinit.diagnose(model, inputs)
    assert report.flags == ()
    assert report.sound
    assert all(len(line) <= 100 for line in str(report).splitlines())


def scaled(name, factor):
    def plant(model):
        model.get_parameter(name).data.mul_(factor)

    return plant


def filled(name, value):
    def plant(model):
        model.get_parameter(name).data.fill_(value)

    return plant


def one_nan(model):
    model[4].weight.data[3, 5] = torch.nan


def twins(model):
    model[4].weight.data[32:] = model[4].weight.data[:32]


def nothing(model):
    pass


def drawn(**recipe):
    def plant(model):
        xinit.init_(model, {name.replace("_", "."): what for name, what in recipe.items()}, xinit.Key(0))

    return plant


def branches(std):
    return lambda model: xinit.init_(model, {"*": xinit.normal(std=std)}, xinit.Key(0), only=["*.out.*", "*.down.*"])


X = partial(batch, 64, 64)
FAULTS = {  # the network, its batch, what is planted, and which flag is to come of it
    "one layer too small": (relu, X, scaled("4.weight", 1e-5), "vanishing", "4"),
    "all zero": (relu, X, filled("4.weight", 0), "vanishing", "4"),
    "a norm too small": (Transformer, tokens, scaled("norm.weight", 1e-5), "vanishing", "norm"),
    "xavier for relu": (partial(deep, 30, nn.ReLU, xinit.xavier_normal()), X, nothing, "vanishing", "40"),
    "torch's own, too deep": (
        lambda: seeded(lambda: nn.Sequential(*(m for _ in range(20) for m in (nn.Linear(64, 64), nn.ReLU())))),
        *(X, nothing, "vanishing", "0"),
    ),
    "one layer too large": (relu, X, scaled("4.weight", 1e5), "exploding", "4"),
    "the head too large": (relu, X, scaled("16.weight", 1e5), "exploding", "16"),
    "all too large": (partial(deep, 30, nn.ReLU, xinit.normal(std=0.5)), X, nothing, "exploding", "14"),
    "one block too large": (Transformer, tokens, scaled("blocks.5.down.weight", 1e4), "exploding", "blocks.5.down"),
    "a bias that kills": (relu, X, filled("4.bias", -20), "dead", "4"),
    "tanh far out": (partial(deep, 8, nn.Tanh, xinit.xavier_normal()), X, scaled("4.weight", 50), "saturated", "4"),
    "a bias far out": (partial(deep, 4, nn.Sigmoid, xinit.xavier_normal()), X, filled("4.bias", 30), "saturated", "4"),
    "one NaN": (relu, X, one_nan, "non-finite", "4"),
    "overflow": (relu, X, scaled("4.weight", 1e38), "non-finite", "4"),
    "constant weights": (relu, X, filled("4.weight", 0.1), "symmetric", "4"),
    "halves alike": (relu, X, twins, "symmetric", "4"),
    "branches too large": (Transformer, tokens, branches(2.0), "residual growth", "blocks.0.down"),
}


def test_each_kind_of_flag_has_a_fault_and_there_are_enough_sound_networks():
    from xinit.insight import findings

    planted = {kind for *_, kind, _ in FAULTS.values()} | {"never written"}  # which is below
    assert planted == set(findings._ORDER)
    assert len(SOUND) >= 12
    assert {"gpt2", "resnet50", "vit", "llama", "pre-norm"} <= SOUND.keys()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_and_mended(fault):
    make, inputs, plant, kind, layer = FAULTS[fault]
    model, inputs = make(), (inputs(),)
    plant(model)
    report = xinit.diagnose(model, *inputs)
    assert (kind, layer) in [(flag.kind, flag.layer) for flag in report.flags], report
    assert len({flag.kind for flag in report.flags}) <= 2, report.summary()
    row = next(row for row in report.rows if row.name == layer)
    assert kind in row.flags
    for flag in report.flags:
        exec(flag.fix, {"xinit": xinit, "model": model, "inputs": inputs})
    assert xinit.diagnose(model, *inputs).flags == ()


def test_a_weight_never_written():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model.to_empty(device="cpu")
    with pytest.warns(UserWarning, match=r"2\.weight, skipped"):
        xinit.init_(model, "torch", xinit.Key(0), skip="2.weight")
    model[2].weight.data = torch.ones(4, 8) * torch.arange(8)
    flags = xinit.diagnose(model, batch(16, 8)).flags
    assert ("never written", "2.weight") in [(flag.kind, flag.layer) for flag in flags]
    exec(next(flag.fix for flag in flags if flag.kind == "never written"), {"xinit": xinit, "model": model})
    assert xinit.diagnose(model, batch(16, 8)).flags == ()


def test_a_report_as_data_and_as_a_picture(tmp_path):
    model, x = deep(4, nn.ReLU, KAIMING), batch(64, 64)
    report = xinit.diagnose(model, x)
    first = report.rows[0]
    before = model[0](x)
    assert (first.name, first.type, first.fan_in, first.fan_out, first.activation) == ("0", "Linear", 64, 64, "relu")
    for value, tensor in (
        *((first.in_rms, x), (first.out_rms, before), (first.post_rms, before.relu())),
        (first.weight_std, model[0].weight - model[0].weight.mean()),
    ):
        assert value == pytest.approx(tensor.square().mean().sqrt().item(), rel=1e-4)
    assert first.out_mean == pytest.approx(before.mean().item(), abs=1e-5)
    assert first.own_std == pytest.approx(1 / (3 * 64) ** 0.5)
    assert first.dead == pytest.approx((before.amax(0) <= 0).float().mean().item())
    assert first.gain == pytest.approx(first.post_rms / first.in_rms)
    assert report.rows[-1].net_gain == pytest.approx(report.gain)
    assert json.loads(json.dumps(report.to_dict()))["rows"][1]["name"] == "2"
    pandas = pytest.importorskip("pandas")
    frame = report.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.loc["2", "out_rms"] == report.rows[1].out_rms
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_gradients_are_those_of_the_loss():
    model, x = deep(2, nn.Tanh, xinit.xavier_normal()), batch(8, 64)
    report = xinit.diagnose(model, x, loss=lambda output: output.square().sum())
    middle = model[:3](x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model[3:](middle).square().sum(), middle)
    assert report.rows[1].grad_rms == pytest.approx(gradient.square().mean().sqrt().item(), rel=1e-4)
    assert all(row.grad_rms is None for row in xinit.diagnose(model, x, backward=False).rows)


class Restless(nn.Module):
    """It changes all that a model can change in a pass, and may fail at the end of it."""

    def __init__(self, error=None):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.register_buffer("seen", torch.zeros(1))
        self.error = error

    def forward(self, x):
        self.seen = self.seen + 1
        self.norm.eval() if self.training else None
        x = self.norm.train()(self.first(x)) + torch.rand(8) + random.random()
        if self.error is not None:
            raise self.error
        return {"out": [self.last(nn.functional.dropout(x))]}


@pytest.mark.parametrize("error", [None, KeyError("mine"), KeyboardInterrupt()], ids=repr)
def test_nothing_stays_behind(error):
    model, x = Restless(error), batch(16, 8)
    model.first.weight.grad = torch.ones(8, 8)
    model.last.eval()
    state = copy.deepcopy(model.state_dict())
    tensors = {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    generators = torch.get_rng_state(), random.getstate()
    if error is None:
        first, second = xinit.diagnose(model, x), xinit.diagnose(model, x)
        assert first == second  # dropout is drawn from a key
    else:
        with pytest.raises(type(error)) as caught:
            xinit.diagnose(model, x)
        assert caught.value is error
        if isinstance(error, Exception) and hasattr(error, "__notes__"):
            assert "the last layer with weights was norm" in error.__notes__[0]
    assert {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]} == tensors
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert torch.equal(model.first.weight.grad, torch.ones(8, 8))
    assert model.last.weight.grad is None
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not x.__dict__


def test_the_layer_that_an_error_comes_from():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(5, 4))
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        xinit.diagnose(model, batch(3, 4))
    if hasattr(caught.value, "__notes__"):
        assert caught.value.__notes__ == ["diagnose: in the forward pass, in 2; the last layer with weights was 2"]


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.first(x)).detach()


class Stuck(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("no derivative")


class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(Stuck.apply(self.first(x)))


@pytest.mark.parametrize(
    ("make", "inputs", "options", "words"),
    [
        (nn.ReLU, (batch(2, 4),), {}, "ReLU has no parameters"),
        (Cut, (), {}, "without a batch"),
        (Cut, (batch(0, 4),), {}, "input 0, of shape \\(0, 4\\), is empty"),
        (Cut, (torch.full((2, 4), torch.nan),), {}, "input 0 holds NaN or infinity, in 8 of its 8 elements"),
        (Cut, (batch(2, 4),), {}, "the output has no gradient.*backward=False"),
        (lambda: nn.Linear(4, 2), (batch(2, 4),), {"loss": lambda out: out}, "loss must give a tensor of one element"),
        (lambda: nn.Linear(4, 2), (batch(2, 4),), {"loss": lambda out: 1.0}, "found float"),
        (lambda: nn.LazyLinear(2), (batch(2, 4),), {}, "lazy"),
    ],
)
def test_bad_input_is_said_as_such(make, inputs, options, words):
    model = make()
    with pytest.raises(ValueError, match=words):
        xinit.diagnose(model, *inputs, **options)
    assert all(not module._forward_hooks for module in model.modules())


def test_other_bad_input():
    with pytest.raises(TypeError, match=r"diagnose: model must be a torch\.nn\.Module"):
        xinit.diagnose(3, batch(2, 4))
    with pytest.raises(RuntimeError, match="on the meta device"):
        xinit.diagnose(nn.Linear(4, 2, device="meta"), batch(2, 4))
    scripted = torch.jit.trace(nn.Linear(4, 2), batch(2, 4))
    with pytest.raises(TypeError, match=r"^diagnose: Linear is a torch\.jit\.ScriptModule, of which nothing is seen"):
        xinit.diagnose(scripted, batch(2, 4))
    assert not scripted._forward_hooks
    with pytest.raises(NotImplementedError, match="no derivative") as caught:
        xinit.diagnose(Steps(), batch(2, 4))
    if hasattr(caught.value, "__notes__"):
        assert caught.value.__notes__ == ["diagnose: in the backward pass, behind last, which got one"]


class Twice(nn.Module):
    """A module that is called twice, one that holds a parameter itself, tied weights, and a dictionary for an output."""

    def __init__(self):
        super().__init__()
        self.tokens, self.inner = nn.Embedding(50, 32), nn.Linear(32, 32)
        self.mix = nn.Parameter(xinit.xavier_normal_(torch.empty(32, 32), key=xinit.Key(3)))
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x):
        x = self.tokens(x)
        x = torch.tanh(self.inner(torch.relu(self.inner(x)) @ self.mix))
        return {"logits": self.head(x), "hidden": (x, None)}


def test_tied_weights_and_modules_called_twice():
    report = xinit.diagnose(Twice(), tokens(4, 12) % 50)
    assert [(row.name, row.type, row.calls, row.activation) for row in report.rows] == [
        ("tokens", "Embedding", 1, ""),
        ("inner", "Linear", 2, "relu"),
        ("mix", "Twice", 1, ""),
        ("head", "Linear", 1, ""),
    ]
    assert all(row.grad_rms for row in report.rows)


class Standardised(nn.Conv2d):
    """With weights that are normalised before each use, and a gain, as in networks without norms."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(sizes[1], 1, 1, 1))

    def forward(self, x):
        flat = self.weight.reshape(1, len(self.weight), -1)
        weight = nn.functional.batch_norm(flat, None, None, self.gain.view(-1), training=True)
        return nn.functional.conv2d(x, weight.reshape_as(self.weight) / self.weight[0].numel() ** 0.5, self.bias)


def test_weights_that_are_computed_before_use():
    model = nn.Sequential(Standardised(3, 8, 3), nn.ReLU(), Standardised(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    rows = xinit.diagnose(model, image(8)).rows
    assert [(row.name, row.calls, row.activation) for row in rows][:2] == [("0", 1, "relu"), ("2", 1, "")]
    assert all(row.grad_rms for row in rows if row.calls)


def test_a_branch_may_begin_at_zero():
    """As the last norm or gain of a block, before a gate too: its first step ends that."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down, self.gate = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 32)
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

        def forward(self, x):
            y = self.down(torch.relu(self.up(x)))
            return x + y * torch.sigmoid(self.gate(y))

    model = seeded(lambda: nn.Sequential(nn.Linear(8, 32), *(Gated() for _ in range(4)), nn.Linear(32, 4)))
    assert xinit.diagnose(model, batch(64, 8)).flags == ()


def test_functions_in_place_and_activations_of_ones_own():
    class Own(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(1.702 * x)

    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 16), Own(), nn.Linear(16, 4))
    x = batch(32, 8)
    rows = xinit.diagnose(model, x).rows
    assert [row.activation for row in rows] == ["relu", "Own", ""]
    assert rows[0].out_rms == pytest.approx(model[0](x).square().mean().sqrt().item(), rel=1e-4)
    assert rows[0].post_rms == pytest.approx(rows[1].in_rms)


def test_low_precision_and_deferred_models():
    with xinit.deferred():
        model = gpt2(n_layer=2)
    xinit.materialize_(model, key=xinit.Key(0))
    report = xinit.diagnose(model, tokens())
    assert report.sound
    half = xinit.diagnose(model.bfloat16(), tokens())
    assert half.sound
    for row, other in zip(report.rows, half.rows, strict=True):
        assert other.out_rms == pytest.approx(row.out_rms, rel=0.1)


def test_experts_and_other_shapes_of_transformers():
    model = of_transformers("MixtralForCausalLM", **SMALL, vocab_size=100, num_key_value_heads=2, num_local_experts=4)
    report = xinit.diagnose(model, input_ids=tokens())
    assert report.sound
    row = next(row for row in report.rows if row.name == "model.layers.0.mlp.experts.down_proj")
    assert (row.fan_in, row.fan_out) == (128, 64)


def test_the_command(tmp_path, monkeypatch, capsys):
    """On a model of the user's, as a subprocess too: the report, a picture, and a status that says whether it is sound."""
    deep = "def Net(depth): return nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(16, 16), nn.ReLU())))"
    tanh = """
class Tanh(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(self.first(x).tanh())
"""
    (tmp_path / "my_own_net.py").write_text(f"from torch import nn\n\n{deep}\n{tanh}")
    arguments = ["diagnose", "my_own_net:Net", "depth=20", "--input", "32x16"]
    environment = os.environ | {"PYTHONPATH": str(Path(xinit.__file__).parents[1])}
    plot = ["--plot", "net.png"] if find_spec("matplotlib") else []
    command = [sys.executable, "-m", "xinit", *arguments, *plot]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (run.returncode, run.stderr) == (1, "")
    assert run.stdout.startswith("Sequential: 20 layers with weights; 1 flag: vanishing\n")
    assert (tmp_path / "net.png").exists() == bool(plot)

    def ran(*arguments):
        monkeypatch.setattr(sys, "argv", ["xinit", *arguments])
        try:
            status = main()
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    monkeypatch.syspath_prepend(str(tmp_path))
    status, out, err = ran(*arguments, "--recipe", "kaiming")
    assert (status, err) == (0, "")
    assert out.startswith("Sequential: 20 layers with weights; sound, no flags\n")
    status, out, err = ran(*arguments, "--recipe", "recommend")
    assert (status, err) == (0, "")
    status, out, err = ran(*arguments, "--recipe", "recommended")
    assert (status, out) == (2, "")
    assert err.startswith(
        "xinit: error: --recipe recommended: there is none of that name, but recommend, torch, xavier, "
    )
    status, out, err = ran("diagnose", "my_own_net:Tanh", "--input", "32x16", "--recipe", "kaiming")
    assert (status, err) == (0, "")
    std = float(next(line for line in out.splitlines() if line.startswith("first ")).split()[2])
    assert std == pytest.approx(5 / 3 / 4, rel=0.15)  # tanh's gain: a pass of the batch has seen what is no module
    status, out, err = ran(*arguments[:-1], "32x15")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.match(
        r"xinit: error: diagnose Sequential: (addmm: )?mat1 and mat2", err
    )  # torch's words, older and newer
    status, out, err = ran(*arguments[:-1], "32x0")
    assert (status, out) == (2, "")
    assert err.startswith("xinit: error: argument --input/-i: 32x0 is no shape such as 32x784")


def test_pictures_of_flags(tmp_path):
    pytest.importorskip("matplotlib")
    report = xinit.diagnose(deep(30, nn.ReLU, xinit.xavier_normal()), batch(64, 64))
    figure = report.plot()
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "40: vanishing" in texts
    assert image(8).shape == (4, 3, 8, 8)
