"""The command line: plans, errors in one line, exit statuses, and what is answered before torch is imported."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import xinit
from xinit.cli import grammar, main

PACKAGE = Path(xinit.__file__).parent


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["xinit", "plan", *arguments])
    code = main()
    return code, capsys.readouterr().out


def test_the_command_prints_a_models_plan_without_its_memory(monkeypatch, capsys):
    code, out = command(monkeypatch, capsys, "torch.nn:Linear", "1_000_000", "out_features=2000000", "bias=False")
    assert code == 0
    assert out.splitlines()[0] == "Linear, recipe torch"
    assert "1 parameter, 2,000,000,000,000 elements, 7.3 TiB" in out
    code, out = command(
        monkeypatch, capsys, "torch.nn:Linear", "3", "2", "--recipe", "llama", "--only", "*.bias", "--all"
    )
    assert (code, out.count("zeros"), "normal" in out) == (0, 1, False)


def test_the_command_knows_transformers_configurations(monkeypatch, capsys):
    pytest.importorskip("transformers")
    code, out = command(monkeypatch, capsys, "transformers:LlamaConfig")
    assert code == 0
    assert out.startswith("LlamaForCausalLM, recipe llama\n")
    assert "   32  model.layers.{0..31}.self_attn.q_proj.weight " in out
    assert "291 parameters, 6,738,415,616 elements" in out
    code, out = command(
        monkeypatch, capsys, "transformers:GPT2LMHeadModel", "n_layer=2", "n_embd=48", "--skip", "*.bias"
    )
    assert code == 0
    assert out.startswith("GPT2LMHeadModel, recipe gpt2\n")
    assert "    2  transformer.h.{0..1}.attn.c_proj.weight " in out
    code, out = command(monkeypatch, capsys, "transformers:T5Config", "num_layers=2")
    assert code == 1
    (_, problems) = out.split(" parameters CANNOT be initialised:\n")
    name = "encoder.block.{0..1}.layer.{0..1}.layer_norm.weight (512,), 4 of them"
    why = "no pattern matches it; it belongs to a T5LayerNorm; its own init ones: put {'encoder.block.*"
    assert f"{name}: {why}" in " ".join(problems.split())
    code, out = command(monkeypatch, capsys, "transformers:GemmaConfig", "num_hidden_layers=3", "--recipe", "llama")
    assert code == 1
    assert " ".join(out.split()).count("llama would give ones, its own init zeros: put {'model.layers.*.") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["torch.nn.Linear"], "torch.nn.Linear is not of the form package.module:Class"),
        (["torch.nn:Lineal"], "no attribute 'Lineal'"),
        (["torch.nn:Linear", "3"], "missing 1 required positional argument"),
        (["no_such_package:Net"], "No module named 'no_such_package'"),
        (["torch.nn:Linear", "3", "2", "--only", "nothing"], "only='nothing' matches none"),
        (["builtins:dict"], "dict is neither a torch.nn.Module nor a transformers configuration"),
        (["torch.nn:Linear", "3", "2", "--recipe", "gpt3"], "--recipe gpt3: there is none of that name, but torch, "),
        (["torch.nn:Linear", "3", "-2"], "torch.nn:Linear: "),
    ],
)
def test_the_command_says_what_is_wrong(monkeypatch, capsys, arguments, words):
    with pytest.raises(SystemExit, match="2"):
        command(monkeypatch, capsys, *arguments)
    error = capsys.readouterr().err
    assert error.startswith("xinit: error: ")
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 0, "usage: xinit"),
        (["--help"], 0, "exit status: 0 if all is well, 1 if problems"),
        (["plan", "--help"], 0, "--recipe RECIPE"),
        (["--version"], 0, f"xinit {xinit.__version__}, built with torch {xinit.build_info()['torch']}\n"),
        (["plna"], 2, "invalid choice: 'plna'"),
        (["plan", "torch.nn.Linear"], 2, "torch.nn.Linear is not of the form package.module:Class"),
        (["demo", "--seed", "x"], 2, "argument --seed: invalid int value"),
    ],
)
def test_help_and_typos_are_answered_without_torch(tmp_path, arguments, status, words):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, PACKAGE.parent)))}
    script = tmp_path / "xinit"  # as pip writes it
    script.write_text("import sys\nfrom xinit.cli import main\nsys.exit(main())\n")
    for started in (["-m", "xinit"], [script]):
        command = [sys.executable, *started, *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert words in done.stdout + done.stderr
        assert done.stderr.count("\n") == (status == 2)


def test_what_a_verb_is_about_to_do_is_said_before_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, PACKAGE.parent)))}
    command = [sys.executable, "-m", "xinit", "demo"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{grammar.VERBS['demo'].opening}\n", "torch was imported\n")


@pytest.mark.parametrize("verb", grammar.VERBS)
def test_each_verb_has_a_module_that_runs_it(verb):
    assert callable(import_module(f"xinit.cli.{verb}").run)


def test_another_program_is_not_taken_for_the_command(monkeypatch):
    for argv, original, running in (
        (["-m", "plan"], ["python", "-m", "xinit", "plan"], True),
        (["-m"], ["python", "-W", "error", "-m", "xinit"], True),
        (["-m", "xinit"], ["python", "-m", "pytest", "xinit"], False),
        (["-m", "-m", "xinit"], ["python", "-m", "pytest", "-m", "xinit"], False),
        (["-c", "xinit"], ["python", "-c", "import xinit", "xinit"], False),
        (["/usr/bin/xinit", "demo"], ["python", "/usr/bin/xinit", "demo"], True),
        (["train.py", "xinit"], ["python", "train.py", "xinit"], False),
        ([""], ["python"], False),
        ([], ["python"], False),
    ):
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", original)
        assert grammar.is_running() is running, original


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--device", "toaster"], "--device toaster: "), (["--seed", "-1e0"], "--seed")]
)
def test_the_demo_says_what_is_wrong(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["xinit", "demo", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_the_users_own_code_fails_in_a_line(monkeypatch, capsys, tmp_path):
    """And is found in the working directory, by ``xinit`` as by ``python -m xinit``."""
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\nclass Broken(nn.Module):\n    def __init__(self):\n        1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match="2"):
        command(monkeypatch, capsys, "my_nets:Broken")
    assert capsys.readouterr().err == "xinit: error: my_nets:Broken: division by zero\n"


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m xinit plan torch.nn:Linear 3 2 | true; echo ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")
