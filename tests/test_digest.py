"""The digest op: a sum over elements, whatever the layout, the threads and the shards."""

import numpy as np
import pytest
import torch
from conftest import by_lesser_isas

import xinit
from xinit import _C, Key

KEY = Key(11, 7)
DTYPES = {torch.float32: np.uint32, torch.float64: np.uint64, torch.float16: np.uint16, torch.bfloat16: np.uint16}
CODES = dict(zip(DTYPES, range(4), strict=True))
COMPLEX = {torch.complex64: 8, torch.complex128: 9, torch.complex32: 10}


def digest(tensor, key=KEY, **window):
    return torch.ops.xinit.digest(tensor, key.words, **window)


def expected(tensor, key=KEY, global_shape=None, offsets=None):
    """By the formula, from the tensor's bits; a complex one's are those of its real view, with another code."""
    code = (CODES | COMPLEX)[tensor.dtype]
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
        global_shape, offsets = (None, None) if global_shape is None else ([*global_shape, 2], [*offsets, 0])
    words = np.array(_C.words(key.seed, key.stream, 0, 1), np.uint64)
    low = (words[0] | words[1] << np.uint64(32)) + np.uint64(code)
    high = words[2] | words[3] << np.uint64(32)
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.contiguous().view(whole).numpy().view(DTYPES[tensor.dtype]).ravel().astype(np.uint64)
    u = np.uint64
    index = np.zeros((), u)
    shape = tensor.shape if global_shape is None else global_shape
    for size, whole_size, offset in zip(tensor.shape, shape, offsets or [0] * tensor.dim(), strict=True):
        index = (index * u(whole_size))[..., None] + np.arange(size, dtype=u) + u(offset)
    h = low + index.ravel() * u(0x9E3779B97F4A7C15)
    h = (h ^ h >> u(30)) * u(0xBF58476D1CE4E5B9) ^ bits
    h = (h ^ h >> u(32)) * u(0x94D049BB133111EB)
    h ^= h >> u(31)
    g = (h + high) * u(0xBF58476D1CE4E5B9)
    return torch.tensor(np.array([h.sum(), (g ^ g >> u(29)).sum()], u).view(np.int64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (7, 9), (3, 4, 5), (257, 300)])
def test_formula(dtype, shape):
    tensor = xinit.normal_(torch.empty(shape, dtype=dtype), key=KEY)
    assert torch.equal(digest(tensor), expected(tensor))


# Around the widths of vectors, and of several of them abreast; rows of each length, too.
LENGTHS = (*range(71), *(n + d for n in (96, 128, 160, 192, 256, 512, 1024) for d in (-1, 0, 1)))


def placed(dtype):
    """Tensors and the windows they are: contiguous at any alignment, rows of a wider one, strided, transposed."""
    values = xinit.normal_(torch.empty(3, 2060, dtype=dtype), key=KEY)
    for n in LENGTHS:
        yield values[0, n % 5 :][:n], {}
        yield values[:, 3 : 3 + n], {"global_shape": (2**20, 2**20 + 7), "offsets": (2**19 + n, 5)}
        yield values[1, : 2 * n : 2], {"global_shape": (2**34,), "offsets": (2**32 - 9,)}
        yield values[:, :n].t(), {}


@pytest.mark.parametrize("dtype", DTYPES)
def test_formula_at_any_length_and_place(dtype):
    for tensor, where in placed(dtype):
        assert torch.equal(digest(tensor, **where), expected(tensor, **where)), (tensor.shape, where)


def digests():
    return [digest(tensor, **where).tolist() for dtype in DTYPES for tensor, where in placed(dtype)]


def test_the_instruction_set_does_not_matter():
    found = by_lesser_isas("t.digests()", "import test_digest as t")
    assert found == [digests()] * len(found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layout_and_threads_do_not_matter(dtype, threads):
    tensor = xinit.normal_(torch.empty(300, 517, dtype=dtype), key=KEY)
    wide = torch.zeros(300, 600, dtype=dtype)
    wide[:, 40:557] = tensor
    for count in (1, 2, 3):
        threads(count)
        for same in (tensor, tensor.t().contiguous().t(), wide[:, 40:557], torch.nn.Parameter(tensor)):
            assert torch.equal(digest(same), expected(tensor))
    assert torch.equal(digest(tensor[:1].expand(4, 517)), expected(tensor[:1].expand(4, 517)))


def test_the_whole_is_the_sum_of_its_shards():
    tensor = xinit.uniform_(torch.empty(13, 10, 6), key=KEY)
    total = torch.zeros(2, dtype=torch.int64)
    for rows, columns in ((slice(0, 5), slice(0, 10)), (slice(5, 13), slice(0, 3)), (slice(5, 13), slice(3, 10))):
        offsets = [rows.start, columns.start, 0]
        total += digest(tensor[rows, columns], global_shape=tensor.shape, offsets=offsets)
    assert torch.equal(total, digest(tensor))
    assert not digest(torch.empty(0, 6)).any()


def test_any_one_bit_any_two_elements_key_and_dtype_matter():
    tensor = xinit.normal_(torch.empty(50, 3), key=KEY)
    seen = {tuple(digest(tensor).tolist())}
    for element in range(0, 150, 7):
        for bit in range(32):
            changed = tensor.clone()
            changed.view(torch.int32).view(-1)[element] ^= -(2**31) if bit == 31 else 1 << bit
            seen.add(tuple(digest(changed).tolist()))
        swapped = tensor.clone()
        swapped.view(-1)[[element, 149]] = tensor.view(-1)[[149, element]]
        seen.add(tuple(digest(swapped).tolist()))
    assert len(seen) == 1 + 22 * 33
    assert len({pair[0] for pair in seen}) == len({pair[1] for pair in seen}) == len(seen)
    zeros = {
        tuple(digest(torch.zeros(9, dtype=dtype), key).tolist()) for dtype in DTYPES for key in (KEY, Key(1), Key(2))
    }
    assert len(zeros) == 12


def test_meta_fake_and_errors():
    assert digest(torch.empty(3, 4, device="meta")).is_meta
    torch.library.opcheck(torch.ops.xinit.digest.default, (torch.ones(3, 4), [1, 2]))
    torch.library.opcheck(torch.ops.xinit.digest.default, (torch.ones(3, 4), [1, 2], [5, 4], [2, 0]))
    with pytest.raises(NotImplementedError, match=r"digest.*Int"):
        digest(torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="found 3 numbers"):
        torch.ops.xinit.digest(torch.zeros(3), [1, 2, 3])
    with pytest.raises(ValueError, match="dimension 0"):
        digest(torch.zeros(3), global_shape=[4], offsets=[2])
    released = torch.zeros(3)
    released.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="released"):
        digest(released)
