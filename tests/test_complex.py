"""Complex tensors: the real view's bits, the variance of real and imaginary part together, the fans of the complex shape."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from conftest import KEY, Window, laid_out, same
from torch import nn

import xinit
from xinit import Key

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

DTYPES = {torch.complex64: torch.float32, torch.complex128: torch.float64, torch.complex32: torch.float16}
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def real_view(tensor):
    return torch.view_as_real(tensor)


def expected(shape, dtype, std, mean=0.0, key=KEY, global_shape=None, offsets=None):
    """By the contract: element i owns 2i and 2i + 1 of the real view; both parts have std / sqrt(2)."""
    window = None if global_shape is None else Window((*global_shape, 2), (*offsets, 0))
    out, moved = (torch.empty(*shape, 2, dtype=DTYPES[dtype]) for _ in range(2))
    xinit.normal_(out, 0.0, std / math.sqrt(2), key=key, window=window)
    xinit.normal_(moved, mean, std / math.sqrt(2), key=key, window=window)
    out[..., 0] = moved[..., 0]
    return torch.view_as_complex(out)


@dtypes
@pytest.mark.parametrize("shape", [(), (1,), (5,), (37, 11), (3, 4, 5), (64, 129)], ids=str)
@pytest.mark.parametrize("mean", [0.0, -0.75])
def test_normal_is_its_real_views(dtype, shape, mean):
    tensor = torch.empty(shape, dtype=dtype)
    assert xinit.normal_(tensor, mean, 0.3, key=KEY) is tensor
    assert same(real_view(tensor), real_view(expected(shape, dtype, 0.3, mean)))


@dtypes
@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_layouts_windows_and_threads_do_not_matter(dtype, mean, threads):
    whole = xinit.normal_(torch.empty(60, 41, dtype=dtype), mean, key=KEY)
    for count in (1, 3):
        threads(count)
        for order, step, gap, offset in ([1, 0], 1, 0, 0), ([0, 1], 2, 3, 1), ([1, 0], 3, 5, 7):
            buffer, view = laid_out(whole.shape, dtype, order, step, gap, offset)
            outside = buffer.clone()
            xinit.normal_(view, mean, key=KEY)
            assert same(real_view(view), real_view(whole))
            outside.as_strided(view.shape, view.stride(), view.storage_offset()).copy_(view)
            assert torch.equal(real_view(buffer), real_view(outside))
        part = torch.empty(13, 7, dtype=dtype)
        xinit.normal_(part, mean, key=KEY, window=Window(whole.shape, (11, 31)))
        assert same(real_view(part), real_view(whole[11:24, 31:38]))
    far = dict(global_shape=(2**33, 9), offsets=(2**32 + 5, 2))
    tensor = xinit.normal_(torch.empty(3, 4, dtype=dtype), mean, key=KEY, window=Window(**far))
    assert same(real_view(tensor), real_view(expected((3, 4), dtype, 1.0, mean, **far)))


@dtypes
@pytest.mark.parametrize(
    ("fill", "std"),
    [
        (xinit.xavier_normal_, lambda i, o: math.sqrt(2 / (i + o))),
        (partial(xinit.xavier_normal_, gain=5 / 3), lambda i, o: 5 / 3 * math.sqrt(2 / (i + o))),
        (partial(xinit.kaiming_normal_, nonlinearity="relu"), lambda i, o: math.sqrt(2 / i)),
        (partial(xinit.kaiming_normal_, mode="fan_out"), lambda i, o: math.sqrt(2 / o)),
        (partial(xinit.variance_scaling_, distribution="normal"), lambda i, o: math.sqrt(1 / i)),
    ],
)
def test_fans_are_those_of_the_complex_shape(dtype, fill, std):
    tensor = fill(torch.empty(24, 5, 3, dtype=dtype), key=KEY)
    assert same(real_view(tensor), real_view(expected((24, 5, 3), dtype, std(15, 72))))


def test_the_variance_is_that_of_both_parts_as_torchs():
    n = 1 << 20
    for fill in (xinit.normal_, torch.nn.init.normal_):
        tensor = fill(torch.empty(n, dtype=torch.complex64), std=0.5, generator=torch.Generator().manual_seed(1))
        tensor = tensor.to(torch.complex128)
        # |z|² / std² is exponential, so its mean has a standard error of 1 / sqrt(n); five of them. So has re · im / var.
        assert abs(tensor.abs().square().mean() / 0.25 - 1) < 5 / math.sqrt(n)
        assert abs((tensor.real * tensor.imag).mean() / 0.125) < 5 / math.sqrt(n)


REFUSED = {
    "uniform_": xinit.uniform_,
    "trunc_normal_": xinit.trunc_normal_,
    "xavier_uniform_": xinit.xavier_uniform_,
    "kaiming_uniform_": xinit.kaiming_uniform_,
    "variance_scaling_": xinit.variance_scaling_,
}


@dtypes
@pytest.mark.parametrize("name", REFUSED)
def test_uniform_and_truncated_are_refused_and_nothing_changes(dtype, name):
    tensor, generator = torch.ones(3, 4, dtype=dtype), torch.Generator().manual_seed(3)
    state = generator.get_state()
    for target in (tensor, tensor.to("meta")):
        with pytest.raises(NotImplementedError, match=rf'"{name}" not implemented for \'Complex.*normal distrib'):
            REFUSED[name](target, generator=generator)
    assert torch.equal(real_view(tensor), real_view(torch.ones(3, 4, dtype=dtype)))
    assert torch.equal(generator.get_state(), state)
    with pytest.raises(NotImplementedError, match="fill_many_"):
        xinit.fill_many_([torch.ones(2), tensor], [xinit.zeros(), xinit.uniform()], [KEY, KEY])


def test_a_complex_mean_is_torchs_type_error():
    for fill in (torch.nn.init.normal_, xinit.normal_):
        with pytest.raises(TypeError):
            fill(torch.empty(3, dtype=torch.complex64), 1 + 1j)


@dtypes
def test_constants_are_real_numbers(dtype):
    tensors = [torch.full((5, 3), float("nan"), dtype=dtype) for _ in range(3)]
    xinit.fill_many_(tensors, [xinit.ones(), xinit.constant(-0.5), xinit.zeros()], [KEY] * 3)
    for tensor, value in zip(tensors, (1.0, -0.5, 0.0), strict=True):
        filled = torch.nn.init.constant_(torch.empty(5, 3, dtype=dtype), value)
        assert same(real_view(tensor), real_view(filled))


@dtypes
def test_lazily_conjugated_and_negated_views(dtype):
    """They are filled with the values that are then read from them, and their digest is that of these values."""
    shape = (40, 60)
    values, real = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=DTYPES[dtype])
    for fill in (
        lambda tensor: xinit.normal_(tensor, key=KEY),
        lambda tensor: xinit.fill_many_([torch.empty(3), tensor], [xinit.zeros(), xinit.normal()], [Key(0), KEY]),
    ):
        fill(values)
        fill(real)
        base = torch.empty(shape, dtype=dtype)
        version = base._version
        fill(base.conj())
        assert base._version > version
        assert same(real_view(base), real_view(values.conj_physical()))
        digests = [torch.ops.xinit.digest(tensor, KEY.words) for tensor in (base.conj(), values, base)]
        assert torch.equal(digests[0], digests[1])
        assert not torch.equal(digests[0], digests[2])
        negated = base.conj().imag
        assert negated.is_neg()
        fill(negated)
        assert same(negated.resolve_neg(), real)
        assert same(base.imag.clone(), -real)
        assert same(base.real.clone(), values.real.clone())
    generator = torch.Generator().manual_seed(1)
    state = generator.get_state()
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        xinit.normal_(torch.ones(1, dtype=dtype).conj().expand(5), generator=generator)
    assert torch.equal(generator.get_state(), state)


def test_with_a_generator_one_draw_whatever_the_mean():
    for mean in (0.0, 3.0):
        first, second = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
        tensor = xinit.normal_(torch.empty(7, dtype=torch.complex64), mean, generator=first)
        again = xinit.normal_(torch.empty(2), generator=second)
        assert torch.equal(first.get_state(), second.get_state())
        assert same(tensor[0].imag, again[1] * torch.tensor(math.sqrt(0.5)))


class Spectral(nn.Module):
    """As in a Fourier neural operator: complex weights, real ones, a bias."""

    def __init__(self, dtype=torch.complex64):
        super().__init__()
        self.modes = nn.Parameter(torch.randn(6, 5, dtype=dtype) * 0.02)
        self.linear = nn.Linear(5, 4)
        self.shift = nn.Parameter(torch.zeros(6, dtype=dtype))


RECIPE = {"modes": xinit.xavier_normal(), "shift": xinit.ones(), "linear.*": xinit.normal(std=0.1)}


@dtypes
def test_models(dtype):
    model = xinit.init_(Spectral(dtype), RECIPE, Key(3))
    key = Key(3).fold_in("modes")
    assert same(real_view(model.modes), real_view(xinit.xavier_normal_(torch.empty(6, 5, dtype=dtype), key=key)))
    assert torch.equal(real_view(model.shift), real_view(torch.ones(6, dtype=dtype)))
    assert str(dtype).removeprefix("torch.") in str(xinit.plan(model, RECIPE))
    before = xinit.fingerprint(model)
    with torch.no_grad():
        model.modes[1, 2] = model.modes[1, 2].conj()
    assert xinit.fingerprint(model) != before


def test_a_recipe_that_is_not_for_complex_numbers_is_a_problem_of_that_parameter():
    model = Spectral()
    before = model.linear.weight.clone()
    with pytest.raises(ValueError, match=r"modes \(6, 5\): it is complex, and takes normal.*std=0\.88\)}, of the same"):
        xinit.init_(model, {"*": xinit.trunc_normal(a=-2, b=2)}, Key(0))
    assert torch.equal(model.linear.weight, before)
    assert [row.name for row in xinit.plan(model, {"*": xinit.uniform()}).problems] == ["modes", "shift"]


def test_a_digest_is_not_that_of_the_real_view():
    tensor = xinit.normal_(torch.empty(6, dtype=torch.complex64), key=KEY)
    of = {tuple(torch.ops.xinit.digest(x, KEY.words).tolist()) for x in (tensor, real_view(tensor))}
    assert len(of) == 2


@pytest.mark.parametrize(
    "draw",
    [
        lambda dtype: torch.randn(50, dtype=dtype),
        lambda dtype: torch.empty(50, dtype=dtype).normal_(std=0.1),
        lambda dtype: torch.nn.init.kaiming_normal_(torch.empty(5, 10, dtype=dtype)),
        lambda dtype: torch.normal(0.0, 2.0, (50,), dtype=dtype),
    ],
)
@dtypes
def test_accelerate_draws_them(dtype, draw):
    torch.manual_seed(2)
    plain = draw(dtype)
    torch.manual_seed(2)
    with xinit.accelerate():
        drawn = draw(dtype)
    torch.manual_seed(2)
    ours = xinit.normal_(torch.empty_like(drawn))
    assert not torch.equal(real_view(drawn), real_view(plain))
    ratio = real_view(drawn).double() / real_view(ours).double()  # of the two standard deviations
    assert (ratio / ratio.mean() - 1).abs().max() < 4e-3


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(3000, dtype=torch.complex64),  # what is small deferred() does not put off
        lambda: torch.empty(3000, dtype=torch.complex64).uniform_(),
        lambda: torch.empty(3000, dtype=torch.complex64).normal_(1.0, 0.1),
        lambda: torch.normal(1.0, 2.0, (3000,), dtype=torch.complex64),
    ],
)
def test_what_torch_draws_by_another_rule_is_left_to_torch(draw):
    """Uniform numbers, and a mean that torch adds to the imaginary part too."""
    torch.manual_seed(2)
    plain = draw()
    torch.manual_seed(2)
    with xinit.accelerate():
        assert torch.equal(draw(), plain)

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(draw())

    with xinit.deferred():
        model = Module()
    weight = xinit.materialize_(model, key=Key(0)).weight.detach()
    assert abs(weight.mean() - plain.mean()) < 1.5
    assert abs(weight.imag.mean() - plain.imag.mean()) < 1.5
    assert weight.imag.mean() > 0.3


@dtypes
def test_deferred(dtype):
    with xinit.deferred() as plan:
        model = Spectral(dtype)
    assert "normal" in next(row.method for row in plan.rows if row.name == "modes")
    xinit.materialize_(model, key=Key(4))
    modes = xinit.normal_(torch.empty(6, 5, dtype=dtype), std=0.02, key=Key(4).fold_in("modes"))
    assert torch.allclose(real_view(model.modes).float(), real_view(modes).float(), rtol=2e-3)
    assert not model.shift.any()


class Views(nn.Module):
    """Filled through views of other dtypes, and copied from them."""

    def __init__(self):
        super().__init__()
        self.parts = nn.Parameter(torch.empty(8, 3, dtype=torch.complex64))
        self.copied = nn.Parameter(torch.empty(400, dtype=torch.complex64))
        self.real = nn.Parameter(torch.empty(400))
        with torch.no_grad():
            real_view(self.parts)[..., 0].fill_(1.0)
            real_view(self.parts)[..., 1].normal_(0.0, 0.1)
            self.copied.copy_(torch.randn(400))
            self.real.copy_(torch.randn(400, dtype=torch.complex64).real)
        with torch.no_grad():
            torch.view_as_real(self.parts)[:1, 0].fill_(7.0)


def test_deferred_tells_a_real_view_from_its_complex_tensor():
    with xinit.deferred():
        model = Views()
    xinit.materialize_(model, key=Key(1))
    assert model.parts[0, 0] == 7 + 7j
    assert (model.parts.real.flatten()[1:] == 1).all()
    imaginary = model.parts.imag.flatten()[1:]
    assert 0.03 < imaginary.std() < 0.3
    assert abs(imaginary.mean()) < 0.1
    assert not model.copied.imag.any()
    assert 0.8 < model.copied.real.std() < 1.2
    assert 0.6 < model.real.std() < 0.82


def test_a_truncated_normal_is_refused_by_torch_within_accelerate_too():
    said = []
    for context in nullcontext(), xinit.accelerate():
        with context, pytest.raises(RuntimeError) as error:
            torch.nn.init.trunc_normal_(torch.empty(4, dtype=torch.complex64))
        said.append(str(error.value))
    assert said[0] == said[1]


def test_deferred_says_that_a_conjugated_view_cannot_be_recorded():
    with xinit.deferred():
        modes = Spectral().modes
        with pytest.raises(RuntimeError, match="lazily conjugated or negated view cannot be recorded"):
            modes.data.conj().fill_(1.0)


def test_deferred_keeps_a_complex_constant():
    with xinit.deferred():
        model = Spectral()
        model.shift.data.fill_(1 + 2j)
    assert (xinit.materialize_(model, key=Key(0)).shift == 1 + 2j).all()
