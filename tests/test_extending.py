"""docs/extending.md: its patch, applied to a copy of this tree, adds a distribution with all that the others have."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATCH = ROOT / "docs" / "laplace.patch"

# What is not in test_statistics.py: one key, one set of bits, for whatever takes a distribution or an operator.
USE = """
import torch, xinit
key = xinit.Key(3)
whole = xinit.laplace_(torch.empty(301, 77), 0.5, 0.25, key=key.fold_in("w"))
part = torch.empty(40, 20, dtype=torch.bfloat16)
xinit.laplace_(part, 0.5, 0.25, key=key.fold_in("w"), window=xinit.Window((301, 77), (200, 57)))
assert torch.equal(part, whole[200:240, 57:].bfloat16())
many = torch.empty(301, 77)
xinit.fill_many_([many], [xinit.laplace(0.5, 0.25)], [key.fold_in("w")])
assert torch.equal(many, whole)
model = torch.nn.ParameterDict({"w": torch.empty(301, 77)})
recipe = {"w": xinit.laplace(0.5, 0.25)}
assert torch.equal(xinit.init_(model, recipe, key)["w"], whole)
(row,) = xinit.plan(model, recipe).rows
assert (row.method, round(row.std, 4)) == ("laplace, mean=0.5, scale=0.25", 0.3536)
compiled = torch.compile(lambda: xinit.laplace_(torch.empty(301, 77), 0.5, 0.25, key=key.fold_in("w")), backend="eager")
assert torch.equal(compiled(), whole)
for bad in (lambda: xinit.laplace(0, -1), lambda: xinit.laplace_(whole, 0, -1)):
    try:
        bad()
    except ValueError as error:
        assert str(error).startswith("laplace_: scale must be >= 0"), error
    else:
        raise AssertionError("a scale below zero was taken")
print(xinit.fingerprint(model))
"""


def test_the_patch_is_a_place_in_cpp_one_in_python_and_one_of_a_table():
    files = [line.split(" b/")[1] for line in PATCH.read_text().splitlines() if line.startswith("diff --git")]
    assert files == ["csrc/transforms.h", "tests/test_statistics.py", "xinit/distributions.py"]
    assert "docs/laplace.patch" in (ROOT / "docs" / "extending.md").read_text().replace("](", "](docs/")


def run(tree, *command, **environment):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "XINIT_CUDA": "0"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None or shutil.which("c++") is None, reason="no git, or no C++ compiler")
def test_a_distribution_is_added_by_the_patch(tmp_path):
    tree = tmp_path / "xinit"
    kept = shutil.ignore_patterns("build", ".*", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=kept)
    subprocess.run(["git", "apply", "--unsafe-paths", f"--directory={tree}", PATCH], cwd=tmp_path, check=True)
    run(tree, "setup.py", "build_ext", "--inplace")
    only = "(laplace and not lopsided) or golden"
    statistics = run(tree, "-m", "pytest", "tests/test_statistics.py", "tests/test_golden.py", "-k", only)
    assert "passed" in statistics
    run(tree, "-m", "pytest", "xinit/distributions.py")
    printed = {run(tree, "-c", USE, ATEN_CPU_CAPABILITY=isa) for isa in ("avx512", "avx2", "default")}
    assert len(printed) == 1
