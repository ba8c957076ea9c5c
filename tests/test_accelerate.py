"""Within accelerate(), draws are xinit's; everything else, everywhere else and afterwards, is torch's."""

import threading
from functools import partial
from math import sqrt

import pytest
import torch
from agreement import MODULES, agree, eager, outputs_agree, private_trunc_normal_
from conftest import dtypes, same
from torch import nn
from torch.nn import init
from torch.nn.init import trunc_normal_ as imported_trunc_normal_

import xinit

SHAPE = (37, 53)


def empty(dtype=torch.float32):
    return torch.empty(SHAPE, dtype=dtype)


# The same draw as a model's code has it and as xinit has it; both take the default generator, or the one given.
DRAWS = {
    "Tensor.normal_": (lambda t, **g: empty(t).normal_(1, 2, **g), lambda t, **g: xinit.normal_(empty(t), 1, 2, **g)),
    "Tensor.normal_()": (lambda t, **g: empty(t).normal_(**g), lambda t, **g: xinit.normal_(empty(t), **g)),
    "Tensor.normal_(std)": (
        lambda t, **g: empty(t).normal_(std=3, **g),
        lambda t, **g: xinit.normal_(empty(t), 0, 3, **g),
    ),
    "Tensor.uniform_": (lambda t, **g: empty(t).uniform_(**g), lambda t, **g: xinit.uniform_(empty(t), **g)),
    "Tensor.uniform_(-1)": (
        lambda t, **g: empty(t).uniform_(-1, **g),
        lambda t, **g: xinit.uniform_(empty(t), -1, **g),
    ),
    "aten.uniform_": (
        lambda t, **g: torch.ops.aten.uniform_(empty(t), to=3.0, **g),
        lambda t, **g: xinit.uniform_(empty(t), 0, 3, **g),
    ),
    "randn": (lambda t, **g: torch.randn(SHAPE, dtype=t, **g), lambda t, **g: xinit.normal_(empty(t), **g)),
    "rand": (lambda t, **g: torch.rand(SHAPE, dtype=t, **g), lambda t, **g: xinit.uniform_(empty(t), **g)),
    "randn_like": (lambda t, **g: torch.randn_like(empty(t)), lambda t, **g: xinit.normal_(empty(t))),
    "rand_like": (lambda t, **g: torch.rand_like(empty(), dtype=t), lambda t, **g: xinit.uniform_(empty(t))),
    "normal": (
        lambda t, **g: torch.normal(1.0, 2.0, SHAPE, dtype=t, **g),
        lambda t, **g: xinit.normal_(empty(t), 1, 2, **g),
    ),
    "transposed": (
        lambda t, **g: empty(t).t().normal_(**g).t(),
        lambda t, **g: xinit.normal_(empty(t).t(), **g).t(),
    ),
    "init.uniform_": (
        lambda t, **g: init.uniform_(empty(t), -2, 3, **g),
        lambda t, **g: xinit.uniform_(empty(t), -2, 3, **g),
    ),
    "init.kaiming_normal_": (
        lambda t, **g: init.kaiming_normal_(empty(t), **g),
        lambda t, **g: xinit.normal_(empty(t), 0, sqrt(2) / sqrt(53), **g),
    ),
    "init.trunc_normal_": (
        lambda t, **g: init.trunc_normal_(empty(t), **g),
        lambda t, **g: xinit.trunc_normal_(empty(t), **g),
    ),
    "trunc_normal_, imported": (
        lambda t, **g: imported_trunc_normal_(empty(t), 0, 1, 2, 3, **g),
        lambda t, **g: xinit.trunc_normal_(empty(t), 0, 1, 2, 3, **g),
    ),
}


@dtypes
@pytest.mark.parametrize("draw", DRAWS)
def test_draws_are_xinits(draw, dtype):
    theirs, ours = DRAWS[draw]
    torch.manual_seed(3)
    expected = ours(dtype)
    torch.manual_seed(3)
    with xinit.accelerate():
        drawn = theirs(dtype)
    assert same(drawn, expected)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=_advanced(3))), "the generator moved on by one draw"
    if "like" not in draw:
        with xinit.accelerate():
            drawn = theirs(dtype, generator=torch.Generator().manual_seed(4))
        assert same(drawn, ours(dtype, generator=torch.Generator().manual_seed(4)))


def _advanced(seed):
    generator = torch.Generator().manual_seed(seed)
    xinit.normal_(torch.empty(2), generator=generator)
    return generator


LEFT = {
    "integers": lambda: torch.randint(0, 9, (50,)),
    "random_": lambda: torch.empty(50).random_(),
    "permutation": lambda: torch.randperm(50),
    "bernoulli": lambda: torch.empty(50).bernoulli_(0.3),
    "exponential": lambda: torch.empty(50).exponential_(),
    "dropout": lambda: nn.functional.dropout(torch.ones(50)),
    "tensors as parameters": lambda: torch.normal(torch.zeros(50), torch.ones(50)),
    "to infinity": lambda: torch.empty(50, dtype=torch.float16).normal_(0, 1e6),
}


@pytest.mark.parametrize("draw", LEFT)
def test_what_xinit_does_not_draw_is_left_to_torch(draw):
    torch.manual_seed(5)
    expected = LEFT[draw]()
    torch.manual_seed(5)
    with xinit.accelerate():
        drawn = LEFT[draw]()
    assert torch.equal(drawn, expected)


def test_subclasses_and_other_devices_are_left():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with xinit.accelerate():
        assert torch.empty(3, device="meta").normal_().is_meta
        assert imported_trunc_normal_(torch.empty(3, device="meta")).is_meta
    with FakeTensorMode(), xinit.accelerate():
        assert tuple(torch.randn(3).normal_().shape) == (3,)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.empty(5).normal_(0, -1),
        lambda: torch.empty(5).uniform_(2, 1),
        lambda: torch.empty(1).expand(5).normal_(),
        lambda: torch.randn(-1),
    ],
)
def test_errors_are_torchs(draw):
    with pytest.raises(RuntimeError) as expected:
        draw()
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError) as error, xinit.accelerate():
        draw()
    assert str(error.value) == str(expected.value)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_private_truncated_normal_is_right():
    torch.manual_seed(0)
    with xinit.accelerate():
        drawn = private_trunc_normal_(torch.empty(400, 500), 0.1, 0.02, 0.08, 0.16)
    expected = xinit.trunc_normal_(torch.empty(400, 500), 0.1, 0.02, 0.08, 0.16)
    assert drawn.min() >= 0.08
    assert drawn.max() <= 0.16
    error = expected.std().item() / sqrt(drawn.numel() / 2)
    assert abs(drawn.mean() - expected.mean()) <= 5 * error
    assert abs(drawn.std() - expected.std()) <= 5 * error


def names():
    """The objects behind every name through which a draw can be called."""
    tensor = {name: getattr(torch.Tensor, name) for name in ("normal_", "uniform_", "__init__")}
    return dict(vars(init)) | tensor | {name: getattr(torch, name) for name in ("rand", "randn", "normal", "rand_like")}


def as_before(before):
    after = names()
    assert all(after[name] is before[name] for name in before)
    torch.manual_seed(8)
    first = torch.randn(100)
    expected = torch.empty(100).normal_(generator=torch.Generator().manual_seed(8))
    assert torch.equal(first, expected)
    torch.manual_seed(8)
    with xinit.accelerate():
        assert not torch.equal(torch.randn(100), expected)
    return True


def test_everything_is_as_before():
    before = names()
    assert as_before(before)
    with xinit.accelerate(), xinit.accelerate():
        pass
    assert as_before(before)
    with pytest.raises(KeyError), xinit.accelerate():
        raise KeyError
    assert as_before(before)
    with xinit.accelerate():
        with xinit.accelerate():
            pass
        torch.manual_seed(0)
        assert torch.equal(init.trunc_normal_(torch.empty(50)), xinit_drawn(0))
    assert as_before(before)


def xinit_drawn(seed):
    return xinit.trunc_normal_(torch.empty(50), generator=torch.Generator().manual_seed(seed))


def torch_drawn(seed):
    return init.trunc_normal_(torch.empty(50), generator=torch.Generator().manual_seed(seed))


def test_another_thread_is_not_affected():
    """Two threads whose contexts overlap but do not nest, and a third one without, each at the same steps."""
    expected, before = torch_drawn(1), names()
    steps = threading.Barrier(3, timeout=30)
    results = {}

    def run(name, enter, leave):
        context = xinit.accelerate()
        for step in range(4):
            steps.wait()
            if step == enter:
                context.__enter__()
            if step == leave:
                context.__exit__(None, None, None)
            steps.wait()
            results[name, step] = torch_drawn(1)
            steps.wait()

    threads = [threading.Thread(target=run, args=args) for args in (("a", 0, 2), ("b", 1, 3), ("c", 9, 9))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    inside = {("a", 0), ("a", 1), ("b", 1), ("b", 2)}
    assert len(results) == 12
    for place, drawn in results.items():
        assert torch.equal(drawn, xinit_drawn(1) if place in inside else expected), place
    assert as_before(before)


@pytest.mark.parametrize("model", MODULES)
def test_models_agree_with_the_constructor(model):
    construct, forward = MODULES[model]
    torch.manual_seed(0)
    with xinit.accelerate():
        ours = construct()
    references = eager(construct)
    agree(ours, references)
    outputs_agree(ours, references, forward)


INITS = {
    "uniform_": partial(init.uniform_, a=-1, b=2),
    "normal_": partial(init.normal_, mean=1, std=2),
    "trunc_normal_": partial(init.trunc_normal_, std=0.5, a=-0.4, b=1.5),
    "xavier_uniform_": init.xavier_uniform_,
    "xavier_normal_": init.xavier_normal_,
    "kaiming_uniform_": init.kaiming_uniform_,
    "kaiming_normal_": init.kaiming_normal_,
    "orthogonal_": init.orthogonal_,
    "sparse_": partial(init.sparse_, sparsity=0.3),
    "dirac_": lambda tensor: init.dirac_(tensor.view(20, 15, 2)),
    "eye_": init.eye_,
}


@pytest.mark.parametrize("method", INITS)
def test_torch_nn_init_agrees_with_itself(method):
    def construct():
        model = nn.Linear(30, 20)
        with torch.no_grad():
            INITS[method](model.weight)
        return model

    torch.manual_seed(0)
    with xinit.accelerate():
        ours = construct()
    agree(ours, eager(construct))
