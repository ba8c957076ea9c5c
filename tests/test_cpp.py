"""xinit from C++: programs built by CMake against the torch and the xinit that are imported here, and what they print."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import CUDA_HOME

import xinit
from xinit import Key, Window

ROOT = Path(__file__).parent.parent
CMAKE = shutil.which("cmake")
TOOLKITS = [home for home in (CUDA_HOME, "/usr/local/cuda") if home and (Path(home) / "include" / "cuda.h").exists()]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CMAKE is None, reason="no cmake"),
    pytest.mark.skipif(
        bool(torch.version.cuda) and not TOOLKITS, reason="torch's package for CMake wants CUDA's toolkit"
    ),
]


def cmake(*arguments):
    done = subprocess.run([CMAKE, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def build(source, directory):
    """Configures and builds a project, and returns where."""
    prefixes = f"{torch.utils.cmake_prefix_path};{xinit.cmake_prefix_path}"
    cuda = (f"-DCUDA_TOOLKIT_ROOT_DIR={TOOLKITS[0]}", "-DTORCH_CUDA_ARCH_LIST=9.0") if torch.version.cuda else ()
    cmake("-S", source, "-B", directory, f"-DCMAKE_PREFIX_PATH={prefixes}", *cuda)
    cmake("--build", directory)
    return directory


def lines(program):
    """What it prints, where nothing says where torch or xinit are."""
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_LIBRARY_PATH", "PYTHONPATH")}
    done = subprocess.run([program], capture_output=True, text=True, cwd="/", env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_example(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    recipe = {"*.weight": xinit.kaiming_normal(nonlinearity="relu"), "*.bias": xinit.zeros()}
    expected = xinit.fingerprint(xinit.init_(model, recipe, xinit.Key(0)))
    assert lines(build(ROOT / "examples" / "cpp", tmp_path) / "initialise") == [expected, "1"]


def named(**tensors):
    return xinit.fingerprint(torch.nn.ParameterDict(tensors))


def test_each_function(tmp_path):
    """Found by find_package(xinit) alone."""
    (tmp_path / "CMakeLists.txt").write_text(
        f"""cmake_minimum_required(VERSION 3.18)
project(api LANGUAGES CXX)
set(CMAKE_CXX_STANDARD 20)
find_package(xinit REQUIRED)
add_executable(api {ROOT}/tests/api.cpp)
target_link_libraries(api xinit::xinit)
"""
    )
    found = dict(line.split(" ", 1) for line in lines(build(tmp_path, tmp_path / "build") / "api"))
    key = Key(-1, 7).fold_in("läyer.0").fold_in(3)
    w, b = torch.empty(6, 4), torch.empty(6)
    expected = {
        "key": f"{key.seed} {key.stream}",
        "uniform_": named(w=xinit.uniform_(w, -1, 3, key=key)),
        "normal_": named(w=xinit.normal_(w, 1, 0.5, key=key)),
        "trunc_normal_": named(w=xinit.trunc_normal_(w, 0, 1, -1, 2, key=key)),
        "xavier_uniform_": named(w=xinit.xavier_uniform_(w, 2, key=key)),
        "xavier_normal_": named(w=xinit.xavier_normal_(w, 2, key=key)),
        "kaiming_uniform_": named(w=xinit.kaiming_uniform_(w, 0.1, "fan_out", key=key)),
        "kaiming_normal_": named(w=xinit.kaiming_normal_(w, 5 / 3, "fan_in", "relu", key=key)),
        "variance_scaling_": named(
            w=xinit.variance_scaling_(w, 2, "fan_in", "uniform", in_axis=0, out_axis=1, key=key)
        ),
        "bfloat16": named(w=xinit.normal_(torch.empty(5, 3, dtype=torch.bfloat16), key=key)),
        "part": named(w=xinit.xavier_normal_(w, key=key, window=Window((9, 8), (2, 3)))),
    }
    xinit.fill_many_([w, b], [xinit.variance_scaling(4, "fan_out", "normal"), xinit.constant(0.25)], [key, key])
    expected["fill_many_"] = named(w=w, b=b)
    xinit.fill_many_(
        [w, b],
        [xinit.variance_scaling(1, "fan_in", "normal"), xinit.uniform(-1, 1)],
        [key, key],
        [Window((9, 8), (2, 3)), None],
    )
    expected["parts"] = named(w=w, b=b)
    expected["offsets"] = "fill_many_: offsets[0] has 1 dimensions, but its tensor 2"
    expected["generator"] = named(w=xinit.normal_(w, generator=torch.Generator().manual_seed(5)))
    expected["error"] = "normal expects std >= 0.0, but found std -1"
    expected["torch"] = xinit.build_info()["torch"]
    named_error = found.pop("named")
    assert "expects std >= 0.0" in named_error
    assert "second" in named_error
    assert found == expected


@pytest.mark.parametrize(("wanted", "there"), [("0.1", True), ("0.1.0 EXACT", True), ("0.0", False), ("1.0", False)])
def test_versions(tmp_path, wanted, there):
    """Of those before 1.0, each minor one may differ from those before it."""
    (tmp_path / "CMakeLists.txt").write_text(
        f"""cmake_minimum_required(VERSION 3.18)
project(version LANGUAGES NONE)
set(Torch_FOUND TRUE)
find_package(xinit {wanted} QUIET)
message(STATUS "xinit ${{xinit_VERSION}} found: ${{xinit_FOUND}}")
"""
    )
    arguments = [CMAKE, "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={xinit.cmake_prefix_path}"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    said = re.search(r"xinit (\S*) found: (\w+)", done.stdout)
    assert (said[2] in ("1", "TRUE")) == there, done.stdout + done.stderr
    if there:
        assert said[1] == xinit.__version__


def test_another_torch_is_said_to_be_one(tmp_path):
    """By CMake, before a link that would not say why."""
    prefix = tmp_path / "xinit"
    shutil.copytree(xinit.cmake_prefix_path, prefix, ignore=shutil.ignore_patterns("*.py", "__pycache__", "_C*"))
    library, built = prefix / "libxinit.so", xinit.build_info()["torch"].encode()
    library.write_bytes(library.read_bytes().replace(b"built with torch " + built, b"built with torch 1" + built[1:]))
    (tmp_path / "CMakeLists.txt").write_text(
        f"""cmake_minimum_required(VERSION 3.18)
project(other LANGUAGES NONE)
set(Torch_FOUND TRUE)
set(Torch_VERSION {torch.__version__})
find_package(xinit REQUIRED)
"""
    )
    done = subprocess.run(
        [CMAKE, "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}"],
        capture_output=True,
        text=True,
    )
    said = " ".join(done.stderr.split())
    assert f"built with torch 1{built[1:].decode().rpartition('.')[0]}, whose ABI is not that of torch" in said
