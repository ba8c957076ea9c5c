"""What diagnose costs: memory for numbers alone beyond that of the pass itself, and at most thrice the time of the pass."""

import time

import pytest
import torch
from networks import Transformer, batch, deep, gpt2, image, tokens
from torch import nn
from torch.autograd.profiler import profile

import xinit


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def peak(call):
    """The most bytes that are allocated at a time: the profiler sees each allocation of the CPU's, and its end."""
    call()
    with profile(profile_memory=True) as seen:
        call()
    steps = [event for event in seen.kineto_results.events() if event.name() == "[memory]"]
    assert len(steps) > 10
    live = most = 0
    for step in sorted(steps, key=lambda step: step.start_ns()):
        live += step.nbytes()
        most = max(most, live)
    return most


def plain(model, x):
    """Forward and backward, with the gradients that an optimizer would have."""
    output = model(x)
    output = output if isinstance(output, torch.Tensor) else output.logits
    return torch.autograd.grad(output, [*model.parameters()], torch.ones_like(output))


def beyond(model, x):
    return peak(lambda: xinit.diagnose(model, x)) - peak(lambda: plain(model, x))


WIDTH, ROWS = 128, 4 * 2**16 // 128  # an activation has a MiB

CASES = {
    "relu": lambda depth: (deep(depth, nn.ReLU, xinit.xavier_normal(), WIDTH), batch(ROWS, WIDTH)),
    "tanh": lambda depth: (deep(depth, nn.Tanh, xinit.xavier_normal(), WIDTH), batch(ROWS, WIDTH)),
    "bfloat16": lambda depth: (
        deep(depth, nn.Tanh, xinit.xavier_normal(), WIDTH).bfloat16(),
        batch(ROWS, WIDTH).bfloat16(),
    ),
    "residual": lambda depth: (Transformer(depth), tokens(16, 64)),
}


@pytest.mark.parametrize("name", CASES)
def test_memory_grows_by_a_few_numbers_a_layer(name):
    shallow, deeper = (beyond(*CASES[name](depth)) for depth in (3, 9))
    assert shallow < 8192
    assert deeper - shallow < 6 * (8 if name == "residual" else 1) * 256  # layers of a block; bytes


def test_memory_of_a_forward_pass_alone():
    """Where no activation is kept for a backward pass, what is looked at is looked at in parts."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Tanh(), nn.Conv2d(16, 16, 3), nn.ReLU()
    )
    x = image(64, 3, 8)

    def forward():
        with torch.no_grad():
            model(x)

    assert peak(lambda: xinit.diagnose(model, x, backward=False)) - peak(forward) < 8192


@pytest.mark.slow
def test_time_beside_a_pass_of_gpt2_small():
    """Of runs in turn, the least of each: at most thrice."""
    model, x = gpt2(n_embd=768, n_head=12, vocab_size=50257), tokens(2, 128)
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    taken = {"plain": [], "diagnose": []}
    for _ in range(4):
        for name, call in (("plain", lambda: plain(model, x)), ("diagnose", lambda: xinit.diagnose(model, x))):
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    ratio = min(taken["diagnose"]) / min(taken["plain"])
    assert ratio < 3, f"{ratio:.2f} times a forward and backward pass"
    print(f"{ratio:.2f} times a forward and backward pass")
