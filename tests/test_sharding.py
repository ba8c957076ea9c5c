"""Where elements of sharded tensors are: xinit's boxes against torch's own cutting of an arange."""

import math
from functools import partial
from itertools import product

import pytest
import torch
from conftest import KEY, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

import xinit
from xinit import Window
from xinit.dtensor import Box, local_boxes, pieces, view
from xinit.parameters.writes import Write, fill_writes_, writes_of


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


class Diagonal:
    def is_partial(self):
        return False

    is_replicate = is_partial


@pytest.mark.parametrize("placement", [0, None, Diagonal()])
def test_placements_of_no_known_kind(placement):
    with pytest.raises(TypeError, match="mesh dimension 0"):
        local_boxes((4, 4), (2,), (0,), [placement])


def test_negative_dimensions_count_from_the_end():
    assert local_boxes((4, 6), (2,), (1,), [Shard(-1)]) == local_boxes((4, 6), (2,), (1,), [Shard(1)])


def test_a_tensor_without_dimensions_is_one_box():
    (box,) = local_boxes((), (2,), (1,), [Replicate()])
    assert (box.local, box.offsets, box.shape) == ((), (), ())


def mesh_of(rank, *shape):
    """A mesh as one of its ranks sees it, without processes."""
    return DeviceMesh("cpu", torch.arange(math.prod(shape)).reshape(shape), _init_backend=False, _rank=rank)


@pytest.mark.parametrize("fill", [xinit.xavier_normal_, xinit.kaiming_uniform_, xinit.lecun_normal_])
@pytest.mark.parametrize(("shape", "mesh", "placements", "most"), [case for case in LAYOUTS if len(case[0]) > 1])
def test_each_rank_of_64_fills_what_distribute_tensor_gives_it(fill, shape, mesh, placements, most):
    whole = fill(torch.empty(shape), key=KEY)
    for rank in range(math.prod(mesh)):
        expected = distribute_tensor(whole, mesh_of(rank, *mesh), placements, src_data_rank=None)
        sharded = distribute_tensor(torch.zeros(shape), mesh_of(rank, *mesh), placements, src_data_rank=None)
        assert same(fill(sharded, key=KEY)._local_tensor, expected._local_tensor)


@pytest.mark.parametrize(("shape", "mesh", "placements", "most"), [case for case in LAYOUTS if len(case[0]) > 1])
def test_each_rank_of_64_holds_its_part_of_an_identity(shape, mesh, placements, most):
    """Wide and tall, and as a kernel of three taps, in groups too."""
    cases = [(xinit.eye_, shape), (xinit.eye_, shape[::-1]), (xinit.dirac_, (*shape, 3))]
    cases += [(partial(xinit.dirac_, groups=2), (*shape, 3, 2))] * (shape[0] % 2 == 0)
    cases += [(partial(xinit.constant_, val=0.5), shape)]
    for fill, size in cases:
        whole = fill(torch.full(size, 7.0))
        for rank in range(math.prod(mesh)):
            expected = distribute_tensor(whole, mesh_of(rank, *mesh), placements, src_data_rank=None)
            sharded = distribute_tensor(torch.full(size, 7.0), mesh_of(rank, *mesh), placements, src_data_rank=None)
            assert fill(sharded) is sharded
            assert same(sharded._local_tensor, expected._local_tensor), (fill, size, rank)


@pytest.mark.parametrize(("shape", "mesh", "placements", "most"), [case for case in LAYOUTS if len(case[0]) > 1][3:8])
def test_each_rank_holds_its_part_of_an_orthogonal_or_sparse_matrix(shape, mesh, placements, most):
    cases = [(xinit.orthogonal_, xinit.orthogonal(), shape), (xinit.sparse_, xinit.sparse(0.4), shape)]
    cases += [(xinit.delta_orthogonal_, xinit.delta_orthogonal(), (*shape, 3))]
    for fill, what, size in cases:
        argument = (0.4,) if fill is xinit.sparse_ else ()
        whole = fill(torch.empty(size), *argument, key=KEY.fold_in("weight"))
        for rank in range(math.prod(mesh)):
            expected = distribute_tensor(whole, mesh_of(rank, *mesh), placements, src_data_rank=None)
            sharded = distribute_tensor(torch.full(size, 7.0), mesh_of(rank, *mesh), placements, src_data_rank=None)
            assert fill(sharded, *argument, key=KEY.fold_in("weight")) is sharded
            assert same(sharded._local_tensor, expected._local_tensor)
            again = distribute_tensor(torch.full(size, 7.0), mesh_of(rank, *mesh), placements, src_data_rank=None)
            fill_writes_([("weight", again, writes_of("weight", size, what, KEY))])
            assert same(again._local_tensor, expected._local_tensor)


@pytest.fixture
def four_ranks_in_one_process():
    local_tensor = pytest.importorskip("torch.distributed._local_tensor")
    torch.distributed.init_process_group("fake", rank=0, world_size=4)
    yield local_tensor.LocalTensorMode(4)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("placements", [[Shard(0), Shard(0)], [Replicate(), Shard(1)]])
def test_each_of_many_ranks_in_one_process(four_ranks_in_one_process, placements):
    alone, generators = torch.nn.Linear(5, 6, bias=False), [torch.Generator().manual_seed(3) for _ in range(2)]
    by_key = xinit.xavier_normal_(torch.empty(6, 5), key=KEY)
    by_generator = xinit.normal_(torch.empty(6, 5), generator=generators[0])
    by_recipe = xinit.init_(alone, "torch", KEY).weight.detach().clone()

    def assert_filled(sharded, whole):
        assert len(sharded._local_tensor._local_tensors) == 4
        for rank, part in sharded._local_tensor._local_tensors.items():
            assert same(part, cut_by_torch(whole, (2, 2), divmod(rank, 2), placements)), rank

    with four_ranks_in_one_process:
        mesh = init_device_mesh("cpu", (2, 2))
        sharded = distribute_tensor(torch.zeros(6, 5), mesh, placements)
        assert_filled(xinit.xavier_normal_(sharded, key=KEY), by_key)
        assert_filled(xinit.normal_(sharded, generator=generators[1]), by_generator)
        model = torch.nn.Linear(5, 6, bias=False)
        model.weight = torch.nn.Parameter(sharded)
        xinit.init_(model, "torch", KEY)
        assert_filled(model.weight, by_recipe)
        found = xinit.fingerprint(model)
    assert found == xinit.fingerprint(alone)
    assert torch.equal(*(generator.get_state() for generator in generators))


@pytest.mark.parametrize(
    "fill", [xinit.orthogonal_, xinit.delta_orthogonal_, xinit.dirac_, partial(xinit.sparse_, sparsity=0.5)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrices_of_many_ranks_in_one_process(four_ranks_in_one_process, fill, dtype):
    """Signs were applied once for each rank, to one matrix for all."""
    given = {} if fill is xinit.dirac_ else {"key": KEY}
    shape = (7, 6) if isinstance(fill, partial) else (7, 6, 3)
    whole = fill(torch.empty(shape, dtype=dtype), **given)
    with four_ranks_in_one_process:
        mesh = init_device_mesh("cpu", (2, 2))
        sharded = distribute_tensor(torch.zeros(shape, dtype=dtype), mesh, [Shard(0), Shard(1)])
        fill(sharded, **given)
    for rank, part in sharded._local_tensor._local_tensors.items():
        assert same(part, cut_by_torch(whole, (2, 2), divmod(rank, 2), [Shard(0), Shard(1)])), rank


def test_views_are_of_the_local_tensor():
    sharded = distribute_tensor(
        torch.zeros(12, 4), mesh_of(1, 2), [_StridedShard(0, split_factor=3)], src_data_rank=None
    )
    parts = pieces(sharded)
    assert [where.offsets for _, where in parts] == [(2, 0), (6, 0), (10, 0)]
    for i, (part, where) in enumerate(parts):
        assert where.global_shape == (12, 4)
        part.fill_(i)
    assert sharded._local_tensor[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    empty = distribute_tensor(torch.zeros(3, 4), mesh_of(3, 4), [Shard(0)], src_data_rank=None)
    ((part, where),) = pieces(empty)
    assert (tuple(part.shape), where) == ((0, 4), Window((3, 4), (0, 0)))


# ---- writes ----


@st.composite
def boxes_within(draw, shape):
    start = tuple(draw(st.integers(0, size - 1)) for size in shape)
    return start, tuple(draw(st.integers(1, size - a)) for a, size in zip(start, shape, strict=True))


@st.composite
def cut_writes(draw):
    """A write to a box of a parameter from a box of a key's array, and a piece of a shard of the parameter."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    offsets, extent = draw(boxes_within(shape))
    around = tuple(draw(st.integers(0, 3)) for _ in shape)
    frame = Window(tuple(n + 2 * a for n, a in zip(extent, around, strict=True)), around) if any(around) else None
    at, size = draw(boxes_within(shape))
    into = tuple(draw(st.integers(0, 3)) for _ in shape)
    return shape, Write(xinit.normal(), KEY, offsets, extent, frame), Box(into, at, size)


def write_indices(target, write):
    """The logical index of each element that the write writes."""
    whole, start = (
        (write.frame.global_shape, write.frame.offsets) if write.frame else (write.shape, (0,) * target.dim())
    )
    indices = torch.arange(math.prod(whole)).reshape(whole)
    view(target, write.offsets, write.shape).copy_(view(indices, start, write.shape))


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(cut_writes())
def test_a_shard_gets_its_part_of_a_write(drawn):
    shape, write, box = drawn
    whole = torch.full(shape, -1)
    write_indices(whole, write)
    local = torch.full([a + n for a, n in zip(box.local, box.shape, strict=True)], -1)
    part = write.within(box)
    if part is not None:
        write_indices(local, part)
    found = view(local, box.local, box.shape).clone()
    assert torch.equal(found, view(whole, box.offsets, box.shape))
    view(local, box.local, box.shape).fill_(-1)
    assert (local == -1).all(), "written beside the box"
