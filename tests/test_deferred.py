"""Models built within deferred() and drawn by materialize_(), against their own constructors and against the keys' own bits."""

import copy
import gc
import pickle
import threading
from contextlib import nullcontext
from functools import partial
from math import sqrt

import pytest
import torch
from agreement import MODULES, agree, eager, images, outputs_agree, private_trunc_normal_, vectors
from conftest import KEY, dtypes, output, run_python, same
from torch import nn
from torch.nn import init
from torch.nn.utils import parametrizations

import xinit
from xinit import Window, parallel

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(build, key=KEY, **options):
    with xinit.deferred():
        model = build()
    assert {p.device.type for p in model.parameters()} <= {"meta"}
    return xinit.materialize_(model, key=key, **options)


def named(name, shape=(), fill=xinit.normal_, *parameters, dtype=torch.float32, key=KEY):
    """What a parameter of that name gets."""
    return fill(torch.empty(shape, dtype=dtype), *parameters, key=key.fold_in(name))


class Holder(nn.Module):
    """A module with the parameters that a function makes."""

    def __init__(self, make):
        super().__init__()
        for name, value in make().items():
            setattr(self, name, value)


def hold(make):
    return lambda: Holder(make)


class Encoder(nn.Module):
    """A template that is copied, and not kept."""

    def __init__(self):
        super().__init__()
        template = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(template, 3, enable_nested_tensor=False)

    def forward(self, x):
        return self.encoder(x)


class Vision(nn.Module):
    """Parameters made of draws, and tables of data."""

    def __init__(self):
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, 64) * 0.02)
        self.positions = nn.Parameter(torch.zeros(1, 50, 64))
        self.scale = nn.Parameter(1e-4 * torch.ones(64))
        self.steps = nn.Parameter(torch.linspace(0, 1, 30), requires_grad=False)
        self.experts = nn.Parameter(torch.empty(4, 30, 20))
        self.register_buffer("table", torch.arange(12.0).view(3, 4))
        init.trunc_normal_(self.positions, std=0.02)
        for expert in self.experts:
            init.kaiming_uniform_(expert, a=sqrt(5))


def with_weight(fill, shape=(30, 20)):
    def build():
        model = nn.Linear(*reversed(shape))
        with torch.no_grad():
            fill(model.weight)
        return model

    return build


MODELS = MODULES | {
    "vision": (Vision, lambda model: model.cls.flatten() + model.positions[0, :9].flatten()[:64]),
    "private truncated normal": (with_weight(partial(private_trunc_normal_, std=0.1, b=0.05)), vectors),
    "orthogonal_": (with_weight(init.orthogonal_), vectors),
    "orthogonal_, wide": (with_weight(partial(init.orthogonal_, gain=2.0), (20, 30)), vectors),
    "sparse_": (with_weight(partial(init.sparse_, sparsity=0.3)), vectors),
    "eye_": (with_weight(init.eye_), vectors),
    "dirac_": (with_weight(lambda w: init.dirac_(w.view(30, 10, 2), groups=3)), vectors),
    "scaled by hand": (with_weight(lambda w: w.normal_(0, 3).div_(4).sub_(-1).neg_()), vectors),
    "columns by their norms": (with_weight(lambda w: w.normal_().div_(w.norm(dim=0, keepdim=True))), vectors),
    "blocks": (with_weight(lambda w: [init.normal_(part, std=i + 1) for i, part in enumerate(w.chunk(3))]), vectors),
    "every second row": (with_weight(lambda w: w[::2].fill_(0.5)), vectors),
    "transposed": (with_weight(lambda w: init.xavier_normal_(w.t())), vectors),
    "copied from data": (with_weight(lambda w: w.copy_(torch.arange(600.0).view(30, 20) / 600)), vectors),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(20, 30)), lambda model: model(torch.randn(16, 20))),
    "weight_norm of a convolution": (
        lambda: parametrizations.weight_norm(nn.Conv2d(3, 8, 3), dim=1),
        images,
    ),
    "spectral_norm": (
        lambda: parametrizations.spectral_norm(nn.Linear(20, 30)),
        lambda model: model(torch.randn(16, 20)),
    ),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(20, 30)), lambda model: model(torch.randn(16, 20))),
    "orthogonal, square": (
        lambda: parametrizations.orthogonal(nn.Linear(20, 20)),
        lambda model: model(torch.randn(16, 20)),
    ),
    "old spectral_norm": (
        lambda: nn.utils.spectral_norm(nn.Linear(20, 30)),
        lambda model: model(torch.randn(16, 20)),
    ),
}


@pytest.mark.parametrize("model", MODELS)
def test_models_agree_with_the_constructor(model):
    construct, forward = MODELS[model]
    references = eager(construct)
    ours = drawn(construct)
    assert not xinit.audit(ours)
    agree(ours, references)
    outputs_agree(ours, references, forward)


def test_buffers_are_real_and_right_within_the_context():
    with xinit.deferred():
        model = nn.Sequential(nn.BatchNorm1d(5), Vision())
        model.register_buffer("noise", torch.randn(200, 300))
        assert model.noise.std().item() == pytest.approx(1, abs=0.05)
        assert model[1].table.sum() == 66
        assert [buffer.device.type for buffer in model.buffers()] == ["cpu"] * 5
    noise = model.noise.clone()
    xinit.materialize_(model, key=KEY)
    assert torch.equal(model.noise, noise)
    assert torch.equal(model[0].running_var, torch.ones(5))


def test_other_tensors_have_their_values():
    """Of sizes that are put off and that are not."""
    with xinit.deferred():
        for n in (3, 300):
            x = torch.zeros(n, n)
            y = x + 1
            x[1] = 5
            z = torch.empty(n, n).fill_(2)
            w = torch.rand(n, n)
            w.mul_(0).add_(z)
            out = torch.empty(n, n)
            torch.add(y, z, out=out)
            survivor = torch.full((n, n), 7, dtype=torch.int64)
            assert (y.sum(), x.sum(), z.sum(), w.sum(), out.sum()) == (n * n, 5 * n, 2 * n * n, 2 * n * n, 3 * n * n)
            assert torch.ones(n, n).numpy().sum() == n * n
            assert torch.ones(n).tolist() == [1.0] * n
            assert torch.ones(n, n).double().t().reshape(-1).sum() == n * n
    assert (survivor == 7).all()


def test_sparse_tensors_take_what_was_put_off():
    """No history is kept of them."""
    diagonal, n = torch.eye(200).to_sparse(), 200
    with xinit.deferred():
        x, y = torch.ones(n, n), torch.ones(n, n)
        half = y / 2
        assert torch.equal(torch.sparse.mm(diagonal, x), x)
        y.add_(diagonal)
        model = Holder(lambda: {"y": nn.Parameter(y)})
        with pytest.raises(RuntimeError, match=r"aten.add_.Tensor cannot be recorded: it writes to Linear.weight"):
            nn.Linear(n, n).weight.data.add_(diagonal)
    xinit.materialize_(model, key=KEY)
    assert torch.equal(model.y, torch.ones(n, n) + torch.eye(n))
    assert (half == 0.5).all()


def test_small_draws_follow_a_seed_of_their_own():
    """They are done at their line, with the numbers that torch's generator has there."""

    def build():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return Holder(lambda: {"projection": torch.randn(30, 20)})

    with xinit.deferred():
        ours = build()
    assert torch.equal(ours.projection, build().projection)


def test_what_was_put_off_is_done_in_time():
    """Values made of values that change, or become a parameter's, before anyone has looked at them."""
    with xinit.deferred():
        x = torch.zeros(100, 100)
        y = x + 1
        x.fill_(7)
        z = x * 2
        x.uniform_()
        w = -z
        doubled = w.double()
        del z
        assert (y.sum(), w.sum(), doubled.sum()) == (1e4, -14e4, -14e4)
        draw = torch.randn(100, 100)
        twice, thrice = draw * 2, draw * 3
        u = twice.clone()
        assert torch.equal(twice * 1.5, thrice)
        assert torch.equal(u, twice)
        u.numpy()[:] = 0
        assert torch.equal(draw * 2, twice)
        source = torch.randn(100, 100)
        later = source / 4
        model = Holder(lambda: {"w": nn.Parameter(source)})
        model.register_buffer("quarter", later)
        with pytest.raises(RuntimeError, match=r"Holder.w of shape \(100, 100\)"):
            later.sum().item()
    xinit.materialize_(model, key=KEY)
    assert torch.equal(model.quarter, model.w / 4)
    assert torch.equal(model.w, named("w", (100, 100)))


# Bits


def test_each_parameter_is_drawn_by_its_name():
    model = drawn(lambda: nn.ModuleDict({"a": nn.Linear(4, 9), "b": nn.ModuleList([nn.Embedding(7, 5)])}))
    assert torch.equal(model.a.weight, named("a.weight", (9, 4), xinit.uniform_, -0.5, 0.5))
    assert torch.equal(model.a.bias, named("a.bias", (9,), xinit.uniform_, -0.5, 0.5))
    assert torch.equal(model.b[0].weight, named("b.0.weight", (7, 5)))


def test_the_last_draw_counts_and_the_padding_row_stays():
    def build():
        model = nn.Embedding(7, 5, padding_idx=2)
        init.uniform_(model.weight)
        init.normal_(model.weight, std=0.02)
        with torch.no_grad():
            model.weight[model.padding_idx].fill_(0)
        return model

    expected = named("weight", (7, 5), xinit.normal_, 0.0, 0.02)
    expected[2] = 0
    assert torch.equal(drawn(build).weight, expected)


def test_parts_are_windows_of_the_parameter():
    def build():
        model = nn.Linear(8, 6)
        init.normal_(model.weight[:2])
        init.uniform_(model.weight[2:, 3:5], 2, 3)
        init.normal_(model.weight.t()[6:])
        init.normal_(model.weight[:, 5], std=4)
        init.normal_(model.bias.data[1:3], std=9)
        return model

    expected = named("weight", (6, 8), xinit.uniform_, -(8**-0.5), 8**-0.5)
    key = KEY.fold_in("weight")
    xinit.normal_(expected[:2], key=key, window=Window((6, 8), (0, 0)))
    xinit.uniform_(expected[2:, 3:5], 2, 3, key=key, window=Window((6, 8), (2, 3)))
    xinit.normal_(expected[:, 6:], key=key, window=Window((6, 8), (0, 6)))
    xinit.normal_(expected[:, 5:6], 0, 4, key=key, window=Window((6, 8), (0, 5)))
    assert torch.equal(drawn(build).weight, expected)


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        (xinit.xavier_uniform_, xinit.xavier_uniform_),
        (partial(xinit.kaiming_normal_, mode="fan_out"), partial(xinit.kaiming_normal_, mode="fan_out")),
        (partial(xinit.variance_scaling_, mode="fan_avg"), partial(xinit.variance_scaling_, mode="fan_avg")),
        (partial(xinit.trunc_normal_, std=0.3), partial(xinit.trunc_normal_, std=0.3)),
        (partial(init.trunc_normal_, std=0.3, a=0.5, b=0.7), partial(xinit.trunc_normal_, std=0.3, a=0.5, b=0.7)),
        (lambda w: w.normal_().mul_(0.25).add_(1), partial(xinit.normal_, mean=1, std=0.25)),
        (lambda w: w.copy_(torch.rand(30, 20) * 4), partial(xinit.uniform_, a=0, b=4)),
        (lambda w: setattr(w, "data", torch.randn(30, 20) / 8), partial(xinit.normal_, std=1 / 8)),
        (lambda w: setattr(w, "data", init.trunc_normal_(w.data.double()).to(w.dtype)), xinit.trunc_normal_),
    ],
)
def test_what_comes_to_a_fill_is_a_fill(fill, expected):
    assert same(drawn(with_weight(fill)).weight.detach(), expected(torch.empty(30, 20), key=KEY.fold_in("weight")))


def _normal(*shape):
    return torch.empty(shape).normal_(0, 2)


def _uniform(*shape):
    return torch.empty(shape).uniform_(-1, 1)


def _half_of_one(w):
    w[:6].copy_(_normal(12, 4).chunk(2)[1])
    w[6:].copy_(_uniform(6, 4))


def _twice(w):
    part = _normal(6, 4)
    return torch.cat([part, part])


# How a weight comes to its parts, and where the normal ones then are; the rest is uniform.
FUSED = {
    "cat": (lambda w: w.copy_(torch.cat([_normal(8, 4), _uniform(4, 4)])), (slice(8), slice(None))),
    "columns": (lambda w: w.copy_(torch.cat([_normal(12, 1), _uniform(12, 3)], 1)), (slice(None), slice(1))),
    "a stack": (lambda w: w.copy_(torch.stack([_normal(6, 4), _uniform(6, 4)]).view(12, 4)), (slice(6), slice(None))),
    "transposed": (lambda w: w.copy_(torch.cat([_normal(4, 8), _uniform(4, 4)], 1).t()), (slice(8), slice(None))),
    "a chunk": (_half_of_one, slice(6)),
    "one": (lambda w: w.copy_(_normal(4, 12).t()), slice(None)),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_weights_are_drawn_in_boxes(name):
    make, normal = FUSED[name]

    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.empty(12, 4))
            with torch.no_grad():
                make(self.w)
                self.w.mul_(3)

    with xinit.deferred() as plan:
        model = Fused()
    assert "again" not in str(plan)
    expected = named("w", (12, 4), xinit.uniform_, -3.0, 3.0)
    expected[normal] = named("w", (12, 4), xinit.normal_, 0.0, 6.0)[normal]
    assert torch.equal(xinit.materialize_(model, key=KEY).w, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda w: w.copy_(_twice(w)),
        lambda w: (w.normal_(), w[:6].copy_(w[6:])),
        lambda w: (lambda part: (w[:6].copy_(part), w[6:].copy_(part)))(_normal(6, 4)),
    ],
)
def test_parts_that_are_copies_stay_that(make):
    with xinit.deferred():
        model = nn.Module()
        model.w = nn.Parameter(torch.empty(12, 4))
        with torch.no_grad():
            make(model.w)
    weight = xinit.materialize_(model, key=KEY).w
    assert torch.equal(weight[:6], weight[6:])
    assert weight.std() > 0.5


def test_a_private_truncated_normal_is_one():
    """Up to the rounding of the bounds that its operators had."""
    with xinit.deferred() as plan:
        model = with_weight(partial(private_trunc_normal_, mean=0.25, std=0.5, a=-0.5, b=1))()
    assert plan.rows[0].method == "trunc_normal mean 0.25 [-0.5, 1]"
    expected = named("weight", (30, 20), xinit.trunc_normal_, 0.25, 0.5, -0.5, 1.0)
    assert torch.allclose(xinit.materialize_(model, key=KEY).weight, expected, atol=1e-5)


@pytest.mark.parametrize("bound", [5.5, 6.5, 7.5, 8.0, 8.5, 40.0])
def test_bounds_too_far_to_matter_leave_one_fill(bound):
    with xinit.deferred() as plan:
        model = with_weight(partial(private_trunc_normal_, std=0.25, a=-bound * 0.25, b=bound * 0.25))()
    assert plan.rows[0].method.startswith("trunc_normal")
    assert abs(xinit.materialize_(model, key=KEY).weight.std() / 0.25 - 1) < 0.15  # five standard errors of 600


# What is no fill of boxes: done again, and as eagerly.
AGAIN = {
    "the diagonal": lambda w: w.zero_().diagonal().fill_(3),
    "views that overlap": lambda w: w.zero_().view(-1).unfold(0, 4, 1)[3:5].fill_(3),
    "no rows": lambda w: w.fill_(2)[3:3].fill_(3),
    "columns of a flat view": lambda w: w.zero_().view(-1)[5:90].fill_(3),
    "data beside zeros": lambda w: w.copy_(torch.cat([w[:10].zero_(), torch.arange(400.0).view(20, 20)])),
    "half of it scaled": lambda w: w.fill_(1)[:15].mul_(2),
    "clamped ones": lambda w: w.fill_(1).clamp_(max=0.5),
}


@pytest.mark.parametrize("name", AGAIN)
def test_views_and_operators_of_any_kind(name):
    expected = torch.empty(30, 20)
    AGAIN[name](expected)
    assert torch.equal(drawn(with_weight(AGAIN[name])).weight, expected)


@pytest.mark.parametrize("draw", [lambda w: w.normal_(), xinit.trunc_normal_])
def test_what_is_clamped_has_atoms(draw):
    weight = drawn(with_weight(lambda w: draw(w).clamp_(-1, 1))).weight
    assert weight.abs().max() == 1
    assert 100 < (weight.abs() == 1).sum() < 300  # 0.32 of 600 are to be further out


@pytest.mark.parametrize("dim", [0, 1])
def test_rows_of_a_weight_with_a_dimension_of_one(dim):
    def make():
        weight = nn.Parameter(torch.zeros(6, 1, 3).transpose(dim, 1))
        init.normal_(weight.data.narrow(1 - dim, 2, 2))
        return {"w": weight}

    shape, offsets = [(6, 1, 3), (2, 0, 0)] if dim else [(1, 6, 3), (0, 2, 0)]
    expected = torch.zeros(shape)
    xinit.normal_(expected.narrow(1 - dim, 2, 2), key=KEY.fold_in("w"), window=Window(shape, offsets))
    assert torch.equal(drawn(hold(make)).w, expected)


def test_data_is_what_it_was():
    data = torch.arange(600.0).view(30, 20)

    def fill(weight):
        weight.copy_(data)
        data.zero_()

    assert torch.equal(drawn(with_weight(fill)).weight, torch.arange(600.0).view(30, 20))


def test_a_fill_of_a_window_without_a_key_is_that_of_the_window():
    window = Window((60, 20), (30, 0))
    model = drawn(with_weight(partial(xinit.xavier_normal_, window=window)))
    key = KEY.fold_in("weight").fold_in(0)
    assert torch.equal(model.weight, xinit.xavier_normal_(torch.empty(30, 20), window=window, key=key))


def test_a_fill_with_a_key_of_its_own_keeps_it():
    model = drawn(with_weight(partial(xinit.normal_, key=xinit.Key(99))))
    assert torch.equal(model.weight, xinit.normal_(torch.empty(30, 20), key=xinit.Key(99)))


@dtypes
def test_dtypes(dtype):
    """Chosen by the default, within the context, and afterwards."""

    def build(default=torch.float32):
        torch.set_default_dtype(default)
        try:
            return nn.Linear(30, 40)
        finally:
            torch.set_default_dtype(torch.float32)

    expected = named("weight", (40, 30), xinit.uniform_, -(30**-0.5), 30**-0.5, dtype=dtype)
    for model in (drawn(partial(build, dtype)), drawn(lambda: build().to(dtype))):
        assert same(model.weight.detach(), expected)
    with xinit.deferred():
        model = build()
    assert same(xinit.materialize_(model.to(dtype), key=KEY).weight.detach(), expected)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (25, 25)])
def test_orthogonal_is_orthogonal_and_by_name(shape):
    build = with_weight(init.orthogonal_, shape)
    weight = drawn(build).weight.detach()
    short = weight if shape[0] <= shape[1] else weight.t()
    assert torch.allclose(short @ short.t(), torch.eye(len(short)), atol=1e-5)
    assert torch.equal(weight, drawn(build).weight)
    two = drawn(lambda: nn.ModuleDict({"first": build(), "second": build()}))
    assert not torch.equal(two.first.weight, two.second.weight)
    assert not torch.equal(two.first.weight, weight)
    assert torch.equal(two.first.weight, drawn(lambda: nn.ModuleDict({"zero": build(), "first": build()})).first.weight)


def test_replayed_values_belong_together():
    model = drawn(lambda: parametrizations.weight_norm(nn.Linear(20, 30)))
    parts = model.parametrizations.weight
    assert torch.equal(parts.original0, parts.original1.norm(dim=1, keepdim=True))
    bound = 20**-0.5
    name = "parametrizations.weight.original1"
    assert torch.equal(parts.original1, named(name, (30, 20), xinit.uniform_, -bound, bound))
    model = drawn(lambda: parametrizations.spectral_norm(nn.Linear(20, 30)).eval())
    top = torch.linalg.matrix_norm(model.parametrizations.weight.original, 2)
    assert torch.linalg.matrix_norm(model.weight, 2).item() == pytest.approx(1, rel=0.1)
    u, v = model.parametrizations.weight[0]._u, model.parametrizations.weight[0]._v
    assert (u @ model.parametrizations.weight.original @ v / top).item() == pytest.approx(1, rel=0.1)


# What constructors do besides: each a function of the module, and what must hold of it in the end, as it does eagerly


def masked(m):
    m.linear = nn.Linear(8, 8)
    m.register_buffer("mask", (torch.rand(8, 8) > 0.5).float())
    m.linear.weight.data.mul_(m.mask)
    return lambda: torch.equal((m.linear.weight != 0).float(), m.mask) and 10 < m.mask.sum() < 54


def permuted(m):
    m.order = torch.randperm(9)
    m.weight = nn.Parameter(torch.eye(9)[m.order])
    return lambda: torch.equal(m.weight.argmax(1), m.order) and torch.equal(m.order.sort()[0], torch.arange(9))


def mask_alone(m):
    m.linear = nn.Linear(8, 8)
    m.register_buffer("mask", (torch.rand(8, 8) > 0.5).float())
    assert not m.mask.is_meta
    before = m.mask.clone()
    return lambda: torch.equal(m.mask, before)


def complex_numbers(m):
    m.weight = nn.Parameter(0.02 * torch.rand(64, 64, dtype=torch.cfloat))
    m.register_buffer("noise", torch.randn(64, 64, dtype=torch.cfloat))
    return lambda: abs(m.weight.real.mean() - 0.01) < 1e-3 and abs(m.noise.abs().square().mean() - 1) < 0.1


def forward_in_the_constructor(m):
    m.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    x = torch.arange(64.0).sin().view(16, 4)
    m.layers(x)
    return lambda: torch.allclose(m.layers[1].running_mean, 0.1 * m.layers[0](x).mean(0), atol=1e-6)


def norm_of_data(m):
    m.linear, m.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
    m.norm(torch.arange(8.0).view(2, 4))
    return lambda: torch.allclose(m.norm.running_mean, 0.1 * torch.arange(2.0, 6.0))


def listed_rows(m):
    m.linear = nn.Linear(3, 3)
    m.linear.weight.data[[0, 2]] = 5.0
    m.linear.bias.data[[False, True, False]] = 7.0
    return lambda: (m.linear.weight == 5).sum() == 6 and (m.linear.bias == 7).sum() == 1


def other_attributes(m):
    m.linear = nn.Linear(3, 3)
    m.start = m.linear.weight.detach().clone()
    m.state = copy.deepcopy(m.linear.state_dict())
    m.averages = [p.detach().clone() for p in m.linear.parameters()]
    return lambda: all(
        torch.equal(kept, m.linear.weight) for kept in (m.start, m.state["weight"], m.averages[0])
    ) and torch.equal(m.averages[1], m.linear.bias)


def past_the_hook(m):
    m.linear = nn.Linear(3, 3)
    m._parameters["p"] = nn.Parameter(torch.randn(40, 4))
    return lambda: torch.equal(m.p, named("p", (40, 4)))


def set_through_a_parametrization(m):
    m.linear = parametrizations.orthogonal(nn.Linear(4, 4))
    m.linear.weight = torch.eye(4)
    return lambda: torch.allclose(m.linear.weight, torch.eye(4), atol=1e-6)


def drawn_into(m):
    m.linear = nn.Linear(4, 400)
    torch.normal(0.0, 2.0, (400,), out=m.linear.bias.data)
    return lambda: abs(m.linear.bias.std() - 2) < 0.4


def made_to_go_with_it(m):
    m.linear = nn.Linear(3, 3)
    weight = m.linear.weight
    if weight.device.type != "meta" and weight.is_cpu and not weight.is_cuda:
        m.linear.bias.data.fill_(0.5)
    m.indices = torch.arange(3, device=weight.device)
    m.bounds = torch.as_tensor([1.0, 2.0], device=weight.device)
    m.register_buffer("zeros", torch.zeros(2, device=(weight * 2).device))
    m.register_buffer("steps", weight.new_tensor([3, 4]))
    assert m.indices.tolist() == [0, 1, 2]
    assert m.steps.tolist() == [3.0, 4.0]
    return lambda: (m.linear.bias == 0.5).all() and m.bounds.tolist() == [1, 2] and m.zeros.tolist() == [0, 0]


def compared_by_address(m):
    m.one, m.two, m.three = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)
    m.two.weight = m.one.weight
    first, second, third = m.one.weight, m.two.weight, m.three.weight
    same = first.data_ptr() == second.data_ptr(), first.data_ptr() == third.data_ptr()
    distance = first[1:].data_ptr() - first.data_ptr()
    return lambda: same == (True, False) and distance == 12


def sparse(m):
    m.linear = nn.Linear(4, 4)
    m.graph = torch.rand(8, 8).to_sparse()
    return lambda: m.graph.to_dense().max() < 1


@pytest.mark.parametrize(
    "make",
    [
        masked,
        permuted,
        mask_alone,
        complex_numbers,
        forward_in_the_constructor,
        norm_of_data,
        listed_rows,
        other_attributes,
        past_the_hook,
        set_through_a_parametrization,
        drawn_into,
        made_to_go_with_it,
        compared_by_address,
        sparse,
    ],
    ids=lambda make: make.__name__,
)
def test_what_else_constructors_do(make):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.holds = make(self)

    if make is not past_the_hook:
        assert Model().holds()
    model = drawn(Model)
    assert model.holds()
    assert not xinit.audit(model)


def test_a_temporary_parent_gives_no_second_name():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            nn.Sequential(self.linear)

    with xinit.deferred() as plan:
        model = Model()
    assert [row.name for row in plan.rows] == ["linear.weight", "linear.bias"]

    class Without(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.linear.scale = nn.Parameter(torch.ones(2))

        def __len__(self):
            raise TypeError("no length")  # so that it is neither true nor false

    with xinit.deferred() as plan:
        model = Without()  # noqa: F841
    assert [row.name for row in plan.rows] == ["linear.weight", "linear.bias", "linear.scale"]


# Ties, copies, assemblies


def test_ties_stay_ties():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.head = nn.Embedding(9, 5), nn.Linear(5, 9, bias=False)
            self.head.weight = self.tokens.weight

    model = drawn(Tied)
    assert model.head.weight is model.tokens.weight
    assert torch.equal(model.tokens.weight, named("tokens.weight", (9, 5)))
    with xinit.deferred():
        model = nn.ModuleDict({"head": nn.Linear(5, 9, bias=False), "tokens": nn.Embedding(9, 5)})
    model.head.weight = model.tokens.weight  # after the context, under a first name that had another record
    xinit.materialize_(model.half(), key=KEY)
    assert model.head.weight is model.tokens.weight
    assert torch.equal(model.tokens.weight, named("head.weight", (9, 5), dtype=torch.float16))


def test_views_of_one_storage_stay_that():
    def make():
        flat = torch.empty(24)
        return {
            "a": nn.Parameter(flat[:12].view(3, 4)),
            "b": nn.Parameter(flat[12:]),
            "all": nn.Parameter(flat.normal_()),
        }

    model = drawn(hold(make))
    assert torch.equal(model.all, torch.cat([model.a.flatten(), model.b]))
    assert model.all.untyped_storage().data_ptr() == model.b.untyped_storage().data_ptr()
    assert 0.5 < model.all.std() < 1.5


def test_copies_of_a_template_are_drawn_for_themselves():
    model = drawn(Encoder)
    first, second = (layer.linear1.weight for layer in model.encoder.layers[:2])
    assert not torch.equal(first, second)
    assert torch.equal(first, named("encoder.layers.0.linear1.weight", (32, 16), xinit.uniform_, -0.25, 0.25))
    assert torch.equal(second, named("encoder.layers.1.linear1.weight", (32, 16), xinit.uniform_, -0.25, 0.25))


def test_copies_of_a_part_of_the_model_are_copies():
    def build():
        student = nn.Linear(5, 4)
        model = nn.ModuleDict({"teacher": copy.deepcopy(student), "student": student, "other": nn.Linear(5, 4)})
        model.other.weight.data.copy_(model.student.weight.data)
        return model

    model = drawn(build)
    expected = named("student.weight", (4, 5), xinit.uniform_, -(5**-0.5), 5**-0.5)
    for name in ("student", "teacher", "other"):
        assert torch.equal(model[name].weight, expected)
    assert model.teacher.weight.data_ptr() != model.student.weight.data_ptr()


def test_copies_afterwards_can_be_materialized_too():
    with xinit.deferred():
        model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 4)), nn.Linear(4, 3))
    twin, low = copy.deepcopy(model), copy.deepcopy(model).bfloat16()
    for other in (model, twin, low):
        xinit.materialize_(other, key=KEY)
    for (name, x), (_, y) in zip(model.state_dict().items(), twin.state_dict().items(), strict=True):
        assert torch.equal(x, y), name
    assert torch.equal(low[1].weight, model[1].weight.bfloat16())


def test_modules_of_several_contexts_make_one_model():
    with xinit.deferred() as outer:
        first = nn.Linear(3, 4)
        with xinit.deferred() as inner:
            second = nn.Linear(4, 5)
        third = nn.Linear(5, 6)
    assert third.weight.is_meta
    assert len(inner.rows) == len(outer.rows) == 6
    with xinit.deferred() as plan:
        model = nn.Sequential(first, second, third, nn.Linear(6, 7))
        init.ones_(model[0].bias)
    assert [row.name for row in plan.rows] == [name for name, _ in model.named_parameters()]
    xinit.materialize_(model, key=KEY)
    assert torch.equal(model[0].bias, torch.ones(4))
    assert torch.equal(model[1].weight, named("1.weight", (5, 4), xinit.uniform_, -0.5, 0.5))


def test_a_part_can_be_materialized_alone():
    with xinit.deferred():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    xinit.materialize_(model[1], key=KEY)
    assert [name for name, _ in xinit.audit(model)] == ["0.weight", "0.bias"]
    done = model[1].weight.clone()
    xinit.materialize_(model, key=KEY)
    assert torch.equal(model[1].weight, done)
    assert torch.equal(done, named("weight", (4, 4), xinit.uniform_, -0.5, 0.5))


def test_parts_under_their_names_are_those_of_the_whole():
    def build():
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))

    with xinit.deferred():
        model = build()
    for name, part in model.named_children():
        xinit.materialize_(parallel.renamed(part, {"": name}), key=KEY)
    assert not xinit.audit(model)
    whole = drawn(build).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in model.state_dict().items())


def test_objects_stay_the_same():
    """So that an optimizer, a list or an LSTM's own references see the values."""

    class Marked(nn.Parameter):
        pass

    with xinit.deferred():
        parameter = Marked(torch.randn(3, 4), requires_grad=False)
        parameter.tag = "kept"
        model = Holder(lambda: {"w": parameter})
        assert model.w is parameter
        assert parameter.is_meta is False  # who asks is told what it would be
    assert parameter.is_meta
    xinit.materialize_(model, key=KEY)
    assert model.w is parameter
    assert (type(parameter), parameter.requires_grad, vars(parameter)) == (Marked, False, {"tag": "kept"})
    assert torch.equal(parameter, named("w", (3, 4)))
    lstm = drawn(lambda: nn.LSTM(3, 4))
    lstm(torch.randn(2, 1, 3))[0].sum().backward()
    assert all(weight.grad is not None for weight in lstm.parameters())


def test_within_the_context():
    with xinit.deferred():
        model = nn.Linear(4, 4)
        assert [name for name, _ in xinit.audit(model)] == ["weight", "bias"]
        xinit.materialize_(model, key=KEY)
        assert model.weight.abs().max().item() <= 0.5
        assert not xinit.audit(model)
        more = nn.Sequential(model, nn.Linear(4, 4))
        assert model.weight.device.type == "cpu"
    xinit.materialize_(more, key=KEY)
    assert torch.equal(model.weight, named("weight", (4, 4), xinit.uniform_, -0.5, 0.5))
    assert torch.equal(more[1].weight, named("1.weight", (4, 4), xinit.uniform_, -0.5, 0.5))


def test_wrappers_names_are_left_out():
    with xinit.deferred():
        model = nn.DataParallel(nn.Linear(4, 4))
    xinit.materialize_(model, key=KEY)
    assert torch.equal(model.module.weight, named("weight", (4, 4), xinit.uniform_, -0.5, 0.5))


@pytest.mark.parametrize("outermost", [False, True])
def test_the_meta_device(outermost):
    meta, nothing = torch.device("meta"), nullcontext()

    def build():
        with nothing if outermost else meta:
            model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
            model.register_buffer("steps", torch.arange(4) * 2.0)
        return model

    with meta if outermost else nothing:
        model = drawn(build)
    assert torch.equal(model[0].weight, named("0.weight", (4, 4), xinit.uniform_, -0.5, 0.5))
    assert torch.equal(model[1].running_var, torch.ones(4))
    assert torch.equal(model.steps, torch.tensor([0.0, 2.0, 4.0, 6.0]))
    assert model[1].num_batches_tracked.item() == 0


def test_lazy_modules_stay_lazy():
    with xinit.deferred():
        model = nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 3))
    xinit.materialize_(model, key=KEY)
    assert model(torch.randn(2, 7)).shape == (2, 3)


def test_with_accelerate():
    build = with_weight(init.trunc_normal_)
    with xinit.deferred(), xinit.accelerate():
        first = build()
    with xinit.accelerate(), xinit.deferred():
        second = build()
    expected = named("weight", (30, 20), xinit.trunc_normal_)
    for model in (first, second):
        assert torch.equal(xinit.materialize_(model, key=KEY).weight, expected)


def test_the_default_key_follows_the_seed():
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights += [drawn(lambda: nn.Linear(3, 3), key=None).weight for _ in range(2)]
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[4])


def test_a_bar():
    pytest.importorskip("tqdm")
    assert torch.equal(drawn(lambda: nn.Linear(4, 4), progress=True).weight, drawn(lambda: nn.Linear(4, 4)).weight)


# Errors, and what is left


def reads_item():
    nn.Sequential(nn.Linear(3, 4))[0].weight.abs().max().item()


def reads_numpy():
    nn.Linear(3, 4).weight.detach().numpy()


def reads_list():
    nn.Linear(3, 4).weight.tolist()


def compares():
    torch.equal(nn.Linear(3, 4).weight, torch.zeros(4, 3))


def resizes():
    nn.Linear(3, 4).weight.data.resize_(9)


def resizes_another():
    torch.mul(nn.Linear(3, 4).weight.data, 2, out=torch.empty(0))


OUTSIDE = torch.ones(4, 3, device="meta")


def takes_what_nobody_knows():
    nn.Linear(3, 4).weight.data.mul_(OUTSIDE)


@pytest.mark.parametrize(
    "make",
    [
        lambda w: torch.zeros_like(w, dtype=torch.bool),
        lambda w: torch.ones_like(w, dtype=torch.int64),
        lambda w: torch.full_like(w, 7, dtype=torch.int32),
        lambda w: w.new_zeros(3, 4, dtype=torch.complex64).real,
        lambda w: w.new_full((3, 4), 7, dtype=torch.uint8),
    ],
)
def test_constants_of_dtypes_without_distributions(make):
    """Made like a parameter, so on the meta device, and then copied to it."""

    def build():
        model = nn.Module()
        model.weight = nn.Parameter(torch.empty(3, 4))
        with torch.no_grad():
            model.weight.copy_(make(model.weight))
        return model

    with xinit.deferred():
        model = build()
    junk = [torch.full((size,), 3.0) for size in (3, 6, 12, 24) for _ in range(20)]
    del junk  # what new memory may hold
    assert torch.equal(xinit.materialize_(model, key=KEY).weight, build().weight)


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize(
    "read", [reads_item, reads_numpy, reads_list, resizes, resizes_another, takes_what_nobody_knows]
)
def test_what_cannot_be_recorded_is_an_error_there(read):
    what = "outside of the context" if read is takes_what_nobody_knows else r"Linear.weight of shape \(4, 3\)"
    with xinit.deferred(), pytest.raises(RuntimeError, match=f"deferred: .*{what}") as error:
        read()
    assert read.__name__ in [entry.name for entry in error.traceback]


def test_a_question_is_answered_and_the_answer_checked():
    """A branch on values: materialize_ does what the branch was taken for, or says that it cannot."""

    def build():
        model = nn.Linear(1, 1)
        init.constant_(model.bias, 1.0 if model.weight.item_is_positive() else -1.0)
        return model

    nn.Parameter.item_is_positive = lambda self: bool((self > 0).all())
    try:
        outcomes = set()
        with xinit.deferred():
            model = build()
        for seed in range(8):
            twin = copy.deepcopy(model)
            try:
                xinit.materialize_(twin, key=xinit.Key(seed))
                outcomes.add("drawn")
                assert (twin.weight > 0).item() == (twin.bias > 0).item()
            except RuntimeError as error:
                outcomes.add("refused" if "was built for" in str(error) and twin.weight.is_meta else str(error))
    finally:
        del nn.Parameter.item_is_positive
    assert outcomes == {"drawn", "refused"}


def test_pickling_is_refused():
    with xinit.deferred():
        model = nn.Linear(3, 4)
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        pickle.dumps(model)
    xinit.materialize_(model, key=KEY)
    assert torch.equal(pickle.loads(pickle.dumps(model)).weight, model.weight)


def refused(model, match, **options):
    before = [(parameter.device, parameter._version) for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match=match):
        xinit.materialize_(model, **options)
    assert before == [(parameter.device, parameter._version) for parameter in model.parameters()]


def test_models_that_cannot_be_materialized():
    refused(nn.Linear(3, 4), "no deferred parameters")
    model = drawn(lambda: nn.Linear(3, 4))
    refused(model, "no deferred parameters")
    with xinit.deferred():
        model = nn.Linear(3, 4)
    model.load_state_dict(nn.Linear(3, 4).state_dict(), assign=True)
    refused(model, r"other tensors .* leave to_empty\(\) out")  # which DTensors show no more
    outside = nn.Linear(3, 4, device="meta")
    refused(outside, "nothing is known of parameters weight, bias")
    with xinit.deferred():
        model = nn.Sequential(nn.Linear(3, 4))
    refused(nn.Sequential(model, outside), "nothing is known of parameters 1.weight, 1.bias")
    with torch._C.DisableTorchFunctionSubclass():  # as by code that xinit does not see
        init.ones_(model[0].weight)
    refused(model, r"parameter 0.weight written to after .* within another")


def test_wrong_arguments():
    with xinit.deferred():
        model = nn.Linear(3, 4)
    with pytest.raises(TypeError, match="key must be an xinit"):
        xinit.materialize_(model, key=0)
    with pytest.raises(TypeError, match="model must be a"):
        xinit.materialize_(model.weight)
    with pytest.raises(TypeError, match="model must be a"):
        xinit.audit([model])
    with pytest.raises(RuntimeError, match="nowhere"):
        xinit.materialize_(model, device="nowhere")
    with xinit.deferred(), pytest.raises(RuntimeError, match="std"):
        init.normal_(model.weight, std=-1)
    assert model.weight.is_meta


def zeroed_later():
    with xinit.deferred():
        model = nn.Linear(5, 5)
    with xinit.deferred():
        init.zeros_(model.weight)
    return model, lambda: torch.zeros(5, 5)


def cut_later():
    with xinit.deferred():
        model = nn.Embedding(5, 5, padding_idx=0)
    model.weight.data = model.weight.data[1:3, :4]
    return model, lambda: xinit.normal_(torch.empty(5, 5), key=KEY.fold_in("weight").fold_in(0))[1:3, :4]


def of_another_storage_later():
    with xinit.deferred():
        model, other = nn.Linear(5, 5), nn.Embedding(5, 5)
    model.weight.data = other.weight.data
    return model, lambda: xinit.normal_(torch.empty(5, 5), key=KEY.fold_in("weight"))


@pytest.mark.parametrize("build", [zeroed_later, cut_later, of_another_storage_later])
def test_what_becomes_of_a_parameter_after_its_context(build):
    model, expected = build()
    xinit.materialize_(model, key=KEY)
    assert torch.equal(model.weight, expected())


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled):
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with xinit.deferred():
            model = nn.Linear(3, 4)
        with pytest.raises(TypeError, match="key must be an xinit"):
            xinit.materialize_(model, key=0)
        assert gc.isenabled() == enabled
        xinit.materialize_(model)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_never_written():
    with xinit.deferred() as plan:
        model = Holder(lambda: {"w": nn.Parameter(torch.empty(3, 4)), "b": nn.Parameter(torch.zeros(3))})
    assert [row.method for row in plan.rows] == ["never written", "zeros"]
    assert dict(xinit.audit(model))["w"] == "deferred, but never written by the constructor"
    with pytest.warns(UserWarning, match="materialize_: tensor w never"):
        xinit.materialize_(model, key=KEY)
    assert xinit.audit(model) == [("w", "never written")]
    assert str(xinit.audit(model)) == "count  name  problem\n    1  w     never written"
    init.ones_(model.w)
    assert not xinit.audit(model)
    assert str(xinit.audit(model)) == "every parameter and buffer has its values"
    assert xinit.audit(nn.Linear(3, 4, device="meta")) == [
        ("weight", "on the meta device, built outside of deferred()"),
        ("bias", "on the meta device, built outside of deferred()"),
    ]


def test_the_plan_is_a_table():
    with xinit.deferred() as plan:
        model = nn.Sequential(nn.Linear(4, 9), nn.Embedding(7, 5, padding_idx=1))
        init.orthogonal_(model[0].weight)
    assert str(plan).splitlines() == [
        "name      shape   method                         std",
        "0.weight  (9, 4)  again: copy_, mul_",
        "0.bias    (9,)    uniform ±0.5                 0.289",
        "1.weight  (7, 5)  normal, zeros in 5 elements      1",
        "",
        "3 parameters, 80 elements, 320 B of float32",
    ]
    assert plan.rows[0].shape == (9, 4)
    assert plan.folded().splitlines()[0].startswith("count")
    xinit.materialize_(model, key=KEY)
    assert plan.rows == ()


def test_everything_is_as_before():
    from torch.nn.modules import module

    def hooks():
        return [
            len(getattr(module, f"_global_{what}_registration_hooks")) for what in ("parameter", "buffer", "module")
        ]

    before, method = hooks(), init._no_grad_trunc_normal_
    with xinit.deferred():
        assert hooks() != before
        with xinit.deferred():
            pass
        assert not nn.Linear(2, 2).weight.untyped_storage().data_ptr()
    survivors = []

    def fail():
        with xinit.deferred():
            survivors.append(torch.ones(300, 300))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert survivors[0].sum() == 90000
    assert hooks() == before
    assert init._no_grad_trunc_normal_ is method
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_other_threads_are_not_affected():
    devices = {}

    def build(name):
        weight = nn.Linear(3, 4).weight
        with torch._C.DisableTorchFunction():
            devices[name] = weight.device.type

    def defer():
        with xinit.deferred():
            build("deferring thread")
        build("after its context")

    with xinit.deferred():
        for work in (partial(build, "thread"), defer):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        build("this")
    build("after")
    assert devices == {
        "thread": "cpu",
        "deferring thread": "meta",
        "after its context": "cpu",
        "this": "meta",
        "after": "cpu",
    }


def test_memory():
    """In a process of its own: building a model of 2 GiB takes none, and drawing one no more than its parameters."""
    building, size, drawing, drawn = map(
        int,
        output(
            run_python(
                """
import resource, torch, xinit
from torch import nn
class Big(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8192, 8192) for _ in range(5))
        self.table = nn.Parameter(torch.randn(8192, 8192) * 0.02)
        self.zeros = nn.Parameter(torch.zeros(8192, 8192))
        self.tokens = nn.Embedding(8192, 8192, padding_idx=0)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
def size(model):
    return sum(parameter.nbytes for parameter in model.parameters()) >> 20
with xinit.deferred():
    small = nn.Linear(3, 4)
xinit.materialize_(small)
start = peak()
with xinit.deferred():
    big = Big()
built = peak()
with xinit.deferred():
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8)))
xinit.materialize_(model)
print(built - start, size(big), peak() - built, size(model))
"""
            )
        ).split(),
    )
    assert size >= 2048
    assert building < 100
    assert drawing <= 1.05 * drawn + 4
