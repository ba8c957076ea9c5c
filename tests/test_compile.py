"""Compiled: the bits, the generator's state and the gradients of eager mode, whatever varies between calls."""

import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import KEY, same
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import xinit
from xinit import Key, Window

SLOW = [pytest.param("inductor", marks=pytest.mark.slow)]  # it runs a C++ compiler
backends = pytest.mark.parametrize("backend", ["aot_eager", *SLOW])


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def agree(step, calls, backend="aot_eager", make=lambda: ()):
    """Each call of the compiled function gives what the eager one does, and leaves tensors and generator as that does."""
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for arguments in calls:
        runs = []
        for f in step, compiled:
            torch.manual_seed(3)
            tensors = make()
            runs.append([f(*tensors, *arguments), *tensors, torch.get_rng_state()])
        assert all(map(same, *runs)), arguments


# ---- what varies ----

NUMBERS = (0, 1, 2, -5, 2**63 - 1, 2**64 - 1)
VARIED = {
    "key": (lambda key: xinit.normal_(torch.empty(4, 5), key=key), [Key(n) for n in NUMBERS]),
    "stream": (lambda key: xinit.normal_(torch.empty(4, 5), key=key), [Key(n, n % 2**64) for n in NUMBERS]),
    "folded": (
        lambda key: xinit.normal_(torch.empty(4, 5), key=key.fold_in("w").fold_in(3)),
        [Key(n) for n in NUMBERS],
    ),
    "number": (lambda n: xinit.normal_(torch.empty(4, 5), key=KEY.fold_in(n).fold_in("w")), [0, 1, 2, 7]),
    "seed": (lambda n: xinit.normal_(torch.empty(4, 5), key=Key(n, n + 1)), [0, 1, 2, 7]),
    "offset": (lambda n: xinit.normal_(torch.empty(4, 5), window=Window((9, 9), (n, 2))), [0, 1, 3, 2]),
    "slope": (lambda a: xinit.kaiming_uniform_(torch.empty(4, 5), a=a), [0.1, 0.2, 0.3, 1, 2]),
    "slope, normal": (lambda a: xinit.kaiming_normal_(torch.empty(4, 5), a), [0.1, 0.2, 1]),
    "gain": (lambda a: xinit.xavier_normal_(torch.empty(4, 5), xinit.calculate_gain("leaky_relu", a)), [0.1, 0.2, 1]),
    "std": (lambda std: xinit.normal_(torch.empty(4, 5), std=std), [0.1, 0.2, 1, 0]),
    "gain of many": (lambda gain: filled_at_once(KEY, distribution=xinit.xavier_normal(gain)), [0.1, 0.2, 1]),
    "std of many": (lambda std: filled_at_once(KEY, distribution=xinit.normal(0.5, std)), [0.1, 0.2, 1, 0]),
    "scale": (lambda scale: xinit.variance_scaling_(torch.empty(4, 5), scale), [0.1, 2.0, 0.0]),
}


@pytest.mark.parametrize("what", VARIED)
def test_arguments_that_vary(what):
    step, values = VARIED[what]
    agree(step, [(value,) for value in values])


def filled_at_once(*folded, distribution=xinit.normal()):  # noqa: B008
    xinit.fill_many_(tensors := [torch.empty(3, 2) for _ in folded], [distribution] * len(folded), folded)
    return torch.stack(tensors)


NAMES = ["", "w", "läyer.0", *(f"layers.{i}.attention.weight"[:i] for i in range(2, 32)), 120 * "w"]
MORE_KEYS = {
    "given": lambda key, n: xinit.normal_(torch.empty(4, 5), key=key),
    "folded": lambda key, n: xinit.normal_(torch.empty(4, 5), key=key.fold_in("w").fold_in(n).fold_in("läyer.0")),
    "names": lambda key, n: torch.stack([xinit.normal_(torch.empty(2), key=key.fold_in(name)) for name in NAMES]),
    "fill_many_": lambda key, n: filled_at_once(key, key.fold_in("w"), key.fold_in("w").fold_in(n)),
    "orthogonal_": lambda key, n: xinit.orthogonal_(torch.empty(4, 4), key=key.fold_in(n)),
}


@pytest.mark.parametrize("what", MORE_KEYS)
def test_more_keys_than_recompilations(what):
    """Folded within, each key compiled the function anew, up to torch's recompile_limit, of 8."""
    keys = [Key(n) for n in NUMBERS] + [KEY.fold_in(n) for n in range(20)]
    agree(MORE_KEYS[what], [(key, n) for n, key in enumerate(keys)])


def test_a_key_that_is_folded_within_and_returned():
    def step(key):
        return key.fold_in("w").fold_in(3), key == Key(1) and key.fold_in("w").stream, torch.zeros(())

    for key in Key(0), Key(1), KEY:
        found, expected = torch.compile(step, fullgraph=True, backend="aot_eager")(key), step(key)
        assert found == expected
        assert expected[0] == found[0]
        assert hash(found[0]) == hash(expected[0])
        assert repr(found[0]) == repr(expected[0])
        assert found[0].fold_in("x") == expected[0].fold_in("x")
        assert pickle.loads(pickle.dumps(found[0])) == expected[0]
        assert same(xinit.normal_(torch.empty(3), key=found[0]), xinit.normal_(torch.empty(3), key=expected[0]))


def test_errors_are_those_of_eager():
    for slope in (float("nan"), float("inf"), True, "0.1"):
        with pytest.raises(ValueError, match="not a valid number"):
            xinit.calculate_gain("leaky_relu", slope)


# ---- gradients ----


def draws(x):
    w = xinit.kaiming_normal_(torch.empty(4, 4))
    return (x * xinit.uniform_(torch.empty_like(x)) @ w).sin()


def gradient(step, compile):
    def loss(x):
        return checkpoint(step, x, use_reentrant=False).sum()

    torch.manual_seed(0)
    x = torch.arange(16.0).view(4, 4).requires_grad_()
    compile(loss)(x).backward()
    return x.grad, torch.get_rng_state()


@backends
def test_recomputation_draws_the_same(backend):
    """Compiled, a checkpointed draw without a key was recomputed with other numbers: gradients were wrong."""
    expected, state = gradient(draws, lambda f: f)
    found, after = gradient(draws, lambda f: torch.compile(f, fullgraph=True, backend=backend))
    torch.testing.assert_close(found, expected)  # Inductor has a sine and a cosine of its own
    assert same(after, state)


def is_random(op):
    return torch.Tag.nondeterministic_seeded in op.tags


def is_fill(op):
    return "xinit" in str(op)


@pytest.mark.parametrize("saved", [is_random, is_fill])
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_what_is_saved_of_a_checkpointed_region_is_not_lost(backend, saved):
    """A policy that saves random operators left a fill out of the recomputation: its memory held what it had held before."""

    def policy(context, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if saved(op) else CheckpointPolicy.PREFER_RECOMPUTE

    def step(x):
        bias = torch.empty(4)
        xinit.fill_many_([bias], [xinit.normal()], [Key(1)])
        return draws(x * torch.rand_like(x)) + (x * bias).cos() if saved is is_random else draws(x) + (x * bias).cos()

    def gradient(compile, **options):
        torch.manual_seed(0)
        x = torch.arange(16.0).view(4, 4).requires_grad_()
        compile(lambda x: checkpoint(step, x, use_reentrant=False, **options).sum())(x).backward()
        return x.grad

    compile = partial(torch.compile, fullgraph=True, backend=backend) if backend else lambda f: f
    found = gradient(compile, context_fn=partial(create_selective_checkpoint_contexts, policy))
    torch.testing.assert_close(found, gradient(lambda f: f))


def graphs(step, *inputs):
    """The code of the graphs that torch compiles."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    seen = []

    def keep(module, _):
        seen.append(module.code)
        return make_boxed_func(module.forward)

    torch.compile(step, fullgraph=True, backend=aot_autograd(fw_compiler=keep))(*inputs)
    return "".join(seen)


def test_graphs_hold_the_twins():
    """Not auto_functionalized, which hides an op's tag."""

    def step(x):
        xinit.fill_many_([x], [xinit.normal()], [Key(1)])
        return x + draws(x)

    code = graphs(step, torch.zeros(4, 4))
    assert "auto_functionalized" not in code
    assert all(f"xinit.{name}.default" in code for name in ("uniform", "kaiming_normal", "fill_many"))


def test_parameters_are_filled_as_under_no_grad():
    def step(w, x):
        xinit.xavier_normal_(w)
        return (w * x).sum()

    grads = []
    for f in step, torch.compile(step, fullgraph=True, backend="aot_eager"):
        torch.manual_seed(1)
        w = torch.nn.Parameter(torch.zeros(3, 4))
        f(w, torch.ones(3, 4)).backward()
        assert w.is_leaf
        grads.append((w.grad, w.detach()))
    assert all(map(same, *grads))


def test_views_are_filled_in_place():
    def step(x, y):
        xinit.normal_(x[1:, ::2], key=KEY)
        xinit.uniform_(y.t()[2:])
        return x + 1

    agree(step, [()], make=lambda: (torch.zeros(4, 5), torch.zeros(3, 6)))


@backends
@pytest.mark.parametrize("mode", ["same", "different"])
def test_vmap_compiled(backend, mode):
    def step(x):
        return torch.vmap(lambda row: xinit.kaiming_uniform_(row.new_empty(4, 6)) + row.sum(), randomness=mode)(x)

    agree(step, [(torch.ones(3, 2),)], backend)


# ---- sharded ----

SHARDED = """
import torch, xinit, warnings
from torch.distributed import init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

init_process_group("fake", rank=1, world_size=4, store=FakeStore())
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))

def step(d):
    y = d + 1
    xinit.kaiming_normal_(d)
    z = y + 2 * d
    xinit.fill_many_([d], [xinit.xavier_uniform()], [xinit.Key(5)])
    return z + 3 * d

for placements in [Shard(0), Shard(0)], [_StridedShard(0, split_factor=2), Shard(0)]:
    runs = []
    for f in step, torch.compile(step, backend="aot_eager"):
        torch.manual_seed(0)
        d = DTensor.from_local(torch.zeros(3, 6), mesh, placements, run_check=False, shape=(12, 6), stride=(6, 1))
        runs.append([f(d).to_local(), d.to_local(), torch.get_rng_state()])
    assert all(map(torch.equal, *runs)), placements
torch._dynamo.reset()
try:
    torch.compile(step, backend="aot_eager", fullgraph=True)(d)
except torch._dynamo.exc.Unsupported as error:
    assert "when xinit fills its local tensor" in str(error)
else:
    raise AssertionError("compiled")
"""


def test_sharded_tensors_are_filled_outside_the_graph():
    """Also those of FSDP2 over tensor parallelism, on which the compiler itself failed."""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", SHARDED], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_importing_xinit_does_not_import_the_compiler():
    code = "import sys, xinit; assert 'torch._dynamo' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
