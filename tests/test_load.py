"""What is said where xinit cannot be loaded: one line, and no missing symbol."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import xinit
from xinit import _C, _load

PACKAGE = Path(xinit.__file__).parent


def test_the_file_says_what_it_is_without_being_loaded():
    info = xinit.build_info()
    assert _load.built() == (info["version"], info["torch"])


def copy(directory, library):
    """xinit there, with such bytes for its library, or none; the last line of what its import says."""
    shutil.copytree(PACKAGE, directory / "xinit", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if library:
        (directory / "xinit" / Path(_C.__file__).name).write_bytes(library)
    environment = os.environ | {"PYTHONPATH": str(directory)}
    command = [sys.executable, "-c", "import xinit"]
    done = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 1
    assert "During handling" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.fixture
def library():
    return Path(_C.__file__).read_bytes()


def test_built_with_another_torch(tmp_path, library):
    built = xinit.build_info()["torch"]
    other = "1" + built[1:]  # of the same length
    marks = library.count(b"built with torch " + built.encode())
    assert marks == 1
    line = copy(tmp_path, library.replace(b"built with torch " + built.encode(), b"built with torch " + other.encode()))
    assert line.startswith(
        f"ImportError: xinit was built with torch {other} and cannot be used with torch {torch.__version__}: build it"
    )


def test_a_library_that_does_not_load(tmp_path, library):
    line = copy(tmp_path, b"no ELF " + library)
    assert f"built with torch {xinit.build_info()['torch']} and cannot be used with torch {torch.__version__} (" in line
    assert "invalid ELF header" in line


def test_a_library_of_an_earlier_xinit(tmp_path, library):
    assert "is of an earlier xinit: build it again" in copy(tmp_path, library.replace(b"xinit._C ", b"other._C "))


def test_not_built(tmp_path):
    assert f"xinit is not built for Python {sys.version_info[0]}.{sys.version_info[1]} in {tmp_path}" in copy(
        tmp_path, None
    )
