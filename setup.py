"""Builds xinit._C. Everything else is in pyproject.toml.

Environment:
  XINIT_CUDA            0 or 1: without or with CUDA. By default with it when torch has CUDA and an nvcc is found; a GPU is
                        not needed to build.
  TORCH_CUDA_ARCH_LIST  the architectures, as for any torch extension, e.g. "8.0;9.0+PTX".
"""

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    sys.exit(
        "xinit builds against the torch it will run with: first pip install 'torch>=2.11' setuptools ninja pybind11, "
        "then pip install --no-build-isolation ."
    )

ROOT = Path(__file__).parent
VERSION = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
DEFAULT_ARCHES = "8.0;8.6;8.9;9.0+PTX"

WARNINGS = ["-Wall", "-Wno-psabi", "-Wno-unknown-pragmas"]
# Contraction is off: the contract writes every fused multiply-add. Threads come from torch's own OpenMP, so the runtime's
# symbols are left for the loader to find there; linking a second one would give a second pool of threads.
CXX_FLAGS = ["-O3", "-ffp-contract=off", "-fopenmp", *WARNINGS]
NVCC_FLAGS = ["-O3", "--fmad=false", "-Xcompiler=-ffp-contract=off"]


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or cpp_extension.CUDA_HOME
    nvcc = Path(home) / "bin" / "nvcc" if home else None
    return str(nvcc) if nvcc and nvcc.exists() else shutil.which("nvcc")


def with_cuda():
    """Whether to build for CUDA, and why, printed."""
    nvcc, wanted = find_nvcc(), os.environ.get("XINIT_CUDA")
    if wanted not in (None, "", "0", "1"):
        sys.exit(f"XINIT_CUDA must be 0 or 1, but found {wanted!r}")
    possible = bool(torch.version.cuda) and nvcc is not None
    if wanted == "1" and not possible:
        sys.exit(f"XINIT_CUDA=1, but torch {torch.__version__} has CUDA {torch.version.cuda} and nvcc is {nvcc}")
    chosen = possible if not wanted else wanted == "1"
    why = (
        f"torch {torch.__version__} has CUDA {torch.version.cuda}, nvcc is {nvcc}, XINIT_CUDA is {wanted or 'not set'}"
    )
    print(f"xinit: building {'with' if chosen else 'without'} CUDA ({why})")
    return chosen


def cuda_dirs():
    """Headers and libraries: the toolkit's, wherever it is, and the headers that came with torch, for what it lacks."""
    homes = [Path(find_nvcc()).resolve().parent.parent, Path("/usr/local/cuda")]
    libraries = [
        str(home / lib) for home in homes for lib in ("lib64", "lib") if (home / lib / "libcudart.so").exists()
    ]
    packages = Path(torch.__file__).parent.parent / "nvidia"
    return [str(d) for d in sorted(packages.glob("cu*/include"))], libraries[:1]


def sources(*suffixes):
    return sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.suffix in suffixes)


def extension():
    macros = [("XINIT_VERSION", f'"{VERSION}"')]
    if not with_cuda():
        return cpp_extension.CppExtension(
            "xinit._C", sources(".cpp"), define_macros=macros, extra_compile_args=CXX_FLAGS
        )
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHES)
    macros += [
        ("XINIT_CUDA", f'"{torch.version.cuda}"'),
        ("XINIT_CUDA_ARCHES", f'"{os.environ["TORCH_CUDA_ARCH_LIST"]}"'),
    ]
    include_dirs, library_dirs = cuda_dirs()
    return cpp_extension.CUDAExtension(
        "xinit._C",
        sources(".cpp", ".cu"),
        define_macros=macros,
        include_dirs=include_dirs,
        library_dirs=library_dirs,
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
    )


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(use_ninja=shutil.which("ninja") is not None)},
)
