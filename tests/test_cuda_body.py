"""The CUDA threads' body, compiled for the host: the CPU's bits for any launch shape, and no access out of bounds."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ["tests/cuda_body.cpp", "csrc/cpu/fill_baseline.cpp", "csrc/distribution.cpp", "csrc/window.cpp"]
COMPILER = os.environ.get("CXX", "c++")


needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no C++ compiler")
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def build(compiler, program, *flags):
    command = [compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-Wno-psabi", *flags, *SOURCES, "-o", str(program)]
    subprocess.run(command, cwd=ROOT, check=True)
    return program


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fills equal" in done.stdout
    return done.stdout


@needs_compiler
@pytest.mark.parametrize(
    "flags", [[], ["-fsanitize=address,undefined", "-fno-sanitize-recover"]], ids=["plain", "sanitized"]
)
def test_body_fills_as_the_cpu_does(tmp_path, flags):
    run(build(COMPILER, tmp_path / "body", *flags))


@needs_compiler
@pytest.mark.skipif(shutil.which(CROSS) is None, reason="no compiler for aarch64")
def test_aarch64_compiles_and_fills_the_same_bits(tmp_path):
    program = build(CROSS, tmp_path / "body_aarch64", "-static", "-Wall", "-Werror")
    if shutil.which(EMULATOR):
        assert run(EMULATOR, program) == run(build(COMPILER, tmp_path / "body"))
