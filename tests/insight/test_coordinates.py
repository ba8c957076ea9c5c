"""The coordinate check: flat for "mup" with its learning rates, on an MLP and a transformer; not for others."""

import pytest
import torch
from networks import Block, Transformer, batch, tokens
from torch import nn

import xinit
from xinit.insight.coordinates import CoordinateReport, CoordinateRow


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


class Heads(Block):
    """With heads of one size, and so more of them in a wider model."""

    heads = property(lambda self: self.out.in_features // 16)


def mlp(recipe):
    def make(width):
        inner = (nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        model = nn.Sequential(nn.Linear(16, width), nn.ReLU(), *inner, nn.Linear(width, 8))
        named = xinit.recipes.mup(outputs=["6.weight"]) if recipe == "mup" else recipe
        return xinit.init_(model, named, xinit.Key(0))

    return make


def transformer(recipe):
    return lambda width: xinit.init_(Transformer(2, width, Heads), recipe, xinit.Key(0))


def plain(model):
    return torch.optim.Adam(model.parameters(), 0.01)


MODELS = {"mlp": (mlp, batch(32, 16)), "transformer": (transformer, tokens())}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "widths",
    [(64, 128, 256), pytest.param((64, 128, 256, 512, 1024), marks=pytest.mark.slow)],
    ids=lambda w: str(w[-1]),
)
def test_mup_is_flat_and_others_are_not(name, widths):
    model, x = MODELS[name]
    report = xinit.coordinate_check(model("mup"), widths, x)
    assert report.flat, report
    heads = [row.slope for row in report.rows if row.layer == "(output)"]
    assert heads[0] == pytest.approx(-0.5, abs=0.15)  # as drawn: it shrinks
    for recipe, optimizer in (("mup", plain), ("torch", plain), ("torch", None)):
        assert not xinit.coordinate_check(model(recipe), widths, x, optimizer=optimizer).flat


def test_a_report_tells_what_it_has_measured(tmp_path):
    report = xinit.coordinate_check(mlp("mup"), (16, 32), batch(32, 16), steps=1, lr=0)
    model = mlp("mup")(32)
    row = next(row for row in report.rows if row.layer == "2" and row.step == 0)
    assert row.sizes[1] == pytest.approx(model[:3](batch(32, 16)).abs().mean().item(), rel=1e-5)
    assert row.slope == pytest.approx((torch.tensor(row.sizes).log2()).diff().item(), rel=1e-4)
    assert [line.split()[0] for line in str(report).splitlines()[2:]] == ["layer", "0", "2", "4", "6", "(output)"]
    assert report.to_dict()["widths"] == (16, 32)
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "check.png")
    assert (tmp_path / "check.png").stat().st_size > 10_000


def test_the_verdict():
    def report(*slopes):
        return CoordinateReport((1, 2), tuple(CoordinateRow("a", i, (1.0, 1.0), s) for i, s in enumerate(slopes)))

    assert report(-0.5, -0.3, 0.14).flat
    assert not report(0, 0.3, 0).flat
    assert not report(0, 0, -0.3).flat
    assert str(report(0, 0.3, 0)).startswith("not flat: after 1 step a goes as width to the power of +0.30")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"widths": (64,)}, ValueError, r"at least two different integers above 0, but found \(64,\)"),
        ({"widths": (64, 64)}, ValueError, "at least two different integers"),
        ({"widths": (64, 0)}, ValueError, "at least two different integers"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"make": lambda width: width}, TypeError, r"make must give a torch\.nn\.Module, but gave int"),
        ({"make": lambda width: nn.Linear(16, 16 // (32 - width))}, ZeroDivisionError, "division"),
        ({"make": lambda width: nn.Sequential(*[nn.Linear(16, 16)] * (width // 16))}, None, ""),
        (
            {"make": lambda width: nn.Sequential(*(nn.Linear(16, 16) for _ in range(width // 16)))},
            *(ValueError, "not all widths have the layers 1"),
        ),
    ],
)
def test_bad_input(change, error, words):
    state = torch.get_rng_state()
    arguments = {"make": mlp("mup"), "widths": (16, 32)} | change
    if error is None:
        xinit.coordinate_check(arguments["make"], arguments["widths"], batch(4, 16))
    else:
        with pytest.raises(error, match=words) as caught:
            xinit.coordinate_check(
                arguments["make"], arguments["widths"], batch(4, 16), steps=arguments.get("steps", 3)
            )
        if error is ZeroDivisionError and hasattr(caught.value, "__notes__"):
            assert caught.value.__notes__ == ["coordinate_check: while making the model of width 32"]
    assert torch.equal(torch.get_rng_state(), state)
