"""Derive the constants of transforms.h and print them as C++ hexadecimal floats.

Needs numpy and mpmath. Each polynomial is a weighted minimax fit (Lawson's iteration on a Chebyshev grid); its
coefficients are rounded to binary32 from the constant upwards, refitting the rest each time, so that the rounding
of one is absorbed by the others. The value contract freezes the result: new constants are a new contract version.
"""

import functools

import mpmath as mp
import numpy as np
from numpy.polynomial import chebyshev

mp.mp.dps = 40


@functools.cache
def sampled(f, x):
    return np.array([float(f(mp.mpf(v))) for v in x])


def minimax(f, weight, lo, hi, degree, fixed=(), points=1500, rounds=300):
    """Coefficients (lowest first) and weighted error of the best polynomial that starts with `fixed`."""
    t = np.cos(np.pi * (np.arange(points) + 0.5) / points)
    x = (lo + hi) / 2 + (hi - lo) / 2 * t
    known = np.polynomial.polynomial.polyval(x, fixed) if fixed else 0.0 * x
    target = (sampled(f, tuple(x.tolist())) - known) / x ** len(fixed)
    scale = sampled(weight, tuple(x.tolist())) * x ** len(fixed)
    basis = chebyshev.chebvander(t, degree - len(fixed))
    mass = np.full(points, 1.0 / points)
    best, error = None, np.inf
    for _ in range(rounds):
        root = np.sqrt(mass) * scale
        c = np.linalg.lstsq(basis * root[:, None], target * root, rcond=None)[0]
        residual = np.abs((basis @ c - target) * scale)
        if residual.max() < error:
            best, error = c, residual.max()
        mass = mass * residual
        mass /= mass.sum()
    rest = chebyshev.Chebyshev(best, domain=[lo, hi]).convert(kind=np.polynomial.Polynomial).coef
    return [*fixed, *rest], error


def rounded(f, weight, lo, hi, degree):
    """As minimax, with every coefficient a binary32 number."""
    fixed = []
    for _ in range(degree + 1):
        c, error = minimax(f, weight, lo, hi, degree, tuple(fixed))
        fixed.append(float(np.float32(c[len(fixed)])))
    x = np.linspace(lo, hi, 4001)
    p = np.polynomial.polynomial.polyval(x, fixed)
    error = max(
        abs((v - float(f(mp.mpf(float(t))))) * float(weight(mp.mpf(float(t))))) for t, v in zip(x, p, strict=False)
    )
    return fixed, error


def neg2_log_over_f(f):
    return -2 * mp.log1p(f) / f if f else mp.mpf(-2)


def cosine(h):  # cos(2πv) / g, where g = 1/4 − |v|, h = g²
    return mp.sin(2 * mp.pi * mp.sqrt(h)) / mp.sqrt(h) if h else 2 * mp.pi


def sine(h):  # sin(2π|v|) / (|v| (1/2 − |v|)), the same h
    rest = mp.mpf(1) / 16 - h
    return mp.cos(2 * mp.pi * mp.sqrt(h)) / rest if abs(rest) > 1e-18 else 4 * mp.pi


def quantile(q):
    if q > 1e-10:
        return mp.sqrt(2) * mp.erfinv(1 - 2 * q)
    return mp.findroot(lambda z: mp.log(mp.erfc(z / mp.sqrt(2)) / 2) - mp.log(q), mp.sqrt(-2 * mp.log(q)) - 0.3)


def tail_mass(x):  # q and 1 − 2q where −2 ln 4q(1 − q) = x
    y = mp.exp(-x / 2)
    c = mp.sqrt(1 - y)
    return y / (2 * (1 + c)), c


def centre(x):
    if x < mp.mpf("1e-18"):
        return mp.sqrt(mp.pi / 2)
    q, c = tail_mass(x)
    return quantile(q) / c


def inverse_root():
    """The two-step inverse square root: (magic, a1, a2, beta) and the worst relative error.

    On X = beta x, the guess y0 = magic − (bits(X) >> 1) and one step y1 = y0 (a1 − X y0²) reach k/sqrt(X) to within
    delta; the next, y1 (a2 − X y1²), squares that. Taking any level k as it falls costs nothing: beta is absorbed by
    the logarithm's coefficients, such that the second step returns 1/sqrt(x) and its product with X is sqrt(x).
    """
    x = np.float32(2.0) ** np.linspace(0, 2, 20001).astype(np.float32)
    bits, root = x.view(np.int32), np.sqrt(x.astype(np.float64))

    def first_step(magic):
        shape = (np.int32(magic) - (bits >> 1)).view(np.float32).astype(np.float64) * root
        lo, hi = 2.0, 4.0

        def spread(a1):
            level = shape * (a1 - shape**2)
            return level.max() / level.min()

        for _ in range(60):  # golden-section search: the spread is unimodal in a1
            a, b = lo + (hi - lo) * 0.381966, lo + (hi - lo) * 0.618034
            lo, hi = (lo, b) if spread(a) < spread(b) else (a, hi)
        return spread(lo), lo

    magic = 0x5F300000
    for step in (1 << 15, 1 << 10, 1 << 5):
        magic = min(range(magic - 64 * step, magic + 64 * step, step), key=lambda m: first_step(m)[0])
    a1 = float(np.float32(first_step(magic)[1]))
    shape = (np.int32(magic) - (bits >> 1)).view(np.float32).astype(np.float64) * root
    level = shape * (a1 - shape**2)
    k = (level.max() + level.min()) / 2
    delta = level.max() / k - 1
    a2 = float(np.float32(3 * k**2 * (1 + delta**2 / 2)))  # centres the one-sided error of the second step
    beta = 1 / (4 * k**6)
    error = level * (a2 - level**2) / (2 * k**3) - 1
    return magic, a1, a2, beta, np.abs(error).max()


def show(name, coefficients, error):
    print(f"// {name}: worst error {error:.1e}")
    print("    " + ", ".join(f"{float(c).hex()}f" for c in coefficients))


if __name__ == "__main__":
    magic, a1, a2, beta, error = inverse_root()
    print(f"// inverse root: worst error {error:.1e}, beta {beta!r}\n    {magic:#x}, {a1.hex()}f, {a2.hex()}f")
    half = float(mp.sqrt(0.5))
    log_range = (half - 1, 2 * half - 1)
    show(
        "X(1 + f) / f",
        *rounded(lambda f: beta * neg2_log_over_f(f), lambda f: 1 / (beta * neg2_log_over_f(f)), *log_range, 7),
    )
    octave, split = np.float32([-2 * beta * float(mp.log(2)) * 2**-23, 10.6 * beta])
    print(f"    octave {float(octave).hex()}f, split {float(split).hex()}f")
    show("cosine", *rounded(cosine, lambda h: 1 / cosine(h), 0, 1 / 16, 4))
    show("sine", *rounded(sine, lambda h: 1 / sine(h), 0, 1 / 16, 4))
    show(
        "centre", *rounded(lambda x: centre(x / beta), lambda x: tail_mass(x / beta)[1] if x else 0, 0, 10.6 * beta, 7)
    )
    middle = float(np.float32((10.6 + 86.5) / 2 * beta))
    print(f"    middle of the tail {middle.hex()}f")
    show(
        "tail",
        *rounded(lambda v: centre((v + middle) / beta), lambda v: 1, 10.6 * beta - middle, 86.5 * beta - middle, 16),
    )
