"""Under torch.func's transforms, and forward-mode AD: what torch's own random fills do there."""

import pytest
import torch
from conftest import KEY, fills, same
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, jvp, stack_module_state

import xinit
from xinit import Key, Window

MODES = ("error", "same", "different")
modes = pytest.mark.parametrize("mode", MODES)
XS = torch.arange(3.0)


def vmapped(fill, mode, in_dims=0):
    return torch.vmap(lambda x: fill(x.new_empty(4, 6)), in_dims, randomness=mode)


# ---- vmap ----


@pytest.mark.parametrize("key", [None, KEY], ids=["generator", "key"])
@modes
@fills
def test_vmap(fill, mode, key):
    arguments = {} if key is None else {"key": key}
    torch.manual_seed(5)
    if mode == "error" and key is None:
        before = torch.get_rng_state()
        with pytest.raises(RuntimeError, match="called random operation while in randomness error mode"):
            vmapped(fill, mode)(XS)
        assert torch.equal(torch.get_rng_state(), before)
        return
    drawn = vmapped(lambda t: fill(t, **arguments), mode)(XS)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    one = fill(torch.empty(4, 6), **arguments)  # one draw, of the same key, whatever the mode
    assert torch.equal(torch.get_rng_state(), state)
    assert same(drawn[0], one)
    assert all(same(member, one) == (mode != "different") for member in drawn[1:])


def test_a_batch_is_one_array_with_the_fans_of_a_member():
    drawn = vmapped(lambda t: xinit.kaiming_uniform_(t, key=KEY), "different")(XS)
    assert same(drawn, xinit.uniform_(torch.empty(3, 4, 6), -1, 1, key=KEY))


@fills
def test_unbatched_tensors_cannot_differ(fill):
    """The snippet that gave three equal members without a word."""
    for arguments in {}, {"key": KEY}:
        tensor, before = torch.zeros(2, 2), torch.get_rng_state()
        with pytest.raises(RuntimeError, match="different inplace randomness on an unbatched tensor"):
            torch.vmap(lambda i, t=tensor, a=arguments: fill(t, **a) + 0 * i, randomness="different")(XS)
        assert torch.equal(torch.get_rng_state(), before)
        assert not tensor.any()
    drawn = torch.vmap(lambda i: fill(torch.empty(4, 6), key=KEY) + 0 * i, randomness="same")(XS)
    assert all(same(member, fill(torch.empty(4, 6), key=KEY)) for member in drawn)


@modes
def test_windows(mode):
    where = Window((9, 8), (2, 1))
    drawn = vmapped(lambda t: xinit.xavier_normal_(t, key=KEY, window=where), mode)(XS)
    whole = xinit.xavier_normal_(torch.empty(9, 8), key=KEY)
    assert same(drawn[0], whole[2:6, 1:7])
    if mode == "different":
        std = (2 / 17) ** 0.5
        assert same(drawn, xinit.normal_(torch.empty(3, 9, 8), 0, std, key=KEY)[:, 2:6, 1:7])
    else:
        assert all(same(member, drawn[0]) for member in drawn)


def test_the_batch_may_be_any_dimension_and_the_tensor_a_parameter():
    parameter = torch.nn.Parameter(torch.zeros(4, 3, 6))
    for mode in MODES:
        torch.vmap(lambda t: xinit.kaiming_normal_(t, key=KEY), in_dims=1, randomness=mode)(parameter)
        assert (parameter.is_leaf, parameter.requires_grad, parameter.grad_fn) == (True, True, None)
        assert same(parameter[:, 0].detach(), xinit.kaiming_normal_(torch.empty(4, 6), key=KEY))
        assert same(parameter[:, 0].detach(), parameter[:, 2].detach()) == (mode != "different")


@pytest.mark.parametrize("outer", ["same", "different"])
@pytest.mark.parametrize("inner", ["same", "different"])
def test_nested(outer, inner):
    def rows(x):
        return torch.vmap(lambda y: xinit.uniform_((x + y).new_empty(5), key=KEY), randomness=inner)(XS[:2])

    drawn = torch.vmap(rows, randomness=outer)(XS)
    sizes = (3 if outer == "different" else 1, 2 if inner == "different" else 1, 5)
    assert same(drawn, xinit.uniform_(torch.empty(sizes), key=KEY).expand(3, 2, 5))


@modes
def test_fill_many(mode):
    def fill(x):
        w, b = x.new_empty(4, 6), x.new_empty(4)
        windows = [Window((5, 6), (1, 0)), Window((4,), (0,))]
        xinit.fill_many_([w, b], [xinit.xavier_normal(), xinit.uniform()], [Key(1), Key(2)], windows)
        return w, b

    w, b = torch.vmap(fill, randomness=mode)(XS)
    whole, (one_w, one_b) = xinit.xavier_normal_(torch.empty(5, 6), key=Key(1)), fill(torch.empty(()))
    assert same(w[0], whole[1:])
    assert same(w[0], one_w)
    assert same(b[0], one_b)
    if mode == "different":
        assert same(b, xinit.uniform_(torch.empty(3, 4), key=Key(2)))
    else:
        assert all(same(member, one_w) for member in w)


@modes
def test_ensembles(mode):
    """stack_module_state's parameters, drawn anew, member by member."""
    models = [torch.nn.Linear(6, 4) for _ in range(3)]
    parameters, _ = stack_module_state(models)

    def member(p, x):
        p = {name: xinit.normal_(torch.empty_like(value), key=KEY.fold_in(name)) for name, value in p.items()}
        return functional_call(models[0], p, (x,))

    out = torch.vmap(member, in_dims=(0, None), randomness=mode)(parameters, torch.ones(2, 6))
    assert len({row.sum().item() for row in out}) == (3 if mode == "different" else 1)


INITS = ("uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "kaiming_normal_")


@pytest.mark.parametrize("name", INITS)
@modes
@pytest.mark.parametrize("batched", [True, False])
def test_accelerate_honours_the_mode(name, mode, batched):
    """The modes are torch's there too; torch's own truncated normal, a loop until it fits, cannot be vmapped at all."""
    function = getattr(torch.nn.init, name)

    def run(x):
        return function(x.new_empty(4, 6) if batched else torch.empty(4, 6)) + 0 * x

    with xinit.accelerate():
        if mode == "error" or (mode == "different" and not batched):
            with pytest.raises(RuntimeError, match="vmap: "):
                torch.vmap(run, randomness=mode)(XS)
            return
        torch.manual_seed(5)
        drawn = torch.vmap(run, randomness=mode)(XS)
    torch.manual_seed(5)
    assert same(drawn[0], getattr(xinit, name)(torch.empty(4, 6)))
    assert same(drawn[0], drawn[1]) == (mode == "same")


# ---- functionalize ----


@fills
def test_functionalize(fill):
    def f(x):
        y = x.clone()
        fill(y[1:].t(), key=KEY)
        fill(x[:4, ::2], key=KEY)
        return y, fill(torch.empty(3, 5))

    torch.manual_seed(3)
    x = torch.zeros(7, 12)
    expected = (*f(x), x)
    torch.manual_seed(3)
    x = torch.zeros(7, 12)
    assert all(map(same, (*functionalize(f)(x), x), expected))


def test_functionalize_many():
    def f(x):
        y = x.clone()
        xinit.fill_many_([x[1:], y], [xinit.normal(), xinit.xavier_normal()], [Key(1), Key(2)])
        return y

    x, z = torch.zeros(4, 5), torch.zeros(4, 5)
    assert same(functionalize(f)(x), f(z))
    assert same(x, z)


def test_functionalize_within_vmap():
    for mode in MODES:
        fill = functionalize(lambda x: xinit.kaiming_uniform_(x.new_empty(4, 6), key=KEY))
        drawn = torch.vmap(fill, randomness=mode)(XS)
        assert same(drawn, vmapped(lambda t: xinit.kaiming_uniform_(t, key=KEY), mode)(XS))


# ---- forward mode ----


@fills
def test_tangents_become_zero(fill):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.zeros(4, 5), torch.ones(4, 5))
        fill(dual[1:], key=KEY)
        assert forward_ad.unpack_dual(dual).tangent.tolist() == [[1.0] * 5] + [[0.0] * 5] * 3
        assert same(forward_ad.unpack_dual(dual).primal[1:], fill(torch.empty(3, 5), key=KEY))


@pytest.mark.parametrize("init", [xinit, torch.nn.init], ids=["xinit", "torch"])
def test_jvp(init):
    def f(x):
        y = 2 * x
        init.normal_(y[1:])
        return 3 * y + init.uniform_(torch.empty_like(x))

    assert jvp(f, (torch.zeros(3, 2),), (torch.ones(3, 2),))[1].tolist() == [[6.0, 6.0], [0.0, 0.0], [0.0, 0.0]]


def test_tangents_of_many():
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(torch.zeros(2), torch.ones(2)), torch.zeros(2)]
        xinit.fill_many_(duals, [xinit.normal()] * 2, [Key(0)] * 2)
        assert not forward_ad.unpack_dual(duals[0]).tangent.any()
