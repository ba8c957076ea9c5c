"""The programs in examples/: short, and each prints what its first lines promise. The one in C++ is in test_cpp.py."""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import xinit

EXAMPLES = Path(__file__).parents[1] / "examples"


def printed(capsys, name, *arguments):
    """What it prints, run in this process."""
    before = sys.argv
    sys.argv = [name, *arguments]
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        sys.argv = before
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_they_are_short_and_say_how_they_are_run(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    assert f"examples/{path.name}\n" in text or f"examples/{path.name} " in text


def test_which_init(capsys, one_thread):
    lines = printed(capsys, "which_init.py")
    assert lines[0].endswith("1 flag: vanishing")
    assert any(line.endswith("sound, no flags") for line in lines)
    losses = [float(line.split()[4].rstrip(";")) for line in lines if line.startswith("loss")]
    assert losses[0] > 0.65 > 0.3 > losses[1]
    assert "0.weight: kaiming_normal fan_in gain sqrt(2), for relu rectifies" in lines


def test_huggingface(capsys, one_thread):
    transformers = pytest.importorskip("transformers")
    lines = printed(capsys, "huggingface.py")
    assert lines[0].endswith("c_proj.weight: normal, std 0.007071")  # 0.02 / sqrt(2 * 4)
    prints = [line.split()[-1] for line in lines if line.startswith("drawn")]
    config = transformers.GPT2Config(n_layer=4, n_embd=128, n_head=4, vocab_size=1000)
    model = xinit.init_(transformers.GPT2LMHeadModel(config), "gpt2", xinit.Key(0))
    assert prints[1] == xinit.fingerprint(model) != prints[2]
    assert "sound, no flags" in lines[3]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")  # of what torch.compile imports
def test_compile(capsys, backend):
    torch._dynamo.reset()
    lines = printed(capsys, "compile.py", backend)
    assert [line.endswith("the same bits") for line in lines[:3]] == [True] * 3
    assert "  xinit.normal_.default" in lines or "  xinit.normal.default" in lines


def test_fsdp2_in_one_process(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in (place | {"GLOO_SOCKET_IFNAME": "lo"}).items():
        monkeypatch.setenv(name, value)
    try:
        rank, alone = printed(capsys, "fsdp2.py")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    assert rank.startswith("rank 0 drew 199,936 of 199,936 numbers: ")
    assert rank.split()[-1] == alone.split()[-1]


@pytest.mark.slow
def test_fsdp2_by_torchrun():
    paths = [str(Path(xinit.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command.append(str(EXAMPLES / "fsdp2.py"))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("rank", "one"))]
    assert len(lines) == 3
    assert all("drew 99,968 of 199,936" in line for line in lines if line.startswith("rank"))
    assert len({line.split()[-1] for line in lines}) == 1
