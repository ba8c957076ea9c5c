"""The CUDA code, as far as a machine without a GPU can tell: it compiles cleanly, within its budget, and is registered."""

from functools import lru_cache

import pytest
import torch
from device import emulated

import xinit

sass_budget = emulated.sass_budget

needs_nvcc = pytest.mark.skipif(sass_budget.find_tool("nvcc") is None, reason="no nvcc")
needs_disassembler = pytest.mark.skipif(sass_budget.find_tool("cuobjdump") is None, reason="no cuobjdump")
with_cuda = xinit.build_info()["cuda"] is not None
FILLS = [
    "uniform_",
    "normal_",
    "trunc_normal_",
    "xavier_uniform_",
    "xavier_normal_",
    "kaiming_uniform_",
    "kaiming_normal_",
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return lru_cache(lambda arch: sass_budget.compile_kernels(arch, tmp_path_factory.mktemp(arch)))


@needs_nvcc
@pytest.mark.parametrize("arch", ["90", *(pytest.param(a, marks=pytest.mark.slow) for a in ("75", "80", "100", "120"))])
def test_kernels_compile_without_warnings_spills_or_stack(compiled, arch):
    _, report = compiled(arch)
    found = sass_budget.resources(report)
    assert (
        len(found) == 2 * len(sass_budget.KINDS) * len(sass_budget.DTYPES) + 1 + 4
    )  # and those for many tensors and for the digest
    assert {name: r for name, r in found.items() if r["spills"] or r["stack"]} == {}


@needs_nvcc
@pytest.mark.slow
def test_ptx_has_no_approximate_instruction(tmp_path):
    text = emulated.kernels_as_ptx(tmp_path, "90")
    assert "fma.rn.f32" in text
    assert [line for line in text.splitlines() if ".approx" in line or ".ftz" in line] == []


@needs_nvcc
@needs_disassembler
@pytest.mark.parametrize("arch", ["90", *(pytest.param(a, marks=pytest.mark.slow) for a in ("75", "80", "100", "120"))])
def test_kernels_keep_their_budget(compiled, arch):
    records = sass_budget.measure(*compiled(arch), arch)
    assert list(sass_budget.failures(records, arch)) == []


@pytest.mark.parametrize("op", [*FILLS, "variance_scaling_", "fill_many_", "digest"])
def test_cuda_kernel_is_registered_where_it_was_built(op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"xinit::{op}", "CUDA") == with_cuda


@pytest.mark.skipif(with_cuda, reason="built with CUDA")
def test_without_cuda_the_dispatcher_says_which_backend_is_missing():
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(NotImplementedError, match=r"xinit::normal_.*'CUDA' backend"):
        torch.ops.xinit.normal_.default.redispatch(cuda, torch.empty(3))
