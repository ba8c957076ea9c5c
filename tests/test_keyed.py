"""accelerate(key=, model=): a model's own code, on memory that is there, gives what materialize_() gives, by names."""

import copy
import io
import math
import pickle
import warnings
from functools import partial

import pytest
import torch
from agreement import private_trunc_normal_
from conftest import same
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import init

import xinit
from xinit import Key

KEY = Key(2025)
ROWS, COLUMNS = 20, 15


class Layer(nn.Module):
    """Two weights that a body of code initialises."""

    def __init__(self, body=None):
        super().__init__()
        self.w = nn.Parameter(torch.empty(ROWS, COLUMNS))
        self.v = nn.Parameter(torch.ones(COLUMNS))
        if body:
            body(self)


def quietly(function):
    def body(m):
        with torch.no_grad():
            function(m)

    return body


def fused(m):
    q, k = m.w.new_empty(7, COLUMNS), m.w.new_empty(ROWS - 7, COLUMNS)
    init.trunc_normal_(q, std=0.02)
    init.xavier_uniform_(k)
    m.w.copy_(torch.cat([q.view(1, 7, -1), k.view(1, ROWS - 7, -1)], dim=1).view(-1, COLUMNS))


def by_data(m):
    m.w.data = torch.randn(ROWS, COLUMNS) * 0.1


def two_parts(m):
    m.w[:8].normal_()
    m.w[8:].uniform_(-1, 1)


def orthogonal_parts(m):
    for part in m.w.split(5):
        init.orthogonal_(part)


def noise_after_noise(m):
    m.w.normal_()
    for _ in range(2):
        m.w.norm()
        m.w.add_(torch.randn_like(m.w))


def masked(m):
    m.w.normal_()
    m.w.mul_(torch.rand(ROWS, COLUMNS) < 0.5)


def normalised(m):
    m.w.normal_()
    m.w.div_(m.w.norm(dim=1, keepdim=True))


def padded(m):
    init.normal_(m.w, std=0.02)
    m.w.data[3].zero_()


def its_own_rows(m):
    m.w.normal_()
    m.w[:4] = m.w[4:8] * 2
    m.w.copy_(m.w * 0.3)


def templates(m):
    m.v.uniform_()
    m.w.copy_(m.v.expand(ROWS, COLUMNS) * 2)


BODIES = {
    "normal_": lambda m: m.w.normal_(0.5, 2),
    "uniform_, by name": lambda m: m.w.uniform_(to=3),
    "the last one counts": lambda m: m.w.normal_().uniform_(-1, 1).normal_(0, 2),
    "once more, the same": lambda m: m.w.normal_().normal_(),
    "a detached one": lambda m: m.w.detach().normal_(),
    "data": lambda m: m.w.data.normal_(),
    "new data": by_data,
    "set_": lambda m: m.w.set_(torch.randn(ROWS, COLUMNS) * 0.1),
    "transposed": lambda m: m.w.t().uniform_(),
    "two parts": two_parts,
    "a row over it": padded,
    "diagonal": lambda m: (m.w.zero_(), m.w.diagonal().normal_()),
    "kaiming_uniform_": lambda m: init.kaiming_uniform_(m.w, a=math.sqrt(5)),
    "xavier_normal_": lambda m: init.xavier_normal_(m.w),
    "trunc_normal_": lambda m: init.trunc_normal_(m.w, std=0.02, a=-0.04, b=0.04),
    "trunc_normal_, private": lambda m: private_trunc_normal_(m.w, 0.1, 0.02, 0.06, 0.16),
    "orthogonal_": lambda m: init.orthogonal_(m.w, 1.5),
    "orthogonal_, wide": lambda m: init.orthogonal_(m.w.t()),
    "sparse_": lambda m: init.sparse_(m.w, 0.3),
    "eye_": lambda m: init.eye_(m.w),
    "a factor": lambda m: (init.normal_(m.w, std=0.02), m.w.div_(math.sqrt(2 * 7))),
    "a copy of a draw": lambda m: m.w.copy_(torch.randn(ROWS, COLUMNS) * 0.1),
    "fused": fused,
    "orthogonal parts": orthogonal_parts,
    "orthogonal parts of zeros": lambda m: (m.w.zero_(), orthogonal_parts(m)),
    "noise after noise": noise_after_noise,
    "masked": masked,
    "normalised": normalised,
    "of another one": templates,
    "its values times": lambda m: (m.w.normal_(), m.w.copy_(m.w * 0.3)),
    "its data times": lambda m: (m.w.normal_(), setattr(m.w, "data", m.w.data * 0.3)),
    "bernoulli_": lambda m: m.w.bernoulli_(0.3),
    "geometric_": lambda m: m.w.exponential_(),
    "xinit.normal_": lambda m: xinit.normal_(m.w, std=0.02),
    "xinit.kaiming_normal_": lambda m: xinit.kaiming_normal_(m.w, nonlinearity="relu"),
    "xinit.orthogonal_": lambda m: xinit.orthogonal_(m.w),
}


def expected(body, key=KEY):
    with xinit.deferred():
        model = Layer(body)
    return xinit.materialize_(model, key=key)


def equal(found, wanted):
    wanted = dict(wanted.named_parameters())
    for name, parameter in found.named_parameters():
        assert same(parameter.detach(), wanted[name].detach()), name


@pytest.mark.parametrize("name", BODIES)
def test_values_are_those_of_materialize(name):
    body = quietly(BODIES[name])
    model = Layer()
    before = model.w, model.w.data_ptr()
    with xinit.accelerate(key=KEY, model=model):
        body(model)
    assert (model.w, model.w.data_ptr()) == before
    equal(model, expected(body))


@pytest.mark.parametrize("name", BODIES)
def test_a_look_changes_nothing(name):
    """Drawn before the context ends, as somebody looks, and gone on with from there."""
    body = quietly(BODIES[name])
    model = Layer()
    with xinit.accelerate(key=KEY, model=model):
        body(model)
        seen = model.w.tolist(), model.w.sum().item(), model.w.detach().clone()
    assert torch.equal(torch.tensor(seen[0]), model.w)
    assert seen[1] == model.w.sum().item()
    equal(model, expected(body))


def test_what_a_parameter_gives_to_itself():
    """A part that is made of another one stays so."""
    model = Layer()
    with xinit.accelerate(key=KEY, model=model):
        quietly(its_own_rows)(model)
    for weight in model.w.detach(), expected(quietly(its_own_rows)).w.detach():
        assert torch.allclose(weight[:4], weight[4:8] * 2)
        assert weight[8:].std() == pytest.approx(0.3, rel=0.2)


def test_what_is_drawn_again_after_it_was_copied():
    """Its name's key gives the same again, of which the copy has the values: said, since torch's would be others."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def body(again):
        with torch.no_grad(), xinit.accelerate(key=KEY, model=model):
            init.normal_(model[0].weight)
            model[1].load_state_dict(model[0].state_dict())
            again(model[0].weight)

    with pytest.warns(UserWarning, match="1.weight was made of parameter 0.weight, which was then drawn again"):
        body(lambda weight: init.normal_(weight, std=2))
    assert torch.equal(model[0].weight, 2 * model[1].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        body(lambda weight: (weight[0].zero_(), weight.mul_(3)))


def test_noise_upon_noise_is_another():
    """What comes back from a parameter's own values is no reason to draw the same again."""
    model = Layer()
    seen = []
    with torch.no_grad(), xinit.accelerate(key=KEY, model=model):
        init.zeros_(model.w)
        for _ in range(3):
            model.w.copy_(model.w + torch.randn(ROWS, COLUMNS))
            seen.append(model.w.clone())
    noises = [seen[0], seen[1] - seen[0], seen[2] - seen[1]]
    assert abs(torch.corrcoef(torch.stack(noises).flatten(1)).fill_diagonal_(0)).max() < 0.25


def saved(weight):
    file = io.BytesIO()
    torch.save({"w": weight}, file)
    file.seek(0)
    return torch.load(file)["w"].detach()


def test_every_look_finds_it_drawn():
    wanted = expected(lambda m: init.normal_(m.w)).w
    looks = {
        "numpy": lambda w: torch.from_numpy(w.detach().numpy().copy()),
        "tolist": lambda w: torch.tensor(w.tolist()),
        "clone": lambda w: w.detach().clone(),
        "deepcopy": lambda w: copy.deepcopy(w).detach(),
        "times": lambda w: w.detach() * 1,
        "into another": lambda w: torch.empty(ROWS, COLUMNS).copy_(w.detach()),
        "torch.save": saved,
        "pickle": lambda w: pickle.loads(pickle.dumps(w.detach())),
        "torch.tensor": lambda w: torch.tensor([list(row) for row in w.detach()]),
        "rows": lambda w: torch.stack([row.detach().clone() for row in w]),
    }
    for name, look in looks.items():
        model = Layer()
        with xinit.accelerate(key=KEY, model=model):
            init.normal_(model.w)
            assert torch.equal(look(model.w), wanted), name


def test_what_was_there_stays():
    """What nothing is drawn into, and the rest of what a part of is; a factor is that of what was there."""
    model = Layer()
    nn.init.constant_(model.w, 3.0)
    with torch.no_grad(), xinit.accelerate(key=KEY, model=model):
        model.w[2:5].normal_()
        model.v.mul_(4)
    whole = expected(lambda m: init.normal_(m.w)).w
    assert torch.equal(model.w[2:5], whole[2:5])
    assert (model.w[:2] == 3).all()
    assert (model.w[5:] == 3).all()
    assert (model.v == 4).all()
    with torch.no_grad(), xinit.accelerate(key=KEY, model=model):
        model.w[0].normal_()
        model.w.mul_(torch.ones(ROWS, COLUMNS)).add_(torch.rand(ROWS, COLUMNS) * 0)
    assert torch.equal(model.w[0], whole[0])
    assert (model.w[5:] == 3).all()


def test_generators_are_not_touched():
    model = Layer()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with torch.no_grad(), xinit.accelerate(key=KEY, model=model):
        init.kaiming_normal_(model.w)
        model.v.uniform_()
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_for_no_parameter_is_the_generators():
    """As of deferred(): a buffer, or another tensor, has no name that a key could be folded with."""
    model = Layer()
    torch.manual_seed(5)
    drawn = torch.randn(3)
    torch.manual_seed(5)
    with xinit.accelerate():
        drawn = torch.randn(3)
    torch.manual_seed(5)
    with xinit.accelerate(key=KEY, model=model):
        init.normal_(model.w)
        assert torch.equal(torch.randn(3), drawn)


def test_names():
    """Without wrappers' parts; of a tie, also of one made within, the first."""

    class Net(nn.Module):
        def __init__(self, wrap=lambda layer: layer):
            super().__init__()
            self.first, self.last = nn.Linear(6, 6, bias=False), wrap(nn.Linear(6, 6, bias=False))

    plain, wrapped, tied = Net(), Net(checkpoint_wrapper), Net()
    for model in plain, nn.DataParallel(wrapped), tied:
        with xinit.accelerate(key=KEY, model=model):
            net = model if isinstance(model, Net) else model.module
            init.normal_(net.last.weight)
            if net is tied:
                net.first.weight = net.last.weight
            else:
                init.normal_(net.first.weight)
    draw = lambda name: xinit.normal_(torch.empty(6, 6), key=KEY.fold_in(name))  # noqa: E731
    for net in plain, wrapped:
        assert torch.equal(net.first.weight, draw("first.weight"))
        assert torch.equal(net.last.weight, draw("last.weight"))
    assert torch.equal(tied.last.weight, draw("first.weight"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_dtypes(dtype):
    model = Layer()
    model.w = nn.Parameter(model.w.detach().to(dtype))
    with xinit.accelerate(key=KEY, model=model):
        init.normal_(model.w)
    assert same(model.w.detach(), xinit.normal_(torch.empty(ROWS, COLUMNS, dtype=dtype), key=KEY.fold_in("w")))


def flat():
    """Two parameters in one storage."""
    memory = torch.zeros(60)
    model = nn.Module()
    model.a, model.b = nn.Parameter(memory[:24].view(6, 4)), nn.Parameter(memory[24:].view(6, 6))
    return model, memory


def test_parameters_that_share_a_storage():
    model, memory = flat()
    with xinit.accelerate(key=KEY, model=model):
        init.normal_(model.a)
        init.uniform_(model.b)
        with torch.no_grad():
            model.a[0] = 0
    assert torch.equal(model.a[1:], xinit.normal_(torch.empty(6, 4), key=KEY.fold_in("a"))[1:])
    assert torch.equal(model.b, xinit.uniform_(torch.empty(6, 6), key=KEY.fold_in("b")))
    assert (memory[:4] == 0).all()


def across():
    model, memory = flat()
    return model, lambda: (init.normal_(model.a), memory[20:30].normal_())


def replaced():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))

    def body():
        init.normal_(model[0].weight)
        model[1] = nn.Linear(3, 3)

    return model, body


def generator():
    model = Layer()
    return model, lambda: (init.normal_(model.v), init.normal_(model.w, generator=torch.Generator()))


def others():
    model, other = Layer(), Layer()
    return model, lambda: init.normal_(other.w)


def nested():
    model = Layer()

    def body():
        init.normal_(model.w)
        with xinit.accelerate(key=Key(1), model=model):
            pass

    return model, body


def shared():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))

    def body():
        model[1].weight.data = model[0].weight.data
        init.normal_(model[0].weight)

    return model, body


def unfit():
    model = Layer()
    return model, lambda: (init.normal_(model.v), model.w.detach().normal_(0, -1))


ERRORS = {
    across: (RuntimeError, "across parameters a, b, in one storage"),
    replaced: (RuntimeError, "1.weight"),
    generator: (ValueError, "draws w from a generator, but the context has a key"),
    others: (RuntimeError, "1 draws went into parameters that are not the model's, the first of shape .20, 15."),
    nested: (RuntimeError, "within another accelerate"),
    shared: (RuntimeError, "1.weight the memory of 0.weight"),
    unfit: (RuntimeError, "std"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_leave_all_as_it_was(case):
    model, body = case()
    kind, words = ERRORS[case]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    parameters = dict(model.named_parameters())
    with pytest.raises(kind, match=words), xinit.accelerate(key=KEY, model=model):
        body()
    for name, parameter in parameters.items():
        assert same(parameter.detach(), before[name]), name
    torch.manual_seed(0)
    init.normal_(next(iter(parameters.values())))
    assert torch.initial_seed() == 0, "torch is torch's again"


def emptied():
    model = Layer()
    model.w.untyped_storage().resize_(0)
    return model


BAD = [
    (dict(key=KEY), ValueError, "go together"),
    (dict(model=Layer()), ValueError, "go together"),
    (dict(key=3, model=Layer()), TypeError, "xinit.Key, but found int"),
    (dict(key=KEY, model=3), TypeError, "Module, but found int"),
    (dict(key=KEY, model=nn.Linear(2, 2, device="meta")), RuntimeError, "weight is on the meta device.*to_empty"),
    (dict(key=KEY, model=nn.LazyLinear(2)), ValueError, "weight"),
    (dict(key=KEY, model=emptied()), RuntimeError, "w has no memory here"),
]


@pytest.mark.parametrize(("arguments", "kind", "words"), BAD)
def test_bad_arguments(arguments, kind, words):
    with pytest.raises(kind, match=words), xinit.accelerate(**arguments):
        pass


def test_within_deferred():
    model = Layer()
    with xinit.deferred():
        with pytest.raises(RuntimeError, match="within deferred"), xinit.accelerate(key=KEY, model=model):
            pass
        late = Layer(lambda m: init.normal_(m.w))
    with (
        pytest.raises(RuntimeError, match=r"w is on the meta device.*materialize_"),
        xinit.accelerate(key=KEY, model=late),
    ):
        pass


def test_nested_with_the_same_key():
    model = Layer()
    with xinit.accelerate(key=KEY, model=model), xinit.accelerate(key=KEY, model=model), xinit.accelerate():
        init.normal_(model.w)
    equal(model, expected(lambda m: init.normal_(m.w)))


def test_nothing_is_drawn():
    model = Layer()
    with pytest.warns(UserWarning, match="nothing was drawn into the model's"), xinit.accelerate(key=KEY, model=model):
        torch.randn(3)


def test_report():
    def body():
        with xinit.accelerate(report=True) as left:
            torch.empty(3).normal_()
            torch.empty(3).bernoulli_(0.5)
            torch.empty(3).bernoulli_(0.5)
        assert len(left) == 2

    with pytest.warns(UserWarning, match=r"left to torch: 2 x aten.bernoulli_.float of Tensor \(3,\) torch.float32"):
        body()


@pytest.mark.parametrize("kind", [nn.LSTM, partial(nn.TransformerEncoderLayer, nhead=2)])
def test_torchs_modules(kind):
    """reset_parameters and what each module calls it."""

    def reset(model):
        for module in model.modules():
            for name in ("reset_parameters", "_reset_parameters"):
                if hasattr(module, name):
                    getattr(module, name)()

    model = kind(8, dim_feedforward=16) if kind is not nn.LSTM else kind(8, 8)
    with xinit.deferred():
        wanted = kind(8, dim_feedforward=16) if kind is not nn.LSTM else kind(8, 8)
        reset(wanted)
    xinit.materialize_(wanted, key=KEY)
    with xinit.accelerate(key=KEY, model=model):
        reset(model)
    equal(model, wanted)
