"""The CUDA threads' body, compiled for the host: the CPU's bits for any launch shape, and no access out of bounds."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ["tests/cuda_body.cpp", "csrc/cpu/fill_baseline.cpp", "csrc/distribution.cpp", "csrc/window.cpp"]
COMPILER = os.environ.get("CXX", "c++")


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "flags", [[], ["-fsanitize=address,undefined", "-fno-sanitize-recover"]], ids=["plain", "sanitized"]
)
def test_body_fills_as_the_cpu_does(tmp_path, flags):
    program = tmp_path / "cuda_body"
    command = [COMPILER, "-std=c++17", "-O1", "-ffp-contract=off", "-Wno-psabi", *flags, *SOURCES, "-o", str(program)]
    subprocess.run(command, cwd=ROOT, check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fills equal" in done.stdout
