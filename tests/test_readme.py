"""README's Python: every block runs as it stands, on a small model and on what is here in a GPU's place."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from sharded_models import Llama
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import xinit

BLOCKS = re.findall(r"^```python\n(.*?)^```", (Path(__file__).parents[1] / "README.md").read_text(), re.M | re.S)


def run(*marks: str, **names: object) -> dict[str, object]:
    """Run the blocks that hold these marks, one each, in one namespace."""
    space: dict[str, object] = {"torch": torch, "xinit": xinit, **names}
    for mark in marks:
        (block,) = [block for block in BLOCKS if mark in block]
        exec(block.replace('"cuda"', '"cpu"'), space)
    return space


def test_every_block_is_run_here():
    marks = ("fill_many_", "recipe=", "accelerate()", "audit", "recommend", "interleave", "fully_shard")
    assert len(BLOCKS) == len(marks)
    assert all(sum(mark in block for block in BLOCKS) == 1 for mark in marks)


def test_functions():
    run("fill_many_")


def test_models(capsys: pytest.CaptureFixture[str]):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=4, vocab_size=64
    )
    run("recipe=", "accelerate()", "audit", transformers=transformers, config=config)
    assert "21 parameters" in capsys.readouterr().out


def test_a_network_that_dies_and_lives(capsys: pytest.CaptureFixture[str]):
    """What is shown is what is printed, but for digits that another machine may round another way."""
    run("recommend")
    words = [re.sub(r"\d", "", line) for line in capsys.readouterr().out.splitlines()]
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (shown,) = re.findall(r"^```text\n(Sequential: 30 layers.*?)^```", readme, re.M | re.S)
    for line in shown.replace("...\n", "").splitlines():
        assert re.sub(r"\d", "", line) in words, line


def test_layouts():
    heads, hidden, rank, tp, i, key = 32, 16, 1, 4, 3, xinit.Key(0)
    weight = torch.empty((heads + 8 + 8) * 128 // tp, hidden)
    layer = SimpleNamespace(qkv=SimpleNamespace(weight=weight))
    run("interleave", heads=heads, hidden=hidden, rank=rank, tp=tp, i=i, key=key, layer=layer)
    name = "layers.3.attention.q_proj.weight"
    whole = xinit.normal_(torch.empty(heads * 128, hidden), std=0.02, key=key.fold_in(name))
    mine = heads // tp * 128
    first = heads // 8 * 128  # of each of this rank's two groups
    torch.testing.assert_close(weight[:first], whole[rank * mine : rank * mine + first], rtol=0, atol=0)


def test_sharded():
    plan = {"layers.*.w1": ColwiseParallel(), "layers.*.w2": RowwiseParallel()}
    torch_names = {
        "init_device_mesh": init_device_mesh,
        "fully_shard": fully_shard,
        "parallelize_module": parallelize_module,
    }
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        space = run(
            "fully_shard", Llama=lambda c: Llama(**c), config={"hidden": 48, "vocabulary": 48}, dp=1, tp=1, seed=3,
            tensor_parallel_plan=plan, **torch_names,
        )  # fmt: skip
        sharded = xinit.fingerprint(space["model"])
    finally:
        dist.destroy_process_group()
    with xinit.deferred():
        model = Llama(48, 48)
    assert sharded == xinit.fingerprint(xinit.materialize_(model, key=xinit.Key(3)))
