"""What the tests of the device code share: an emulated device, built once."""

import pytest
import torch

from device import emulated, instructions

# Enough for the default tests: uniform float32, normal bfloat16, all of float16, and the digest of float32.
FEW = r"KindE0ELNS_5DtypeE0|KindE2ELNS_5DtypeE3|DtypeE2|digest_windowIj|try\d+"


@pytest.fixture(scope="session")
def ptx_text(tmp_path_factory):
    if emulated.sass_budget.find_tool("nvcc") is None:
        pytest.skip("no nvcc")
    return emulated.kernels_as_ptx(tmp_path_factory.mktemp("ptx"), "80")


@pytest.fixture(scope="session")
def device(request, ptx_text, tmp_path_factory):
    """torch.ops.xinit_emulated: see backend.cpp. With all kernels if a slow test is to run."""
    everything = any(
        item.get_closest_marker("slow") and "device" in item.fixturenames for item in request.session.items
    )
    tried = "".join(instructions.entry(f"try{i}", row) for i, row in enumerate(instructions.rows()))
    folder = tmp_path_factory.mktemp("device")
    torch.ops.load_library(emulated.library(folder, ptx_text + tried, "" if everything else FEW))
    return torch.ops.xinit_emulated


@pytest.fixture(autouse=True)
def forgotten(request):
    yield
    if "device" in request.fixturenames:
        torch.ops.xinit_emulated.forget()
