"""The benchmarks' own machinery, as far as a machine without a GPU can tell."""

import json
import math
import shutil
import subprocess
import sys
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

import xinit

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import contestants  # noqa: E402
import fill  # noqa: E402
import gpu_check  # noqa: E402
import gpu_steps  # noqa: E402

LAWS = ["xavier_uniform_", "kaiming_normal_", "trunc_normal_ ±0.04"]


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of what torch.compile imports
@pytest.mark.parametrize("label", LAWS)
def test_what_inductor_compiles_follows_the_law(label):
    function, w = fill.FUNCTIONS[label], torch.full((256, 512), math.nan, dtype=torch.bfloat16)
    contestants.with_inductor(function, w)()
    fill.check_law("Inductor", w, function.law(*w.shape), slack=0.01)


@pytest.mark.parametrize("kind", ["uniform", "normal", "truncated"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_triton_kernel_compiles_for_hopper(kind, dtype):
    triton = pytest.importorskip("triton")
    compiler = pytest.importorskip("triton.backends.compiler")
    import triton_kernels

    numbers = dict.fromkeys(("shift", "scale", "spread", "low", "high"), "fp32")
    constants = {"KIND": kind, "BLOCK": triton_kernels.BLOCK}
    signature = {"out": f"*{dtype}", "n": "i32", "seed": "i32"} | numbers | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i in (0, 1)}
    source = triton.compiler.ASTSource(triton_kernels.fill, signature, constants, aligned)
    ptx = triton.compile(source, target=compiler.GPUTarget("cuda", 90, 32)).asm["ptx"]
    assert "st.global.v4.b32" in ptx


def test_contestants_that_fail_or_fill_wrongly_are_left_out(monkeypatch):
    def absent(function, w):
        raise ImportError("no such library")

    made = {
        "numpy": lambda function, w: partial(torch.nn.init.xavier_uniform_, w),
        "jax": lambda function, w: None,  # does not offer this
        "inductor": absent,
        "triton": lambda function, w: partial(torch.nn.init.xavier_uniform_, w[1:]),
        "curand": lambda function, w: partial(torch.nn.init.xavier_normal_, w),
    }
    fakes = {name: contestants.Contestant(name, name, ("cpu",), make) for name, make in made.items()}
    monkeypatch.setattr(fill, "CONTESTANTS", fakes)
    calls, left_out = fill.rivals(fill.FUNCTIONS["xavier_uniform_"], torch.empty(512, 512), list(fakes))
    assert list(calls) == ["numpy"]
    assert {name: why.split(":")[0] for name, why in left_out.items()} == {
        "inductor": "ImportError",
        "triton": "RuntimeError",
        "curand": "RuntimeError",
    }


def test_what_misses_a_floor_is_measured_again_and_the_median_counts(monkeypatch):
    monkeypatch.setattr(fill.timing.Bystanders, "share", lambda self: 0.0)
    runs = {"good": count(2), "disturbed": iter([0.5, 2, 3, 0.4, 2]), "slow": iter([0.5, 2, 0.3, 0.4, 2])}
    results = fill.check([lambda name=name, run=run: [(name, 1.0, next(run))] for name, run in runs.items()])
    assert [(r["what"], r["reached"], r["verdict"]) for r in results] == [
        ("good", 2, "ok"),
        ("disturbed", 2, "ok"),
        ("slow", 0.5, "FAILED"),
    ]


def test_every_gpu_floor_is_measured():
    measured = [call.args for call in fill.gpu_floors()]
    large = {(label, dtype): required for label, dtype, log2, required, _ in measured if log2 == fill.LARGE}
    assert large == {
        (label, dtype): fill.GPU_FLOORS[fill.FUNCTIONS[label].kind, dtype]
        for label in fill.FLOORS
        for dtype in ("float32", "bfloat16")
    }
    assert len(measured) == len(large) + len(fill.FUNCTIONS) * len(fill.GPU_SMALL)


def test_gpt2_small_has_its_parameters():
    shapes = [shape for _, shape, _ in gpu_steps.gpt2_small(*gpu_steps.FULL.gpt2)]
    assert (len(shapes), sum(map(math.prod, shapes))) == (148, 124_439_808)


PROFILING = pytest.mark.filterwarnings("ignore:.*Profiler clears events")


@PROFILING
def test_one_launch_is_one():
    law = xinit.normal()  # which asks an operator about its arguments

    def many():
        xinit.fill_many_([torch.empty(3)], [law], [xinit.Key(0)])

    gpu_steps.one_launch(many, "cpu")
    for wrong in (lambda: (many(), many()), lambda: xinit.normal_(torch.empty(3)), lambda: None):
        with pytest.raises(AssertionError, match="launched"):
            gpu_steps.one_launch(wrong, "cpu")


@PROFILING
def test_a_problem_fails_the_step_and_not_the_rest_of_it(monkeypatch, tmp_path):
    def wrong(device):
        raise AssertionError("tensor 3 differs")

    monkeypatch.setattr(gpu_steps, "mixture", wrong)
    monkeypatch.setattr(gpu_steps.fill, "check", lambda required, again: [])
    monkeypatch.setattr(sys, "argv", ["gpu_steps.py", "many", "cpu", str(tmp_path), str(tmp_path / "found.json")])
    assert gpu_steps.main() == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["problems"] == ["mixture: AssertionError: tensor 3 differs"]
    assert "kernel many bfloat16" in found


def steps(monkeypatch, directory, only):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--rehearse", "--results", str(directory), "--only", only])
    return gpu_check.main()


def recorded(directory):
    return json.loads((directory / "gpu_check_rehearsal.json").read_text())["steps"]


def test_steps_are_recorded_one_by_one(monkeypatch, tmp_path):
    def run(step, device, results):
        if step == "large":
            raise KeyboardInterrupt
        return {"passed": step != "graphs", "took": 0.0}

    monkeypatch.setattr(gpu_check, "run", run)
    assert steps(monkeypatch, tmp_path, "bits,generator") == 0
    with pytest.raises(KeyboardInterrupt):
        steps(monkeypatch, tmp_path, "graphs,large,many")
    passed = {step: found["passed"] for step, found in recorded(tmp_path).items()}
    assert passed == {"bits": True, "generator": True, "graphs": False, "large": False}
    assert steps(monkeypatch, tmp_path, "graphs") == 1


def test_a_step_that_hangs_is_stopped(monkeypatch, tmp_path):
    code = "import time; time.sleep(600)"
    monkeypatch.setattr(gpu_check, "command", lambda *arguments: ([sys.executable, "-c", code], {}))
    monkeypatch.setitem(gpu_check.LIMITS, "bits", 1)
    assert steps(monkeypatch, tmp_path, "bits") == 1
    assert recorded(tmp_path)["bits"]["error"] == "stopped after 1 s"


@pytest.mark.slow
def test_rehearsal(tmp_path):
    command = [
        sys.executable,
        BENCHMARKS / "gpu_check.py",
        "--rehearse",
        "--results",
        tmp_path,
        "--only",
        "many,models",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [floor["required"] for step in ("many", "models") for floor in recorded(tmp_path)[step]["floors"]] == [
        1 / 1.5,
        1 / 1.5,
        1 / 1.3,
    ]
