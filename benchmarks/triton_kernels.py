"""The distributions in Triton. tl.rand and tl.randn keep one or two words of a block's four; rand4x and randn4x use them all."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

BLOCK = 1024  # counters of a program; it fills four times as many elements


@triton.jit
def value(x, shift, scale, spread, low, high, KIND: tl.constexpr):
    x = shift + scale * x
    if KIND == "truncated":  # by inversion
        x = tl.minimum(tl.maximum(spread * libdevice.erfinv(x), low), high)
    return x


@triton.jit
def fill(out, n, seed, shift, scale, spread, low, high, KIND: tl.constexpr, BLOCK: tl.constexpr):
    counter = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # of 32 bits: a wider one would make a slower Philox
    if KIND == "normal":
        a, b, c, d = tl.randn4x(seed, counter)
    else:
        a, b, c, d = tl.rand4x(seed, counter)
    at = tl.program_id(0).to(tl.int64) * (4 * BLOCK) + tl.arange(0, BLOCK)
    tl.store(out + at, value(a, shift, scale, spread, low, high, KIND), at < n)
    tl.store(out + at + BLOCK, value(b, shift, scale, spread, low, high, KIND), at + BLOCK < n)
    tl.store(out + at + 2 * BLOCK, value(c, shift, scale, spread, low, high, KIND), at + 2 * BLOCK < n)
    tl.store(out + at + 3 * BLOCK, value(d, shift, scale, spread, low, high, KIND), at + 3 * BLOCK < n)


def launch(w, seed, kind, shift, scale, spread=0.0, low=0.0, high=0.0):
    """shift + scale x of x in U(0, 1) or N(0, 1); for a truncated normal the erf⁻¹ of that, times spread, clamped."""
    grid = (triton.cdiv(w.numel(), 4 * BLOCK),)
    fill[grid](w, w.numel(), seed, shift, scale, spread, low, high, kind, BLOCK)
