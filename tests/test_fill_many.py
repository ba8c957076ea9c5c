"""fill_many_: each tensor gets the bits that it would get alone, in any company."""

import math
import re

import pytest
import torch

import xinit
from xinit import _C, Key, Window

KEY = Key(2024).fold_in("many")
# A distribution as a value, and the function that fills with it.
PAIRS = [
    (xinit.uniform(-0.3, 0.7), lambda t, key: xinit.uniform_(t, -0.3, 0.7, key=key)),
    (xinit.normal(0.5, 0.02), lambda t, key: xinit.normal_(t, 0.5, 0.02, key=key)),
    (xinit.trunc_normal(0.1, 0.5, -0.2, 3), lambda t, key: xinit.trunc_normal_(t, 0.1, 0.5, -0.2, 3, key=key)),
    (xinit.xavier_uniform(5 / 3), lambda t, key: xinit.xavier_uniform_(t, 5 / 3, key=key)),
    (xinit.xavier_normal(), lambda t, key: xinit.xavier_normal_(t, key=key)),
    (
        xinit.kaiming_uniform(0.2, "fan_out"),
        lambda t, key: xinit.kaiming_uniform_(t, 0.2, "fan_out", key=key),
    ),
    (
        xinit.kaiming_normal(nonlinearity="relu"),
        lambda t, key: xinit.kaiming_normal_(t, nonlinearity="relu", key=key),
    ),
    (xinit.variance_scaling(2.0, "fan_avg"), lambda t, key: xinit.variance_scaling_(t, 2.0, "fan_avg", key=key)),
    (xinit.constant(0.25), lambda t, key: t.fill_(0.25)),
    (xinit.zeros(), lambda t, key: t.zero_()),
    (xinit.ones(), lambda t, key: t.fill_(1)),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(1, 1), (3, 5), (2, 3, 4), (257, 129), (1000, 333)]


def tensors():
    """Every distribution, dtype and shape; every third transposed, every fifth a Parameter."""
    for i, (pair, dtype, shape) in enumerate((p, d, s) for p in PAIRS for d in DTYPES for s in SHAPES):
        tensor = torch.full(shape, torch.nan, dtype=dtype)
        tensor = tensor.transpose(0, 1) if i % 3 == 0 else tensor
        yield pair, torch.nn.Parameter(tensor) if i % 5 == 0 else tensor


def test_the_bits_are_those_of_single_fills_whatever_the_order_and_the_threads(threads):
    cases = [(pair, tensor, KEY.fold_in(i)) for i, (pair, tensor) in enumerate(tensors())]
    expected = []
    for (_, fill), tensor, key in cases:
        alone = torch.empty_like(tensor, memory_format=torch.contiguous_format).detach()
        fill(alone, key)
        expected.append(alone)
    for count, order in ((1, cases), (2, cases[::-1]), (3, cases[7:] + cases[:7])):
        threads(count)
        for _, tensor, _ in cases:
            tensor.detach().fill_(torch.nan)
        xinit.fill_many_([t for _, t, _ in order], [p[0] for p, _, _ in order], [k for _, _, k in order])
        for (_, tensor, _), alone in zip(cases, expected, strict=True):
            assert torch.equal(tensor.detach(), alone)


def test_versions_move_and_leaves_stay_leaves():
    tensors = [torch.nn.Parameter(torch.empty(3, 3)), torch.empty(2, 2)]
    versions = [t._version for t in tensors]
    assert xinit.fill_many_(tensors, [xinit.normal(), xinit.normal()], [KEY, KEY]) is None
    assert [t._version for t in tensors] == [v + 1 for v in versions]
    assert tensors[0].is_leaf
    assert tensors[0].requires_grad


def test_none_empty_and_meta_tensors():
    xinit.fill_many_([], [], [])
    empty, meta, real = torch.empty(0, 3), torch.empty(2, 3, device="meta"), torch.zeros(2, 3)
    xinit.fill_many_([empty, meta, real], [xinit.xavier_normal()] * 3, [KEY] * 3)
    assert torch.equal(real, xinit.xavier_normal_(torch.empty(2, 3), key=KEY))


@pytest.mark.parametrize(
    ("bad", "distribution", "error", "words"),
    [
        (torch.empty(3), xinit.xavier_normal(), ValueError, "fewer than 2 dimensions"),
        (torch.empty(3, dtype=torch.int32), xinit.normal(), NotImplementedError, "not implemented for 'Int'"),
        (torch.empty(3), xinit.Distribution("normal", (0.0, -1.0)), RuntimeError, "std >= 0.0"),
        (torch.empty(3), xinit.Distribution("cauchy", (0.0, 1.0)), ValueError, "unknown distribution cauchy"),
        (torch.empty(3, 3), xinit.Distribution("normal", (1.0,), "fan_up"), ValueError, "Mode fan_up not supported"),
        (torch.empty(1, 3).expand(2, 3), xinit.normal(), RuntimeError, "single memory location"),
        ([1.0], xinit.normal(), TypeError, "torch.Tensor, but found list at index 1"),
    ],
)
def test_an_error_leaves_all_tensors_as_they_were(bad, distribution, error, words):
    good = torch.zeros(100)
    with pytest.raises(error, match=words):
        xinit.fill_many_([good, bad], [xinit.normal(), distribution], [KEY, KEY])
    assert not good.any()
    assert good._version == 0


def test_the_numbers_must_agree():
    tensor = torch.zeros(2)
    for numbers in ((2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2)):
        values = [[value] * count for value, count in zip((xinit.normal(), KEY, None, "w"), numbers, strict=True)]
        with pytest.raises(ValueError, match=r"1 tensors take as many .*, but found 2"):
            xinit.fill_many_([tensor], *values)
    assert not tensor.any()
    with pytest.raises(ValueError, match="take as many distributions, and two key words each, but found 1 and 1"):
        torch.ops.xinit.fill_many_([tensor], ["normal(0, 1)"], [0], [])


def test_descriptions():
    """The text that crosses to C++ says exactly what the distribution is."""
    for a, b in torch.randn(200, 2, dtype=torch.float64).cumsum(1).sort(1).values.mul(torch.tensor(1e-3)).tolist():
        for distribution in (
            xinit.uniform(a, b),
            xinit.normal(a, abs(b)),
            xinit.constant(a),
            xinit.trunc_normal(a, 1, a, b),
        ):
            name, parameters = _C.resolve(distribution.description, ())
            assert (name, parameters[: len(distribution.parameters)]) == (distribution.name, distribution.parameters)
    for axes, fan in (
        ({}, 3 * 5),
        ({"in_axis": (0, -1), "out_axis": ()}, 4 * 5 * 3),
        ({"in_axis": 2, "out_axis": 1, "batch_axis": (0,)}, 5),
        ({"in_axis": 0, "out_axis": 1, "groups": 2}, 2 * 5),
    ):
        distribution = xinit.variance_scaling(1.0, "fan_in", "normal", **axes)
        assert _C.resolve(distribution.description, (4, 3, 5)) == ("normal", (0, 1 / math.sqrt(fan)))
    for wrong in ("normal", "normal(", "normal()", "normal(0)", "normal(0, 1", "normal(0, 1))", "normal(0; 1)", "gamma(0, 1, 2)",
                  "normal(1, 2, fan_in)", "normal(1, fan_in, in)", "normal(1, fan_in, axis=1)", "normal(1, fan_in, groups=)",
                  "normal(0x1, 1)", ""):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"fill_many_: a distribution is described as in .*, but found " + re.escape(wrong)
        ):
            torch.ops.xinit.fill_many_([torch.empty(2, 2)], [wrong], [0, 0], [])
    for unknown, words in (
        ("gamma(0, 1)", "unknown distribution gamma"),
        ("normal(1, fan_up)", "Mode fan_up not supported"),
    ):
        with pytest.raises(ValueError, match=words):
            torch.ops.xinit.fill_many_([torch.empty(2, 2)], [unknown], [0, 0], [])


def test_an_error_names_the_tensor():
    tensors = [torch.zeros(2), torch.zeros(2, dtype=torch.int32)]
    with pytest.raises(NotImplementedError, match=r"bad\.weight"):
        xinit.fill_many_(tensors, [xinit.normal()] * 2, [KEY] * 2, names=["good", "bad.weight"])
    with pytest.raises(NotImplementedError, match="tensor 1"):
        xinit.fill_many_(tensors, [xinit.normal()] * 2, [KEY] * 2)
    assert not tensors[0].any()


def test_windows_are_slices_of_the_whole():
    wholes, parts, distributions, windows = [], [], [], []
    for distribution, _ in PAIRS:
        whole = torch.empty(40, 36)
        xinit.fill_many_([whole], [distribution], [KEY])
        for offsets, shape in (((0, 0), (40, 36)), ((3, 0), (20, 36)), ((0, 5), (40, 7)), ((17, 1), (1, 1))):
            wholes.append(whole[offsets[0] : offsets[0] + shape[0], offsets[1] : offsets[1] + shape[1]])
            parts.append(torch.full(shape, torch.nan))
            distributions.append(distribution)
            windows.append(None if shape == (40, 36) else Window((40, 36), offsets))
    xinit.fill_many_(parts, distributions, [KEY] * len(parts), windows)
    for part, whole in zip(parts, wholes, strict=True):
        assert torch.equal(part, whole)


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (Window((4, 4), (2, 0)), "dimension 0"),
        (Window((4, 4), (0, 3)), "dimension 1"),
        (Window((4,), (0,)), "1 dimensions, but its tensor 2"),
    ],
)
def test_a_window_must_hold_its_tensor(window, words):
    good, bad = torch.zeros(3, 3), torch.zeros(3, 3)
    with pytest.raises(ValueError, match=words):
        xinit.fill_many_([good, bad], [xinit.normal()] * 2, [KEY] * 2, [None, window])
    assert not good.any()


def test_opcheck_and_compile():
    arguments = (
        [torch.empty(4, 5), torch.empty(7)],
        ["normal(0, 1)", "uniform(-1, 1)"],
    )
    torch.library.opcheck(torch.ops.xinit.fill_many_.default, (*arguments, [1, 2, 3, 4], ["w", "b"]))

    @torch.compile(fullgraph=True)
    def compiled(w, b):
        xinit.fill_many_([w, b], [xinit.kaiming_normal(), xinit.zeros()], [Key(1), Key(2)])
        return w + 1

    w, b = torch.empty(5, 6), torch.ones(5)
    result = compiled(w, b)
    alone = xinit.kaiming_normal_(torch.empty(5, 6), key=Key(1))
    assert torch.equal(w, alone)
    assert torch.equal(result, alone + 1)
    assert not b.any()
