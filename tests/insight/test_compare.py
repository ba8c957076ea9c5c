"""xinit compare: measured beside theory, verdicts, pictures, and the command itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xinit
from xinit.cli import compare as verb
from xinit.cli.grammar import parse
from xinit.insight import compare, training


def run(*arguments, cwd=None):
    environment = os.environ | {"PYTHONPATH": str(Path(xinit.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "xinit", "compare", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=120)
    return done.returncode, done.stdout, done.stderr


PAIRS = [("relu", "kaiming_uniform"), ("tanh", "xavier_normal"), ("gelu", "orthogonal"), ("selu", "lecun_normal"),
         ("relu", "sqrt_2_fan"), ("silu", "torch"), ("relu", "xavier_uniform"), ("mish", "kaiming_normal")]  # fmt: skip


@pytest.mark.parametrize(("activation", "method"), PAIRS)
def test_what_is_measured_is_what_theory_says(activation, method, one_thread):
    pair = compare.measure(activation, method, depth=6, width=384)
    # At width 384 six layers' mean squares scatter by about 12 %, an RMS by 6 %.
    np.testing.assert_allclose(pair.forward, pair.forward_theory, rtol=0.25)
    np.testing.assert_allclose(pair.backward, pair.backward_theory, rtol=0.25)
    assert pair.forward[0] == pytest.approx(1, abs=0.02)
    assert pair.backward[-1] == pytest.approx(1, abs=0.02)


def test_deep_relu_nets_live_and_die_as_readme_says(one_thread):
    pairs = compare.compare(["relu"], ["kaiming_normal", "xavier_uniform", "sqrt_2_fan"], depth=50, width=256)
    kaiming, xavier, bound = pairs
    assert [pair.verdict for pair in pairs] == ["lives", "dies", "dies"]
    assert 1e-9 < xavier.forward[-1] < 1e-6
    assert bound.forward[-1] < 1e-10
    assert 0.1 < kaiming.backward[0] < 10
    assert compare.message(pairs) == "50 relu layers live with Kaiming; die with Xavier, U(±√(2/fan))"


def pair(forward, backward):
    return compare.Pair("tanh", "torch", 1.0, forward, backward, forward, backward)


def test_verdicts():
    level, inf = (1.0, 1.0, 1.0), float("inf")
    assert pair(level, level).verdict == "lives"
    assert pair((1.0, 1.0, 0.05), level).verdict == "activations fade"
    assert pair(level, (9e4, 2e3, 1.0)).verdict == "gradients explode"
    assert pair((1.0, 1.0, 20.0), (50.0, 50.0, 1.0)).verdict == "grows"
    assert pair((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)).verdict == "dies"
    assert pair((1.0, 1.0, inf), level).verdict == "activations explode"
    assert pair((1.0, 1.0, float("nan")), level).verdict == "activations explode"
    assert pair((1.0, 1.0, 0.05), (9e4, 2e3, 1.0)).verdict == "activations fade, gradients explode"
    rows = compare.as_dicts([pair((1.0, 1.0, inf), level)])
    assert json.loads(json.dumps(rows, allow_nan=False))[0]["forward"] == [1.0, 1.0, None]


def test_the_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    small = "--depth", "8", "--width", "32"
    code, out, err = run(
        *small, "--activation", "relu,gelu", "--method", "kaiming_normal,torch", "--plot", "a.png", cwd=tmp_path
    )
    assert (code, err) == (0, "")  # no bar in a pipe
    assert out.splitlines()[2].split()[:2] == ["activation", "method"]
    assert all(len(line) <= 100 for line in out.splitlines())
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert verb.run(parse(["compare", *small, "--activation", "sigmoid", "--method", "torch", "--json"])) == 1
    (found,) = json.loads(capsys.readouterr().out)["pairs"]
    assert (found["verdict"], len(found["forward"])) == ("gradients die", 9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--activation", "relo"), "compare: Unsupported nonlinearity relo: relu is one; "),
        (("--method", "he_normal"), "compare: there is no method he_normal, but xavier_uniform, "),
        (("--depth", "1"), "compare: there must be at least 2 layers of 1 unit, but found 1 of 512"),
        (
            ("--activation", "relu", "--method", "torch", "--depth", "3", "--width", "4", "--plot", "a.docx"),
            "--plot a.docx: Format 'docx' is not supported",
        ),
    ],
)
def test_errors_in_one_line(arguments, words, capsys):
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit, match="2"):
        verb.run(parse(["compare", *arguments]))
    error = capsys.readouterr().err
    assert error.startswith(f"xinit: error: {words}")
    assert error.count("\n") == 1


def test_pictures_leave_nothing_behind():
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    drawn = compare.draw([compare.measure(name, "torch", 3, 8) for name in ("relu", "tanh")])
    assert [text.get_text() for text in drawn.axes[0].texts] == ["nn.Linear's own"]
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.slow
def test_thirty_layers_stall_with_xavier_and_learn_with_kaiming(monkeypatch, one_thread):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(training, "EPOCHS", 3)
    data = training.digits()
    kaiming, xavier = (training.learn(30, method, 0, data) for method in ("kaiming_normal", "xavier_normal"))
    assert (kaiming.verdict, xavier.verdict) == ("learns", "stalls")
    standard, normalised = (
        training.pass_on(method, data, xinit.Key(0)).gradients for method in ("torch", "xavier_uniform")
    )
    falls = [float(layers[0].std() / layers[-1].std()) for layers in (standard, normalised)]
    assert falls[0] < 0.2 < 0.4 < falls[1]
