"""Builds what the tests of the device code load: kernels by nvcc as PTX, that as C++ (ptx.py), and backend.cpp around it."""

from __future__ import annotations

import importlib.util
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

import xinit
from device import ptx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

spec = importlib.util.spec_from_file_location("sass_budget", ROOT / "benchmarks" / "sass_budget.py")
sass_budget = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sass_budget)


def run(*command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr[-4000:]}")


def kernels_as_ptx(folder: Path, arch: str) -> str:
    """All of csrc/cuda's kernels."""
    source, text = folder / "kernels.cu", folder / "kernels.ptx"
    source.write_text(sass_budget.SOURCE.format(root=ROOT))
    run(sass_budget.find_tool("nvcc"), "-ptx", f"-arch=compute_{arch}", *sass_budget.FLAGS, "-o", text, source)
    return text.read_text()


def library(folder: Path, text: str, only: str = "") -> Path:
    """Of the kernels whose names match; to be loaded once xinit is."""
    ptx.translate(text, folder, units=8, only=only)
    (folder / "backend.cpp").write_text('#include "tests/device/backend.cpp"\n')
    plain = ["-std=c++20", "-fPIC", "-g0", "-w", "-ffp-contract=off", "-frounding-math", f"-I{HERE}", f"-I{ROOT}"]
    torchs = [f"-I{path}" for path in (*cpp_extension.include_paths(), Path(xinit.__file__).parent / "include")]

    def compiled(source: Path) -> Path:
        extra = ["-O1", *torchs] if source.stem == "backend" else ["-O0"]
        run("g++", *plain, *extra, "-c", source, "-o", source.with_suffix(".o"))
        return source.with_suffix(".o")

    # The longest first, and two at a time.
    sources = sorted(folder.glob("*.cpp"), key=lambda path: (path.stem != "backend", -path.stat().st_size))
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    made = folder / "libemulated.so"
    ours = Path(xinit.__file__).parent
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    run(
        "g++",
        "-shared",
        "-o",
        made,
        *objects,
        f"-L{ours}",
        f"-Wl,-rpath,{ours}",
        "-lxinit",
        *libraries,
        "-ltorch_cpu",
        "-lc10",
    )
    return made
