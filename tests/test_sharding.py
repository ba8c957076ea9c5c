"""Where elements of sharded tensors are: xinit's boxes against torch's own cutting of an arange."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from xinit.sharding import local_boxes


def cut_by_torch(whole, mesh, coordinate, placements):
    """As distribute_tensor does, from left to right."""
    for count, index, placement in zip(mesh, coordinate, placements, strict=True):
        if not isinstance(placement, Replicate):
            whole = placement._split_tensor(whole, count, with_padding=False, contiguous=False)[0][index]
    return whole


def cut_by_boxes(whole, mesh, coordinate, placements, shape):
    local = torch.full(shape, -1)
    for box in local_boxes(whole.shape, mesh, coordinate, placements):
        target = local[tuple(slice(a, a + n) for a, n in zip(box.local, box.shape, strict=True))]
        assert (target == -1).all(), "boxes overlap"
        target.copy_(whole[tuple(slice(a, a + n) for a, n in zip(box.offsets, box.shape, strict=True))])
    return local


@st.composite
def layouts(draw):
    shape = tuple(draw(st.lists(st.integers(0, 23), min_size=1, max_size=4)))
    mesh = tuple(draw(st.lists(st.integers(1, 8), min_size=1, max_size=4).filter(lambda m: math.prod(m) <= 64)))
    dim = st.integers(0, len(shape) - 1)
    strided = st.builds(lambda d, factor: _StridedShard(d, split_factor=factor), dim, st.integers(1, 6))
    placement = st.one_of(dim.map(Shard), st.just(Replicate()), strided)
    placements = draw(st.lists(placement, min_size=len(mesh), max_size=len(mesh)))
    coordinate = tuple(draw(st.integers(0, count - 1)) for count in mesh)
    return shape, mesh, coordinate, placements


@settings(max_examples=2000, deadline=None, derandomize=True, database=None)
@given(layouts())
def test_boxes_are_what_torch_cuts(layout):
    shape, mesh, coordinate, placements = layout
    whole = torch.arange(math.prod(shape)).reshape(shape)
    expected = cut_by_torch(whole, mesh, coordinate, placements)
    size, offsets = _compute_local_shape_and_global_offset(shape, mesh, list(coordinate), placements)
    assert size == tuple(expected.shape)
    boxes = local_boxes(shape, mesh, coordinate, placements)
    assert (not boxes) == (0 in size)
    if boxes:
        assert boxes[0].offsets == offsets
    assert torch.equal(cut_by_boxes(whole, mesh, coordinate, placements, size), expected)


# Each as (shape, mesh, placements, how many boxes a rank has at most).
LAYOUTS = [
    ((64, 3), (64,), [Shard(0)], 1),
    ((65, 3), (64,), [Shard(0)], 1),
    ((3, 5), (8,), [Shard(1)], 1),
    ((40, 6), (4, 8), [_StridedShard(0, split_factor=8), Shard(0)], 1),
    ((40, 6), (4, 8), [Shard(0), Shard(0)], 1),
    ((41, 6), (2, 4, 8), [Replicate(), Shard(0), Shard(0)], 1),
    ((32, 16), (8, 8), [Shard(0), Shard(1)], 1),
    ((24, 6), (4, 2), [_StridedShard(0, split_factor=3), Replicate()], 3),
    ((24, 24), (2, 2), [_StridedShard(0, split_factor=3), _StridedShard(1, split_factor=2)], 6),
    ((7,), (16, 4), [Shard(0), Shard(0)], 1),
]


@pytest.mark.parametrize(("shape", "mesh", "placements", "most"), LAYOUTS)
def test_ranks_own_each_element_once(shape, mesh, placements, most):
    owners = torch.zeros(shape, dtype=torch.int64)
    for coordinate in product(*map(range, mesh)):
        boxes = local_boxes(shape, mesh, coordinate, placements)
        assert len(boxes) <= most
        for box in boxes:
            owners[tuple(slice(a, a + n) for a, n in zip(box.offsets, box.shape, strict=True))] += 1
    replicas = math.prod(n for n, p in zip(mesh, placements, strict=True) if isinstance(p, Replicate))
    assert (owners == replicas).all()


@pytest.mark.parametrize(
    ("mesh", "coordinate", "placements", "message"),
    [
        ((2,), (0,), [Partial()], "mesh dimension 0 is .*Partial.*redistribute"),
        ((2, 2), (0, 0), [Shard(0)], "takes 2 placements"),
        ((2,), (0, 1), [Shard(0)], "takes 1 placements and coordinates"),
        ((2, 3), (0, 3), [Shard(0), Replicate()], "coordinate 3 is outside mesh dimension 1 of size 3"),
        ((2,), (-1,), [Replicate()], "coordinate -1 is outside mesh dimension 0"),
        (
            (2, 2),
            (0, 0),
            [Replicate(), Shard(2)],
            r"Shard\(dim=2\) over mesh dimension 1 shards dimension 2 of a tensor of 2",
        ),
        ((2,), (0,), [Shard(-3)], "shards dimension -3"),
    ],
)
def test_layouts_that_do_not_fit(mesh, coordinate, placements, message):
    with pytest.raises(ValueError, match=message):
        local_boxes((4, 4), mesh, coordinate, placements)


@pytest.mark.parametrize("placement", [0, None, torch._C._distributed.Placement()])
def test_placements_of_no_known_kind(placement):
    with pytest.raises(TypeError, match="mesh dimension 0"):
        local_boxes((4, 4), (2,), (0,), [placement])


def test_negative_dimensions_count_from_the_end():
    assert local_boxes((4, 6), (2,), (1,), [Shard(-1)]) == local_boxes((4, 6), (2,), (1,), [Shard(1)])


def test_a_tensor_without_dimensions_is_one_box():
    (box,) = local_boxes((), (2,), (1,), [Replicate()])
    assert (box.local, box.offsets, box.shape) == ((), (), ())
