"""Builds xinit/libxinit.so, which needs libtorch alone, and xinit._C, Python's way to it; says in a wheel's name and
requirements which torch they were built with. The rest is in pyproject.toml.

Environment:
  XINIT_CUDA            0 or 1: without or with CUDA. By default with it when torch has CUDA and an nvcc is found; a GPU is
                        not needed to build.
  TORCH_CUDA_ARCH_LIST  the architectures, as for any torch extension, e.g. "8.0;9.0+PTX".
"""

import functools
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from setuptools import setup

HINT = "first pip install 'torch>=2.11' 'setuptools>=77' ninja, then pip install --no-build-isolation ."
try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    sys.exit(f"xinit builds with setuptools 77 or later, which an unisolated build does not get for itself: {HINT}")

# A source distribution fits every torch, so it is made without one; metadata need no compiler, so torch's is not loaded.
FOR_ANY_TORCH = not {"sdist", "egg_info"}.isdisjoint(sys.argv)
BUILDS = not FOR_ANY_TORCH and "dist_info" not in sys.argv
try:
    TORCH = metadata.version("torch")
    if BUILDS:
        import torch
        from torch.utils import cpp_extension
except ImportError:
    TORCH = None
    if not FOR_ANY_TORCH:
        sys.exit(f"xinit builds against the torch it will run with: {HINT}")

ROOT = Path(__file__).parent
VERSION = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
# One of each generation, whose code its later members run too, and PTX for what comes after.
ARCHES = ("7.5", "8.0", "9.0", "10.0", "12.0")

WARNINGS = ["-Wall", "-Wno-psabi", "-Wno-unknown-pragmas"]
# Contraction is off: the contract writes every fused multiply-add. Threads come from torch's own OpenMP, so the runtime's
# symbols are left for the loader to find there; linking a second one would give a second pool of threads. Without -g0, and
# the linker's -s, Python's own flags would add 28 MB of what only a debugger reads.
CXX_FLAGS = ["-O3", "-ffp-contract=off", "-fopenmp", "-g0", *WARNINGS]
LINK_FLAGS = ["-s"]
LIBRARY = "libxinit.so"
NVCC_FLAGS = ["-O3", "--fmad=false", "-Xcompiler=-ffp-contract=off"]


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or cpp_extension.CUDA_HOME
    nvcc = Path(home) / "bin" / "nvcc" if home else None
    return str(nvcc) if nvcc and nvcc.exists() else shutil.which("nvcc")


@functools.cache
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


def default_arches():
    """Those that nvcc knows."""
    said = subprocess.run([find_nvcc(), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    return ";".join(arch for arch in ARCHES if f"compute_{arch.replace('.', '')}" in said) + "+PTX"


def cuda_dirs():
    """Headers and libraries: the toolkit's, wherever it is, and the headers that came with torch, for what it lacks."""
    homes = [Path(find_nvcc()).resolve().parent.parent, Path("/usr/local/cuda")]
    libraries = [
        str(home / lib) for home in homes for lib in ("lib64", "lib") if (home / lib / "libcudart.so").exists()
    ]
    packages = Path(torch.__file__).parent.parent / "nvidia"
    # The toolkit's first: its compiler refuses the runtime's headers of another release.
    headers = [home / "include" for home in homes if (home / "include" / "cuda_runtime.h").exists()]
    return [str(d) for d in (*headers[:1], *sorted(packages.glob("cu*/include")))], libraries[:1]


def sources(of_module, *suffixes):
    """Those of xinit._C, which alone need Python, or all others."""
    found = (p.relative_to(ROOT) for p in (ROOT / "csrc").rglob("*") if p.suffix in suffixes)
    return sorted(str(p) for p in found if (p.parent.name == "python") == of_module)


INCLUDE = str(ROOT / "xinit" / "include")


def library():
    macros = [("XINIT_VERSION", f'"{VERSION}"')]
    common = {"define_macros": macros, "extra_link_args": [*LINK_FLAGS, f"-Wl,-soname,{LIBRARY}"]}
    if with_cuda():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_arches())
        macros += [
            ("XINIT_CUDA", f'"{torch.version.cuda}"'),
            ("XINIT_CUDA_ARCHES", f'"{os.environ["TORCH_CUDA_ARCH_LIST"]}"'),
        ]
        include_dirs, library_dirs = cuda_dirs()
        made = cpp_extension.CUDAExtension(
            "xinit.libxinit",
            sources(False, ".cpp", ".cu"),
            include_dirs=[INCLUDE, *include_dirs],
            library_dirs=library_dirs,
            extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
            **common,
        )
    else:
        made = cpp_extension.CppExtension(
            "xinit.libxinit", sources(False, ".cpp"), include_dirs=[INCLUDE], extra_compile_args=CXX_FLAGS, **common
        )
    made.libraries.remove("torch_python")
    return made


def module():
    return cpp_extension.CppExtension(
        "xinit._C",
        sources(True, ".cpp"),
        include_dirs=[INCLUDE],
        libraries=["xinit"],
        runtime_library_dirs=["$ORIGIN"],
        extra_compile_args=CXX_FLAGS,
        extra_link_args=LINK_FLAGS,
    )


def minor(version):
    """2.13 of 2.13.0+cpu."""
    return ".".join(version.split(".")[:2])


class Wheel(bdist_wheel):
    """Named after the torch it was built with, and cpu or that torch's CUDA. In the build tag: in the version, pip would
    take it for another version than the source distribution's."""

    def finalize_options(self):
        device = f"cu{torch.version.cuda.replace('.', '')}" if with_cuda() else "cpu"
        self.build_number = self.build_number or f"0torch{minor(TORCH)}{device}"
        super().finalize_options()


def build():
    class Build(cpp_extension.BuildExtension.with_options(use_ninja=shutil.which("ninja") is not None)):
        def get_ext_filename(self, name):
            path = super().get_ext_filename(name)
            return str(Path(path).with_name(LIBRARY)) if name.endswith("libxinit") else path

        def build_extensions(self):
            first, second = self.extensions
            second.library_dirs.append(str(Path(self.get_ext_fullpath(first.name)).parent))
            self.parallel = None  # the second links the first
            super().build_extensions()

    return {"ext_modules": [library(), module()], "cmdclass": {"build_ext": Build, "bdist_wheel": Wheel}}


# Another minor release of torch has another ABI.
setup(
    install_requires=["torch>=2.11" if FOR_ANY_TORCH else f"torch=={minor(TORCH)}.*"],
    **(build() if BUILDS else {}),
)
