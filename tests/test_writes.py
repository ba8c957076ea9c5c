"""Writes: boxes of parameters, in order, filled at once."""

import pytest
import torch
from torch import nn

import xinit
from xinit import Key, Window
from xinit.parameters.names import canonical_name, modules_of, tensors_of
from xinit.parameters.writes import Write, fill_writes_, writes_of

KEY = Key(3)


def whole(distribution, shape=(9, 7), key=KEY):
    return Write(distribution, key, (0,) * len(shape), shape)


def test_the_later_of_two_overlapping_writes_stands():
    parameter = nn.Parameter(torch.full((9, 7), torch.nan))
    rows = Write(xinit.constant(2), KEY, (2, 0), (3, 7))
    cell = Write(xinit.constant(5), KEY, (4, 6), (1, 1))
    fill_writes_([("w", parameter, [whole(xinit.normal()), rows, cell])])
    expected = xinit.normal_(torch.empty(9, 7), key=KEY)
    expected[2:5] = 2
    expected[4, 6] = 5
    assert torch.equal(parameter, expected)


def test_what_a_later_write_covers_is_not_drawn(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "xinit.parameters.writes.fill_many_",
        lambda tensors, *_: drawn.extend(t.shape for t in tensors if not t.is_meta),
    )
    rows = Write(xinit.constant(2), KEY, (2, 0), (3, 7))
    fill_writes_([("w", torch.empty(9, 7), [rows, whole(xinit.uniform()), whole(xinit.normal()), rows])])
    assert drawn == [(9, 7), (3, 7)]


def test_a_part_framed_by_the_whole_has_the_bits_of_the_whole():
    tensor = torch.full((9, 7), torch.nan)
    parts = [
        Write(xinit.normal(), KEY, (0, 0), (4, 7), Window((9, 7), (0, 0))),
        Write(xinit.normal(), KEY, (4, 0), (5, 7), Window((9, 7), (4, 0))),
    ]
    fill_writes_([("w", tensor, parts)])
    assert torch.equal(tensor, xinit.normal_(torch.empty(9, 7), key=KEY))


@pytest.mark.parametrize("progress", [False, True])
def test_an_error_names_the_parameter_and_changes_nothing(progress):
    if progress:
        pytest.importorskip("tqdm")
    good, bad = torch.zeros(9, 7), torch.zeros(9, 7, dtype=torch.float16)
    too_large = Write(xinit.constant(1e6), KEY, (1, 1), (2, 2))
    jobs = [("good", good, [whole(xinit.normal())]), ("bad.weight", bad, [whole(xinit.normal()), too_large])]
    with pytest.raises(RuntimeError, match=r"1e\+06.*bad\.weight"):
        fill_writes_(jobs, progress)
    assert not good.any()
    assert not bad.any()


def test_a_bar_over_the_same_bits(capsys):
    pytest.importorskip("tqdm")
    jobs = [
        (f"w{i}", torch.empty(i + 1, 300), [whole(xinit.normal(), (i + 1, 300), KEY.fold_in(i))]) for i in range(300)
    ]
    fill_writes_(jobs, progress=True, op="drawing")
    shown = capsys.readouterr().err
    assert "drawing: 100%" in shown
    for i, (_, tensor, _) in enumerate(jobs):
        assert torch.equal(tensor, xinit.normal_(torch.empty(i + 1, 300), key=KEY.fold_in(i)))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_blocks_have_the_bits_of_their_own_parameters(axis):
    shape = (30, 12) if axis == 0 else (12, 30)
    parts = {"q": (16, xinit.xavier_uniform()), "k": (10, xinit.kaiming_normal()), "v": (4, xinit.zeros())}
    tensor = torch.full(shape, torch.nan)
    writes = writes_of("layers.3.qkv.weight", shape, xinit.blocks("qkv", parts, axis), KEY)
    fill_writes_([("layers.3.qkv.weight", tensor, writes)])
    for (name, (size, distribution)), part in zip(parts.items(), tensor.split((16, 10, 4), axis), strict=True):
        alone = torch.empty((size, 12) if axis == 0 else (12, size))
        xinit.fill_many_([alone], [distribution], [KEY.fold_in(f"layers.3.{name}.weight")])
        assert torch.equal(part, alone)


@pytest.mark.parametrize(
    ("fused", "sizes", "axis", "words"),
    [
        ("qkv", (4, 4), 0, r"sizes \[4, 4\] do not add up to the 9 of axis 0"),
        ("qkv", (13, -4), 0, "size of part 'b' must be an integer >= 0, but found -4"),
        ("qkv", (4, 5), 2, "axis 2 is out of range"),
        ("kv", (4, 5), 0, "'kv' is no component of the name 'a.qkv.weight'"),
    ],
)
def test_blocks_that_do_not_fit(fused, sizes, axis, words):
    parts = {"a": (sizes[0], xinit.normal()), "b": (sizes[1], xinit.normal())}
    with pytest.raises(ValueError, match=words):
        writes_of("a.qkv.weight", (9, 7), xinit.blocks(fused, parts, axis), KEY)


def test_names_without_wrappers():
    name = "module._orig_mod.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.weight"
    assert canonical_name(name) == "layers.0.weight"
    assert canonical_name("modules.module_list.0.weight") == "modules.module_list.0.weight"
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    expected = ["0.weight", "0.bias", "1.bias"]
    assert [name for name, _ in tensors_of([*modules_of(nn.DataParallel(model))])] == expected
    compiled = nn.ModuleDict({"_orig_mod": model})  # as torch.compile wraps it
    assert [name for name, _ in tensors_of([*modules_of(compiled)])] == expected


def test_two_parameters_of_one_canonical_name_are_an_error():
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "_orig_mod": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"module\.weight and _orig_mod\.weight are both weight"):
        tensors_of([*modules_of(model)])
