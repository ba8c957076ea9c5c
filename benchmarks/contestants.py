"""Whom fill.py measures xinit against, besides torch.nn.init and fill_."""

import importlib.util
import math
import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch

SEED = 2026
WIDE = (torch.float32, torch.float64)


def with_numpy(function, w):
    draw = {"uniform": "random", "normal": "standard_normal"}.get(function.kind)
    if draw is None or w.dtype not in WIDE:
        return None
    import numpy as np

    generator, array = np.random.Generator(np.random.SFC64(0)), w.numpy()
    return partial(getattr(generator, draw), out=array, dtype=array.dtype)


def with_jax(function, w):
    """Makes a new array each time, and waits for it."""
    if w.dtype == torch.float64:
        return None
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # of the GPU's memory, which torch needs too
    import jax

    place = jax.devices("cuda" if w.is_cuda else "cpu")[0]
    draw = jax.jit(function.jax(jax.nn.initializers), static_argnums=(1, 2))
    key, shape = jax.device_put(jax.random.key(0), place), tuple(w.shape)
    dtype = jax.numpy.dtype(str(w.dtype).removeprefix("torch."))
    return lambda: draw(key, shape, dtype).block_until_ready()


def inversion(function, w):
    """erf of a truncated normal's bounds, between which to draw evenly, and by what to multiply the inverse then."""
    *_, low, high = function.law(*w.shape)
    spread = function.arguments["std"] * math.sqrt(2)
    return math.erf(low / spread), math.erf(high / spread), spread


def with_inductor(function, w):
    """The same maths in torch's operators, compiled into one kernel for this shape and dtype."""
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1  # here, not in processes of its own, which would pass for bystanders
    torch.compiler.reset()  # else a function is compiled for eight shapes or laws at most
    _, std, low, high = function.law(*w.shape)
    wide = w.dtype if w.dtype in WIDE else torch.float32

    def uniform(w):
        w.copy_(torch.rand_like(w, dtype=wide) * (high - low) + low)

    def normal(w):
        w.copy_(torch.randn_like(w, dtype=wide) * std)

    def truncated(w):
        w.copy_((torch.erfinv(torch.rand_like(w, dtype=wide) * (last - first) + first) * spread).clamp(low, high))

    if function.kind == "truncated":
        first, last, spread = inversion(function, w)
    draw = {"uniform": uniform, "normal": normal, "truncated": truncated}[function.kind]
    return partial(torch.compile(draw, fullgraph=True, dynamic=False), w)


def with_triton(function, w):
    import triton_kernels

    _, std, low, high = function.law(*w.shape)
    if function.kind == "truncated":
        first, last, spread = inversion(function, w)
        law = first, last - first, spread, low, high
    else:
        law = (low, high - low) if function.kind == "uniform" else (0.0, std)
    return partial(triton_kernels.launch, w, SEED, function.kind, *law)


@cache
def curand_generator():
    from cupy.cuda import curand

    generator = curand.createGenerator(curand.CURAND_RNG_PSEUDO_PHILOX4_32_10)
    curand.setPseudoRandomGeneratorSeed(generator, SEED)
    return generator


def with_curand(function, w):
    """On CuPy's current stream, which is the default one, as torch's is."""
    draw = {"uniform": "generateUniform", "normal": "generateNormal"}.get(function.kind)
    if draw is None or w.dtype not in WIDE:
        return None
    from cupy.cuda import curand

    law = (0.0, 1.0) if function.kind == "normal" else ()  # of an even number of elements, as 2^n is
    draw += "Double" * (w.dtype == torch.float64)
    return partial(getattr(curand, draw), curand_generator(), w.data_ptr(), w.numel(), *law)


class Contestant(NamedTuple):
    title: str
    package: str  # that has to be installed
    devices: tuple[str, ...]
    make: Callable[
        [Any, torch.Tensor], Callable[[], Any] | None
    ]  # of one of fill.py's functions: what fills the tensor
    scaled: bool = True  # otherwise it draws from U(0, 1) or N(0, 1)


CONTESTANTS = {
    "numpy": Contestant("NumPy", "numpy", ("cpu",), with_numpy, scaled=False),
    "jax": Contestant("JAX", "jax", ("cpu", "cuda"), with_jax),
    "inductor": Contestant("Inductor", "triton", ("cuda",), with_inductor),
    "triton": Contestant("Triton", "triton", ("cuda",), with_triton),
    "curand": Contestant("cuRAND", "cupy", ("cuda",), with_curand, scaled=False),
}


def fitting(device):
    return [name for name, contestant in CONTESTANTS.items() if device in contestant.devices]


def installed(device):
    return [name for name in fitting(device) if importlib.util.find_spec(CONTESTANTS[name].package)]
