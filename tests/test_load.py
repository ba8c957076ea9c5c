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
LIBRARY = "libxinit.so"


def test_the_file_says_what_it_is_without_being_loaded():
    info = xinit.build_info()
    assert _load.built() == (info["version"], info["torch"])


def copy(directory, library, left_out=LIBRARY):
    """xinit there, with such bytes for its library, or without one file; the last line of what its import says."""
    shutil.copytree(PACKAGE, directory / "xinit", ignore=shutil.ignore_patterns(left_out, "__pycache__"))
    if library:
        (directory / "xinit" / LIBRARY).write_bytes(library)
    environment = os.environ | {"PYTHONPATH": str(directory)}
    command = [sys.executable, "-c", "import xinit"]
    done = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 1
    assert "During handling" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.fixture
def library():
    return (PACKAGE / LIBRARY).read_bytes()


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
    assert "is of an earlier xinit: build it again" in copy(tmp_path, library.replace(b"libxinit ", b"libother "))


@pytest.mark.parametrize("left_out", [LIBRARY, Path(_C.__file__).name])
def test_not_built(tmp_path, left_out):
    line = copy(tmp_path, None, left_out)
    assert f"xinit is not built for Python {sys.version_info[0]}.{sys.version_info[1]} in {tmp_path}" in line


def test_the_ops_need_no_python():
    """The library alone, in a Python that has torch: its ops are there, and nothing of it needs Python's symbols."""
    library = PACKAGE / LIBRARY
    script = f"""
import torch
torch.ops.load_library({str(library)!r})
w = torch.empty(3, 4)
torch.ops.xinit.xavier_uniform_(w, 1.0, key=[1, 2])
print(w.tolist())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(xinit.xavier_uniform_(torch.empty(3, 4), key=xinit.Key(1, 2)).tolist())
    names = b"libtorch_python", b"libpython", b"PyObject_"
    assert not any(name in library.read_bytes() for name in names)
    assert any(name in Path(_C.__file__).read_bytes() for name in names)
