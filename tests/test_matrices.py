"""Orthogonal, sparse and identity matrices: what they are, and that a part is a part of the whole."""

import math
from functools import partial
from itertools import product

import pytest
import torch
from conftest import DTYPES, KEY, bits, dtypes, same
from test_subclasses import Wrapper
from torch import nn
from torch.nn import init

import xinit
from xinit import Window, parallel
from xinit.constants import constant_
from xinit.distributions import FLOAT8

# Each as (function, distribution, a shape).
MATRICES = {
    "orthogonal, tall": (partial(xinit.orthogonal_, gain=0.5), xinit.orthogonal(0.5), (20, 9)),
    "orthogonal, wide": (xinit.orthogonal_, xinit.orthogonal(), (6, 2, 3, 3)),
    "delta_orthogonal": (partial(xinit.delta_orthogonal_, gain=2), xinit.delta_orthogonal(2), (8, 5, 3, 4)),
    "sparse": (partial(xinit.sparse_, sparsity=0.3, std=0.5), xinit.sparse(0.3, 0.5), (13, 7)),
}
CONSTANTS = {
    "identity": (lambda tensor, key=None, window=None: xinit.eye_(tensor, window=window), xinit.identity(), (5, 9)),
    "dirac": (
        lambda tensor, key=None, window=None: xinit.dirac_(tensor, 2, window=window),
        xinit.dirac(2),
        (6, 2, 3, 4),
    ),
}
ALL = MATRICES | CONSTANTS
matrices = pytest.mark.parametrize(("fill", "distribution", "shape"), MATRICES.values(), ids=MATRICES)
every = pytest.mark.parametrize(("fill", "distribution", "shape"), ALL.values(), ids=ALL)


# ---- what they are ----


@dtypes
@pytest.mark.parametrize("gain", [1, 0.25, -2.0])
@pytest.mark.parametrize("shape", [(16, 16), (40, 8), (3, 50), (1, 1), (1, 7), (7, 1), (12, 4, 3, 3), (4, 2, 3, 3, 2)])
def test_the_shorter_side_is_orthonormal(shape, gain, dtype):
    matrix = xinit.orthogonal_(torch.empty(shape, dtype=dtype), gain, key=KEY).double().flatten(1)
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 3e-6, torch.float64: 1e-12}[dtype]
    assert (gram - gain**2 * torch.eye(len(gram), dtype=torch.float64)).abs().max() <= gain**2 * tolerance


def test_orthogonal_is_uniform():
    """Haar's measure: the trace has mean 0 and variance 1, and the determinant either sign; without the signs' correction, the
    mean is below -1. 4000 draws, thresholds at 4 standard errors."""
    draws = [xinit.orthogonal_(torch.empty(3, 3), key=KEY.fold_in(i)) for i in range(4000)]
    traces = torch.stack([draw.trace() for draw in draws]).double()
    assert abs(traces.mean()) < 4 / math.sqrt(4000)
    assert abs(traces.var() - 1) < 4 * math.sqrt(2 / 4000)  # a little less than a normal's kurtosis
    positive = sum(float(torch.linalg.det(draw)) > 0 for draw in draws)
    assert abs(positive - 2000) < 4 * math.sqrt(1000)


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@every
def test_half_precision_is_float32_rounded(fill, distribution, shape, dtype):
    assert same(fill(torch.empty(shape, dtype=dtype), key=KEY), fill(torch.empty(shape), key=KEY).to(dtype))


def test_float64_is_of_the_same_draws():
    single, double = (xinit.orthogonal_(torch.empty(30, 20, dtype=dtype), key=KEY) for dtype in DTYPES[:2])
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)
    assert not torch.equal(single.double(), double)


@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 4, 3, 5), (6, 6, 2, 4, 1)])
def test_delta_orthogonal_keeps_norms(shape):
    weight = xinit.delta_orthogonal_(torch.full(shape, 7.0), 3, key=KEY)
    centre = weight[(slice(None), slice(None), *(size // 2 for size in shape[2:]))]
    torch.testing.assert_close(centre.T @ centre, 9 * torch.eye(shape[1]))
    assert weight.count_nonzero() == centre.count_nonzero() == shape[0] * shape[1]
    assert weight.square().mean().sqrt().item() == pytest.approx(xinit.delta_orthogonal(3).resolve(shape).std, rel=1e-5)


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.5, 0.9, 1])
def test_sparse(sparsity):
    rows, columns = 40, 300
    found = xinit.sparse_(torch.empty(rows, columns), sparsity, std=2.0, key=KEY)
    kept = found != 0
    zeros = math.ceil(sparsity * rows)
    assert (kept.sum(0) == rows - zeros).all()
    assert same(found, xinit.normal_(torch.empty(rows, columns), std=2.0, key=KEY) * kept + 0.0)
    # Each row as often as any other: 5 standard errors.
    share = zeros / rows
    assert ((~kept).double().mean(1) - share).abs().max() <= 5 * math.sqrt(share * (1 - share) / columns)
    assert len({tuple(column.tolist()) for column in kept.T}) > 290 or sparsity in (0, 1)


@pytest.mark.parametrize("distribution", [xinit.orthogonal(2), xinit.sparse(0.4, 0.3)])
@pytest.mark.parametrize("shape", [(400, 100), (100, 400)])
def test_std_is_that_of_the_entries(distribution, shape):
    weight = torch.empty(shape)
    xinit.fill_many_([weight], [distribution], [KEY])
    assert weight.square().mean().sqrt().item() == pytest.approx(distribution.resolve(shape).std, rel=0.02)


@pytest.mark.parametrize("shape", [(3, 6), (6, 3), (4, 4), (0, 3), (3, 0), (1, 1)])
def test_eye_is_torchs(shape):
    for dtype in *DTYPES, torch.int64, torch.complex64, torch.bool:
        ours, theirs = (library.eye_(torch.ones(shape, dtype=dtype)) for library in (xinit, init))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "shape", [(4, 4, 3), (6, 2, 3), (6, 3, 1), (2, 5, 4), (6, 2, 3, 2), (4, 4, 3, 3, 3), (6, 0, 3)]
)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_dirac_is_torchs(shape, groups):
    if shape[0] % groups == 0:
        assert torch.equal(*(library.dirac_(torch.full(shape, 7.0), groups) for library in (xinit, init)))


# ---- the whole, and its parts ----


@every
@dtypes
def test_a_window_is_a_slice_of_the_whole(fill, distribution, shape, dtype):
    whole = fill(torch.empty(shape, dtype=dtype), key=KEY)
    for start in product(*(range(0, size, 2) for size in shape)):
        where = tuple(slice(at, at + 3) for at in start)
        for part in (torch.full_like(whole[where], 7.0), torch.full(whole.shape, 7.0, dtype=dtype)[where]):
            assert fill(part, key=KEY, window=Window(shape, start)) is part
            assert same(part, whole[where])


@every
def test_memory_layout_and_threads_do_not_matter(fill, distribution, shape, threads):
    big = tuple(8 * size for size in shape[:2]) + shape[2:] if distribution.name != "dirac" else shape
    threads(1)
    expected = fill(torch.empty(big), key=KEY)
    threads(2)
    assert same(fill(torch.empty(big), key=KEY), expected)
    assert torch.get_num_threads() == 2
    assert same(fill(torch.empty(big[::-1]).permute(*reversed(range(len(big)))), key=KEY), expected)
    spread = torch.full((*big, 2), 7.0)
    fill(spread[..., 1], key=KEY)
    assert same(spread[..., 1].contiguous(), expected)
    assert (spread[..., 0] == 7).all()


@every
def test_functions_distributions_and_models_agree(fill, distribution, shape):
    expected = fill(torch.empty(shape), key=KEY.fold_in("weight"))
    many = torch.empty(shape), torch.empty(4), torch.empty(shape)
    keys = KEY.fold_in("weight"), KEY, KEY.fold_in("weight")
    xinit.fill_many_(many, [distribution, xinit.ones(), distribution], keys)
    assert same(many[0], expected)
    assert same(many[2], expected)
    assert (many[1] == 1).all()

    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(shape))
    model.other = nn.Parameter(torch.empty(3, 2))
    version = model.weight._version
    xinit.init_(model, {"weight": distribution, "*": xinit.normal()}, KEY, progress=True)
    assert same(model.weight.detach(), expected)
    assert model.weight._version > version
    row, _ = xinit.plan(model, {"weight": distribution, "*": xinit.normal()}).rows
    assert row.method.startswith(distribution.name)
    assert row.std == distribution.resolve(shape).std


@pytest.mark.parametrize("library", [init, xinit])
@pytest.mark.parametrize("shape", [(96, 64), (20, 30)])
def test_deferred_is_the_distribution(library, shape, threads):
    """Recorded and done again, torch's own and xinit's have the bits that a recipe gives them."""
    threads(2)
    with xinit.deferred():
        model = nn.Linear(*shape[::-1], bias=False)
        library.orthogonal_(model.weight, 2.0)
    xinit.materialize_(model, key=KEY)
    expected = xinit.init_(nn.Linear(*shape[::-1], bias=False), {"weight": xinit.orthogonal(2.0)}, KEY)
    assert same(model.weight.detach(), expected.weight.detach())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@matrices
def test_deferred_in_every_dtype(fill, distribution, shape, dtype):
    with xinit.deferred():
        model = nn.Module()
        model.weight = nn.Parameter(torch.empty(shape, dtype=dtype))
        fill(model.weight)
    xinit.materialize_(model, key=KEY)
    assert same(model.weight.detach(), fill(torch.empty(shape, dtype=dtype), key=KEY.fold_in("weight")))


def test_blocks_are_matrices_of_their_own():
    fused = xinit.blocks("qkv", {name: (6, xinit.orthogonal()) for name in "qkv"})
    model = nn.ModuleDict({"qkv": nn.Linear(6, 18, bias=False)})
    xinit.init_(model, {"*": fused}, KEY)
    for part, name in zip(model["qkv"].weight.detach().chunk(3), "qkv", strict=True):
        assert same(part, xinit.orthogonal_(torch.empty(6, 6), key=KEY.fold_in(f"{name}.weight")))


@every
def test_layouts_cut_and_flatten_the_whole(fill, distribution, shape):
    whole = fill(torch.empty(shape), key=KEY.fold_in("w"))
    layout = parallel.parameter("w", shape, distribution)
    for axis in range(2):
        sizes = [2 * i + 1 for i in range(shape[axis]) if (2 * i + 1) <= shape[axis]]
        part = layout.narrow(axis, 1, sizes[-1] - 1)
        assert same(part.fill_(torch.empty(part.shape), KEY), whole.narrow(axis, 1, sizes[-1] - 1))
    flat = layout.flatten().pad(0, 7)
    shards = [torch.empty(flat.shape[0] // 7) for _ in range(7)]
    parallel.fill_layouts_(shards, [flat.shard(0, rank, 7) for rank in range(7)], KEY)
    assert same(torch.cat(shards)[: whole.numel()], whole.flatten())
    stacked = parallel.stack([layout, parallel.parameter("v", shape, distribution)]).fill_(torch.empty(2, *shape), KEY)
    assert same(stacked[0], whole)


# ---- generators, keys, errors ----


@matrices
def test_generators(fill, distribution, shape):
    generator = torch.Generator().manual_seed(5)
    first, second = (fill(torch.empty(shape), generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    assert same(fill(torch.empty(shape), generator=torch.Generator().manual_seed(5)), first)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        assert same(fill(torch.empty(shape)), first)
    # A part takes the same from the generator as the whole, also one without elements.
    for stop in (2, 0):
        other = torch.Generator().manual_seed(5)
        part = fill(torch.empty(stop, *shape[1:]), generator=other, window=Window(shape, (0,) * len(shape)))
        assert same(part, first[:stop])
        assert same(fill(torch.empty(shape), generator=other), second)


@every
def test_leaves_and_meta_and_nothing(fill, distribution, shape):
    leaf = torch.empty(shape, requires_grad=True)
    version = leaf._version
    assert fill(leaf) is leaf
    assert leaf.is_leaf
    assert leaf.grad_fn is None
    assert leaf._version > version
    state = torch.get_rng_state()
    assert fill(torch.empty(shape, device="meta")).is_meta
    assert fill(torch.empty(*shape[:-1], 0)).numel() == 0
    assert torch.equal(torch.get_rng_state(), state)


REFUSED = {
    "no tensor": (lambda fill, shape: fill(3), TypeError, "must be a torch.Tensor, but found int"),
    "one dimension": (lambda fill, shape: fill(torch.ones(5)), ValueError, "Only tensors with"),
    "a window of another rank": (
        lambda fill, shape: fill(torch.ones(shape), window=Window((9,), (0,))),
        ValueError,
        "window has 1 dimensions",
    ),
    "a window outside": (
        lambda fill, shape: fill(torch.ones(shape), window=Window(shape, (1,) + (0,) * (len(shape) - 1))),
        ValueError,
        "outside its global shape's .* in dimension 0",
    ),
    "no window": (lambda fill, shape: fill(torch.ones(shape), window=3), TypeError, "window must be"),
    "overlap": (
        lambda fill, shape: fill(torch.ones(shape[:-1]).unsqueeze(-1).expand(shape)),
        RuntimeError,
        "single memory location|overlap",
    ),
}
REFUSED_DRAWING = {
    "key and generator": (
        lambda fill, shape: fill(torch.ones(shape), key=KEY, generator=torch.Generator()),
        ValueError,
        "exclude each other",
    ),
    "no key": (lambda fill, shape: fill(torch.ones(shape), key=3), TypeError, "key must be an xinit.Key"),
    "no generator": (lambda fill, shape: fill(torch.ones(shape), generator=3), TypeError, "generator must be"),
    "integers": (lambda fill, shape: fill(torch.ones(shape, dtype=torch.int32)), NotImplementedError, "torch.int32"),
}


@every
@pytest.mark.parametrize(("call", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(fill, distribution, shape, call, kind, message):
    if shape[-1] == 1 or (distribution.name == "orthogonal" and message == "Only tensors with 2 d"):
        return
    state = torch.get_rng_state()
    with pytest.raises(kind, match=message):
        call(fill, shape)
    assert torch.equal(torch.get_rng_state(), state)


@matrices
@pytest.mark.parametrize(("call", "kind", "message"), REFUSED_DRAWING.values(), ids=REFUSED_DRAWING)
def test_refused_by_what_draws(fill, distribution, shape, call, kind, message):
    state = torch.get_rng_state()
    with pytest.raises(kind, match=message):
        call(fill, shape)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda w: xinit.orthogonal_(w, math.nan), ValueError, "gain must be finite"),
        (lambda w: xinit.orthogonal_(w, "1"), TypeError, "gain must be a number"),
        (lambda w: xinit.orthogonal_(w.half(), 1e6), RuntimeError, "gain is out of bounds for torch.float16"),
        (lambda w: xinit.sparse_(w, 1.5), ValueError, r"sparsity must be in \[0, 1\]"),
        (lambda w: xinit.sparse_(w, 0.5, -1.0), RuntimeError, "std >= 0"),
        (lambda w: xinit.delta_orthogonal_(w[..., None]), ValueError, "at least as many output as input"),
        (lambda w: xinit.dirac_(w[..., None], 3), ValueError, "dim 0 must be divisible by groups"),
        (lambda w: xinit.eye_(w[..., None]), ValueError, "Only tensors with 2 dimensions"),
        (lambda w: xinit.dirac(True), TypeError, "groups must be an int"),
        (lambda w: xinit.orthogonal().std, ValueError, "resolve it first"),
        (lambda w: constant_(3, 3), TypeError, "must be a torch.Tensor"),
    ],
)
def test_arguments(call, kind, message):
    weight = torch.full((4, 8), 7.0)
    with pytest.raises(kind, match=message):
        call(weight)
    assert (weight == 7).all()


@pytest.mark.parametrize(
    "factory", [xinit.orthogonal, xinit.sparse, xinit.identity, xinit.dirac, xinit.delta_orthogonal]
)
def test_factories_take_no_tensor(factory):
    with pytest.raises(TypeError):
        factory(torch.empty(3, 3))


def test_an_error_leaves_all_tensors_as_they_were():
    tensors = torch.full((4, 4), 7.0), torch.full((3,), 7.0)
    for distributions in (
        (xinit.orthogonal(), xinit.identity()),
        (xinit.orthogonal(), xinit.Distribution("uniform", (2.0, 1.0))),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            xinit.fill_many_(tensors, distributions, [KEY, KEY])
        assert all((tensor == 7).all() for tensor in tensors)
    with pytest.raises(ValueError, match=r"(?s)bias \(4,\): Only tensors with 2 or more dimensions"):
        xinit.init_(nn.Linear(4, 4), {"*": xinit.orthogonal()}, KEY)


@matrices
@pytest.mark.parametrize("keyed", [False, True])
def test_compiled(fill, distribution, shape, keyed, one_thread):
    def call(tensor):
        return fill(tensor, key=KEY) if keyed else fill(tensor)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        expected = call(torch.empty(shape))
        torch.manual_seed(1)
        found = torch.compile(call, backend="aot_eager", fullgraph=True)(torch.empty(shape))
    assert torch.equal(bits(found), bits(expected))


@matrices
@pytest.mark.parametrize("keyed", [False, True])
def test_ensembles(fill, distribution, shape, keyed):
    """vmap: members differ or not, as they do for what is drawn by any other function; each is what it should be."""

    def member(tensor):
        return fill(tensor, key=KEY) if keyed else fill(tensor)

    for randomness in "different", "same":
        found = torch.vmap(member, randomness=randomness)(torch.full((3, *shape), 7.0))
        assert torch.equal(found[0], found[1]) == (randomness == "same")
        expected = fill(torch.empty(shape), key=KEY)
        for each in found:
            if distribution.name != "sparse":
                torch.testing.assert_close(each.norm(), expected.norm())
            assert torch.equal(each.count_nonzero(), expected.count_nonzero())


@pytest.mark.parametrize(
    "fill",
    [
        partial(xinit.constant_, val=0.5),
        xinit.ones_,
        xinit.zeros_,
        xinit.eye_,
        xinit.orthogonal_,
        partial(xinit.sparse_, sparsity=0.5),
        lambda w: xinit.dirac_(w.unsqueeze(-1).clone()),
    ],
)
def test_what_is_computed_from_parameters_would_lose_it(fill):
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match="computed from parameters"):
        fill(layer.weight)
    assert fill(layer.weight.detach().clone()) is not None


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.complex32], ids=str)
def test_complex(dtype):
    """Orthogonal is unitary, of entries that are as much imaginary as real."""
    tolerance = {torch.complex64: 3e-6, torch.complex128: 1e-12, torch.complex32: 3e-3}[dtype]
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(40, 20, dtype=dtype))
    xinit.init_(model, {"weight": xinit.orthogonal(2)}, KEY)
    expected = xinit.orthogonal_(torch.empty(40, 20, dtype=dtype), 2, key=KEY.fold_in("weight"))
    assert same(*(torch.view_as_real(weight) for weight in (model.weight.detach(), expected)))
    found = expected.to(torch.complex128)
    assert (found.mH @ found - 4 * torch.eye(20)).abs().max() < 4 * tolerance
    assert found.real.square().mean().item() == pytest.approx(found.imag.square().mean().item(), rel=0.3)
    mask = xinit.sparse_(torch.empty(40, 20, dtype=dtype), 0.5, key=KEY).to(torch.complex64) == 0
    assert torch.equal(mask, xinit.sparse_(torch.empty(40, 20), 0.5, key=KEY) == 0)


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
@every
def test_float8_is_float32_rounded(fill, distribution, shape, dtype):
    found, expected = fill(torch.empty(shape, dtype=dtype), key=KEY), fill(torch.empty(shape), key=KEY)
    assert torch.equal(found.float(), expected.to(dtype).float())


@every
def test_wrappers_are_filled_through_what_they_hold(fill, distribution, shape):
    wrapper = Wrapper(torch.full(shape, 7.0))
    assert fill(wrapper, key=KEY) is wrapper
    assert same(wrapper._tensor, fill(torch.empty(shape), key=KEY))
    other = Wrapper(torch.full(shape, 7.0), torch.ones(()))
    with pytest.raises(NotImplementedError, match="_tensor and _scale"):
        fill(other, key=KEY)
    assert (other._tensor == 7).all()
    for constant in xinit.ones_, xinit.zeros_, partial(constant_, val=3):
        constant(wrapper)
        assert (wrapper._tensor == constant(torch.empty(()))).all()
