"""The demo: its table, its exit status, and a fingerprint that no machine, thread count or round may change."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

import xinit
from xinit.cli import demo, main

FINGERPRINT = "a4e4b80fffeb70fa5a25139955337320"  # of contract version 1, small sizes, seed 0
SMALL = ("demo", "--small", "--device", "cpu")

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``python -m xinit`` with some arguments, in this process: the exit status, and what was printed."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["xinit", *arguments])
        return main(), capsys.readouterr().out

    return run


def fingerprint(text: str) -> str:
    return re.search(r"^fingerprint ([0-9a-f]{32})$", text, re.MULTILINE)[1]


def test_in_a_process_of_its_own_every_kind_has_rows_and_all_are_ok() -> None:
    command = [sys.executable, "-W", "error", "-m", "xinit", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")  # no bar where no terminal is
    opening, rounds, table, legend, summary = done.stdout.split("\n\n")
    assert opening.startswith("A GPT-2 and a ResNet-50 are initialised")
    assert len(re.findall(r"^round \d of 3: torch\.nn\.init [\d.]+ s, xinit [\d.]+ s$", rounds, re.MULTILINE)) == 3
    header, *rows = table.splitlines()
    assert header.startswith("kind ")
    assert sorted(row.partition("  ")[0] for row in rows) == sorted(rule.kind for rule in demo.RULES)  # a line each
    assert all(row.endswith(" ok") for row in rows)
    for rule in demo.RULES:
        assert any(row.startswith(f"{rule.kind} ") and f" {rule.method[:-1]} " in row for row in rows), rule.kind
    assert "se: how far they are apart, in standard errors of the measured one" in legend
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert re.search(r"^183,186 elements, best of 3: by torch\.nn\.init on the CPU in .* s,$", summary, re.MULTILINE)
    assert re.search(r"^within deferred\(\) by xinit on cpu in .* s, .* times as fast$", summary, re.MULTILINE)
    assert fingerprint(summary) == FINGERPRINT


def test_fingerprint_is_the_same_in_each_run_and_another_for_another_seed(run: Run) -> None:
    assert fingerprint(run(*SMALL)[1]) == FINGERPRINT
    assert fingerprint(run(*SMALL, "--seed", "1")[1]) != FINGERPRINT


def test_a_deviation_is_marked_and_is_the_exit_status(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_wide(fan_in: int, fan_out: int) -> float:
        return demo.xavier(fan_in, fan_out) / 1.1

    rules = [rule._replace(std=too_wide) if rule.kind == "MLP up" else rule for rule in demo.RULES]
    monkeypatch.setattr(demo, "RULES", rules)
    status, output = run(*SMALL)
    assert status == 1
    assert [line.split()[:2] for line in output.splitlines() if line.endswith(" OFF")] == [["MLP", "up"]]


def test_one_shape_of_several_that_deviates_is_enough() -> None:
    rule = next(rule for rule in demo.RULES if rule.kind == "conv")
    generator = torch.Generator().manual_seed(0)
    shapes = [(out, 16, 3, 3) for out in (32, 64, 128)]
    tensors = {shape: [torch.randn(shape, generator=generator) * (2 / (shape[0] * 9)) ** 0.5] for shape in shapes}
    assert demo.line(rule, tensors)[1]
    tensors[shapes[0]][0] *= 1.1
    cells, good = demo.line(rule, tensors)
    assert (cells[3], cells[-1], good) == ("3 shapes", "OFF", False)
    assert cells[4].startswith("0.0417..")  # sqrt(2 / (128 * 9)), of the widest fan


def test_the_models_have_the_sizes_of_gpt2_and_resnet50() -> None:
    with torch.device("meta"):
        models = [demo.transformer(*demo.SIZES[0]), demo.resnet(*demo.SIZES[1])]
    assert [sum(weight.numel() for weight in model.parameters()) for model in models] == [124_439_808, 25_557_032]


def test_deferred_draws_by_name_what_the_constructors_ask_for() -> None:
    key = xinit.Key(5)
    model = demo.build_deferred(True, "cpu", key)
    plain = dict(demo.build(True).named_parameters())
    assert plain.keys() == dict(model.named_parameters()).keys()
    name = "gpt2.blocks.0.up.weight"
    expected = xinit.xavier_normal_(torch.empty_like(plain[name]), key=key.fold_in(name))
    assert torch.equal(model.get_parameter(name), expected)
    chunk = model.get_parameter("gpt2.blocks.0.qkv.weight").chunk(3)[1]
    assert chunk.abs().max() <= (6 / 128) ** 0.5  # fans of its own


def test_info_prints_the_build(run: Run) -> None:
    status, output = run("info")
    assert status == 0
    printed = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert printed == {name: str(value) for name, value in xinit.build_info().items()}
