"""What constructors do with numbers: read them, decide by them, keep them elsewhere; and run what they have built."""

import asyncio
import copy
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import KEY
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence

import xinit

pytestmark = pytest.mark.usefixtures("one_thread")


def built(make):
    """A module of what a function of it sets and returns, materialized."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.found = make(self)

    with xinit.deferred():
        model = Model()
    return xinit.materialize_(model, key=KEY)


# Random numbers that somebody has read stay what they were, in parameters too; who has read them is told.


def as_list(m, x):
    return x.tolist()


def as_numbers(m, x):
    return [float(number) for number in x.flatten()]


def by_a_branch(m, x):
    return [bool(x[0, 0] > 0.5)]


def as_an_array(m, x):
    return x.numpy().copy()


def as_an_array_asked_for(m, x):
    return np.asarray(x).copy()


def in_a_list_of_tensors(m, x):
    return torch.tensor([x[0, 0], x[1, 1]])


def as_a_size(m, x):
    return x[x > 0.5].numel()


def as_a_size_of_another(m, x):
    return torch.ones_like(x)[x > 0.5].shape


def as_indices(m, x):
    return (x > 0.5).nonzero().tolist()


def by_a_norm(m, x):
    return x.norm().item()


@pytest.mark.parametrize("size", [2, 100], ids=["done at once", "put off"])
@pytest.mark.parametrize(
    "read",
    [
        as_list,
        as_numbers,
        by_a_branch,
        as_an_array,
        as_an_array_asked_for,
        in_a_list_of_tensors,
        as_a_size,
        as_a_size_of_another,
        as_indices,
        by_a_norm,
    ],
    ids=lambda read: read.__name__,
)
def test_what_was_read_of_random_numbers_stays_true(read, size):
    def make(m):
        x = torch.rand(size, size)
        half = x / 2
        found = read(m, x)
        m.w, m.halved = nn.Parameter(x), nn.Parameter(half)
        return found

    with pytest.warns(UserWarning, match=r"Model\.w, Model\.halved"):
        model = built(make)
    assert np.array_equal(model.found, read(model, model.w.detach()))
    assert torch.equal(model.halved, model.w / 2)


def test_a_radius_that_was_read_is_the_radius():
    """As reservoirs are scaled."""

    def make(m):
        w = torch.rand(50, 50) - 0.5
        m.w = nn.Parameter(w * (0.9 / torch.linalg.eigvals(w).abs().max().item()))

    with pytest.warns(UserWarning, match=r"parameter Model\.w made of random numbers that the constructor has read"):
        model = built(make)
    assert torch.linalg.eigvals(model.w).abs().max().item() == pytest.approx(0.9, rel=1e-4)


def test_what_a_parameter_has_already_cannot_be_read():
    def make(m):
        w = torch.rand(3)
        m.w = nn.Parameter(w * 2)
        return w[0].item()

    with pytest.raises(RuntimeError, match=r"_local_scalar_dense.*went into Model.w of shape \(3,\)"):
        built(make)


def test_what_is_printed_is_there():
    def make(m):
        x, m.w = torch.full((100, 100), 3.0), nn.Parameter(torch.rand(100, 100))
        return repr(x), repr(m.w)

    found, parameter = built(make).found
    assert found.count("3.") == 36
    assert "meta" in parameter


def test_reading_other_numbers_changes_nothing():
    def make(m):
        m.l = nn.Linear(4, 3)
        return torch.rand(3).tolist(), torch.zeros(3).tolist(), m.l.weight.isnan().any().item()

    with xinit.deferred():
        plain = nn.ModuleDict({"l": nn.Linear(4, 3)})
    assert torch.equal(built(make).l.weight, xinit.materialize_(plain, key=KEY).l.weight)


def test_memory_that_was_written_to_past_torch():
    def make(m):
        x, y = torch.zeros(3), torch.randn(3)
        x.numpy()[:] = [1, 2, 3]
        np.asarray(y)[:] = [4, 5, 6]
        m.x, m.y = nn.Parameter(x), nn.Parameter(y)

    with pytest.warns(UserWarning, match=r"parameter Model\.y made of"):  # it may have stayed as it was drawn
        model = built(make)
    assert (model.x.tolist(), model.y.tolist()) == ([1, 2, 3], [4, 5, 6])


# Sizes that would depend on a parameter's values

SIZED = {
    "aten.index": lambda w: w[w > 0],
    "aten.nonzero": lambda w: (w > 0).nonzero(),
    "aten.nonzero.default": lambda w: torch.where(w > 0),
    "aten._unique2": lambda w: w.round().unique(),
    "aten.unique_dim": lambda w: w.round().unique(dim=0),
    "aten.unique_consecutive": lambda w: w.round().unique_consecutive(),
    "aten.masked_select": lambda w: w.masked_select(w > 0),
    "aten.repeat_interleave": lambda w: torch.repeat_interleave((9 * w[0].abs()).long()),
    "aten.bincount": lambda w: torch.bincount((9 * w[0].abs()).long()),
    "aten._local_scalar_dense": lambda w: nn.functional.one_hot((9 * w.abs()).long()),
}


@pytest.mark.parametrize("op", SIZED)
def test_a_size_that_depends_on_a_parameter_is_an_error_there(op):
    def make(m):
        m.l = nn.Linear(20, 10)
        SIZED[op](m.l.weight)

    with pytest.raises(RuntimeError, match=rf"deferred: {op}.* of Linear.weight of shape \(10, 20\)") as error:
        built(make)
    assert "make" in [entry.name for entry in error.traceback]


def test_sizes_that_depend_on_what_is_known_are_those():
    def make(m):
        m.l, m.norm = nn.Linear(4, 4), nn.LayerNorm(5)
        mask = torch.tensor([True, False, True, False])
        m.rows = nn.Parameter(m.l.weight[mask])
        return m.l.weight[mask].numel(), (m.norm.weight > 0).nonzero().shape[0]

    model = built(make)
    assert model.found == (8, 5)
    assert torch.equal(model.rows, model.l.weight[::2])


# What modules hold besides, and where


class Unaskable:
    """Neither true nor false, nor of any length, nor with attributes."""

    def __bool__(self):
        raise ValueError("the truth value is ambiguous")

    __len__ = __iter__ = __bool__

    def __getattr__(self, name):
        raise ValueError("there is nothing to be had")


class Average:
    """As averages of parameters are kept by objects that are no modules."""

    def __init__(self, module):
        self.shadow = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        self.owner = self


def test_attributes_of_any_kind():
    def make(m):
        m.array, m.rows, m.unaskable = np.arange(3), [np.eye(2)], Unaskable()
        m.array_of_one = np.zeros(1)
        m.l = nn.Linear(3, 3)
        m.average = Average(m.l)
        m.nested = {"a": [{"b": (m.l.bias.detach().clone(),)}]}
        m.nested["itself"] = m.nested
        noise = torch.rand(3)
        m.deep, m.noisy = [[noise]], nn.Parameter(noise + 1)

    model = built(make)
    assert torch.equal(model.average.shadow["weight"], model.l.weight)
    assert torch.equal(model.nested["a"][0]["b"][0], model.l.bias)
    assert torch.equal(model.deep[0][0] + 1, model.noisy)
    assert not xinit.audit(model)


# Running what was built


def waves(*shape):
    return torch.arange(float(np.prod(shape))).sin().view(shape)


RUNS = {
    "LSTM": (lambda: nn.LSTM(12, 20, 2, bidirectional=True), lambda: (waves(9, 8, 12),)),
    "LSTM with states": (lambda: nn.LSTM(3, 4), lambda: (waves(9, 8, 3), (waves(1, 8, 4), waves(1, 8, 4)))),
    "packed LSTM": (lambda: nn.LSTM(3, 4), lambda: (pack_padded_sequence(waves(5, 2, 3), [5, 3]),)),
    "GRU": (lambda: nn.GRU(3, 4), lambda: (waves(9, 8, 3),)),
    "RNN": (lambda: nn.RNN(3, 4), lambda: (waves(9, 8, 3),)),
    "RNN, relu": (lambda: nn.RNN(3, 4, nonlinearity="relu"), lambda: (waves(9, 8, 3),)),
    "LSTMCell": (lambda: nn.LSTMCell(3, 4), lambda: (waves(8, 3),)),
    "GRUCell": (lambda: nn.GRUCell(3, 4), lambda: (waves(8, 3),)),
    "RNNCell": (lambda: nn.RNNCell(3, 4), lambda: (waves(8, 3),)),
    "attention": (lambda: nn.MultiheadAttention(8, 2), lambda: (waves(4, 6, 8),) * 3),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), lambda: (waves(4, 6, 8),)),
    "batch norm": (lambda: nn.BatchNorm1d(3), lambda: (waves(8, 3),)),
    "embedding bag": (lambda: nn.EmbeddingBag(9, 3), lambda: (torch.arange(4).view(2, 2),)),
    "convolution": (lambda: nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"), lambda: (waves(2, 3, 9, 9),)),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("grad", [True, False])
def test_what_was_built_can_be_run(name, grad):
    construct, inputs = RUNS[name]

    def flat(output):
        while isinstance(output, tuple):
            output = output[0]
        return output.detach()

    def make(m):
        m.l = construct().eval()
        with torch.set_grad_enabled(grad):
            m.out = flat(m.l(*inputs()))

    model = built(make)
    assert torch.allclose(model.out, flat(model.l(*inputs())), atol=1e-6)


@pytest.mark.parametrize("later", [False, True], ids=["within", "later"])
def test_memory_is_shared_once_it_is_there(later):
    with xinit.deferred():
        model = nn.Linear(4, 3)
        if not later:
            with pytest.raises(RuntimeError, match=r"share_memory_\(\) of Linear\.weight .*after materialize_"):
                model.share_memory()
    if later:
        with pytest.raises(RuntimeError, match="after materialize_"):
            model.share_memory()
    assert xinit.materialize_(model, key=KEY).share_memory().weight.is_shared()


@pytest.mark.parametrize("later", [False, True], ids=["within", "later"])
def test_hooks_of_parameters_stay(later):
    """Of both kinds; one that was taken away again is gone."""
    heard = []

    def hooked(model):
        mask = torch.tensor([[1.0], [0.0], [1.0]])
        model.weight.register_hook(lambda grad: grad * mask)
        model.weight.register_hook(lambda grad: grad * 7).remove()
        model.bias.register_post_accumulate_grad_hook(lambda p: heard.append(p.grad.sum().item()))
        return model

    with xinit.deferred():
        model = nn.Linear(4, 3) if later else hooked(nn.Linear(4, 3))
    model = xinit.materialize_(hooked(model) if later else model, key=KEY)
    model(torch.ones(2, 4)).sum().backward()
    assert torch.equal(model.weight.grad, torch.tensor([[2.0], [0.0], [2.0]]).expand(3, 4))
    assert heard == [6.0]


def test_inputs_stay_real():
    def make(m):
        m.l, x = nn.LSTM(3, 4), torch.ones(2, 1, 3)
        m.l(x)
        return x.sum().item()

    assert built(make).found == 6


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("make", [torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(1, 2))])
def test_scripted_modules(make):
    """They do not hold the objects that their parameters are."""
    with xinit.deferred():
        model = nn.Sequential(make(nn.Linear(2, 2)), nn.Linear(2, 2))
    copies = xinit.materialize_(model, key=KEY)[0].weight.clone()
    with xinit.deferred():
        plain = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    xinit.materialize_(plain, key=KEY)
    assert torch.equal(copies, plain[0].weight)
    assert torch.equal(model(torch.ones(1, 2)), plain(torch.ones(1, 2)))


def test_a_traced_module_has_each_row_once():
    with xinit.deferred() as plan:
        source = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        traced = torch.fx.symbolic_trace(source)
    assert [row.name.split(".", 1)[1] for row in plan.rows] == ["0.weight", "0.bias"]
    xinit.materialize_(traced, key=KEY)
    assert source[0].weight is getattr(traced, "0").weight
    assert torch.equal(source(torch.ones(1, 2)), traced(torch.ones(1, 2)))


def test_addresses_do_not_overlap():
    with xinit.deferred():
        weights = [nn.Linear(300, 300).weight for _ in range(50)]
        tied = nn.Linear(300, 300)
        tied.weight = weights[3]
        ranges = sorted((w.data_ptr(), w.data_ptr() + w.nbytes) for w in weights)
        assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
        assert tied.weight.data_ptr() == weights[3].data_ptr() == copy.copy(weights)[3].data_ptr()
        assert ranges[0][0] > 0


# torch.inference_mode


@pytest.mark.parametrize("at", ["deferred", "materialize_", "both"])
def test_parameters_of_inference_mode_train(at):
    def build():
        mode = torch.no_grad() if at == "materialize_" else torch.inference_mode()
        with mode, xinit.deferred():
            model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
            model[0].weight.normal_()  # as both modes allow
            model.register_buffer("scale", model[0].weight.norm() + torch.ones(()))
        with torch.inference_mode(at != "deferred"):
            assert xinit.materialize_(model, key=KEY) is model
            assert not xinit.audit(model)
        return model

    model = build()
    assert torch.equal(model[0].weight, xinit.normal_(torch.empty(4, 4), key=KEY.fold_in("0.weight")))
    assert model.scale == model[0].weight.norm() + 1
    assert not any(tensor.is_inference() for tensor in [*model.parameters(), *model.buffers()])
    model(torch.randn(5, 4)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_inference_tensors_that_are_there_already():
    with torch.inference_mode():
        table, old = torch.arange(16.0).view(4, 4), nn.Linear(4, 4)
    with xinit.deferred():
        model = nn.Sequential(nn.Linear(4, 4), old)
        model[0].weight.data.copy_(table)
    xinit.materialize_(model, key=KEY)
    assert torch.equal(model[0].weight, table)
    assert not xinit.audit(model)
    with torch.inference_mode():
        xinit.init_(model[0], "torch", KEY)
    model[0](torch.ones(2, 4)).sum().backward()
    assert model[0].weight.grad is not None


# Within other contexts, threads and orders


@pytest.mark.parametrize("within", [True, False])
def test_fake_parameters_are_refused(within):
    outer, inner = (xinit.deferred, FakeTensorMode) if within else (FakeTensorMode, xinit.deferred)
    with pytest.raises(RuntimeError, match=r"deferred: Linear.weight is a FakeTensor"), outer(), inner():
        nn.Linear(3, 4)
    assert nn.Linear(3, 4).weight.device.type == "cpu"


def test_contexts_that_overlap_are_refused():
    async def build():
        with xinit.deferred():
            first = nn.Linear(3, 4)
            await asyncio.sleep(0)
            return nn.Sequential(first, nn.Linear(4, 5))

    async def both():
        return await asyncio.gather(build(), build(), return_exceptions=True)

    one, other = asyncio.run(both())
    assert torch.equal(
        xinit.materialize_(one, key=KEY)[1].weight,
        xinit.uniform_(torch.empty(5, 4), -0.5, 0.5, key=KEY.fold_in("1.weight")),
    )
    assert isinstance(other, RuntimeError)
    assert "was left before it" in str(other)
    assert nn.Linear(3, 4).weight.device.type == "cpu"


def test_each_thread_has_its_own():
    found = []

    def build():
        with xinit.deferred():
            model = nn.Sequential(*(nn.Linear(4, 5) for _ in range(20)))
        found.append(xinit.fingerprint(xinit.materialize_(model, key=KEY)))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_indices_of_any_kind():
    def make(m):
        m.c = nn.ConvTranspose2d(2, 2, 3, bias=False)
        m.c.weight.data.zero_()
        m.c.weight.data[range(2), range(2)] = torch.arange(9.0).view(3, 3)
        m.l = nn.Linear(4, 3)
        m.l.weight.data[np.array([0, 2])] = 5.0
        m.l.weight.data[:, np.array([True, False, False, True])] = 7.0

    model = built(make)
    assert torch.equal(model.c.weight[0, 0], torch.arange(9.0).view(3, 3))
    assert not model.c.weight[0, 1].any()
    assert (model.l.weight == 5).sum() == 4
    assert (model.l.weight == 7).sum() == 6


def test_lazy_modules():
    """They are drawn when they get their shapes, which may be within the context."""
    with xinit.deferred():
        model = nn.Sequential(nn.LazyLinear(5))
    with pytest.raises(
        RuntimeError, match=r"materialize_: parameters 0.weight, 0.bias of lazy modules have no shape yet"
    ):
        xinit.materialize_(model, key=KEY)
    with xinit.deferred():
        model = nn.Sequential(nn.LazyLinear(5))
        model(torch.ones(2, 4))
    xinit.materialize_(model, key=KEY)
    assert torch.equal(model[0].weight, xinit.uniform_(torch.empty(5, 4), -0.5, 0.5, key=KEY.fold_in("0.weight")))
