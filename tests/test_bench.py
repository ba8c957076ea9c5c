"""``xinit bench``: its lines, its width, its exit status; the timing itself is that of benchmarks/."""

import re
import sys

import pytest
import torch

import xinit
from xinit.cli import bench, main
from xinit.parameters.table import WIDTH


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["xinit", "bench", "--device", "cpu", *arguments])
        return main(), capsys.readouterr()

    return run


def test_each_case_has_a_line_with_ratios_of_its_times(run, monkeypatch):
    cases = [("xavier_uniform_", "float32", 4), ("trunc_normal_", "bfloat16", 6), ("uniform_", "float32", 10)]
    monkeypatch.setattr(bench, "cases", lambda quick: iter(cases))
    status, printed = run("--quick")
    machine, table, legend = printed.out.rstrip().split("\n\n")
    assert status == 0
    assert f"torch {torch.__version__}".partition("+")[0] in machine
    assert max(map(len, printed.out.splitlines()[1:])) <= WIDTH
    _, *lines = (re.split(r"\s{2,}", line) for line in table.splitlines())
    assert [line[:3] for line in lines] == [[f, d, f"{2**n:,}"] for f, d, n in cases]
    micro = {"µs": 1, "ms": 1e3, "s": 1e6}
    for line in lines:
        ours, theirs, fill = (float(n) * micro[unit] for n, unit in (cell.split() for cell in line[3:6]))
        assert float(line[6]) == pytest.approx(theirs / ours, rel=0.02, abs=0.01)
        assert float(line[7].rstrip("%")) / 100 == pytest.approx(fill / ours, rel=0.02, abs=0.01)
    assert "times torch: as fast as torch.nn.init" in legend


def test_what_quick_has_no_time_for_is_said(run, monkeypatch):
    monkeypatch.setattr(bench, "QUICK", 0.0)
    assert "18 of 18 lines are left out" in run("--quick")[1].out


def test_values_that_are_not_of_their_distribution_are_a_problem(run, monkeypatch):
    monkeypatch.setattr(bench, "cases", lambda quick: iter([("normal_", "float32", 12)]))
    assert run()[0] == 0
    normal = xinit.normal_
    monkeypatch.setattr(xinit, "normal_", lambda w: normal(w, std=1.2))
    status, printed = run()
    assert status == 1
    assert re.match(r"xinit: error: normal_ of float32: standard deviation 1\.[12]\d*, not 1$", printed.err)


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.234e-6, "1.23 µs"), (9.996e-6, "10.0 µs"), (0.0999951, "100 ms"), (0.9996, "1.00 s"), (70, "70.0 s")]
)  # fmt: skip
def test_durations_have_three_digits(seconds, text):
    assert bench.duration(seconds) == text
