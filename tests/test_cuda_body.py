"""The CUDA threads' body, compiled for the host: the CPU's bits for any launch shape, and no access out of bounds."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ["tests/cuda_body.cpp", "csrc/cpu/fill_baseline.cpp", "csrc/distribution.cpp", "csrc/window.cpp"]
COMPILER = os.environ.get("CXX", "c++")
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wno-psabi", "-Ixinit/include"]
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"

needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compiles and links a program, its files side by side; once for each compiler and flags."""

    def compile_one(compiler, flags, source, built):
        subprocess.run([compiler, *FLAGS, *flags, "-c", source, "-o", str(built)], cwd=ROOT, check=True)

    @lru_cache
    def build(compiler, *flags):
        directory = tmp_path_factory.mktemp("body")
        built = [directory / f"{i}.o" for i in range(len(SOURCES))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(partial(compile_one, compiler, flags), SOURCES, built))
        program = directory / "body"
        subprocess.run([compiler, *flags, *map(str, built), "-o", str(program)], check=True)
        return program

    return build


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fills equal" in done.stdout
    return done.stdout


@needs_compiler
def test_body_fills_as_the_cpu_does(build):
    run(build(COMPILER))


@needs_compiler
@pytest.mark.slow
def test_body_under_sanitizers(build):
    run(build(COMPILER, "-fsanitize=address,undefined", "-fno-sanitize-recover"))


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(shutil.which(CROSS) is None, reason="no compiler for aarch64")
def test_aarch64_compiles_and_fills_the_same_bits(build):
    program = build(CROSS, "-static", "-Wall", "-Werror")
    if shutil.which(EMULATOR):
        assert run(EMULATOR, program) == run(build(COMPILER))
