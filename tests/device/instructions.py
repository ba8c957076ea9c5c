"""Each PTX instruction that the kernels use: how it is written, and what the ISA manual says it gives, in exact arithmetic."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

NAN = 0x7FFFFFFF
FORMATS = {"f32": (24, -126, 32), "f64": (53, -1022, 64), "f16": (11, -14, 16), "bf16": (8, -126, 16)}


def decoded(bits: int, kind: str) -> Fraction | str:
    """A number, or "inf", "-inf", "nan"."""
    digits, least, width = FORMATS[kind]
    sign, stored = bits >> (width - 1), digits - 1
    exponent, fraction = bits >> stored & ((1 << (width - 1 - stored)) - 1), bits & ((1 << stored) - 1)
    if exponent == (1 << (width - 1 - stored)) - 1:
        return "nan" if fraction else "-inf" if sign else "inf"
    scale = Fraction(2) ** (max(exponent, 1) - 1 + least - stored)
    return (-1) ** sign * (fraction + ((1 << stored) if exponent else 0)) * scale


def encoded(x: Fraction | str, kind: str, zero: int = 0) -> int:
    """The nearest number's bits, of two as near the even one's; `zero` is the sign of one that is exactly 0."""
    digits, least, width = FORMATS[kind]
    stored = digits - 1
    infinite = ((1 << (width - 1 - stored)) - 1) << stored
    if x == "nan":
        return (1 << (width - 1)) - 1
    if isinstance(x, str):
        return infinite | (1 << (width - 1) if x == "-inf" else 0)
    sign = 1 << (width - 1) if x < 0 or (x == 0 and zero) else 0
    if x == 0:
        return sign
    exponent = least
    while abs(x) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    units = round(abs(x) / Fraction(2) ** (exponent - stored))  # Python rounds half to even
    if units == 1 << digits:
        units, exponent = units >> 1, exponent + 1
    code = units if units < 1 << stored else ((exponent - least + 1) << stored) + units - (1 << stored)
    return sign | min(code, infinite)


def sign_of(bits: int) -> int:
    return bits >> 31


def total(*terms: tuple[Fraction | str, int]) -> int:
    """The sum, as float32: each term with the sign that it has if it is 0."""
    values = [value for value, _ in terms]
    infinite = {value for value in values if isinstance(value, str)}
    if "nan" in infinite or infinite == {"inf", "-inf"}:
        return NAN
    if infinite:
        return encoded(infinite.pop(), "f32")
    return encoded(sum(values, Fraction(0)), "f32", int(all(sign for _, sign in terms)))


def product(a: int, b: int) -> tuple[Fraction | str, int]:
    x, y, sign = decoded(a, "f32"), decoded(b, "f32"), sign_of(a) ^ sign_of(b)
    if "nan" in (x, y) or (isinstance(x, str) and y == 0) or (isinstance(y, str) and x == 0):
        return "nan", 0
    if isinstance(x, str) or isinstance(y, str):
        return "-inf" if sign else "inf", sign
    return x * y, sign


def multiplied(a: int, b: int) -> int:
    value, sign = product(a, b)
    return encoded(value, "f32", sign)


def fused(a: int, b: int, c: int) -> int:
    return total(product(a, b), (decoded(c, "f32"), sign_of(c)))


def added(a: int, b: int) -> int:
    return total(*((decoded(x, "f32"), sign_of(x)) for x in (a, b)))


def order(bits: int, kind: str) -> Fraction | float:
    value = decoded(bits, kind)
    return float(value) if isinstance(value, str) else value


def picked(least: bool, kind: str) -> Callable[[int, int], int]:
    """The number of two of which one is NaN; -0 is less than +0."""
    width = FORMATS[kind][2]

    def pick(a: int, b: int) -> int:
        numbers = [x for x in (a, b) if decoded(x, kind) != "nan"]
        if not numbers:
            return encoded("nan", kind)
        chosen = sorted(numbers, key=lambda x: (order(x, kind), -(x >> (width - 1))))
        return chosen[0 if least else -1]

    return pick


def pairs(pick: Callable[[int, int], int]) -> Callable[[int, int], int]:
    return lambda a, b: pick(a >> 16, b >> 16) << 16 | pick(a & 0xFFFF, b & 0xFFFF)


def signed(x: int, width: int) -> int:
    return x - (1 << width) if x >> (width - 1) else x


def compared(how: str, kind: str) -> Callable[[int, int], int]:
    names = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}

    def compare(a: int, b: int) -> int:
        if kind[0] == "f":
            x, y = decoded(a, kind), decoded(b, kind)
            if "nan" in (x, y):
                return int(len(how) == 3)
            x, y = order(a, kind), order(b, kind)
        else:
            width = int(kind[1:])
            x, y = (signed(v, width) if kind[0] == "s" else v for v in (a, b))
        plain = names.get(how, how[:2])
        return int({"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}[plain])

    return compare


def value_of(bits: int, kind: str) -> int:
    return signed(bits, int(kind[1:])) if kind[0] == "s" else bits


def integer(kind: str, give: Callable[..., int]) -> Callable[..., int]:
    """On the type's values."""
    return lambda *xs: give(*(value_of(x, kind) for x in xs))


def resized(kind: str, to: str) -> Callable[[int], int]:
    return lambda a: value_of(value_of(a, kind) % (1 << int(to[1:])), to)


class Row(NamedTuple):
    """An instruction: its text, of which d is the result and a, b, c the operands; the widths of these, result first, with 1
    for a predicate; and what it gives."""

    text: str
    widths: tuple[int, ...]
    gives: Callable[..., int]
    divides: bool = False  # the last operand is not 0

    @property
    def opcode(self) -> str:
        return self.text.split()[0]


INTEGERS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
}


def integer_rows(kind: str) -> list[Row]:
    n, is_signed = int(kind[1:]), kind[0] == "s"
    found = [Row(f"{name}.{kind} d, a, b", (n, n, n), integer(kind, give)) for name, give in INTEGERS.items()]
    found.append(Row(f"mad.lo.{kind} d, a, b, c", (n, n, n, n), integer(kind, lambda a, b, c: a * b + c)))
    found.append(Row(f"shr.{kind} d, a, b", (n, n, 32), lambda a, b: value_of(a, kind) >> b))
    if is_signed:
        found.append(Row(f"neg.{kind} d, a", (n, n), lambda a: -a))
    else:
        found.append(Row(f"div.{kind} d, a, b", (n, n, n), lambda a, b: a // b, divides=True))
        found.append(Row(f"rem.{kind} d, a, b", (n, n, n), lambda a, b: a % b, divides=True))
    if n < 64:
        found.append(Row(f"mul.wide.{kind} d, a, b", (2 * n, n, n), integer(kind, lambda a, b: a * b)))
    if n == 32:
        wide = (64, n, n, 64)
        found.append(
            Row(f"mad.wide.{kind} d, a, b, c", wide, lambda a, b, c: value_of(a, kind) * value_of(b, kind) + c)
        )
    for how in ("eq", "ne", "lt", "le", "gt", "ge", *(() if is_signed else ("lo", "ls", "hi", "hs"))):
        found.append(Row(f"setp.{how}.{kind} d, a, b", (1, n, n), compared(how, kind)))
    for to in ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"):
        found.append(Row(f"cvt.{to}.{kind} d, a", (max(int(to[1:]), 16), n), resized(kind, to)))
    if n >= 32:
        found.append(Row(f"cvt.rn.f32.{kind} d, a", (32, n), lambda a: encoded(Fraction(value_of(a, kind)), "f32")))
    return found


def bit_rows(n: int) -> list[Row]:
    found = [
        Row(f"and.b{n} d, a, b", (n, n, n), lambda a, b: a & b),
        Row(f"or.b{n} d, a, b", (n, n, n), lambda a, b: a | b),
        Row(f"xor.b{n} d, a, b", (n, n, n), lambda a, b: a ^ b),
        Row(f"not.b{n} d, a", (n, n), lambda a: ~a),
        Row(f"shl.b{n} d, a, b", (n, n, 32), lambda a, b: a << min(b, n)),
    ]
    if n > 16:
        found.append(Row(f"mov.b{n} d, {{a, b}}", (n, n // 2, n // 2), lambda a, b: b << n // 2 | a))
    for kind in (f"b{n}", f"u{n}", *((f"f{n}",) if n > 16 else ())):
        found.append(Row(f"mov.{kind} d, a", (n, n), lambda a: a))
        found.append(Row(f"selp.{kind} d, a, b, c", (n, n, n, 1), lambda a, b, c: a if c else b))
    return found


def small_float_rows(kind: str) -> list[Row]:
    def narrow(a: int) -> int:
        return encoded(decoded(a, "f32"), kind, sign_of(a))

    return [
        Row(f"cvt.rn.{kind}.f32 d, a", (16, 32), narrow),
        Row(f"cvt.rn.{kind}x2.f32 d, a, b", (32, 32, 32), lambda a, b: narrow(a) << 16 | narrow(b)),
        Row(f"min.{kind}x2 d, a, b", (32, 32, 32), pairs(picked(True, kind))),
        Row(f"max.{kind}x2 d, a, b", (32, 32, 32), pairs(picked(False, kind))),
    ]


def rows() -> list[Row]:
    found = [
        Row("and.pred d, a, b", (1, 1, 1), lambda a, b: a & b),
        Row("or.pred d, a, b", (1, 1, 1), lambda a, b: a | b),
        Row("xor.pred d, a, b", (1, 1, 1), lambda a, b: a ^ b),
        Row("not.pred d, a", (1, 1), lambda a: 1 - a),
        Row("mov.pred d, a", (1, 1), lambda a: a),
        Row("fma.rn.f32 d, a, b, c", (32, 32, 32, 32), fused),
        Row("mul.rn.f32 d, a, b", (32, 32, 32), multiplied),
        Row("add.rn.f32 d, a, b", (32, 32, 32), added),
        Row("sub.rn.f32 d, a, b", (32, 32, 32), lambda a, b: added(a, b ^ 1 << 31)),
        Row("neg.f32 d, a", (32, 32), lambda a: a ^ 1 << 31),
        Row("abs.f32 d, a", (32, 32), lambda a: a & 0x7FFFFFFF),
        Row("min.f32 d, a, b", (32, 32, 32), picked(True, "f32")),
        Row("max.f32 d, a, b", (32, 32, 32), picked(False, "f32")),
        Row("cvt.f64.f32 d, a", (64, 32), lambda a: encoded(decoded(a, "f32"), "f64", sign_of(a))),
    ]
    for kind in ("u16", "s16", "u32", "s32", "u64", "s64"):
        found += integer_rows(kind)
    for n in (16, 32, 64):
        found += bit_rows(n)
    for kind, n in (("f32", 32), ("f64", 64)):
        for how in ("eq", "lt", "le", "gt", "ge", "ltu", "leu", "gtu", "geu", "equ", "neu"):
            found.append(Row(f"setp.{how}.{kind} d, a, b", (1, n, n), compared(how, kind)))
    return [*found, *small_float_rows("f16"), *small_float_rows("bf16")]


REGISTERS = {1: "%p", 16: "%rs", 32: "%r", 64: "%rd"}


def entry(name: str, row: Row) -> str:
    """A kernel that does it to each thread's operands: three of 8 bytes, and where the result goes another one."""
    letters = dict(zip("dabc", row.widths, strict=False))
    numbers = {"d": 10, "a": 11, "b": 12, "c": 13}
    place = {letter: f"{REGISTERS[width]}{numbers[letter]}" for letter, width in letters.items()}
    loads = ""
    for i, letter in enumerate("abc"[: len(row.widths) - 1]):
        width = letters[letter]
        target = f"%r{20 + i}" if width == 1 else place[letter]
        loads += f"ld.global.b{max(width, 32 if width == 1 else width)} {target}, [%rd4+{8 * i}];\n"
        if width == 1:
            loads += f"setp.ne.s32 {place[letter]}, {target}, 0;\n"
    opcode, _, operands = row.text.partition(" ")
    written = "".join(place.get(c, c) if c in place else c for c in operands)
    store = f"st.global.b{letters['d']} [%rd5], {place['d']};"
    if letters["d"] == 1:
        store = f"selp.b32 %r30, 1, 0, {place['d']};\nst.global.b32 [%rd5], %r30;"
    return f"""
.visible .entry {name}(.param .u64 {name}_param_0, .param .u64 {name}_param_1)
{{
.reg .pred %p<20>; .reg .b16 %rs<20>; .reg .b32 %r<40>; .reg .b64 %rd<20>;
ld.param.u64 %rd1, [{name}_param_0];
ld.param.u64 %rd2, [{name}_param_1];
mov.u32 %r1, %tid.x;
mul.wide.u32 %rd3, %r1, 24;
add.s64 %rd4, %rd1, %rd3;
mul.wide.u32 %rd3, %r1, 8;
add.s64 %rd5, %rd2, %rd3;
{loads}{opcode} {written};
{store}
ret;
}}
"""


REALS = (0.0, 1.0, 65504.0, 65519.99, 65520.0, 3e38, 2.0**-24, 2.0**-25, 2.0**-126, 2.0**-149)
CORNERS = {  # of floats: infinities, NaNs, the least normal number
    32: (0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x00800000, 0x7F7FFFFF),
    64: (0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48, 1 << 52),
}
PAIRS = (0, 0x80000000, 0x00008000, 0x7FFF0001, 0x80008000, 0x7C00FC00)


def cases(row: Row, count: int = 300) -> list[tuple[int, ...]]:
    """Operands: the corners of each width, and random ones; of floats, of every size."""
    choose = random.Random(row.text)
    real = re.search(r"\.b?f(16|32|64)", row.opcode)

    def operand(width: int, last: bool) -> int:
        if width == 1:
            return choose.randrange(2)
        if row.opcode.startswith(("shl", "shr")) and last:
            return choose.choice([*range(70), 1 << 20, (1 << 32) - 1])
        if re.match("(min|max).*x2", row.opcode):
            return choose.choice([choose.choice(PAIRS), choose.getrandbits(32)])
        if real and width == 32 and choose.random() < 0.5:
            x = choose.choice([*REALS, choose.gauss(0, 1)]) * choose.choice([1, -1, 2.0 ** choose.randrange(-20, 1)])
            return struct.unpack("<I", struct.pack("<f", x))[0] + choose.choice([0, 0, 1])
        top = 1 << (width - 1)
        corners = [0, 1, 2, top - 1, top, top + 1, 2 * top - 1, *(CORNERS.get(width, ()) if real else ())]
        some = choose.getrandbits(choose.randrange(1, width + 1))
        x = choose.choice([choose.choice(corners), choose.getrandbits(width), some])
        return x or 1 if row.divides and last else x

    widths = row.widths[1:]
    return [tuple(operand(w, i == len(widths) - 1) for i, w in enumerate(widths)) for _ in range(count)]
