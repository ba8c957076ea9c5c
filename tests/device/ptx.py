"""PTX to C++ over machine.h, instruction by instruction, after NVIDIA's "Parallel Thread Execution ISA".

    python tests/device/ptx.py KERNELS.ptx FOLDER [UNITS]      writes FOLDER/kernels0.cpp ... and FOLDER/table.cpp

A register is an unsigned integer of its width, whatever it holds. An instruction that is not known here is an error which names
it. Nothing is simplified, so that an instruction of the text is a statement of C++.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

BYTES = (
    {"pred": 1}
    | {f"{kind}{size}": size // 8 for kind in "bus" for size in (8, 16, 32, 64)}
    | {"f16": 2, "f32": 4, "f64": 8}
)
SPECIAL = {"%tid.x": "t.index", "%ctaid.x": "t.block", "%ntid.x": "t.threads", "%nctaid.x": "t.blocks"}
COMPARISONS = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}
FORMATS = {"f16": "kHalf", "bf16": "kBFloat16"}

# What is put into the first operand, of the others: {a}, {b}, {c} as unsigned integers of the type's width {u}, {A}, {B} as the
# type's values, {w} as wide again.
RESULTS = {
    "mov": "{a}",
    "cvta.to.global": "{a}",
    "add": "{a} + {b}",
    "sub": "{a} - {b}",
    "mul.lo": "{a} * {b}",
    "mad.lo": "{a} * {b} + {c}",
    "mul.wide": "{w}({A}) * {w}({B})",
    "mad.wide": "{w}({A}) * {w}({B}) + {w}({C})",
    "div": '({b} == 0 ? (fault("division by zero"), {A}) : {A} / {B})',
    "rem": '({b} == 0 ? (fault("division by zero"), {A}) : {A} % {B})',
    "min": "std::min({A}, {B})",
    "max": "std::max({A}, {B})",
    "neg": "0 - {a}",
    "and": "{a} & {b}",
    "or": "{a} | {b}",
    "xor": "{a} ^ {b}",
    "not": "~{a}",
    "selp": "({p} ? {a} : {b})",
}
# Of predicates, and of float32, whose operands are bits.
PREDICATES = {"mov": "{a}", "and": "{a} & {b}", "or": "{a} | {b}", "xor": "{a} ^ {b}", "not": "!{a}"}
FLOATS = {
    "fma.rn": "fma({a}, {b}, {c})",
    "mul.rn": "multiply({a}, {b})",
    "add.rn": "add({a}, {b})",
    "sub.rn": "subtract({a}, {b})",
    "neg": "{a} ^ 0x80000000u",
    "abs": "{a} & 0x7fffffffu",
    "min": "pick<true>({a}, {b})",
    "max": "pick<false>({a}, {b})",
    "mov": "{a}",
    "selp": "({p} ? {a} : {b})",
}

# Of which the manual leaves cases open, or that nothing here does.
NOT_TRIED = {(kind, name) for kind in ("s16", "s32", "s64") for name in ("div", "rem")} | {
    ("f64", name) for name in RESULTS if name not in ("mov", "selp")
}


class Unknown(ValueError):
    """An instruction that has no meaning here."""


def unsigned(kind: str) -> str:
    return f"u{8 * BYTES[kind]}"


def register(name: str) -> str:
    return re.sub(r"[%$.]", "_", name)


@dataclass
class Kernel:
    """An entry of the text, and what its translation found."""

    name: str
    body: str
    parameters: dict[str, int] = field(default_factory=dict)  # where each begins
    parameter_bytes: int = 0
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    waits: bool = False


def kernels_of(text: str) -> list[Kernel]:
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    found = []
    for entry in re.finditer(r"\.entry\s+(\w+)\s*\(([^)]*)\)[^{]*\{", text):
        depth = 1
        for brace in re.compile(r"[{}]").finditer(text, entry.end()):
            depth += 1 if brace[0] == "{" else -1
            if not depth:
                break
        kernel = Kernel(entry[1], text[entry.end() : brace.start()])
        for parameter in filter(str.strip, entry[2].split(",")):
            declared = re.fullmatch(r"\s*\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(\w+)(?:\[(\d+)\])?\s*", parameter)
            if not declared:
                raise Unknown(parameter)
            align = int(declared[1] or BYTES[declared[2]])
            kernel.parameter_bytes = -(-kernel.parameter_bytes // align) * align
            kernel.parameters[declared[3]] = kernel.parameter_bytes
            kernel.parameter_bytes += BYTES[declared[2]] * int(declared[4] or 1)
        found.append(kernel)
    return found


STATEMENT = re.compile(r"\s*(?:([$\w]+):|([{}])|((?:[^;{}]|\{[^;{}]*\})*);)", re.S)


def statements(body: str) -> list[str]:
    """Labels with their colon, braces, and instructions without their semicolon."""
    found, at, end = [], 0, len(body.rstrip())
    while at < end:
        match = STATEMENT.match(body, at)
        if not match:
            raise Unknown(body[at : at + 60])
        at = match.end()
        found.append(f"{match[1]}:" if match[1] else match[2] or " ".join(match[3].split()))
    return [statement for statement in found if statement]


def operands_of(text: str) -> list[str]:
    """Separated by commas, apart from those in braces."""
    return [operand.strip() for operand in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,])+", text)]


class Translator:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.registers: set[str] = set()

    def value(self, operand: str, kind: str) -> str:
        """Its bits, as an unsigned integer of the type's width."""
        u = unsigned(kind)
        if operand in SPECIAL:
            return f"{u}({SPECIAL[operand]})"
        if operand.startswith(("0f", "0d")):
            return f"{u}(0x{operand[2:]}ull)"
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", operand):
            return f"{u}({int(operand, 0) % (1 << 8 * BYTES[kind])}ull)"
        if operand in self.kernel.parameters:
            return f"{u}({self.kernel.parameters[operand]})"
        if operand in self.kernel.shared:
            return f"{u}(kSharedBase + {self.kernel.shared[operand]})"
        if register(operand) not in self.registers:
            raise Unknown(operand)
        return f"{u}({register(operand)})"

    def typed(self, operand: str, kind: str) -> str:
        """Its value in the type."""
        value = self.value(operand, kind)
        convert = {"f32": "f", "f64": "d"}.get(kind, kind if kind[0] == "s" else "")
        return f"{convert}({value})" if convert else value

    @staticmethod
    def real(kind: str) -> bool:
        return kind[0] == "f"

    def address(self, operand: str) -> str:
        match = re.fullmatch(r"\[([%$\w.]+)(?:\+(-?\d+))?\]", operand)
        if not match:
            raise Unknown(operand)
        return f"({self.value(match[1], 'u64')} + u64({int(match[2] or 0)}ll))"

    def instruction(self, opcode: str, operands: list[str]) -> str:
        name, *rest = opcode.split(".")
        special = getattr(self, f"_{name}", None)
        if special:
            return special(rest, operands)
        kind = rest[-1]
        if kind in ("f16x2", "bf16x2") and name in ("min", "max") and len(rest) == 1:
            a, b = (self.value(operand, "b32") for operand in operands[1:])
            least = "true" if name == "min" else "false"
            return f"{register(operands[0])} = pick16x2<{least}>({a}, {b}, {FORMATS[kind[:-2]]});"
        table = PREDICATES if kind == "pred" else FLOATS if kind == "f32" else RESULTS
        form = table.get(".".join([name, *rest[:-1]]))
        if form is None or kind not in BYTES or (kind, name) in NOT_TRIED:
            raise Unknown(opcode)
        sources = operands[1:]
        predicate = register(sources.pop()) if name == "selp" else ""
        width = f"{kind[0]}{16 * BYTES[kind]}" if "wide" in rest else ""
        wide = [width and index == 2 for index in range(len(sources))]  # what a wide product is added to is as wide
        values = [self.value(s, width if w else kind) for s, w in zip(sources, wide, strict=True)]
        typed = [self.typed(s, width if w else kind) for s, w in zip(sources, wide, strict=True)]
        named = dict(zip("abc", values, strict=False)) | dict(zip("ABC", typed, strict=False))
        result = form.format(u=unsigned(kind), w=width, p=predicate, **named)
        if kind == "pred":
            return f"{register(operands[0])} = {result};"
        return f"{register(operands[0])} = {unsigned(width or kind)}({result});"

    def _mov(self, rest: list[str], operands: list[str]) -> str:
        (kind,) = rest
        target, source = operands
        if "{" not in target + source:
            return f"{register(target)} = {register(source) if kind == 'pred' else self.value(source, kind)};"
        half = f"b{4 * BYTES[kind]}"
        shift = 4 * BYTES[kind]
        if source.startswith("{"):
            low, high = operands_of(source.strip("{}"))
            high, low = self.value(high, half), self.value(low, half)
            return f"{register(target)} = {unsigned(kind)}({high}) << {shift} | {low};"
        low, high = (register(part) for part in operands_of(target.strip("{}")))
        whole = self.value(source, kind)
        return f"{{ const auto whole = {whole}; {low} = {unsigned(half)}(whole); {high} = {unsigned(half)}(whole >> {shift}); }}"

    def _cvt(self, rest: list[str], operands: list[str]) -> str:
        target, source = register(operands[0]), operands[1]
        match rest:
            case ["rn", ("f16" | "bf16") as to, "f32"]:
                return f"{target} = narrow({self.value(source, 'f32')}, {FORMATS[to]});"
            case ["rn", ("f16x2" | "bf16x2") as to, "f32"]:
                high, low = (f"narrow({self.value(o, 'f32')}, {FORMATS[to[:-2]]})" for o in operands[1:])
                return f"{target} = pack({high}, {low});"
            case ["f64", "f32"]:
                return f"{target} = widen({self.value(source, 'f32')});"
            case ["rn", "f32", kind] if kind[0] in "us":
                return f"{target} = bits<u32>(static_cast<float>({self.typed(source, kind)}));"
            case [to, kind] if to[0] in "us" and kind[0] in "us":
                return f"{target} = {to}({self.typed(source, kind)});"  # extended to the register, with its sign
        raise Unknown("cvt." + ".".join(rest))

    def _shift(self, operator: str, rest: list[str], operands: list[str]) -> str:
        (kind,) = rest
        size, by = 8 * BYTES[kind], self.value(operands[2], "u32")
        value = self.typed(operands[1], kind)
        beyond = f"({value} < 0 ? -1 : 0)" if kind[0] == "s" else "0"
        return f"{register(operands[0])} = {unsigned(kind)}({by} >= {size} ? {beyond} : {value} {operator} ({by} % {size}));"

    def _shl(self, rest: list[str], operands: list[str]) -> str:
        return self._shift("<<", rest, operands)

    def _shr(self, rest: list[str], operands: list[str]) -> str:
        return self._shift(">>", rest, operands)

    def _setp(self, rest: list[str], operands: list[str]) -> str:
        comparison, kind = rest
        a, b = (self.typed(operand, kind) for operand in operands[1:])
        if self.real(kind) and comparison.endswith("u"):  # true of a NaN too, as ne is in C++
            return f"{register(operands[0])} = !({a} == {a} && {b} == {b}) || {a} {COMPARISONS[comparison[:-1]]} {b};"
        if self.real(kind) and comparison == "ne":
            raise Unknown("setp.ne of floats")
        return f"{register(operands[0])} = {a} {COMPARISONS[comparison]} {b};"

    def _memory(self, rest: list[str]) -> tuple[str, int, str]:
        """The space, "" if it may be any; how many at once; and the type."""
        space = rest.pop(0) if rest[0] in ("param", "global", "shared") else ""
        count = int(rest.pop(0)[1]) if rest[0] in ("v2", "v4") else 1
        (kind,) = rest
        return space, count, kind

    def _ld(self, rest: list[str], operands: list[str]) -> str:
        space, count, kind = self._memory(list(rest))
        load = {"param": "t.parameter", "global": "t.load", "shared": "t.load_shared"}[space]
        if count == 1:
            return f"{register(operands[0])} = {load}<{unsigned(kind)}>({self.address(operands[1])});"
        names = operands_of(operands[0].strip("{}"))
        put = " ".join(f"{register(name)} = v.at[{i}];" for i, name in enumerate(names))
        return f"{{ const auto v = {load}<Vector<{unsigned(kind)}, {count}>>({self.address(operands[1])}); {put} }}"

    def _st(self, rest: list[str], operands: list[str]) -> str:
        space, count, kind = self._memory(list(rest))
        store = {"": "t.store", "global": "t.store", "shared": "t.store_shared"}[space]
        names = operands_of(operands[1].strip("{}"))
        values = ", ".join(self.value(name, kind) for name in names)
        form = unsigned(kind) if count == 1 else f"Vector<{unsigned(kind)}, {count}>"
        value = values if count == 1 else f"{form}{{{{{values}}}}}"
        return f"{store}<{form}>({self.address(operands[0])}, {value});"

    def _bar(self, rest: list[str], operands: list[str]) -> str:
        if rest != ["sync"] or operands != ["0"]:
            raise Unknown("bar." + ".".join(rest))
        self.kernel.waits = True
        return "t.barrier();"

    def _shfl(self, rest: list[str], operands: list[str]) -> str:
        if rest != ["sync", "down", "b32"]:
            raise Unknown("shfl." + ".".join(rest))
        self.kernel.waits = True
        values = ", ".join(self.value(operand, "u32") for operand in operands[1:])
        return f"{register(operands[0].split('|')[0])} = t.shuffle_down({values});"

    def _atom(self, rest: list[str], operands: list[str]) -> str:
        if rest != ["global", "add", "u64"]:
            raise Unknown("atom." + ".".join(rest))
        return f"{register(operands[0])} = t.atomic_add({self.address(operands[1])}, {self.value(operands[2], 'u64')});"

    def _ret(self, rest: list[str], operands: list[str]) -> str:
        return "return;"

    def declaration(self, text: str, outer: bool) -> str:
        """Of registers. What is in those before anything is put there is not zero."""
        kind, names = re.fullmatch(r"\.reg \.(\w+) (.*)", text).groups()  # type: ignore[union-attr]
        every: list[str] = []
        for name in operands_of(names):
            many = re.fullmatch(r"(%\w+)<(\d+)>", name)
            every += [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]
        self.registers.update(map(register, every))
        form = "bool" if kind == "pred" else unsigned(kind)
        filled = "" if not outer else " = true" if kind == "pred" else f" = {form}(0xbadc0ffee0ddf00dull)"
        return f"{form} " + ", ".join(register(name) + filled for name in every) + ";"

    def translate(self) -> str:
        every = statements(self.kernel.body)
        place = {statement[:-1]: i for i, statement in enumerate(every) if statement.endswith(":")}
        declared, lines, depth = [], [], 0
        for i, text in enumerate(every):
            depth += {"{": 1, "}": -1}.get(text, 0)
            if text in "{}":
                lines.append(text)
            elif text.endswith(":"):
                lines.append(f"{register(text[:-1])}:;")
            elif text.startswith(".reg"):
                (lines if depth else declared).append(self.declaration(text, not depth))
            elif shared := re.fullmatch(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\]", text):
                align = int(shared[1])
                self.kernel.shared_bytes = -(-self.kernel.shared_bytes // align) * align
                self.kernel.shared[shared[2]] = self.kernel.shared_bytes
                self.kernel.shared_bytes += int(shared[3])
            elif not text.startswith(".pragma"):
                guarded = re.fullmatch(r"@(!?)(%\w+) (.*)", text)
                condition = f"if ({guarded[1]}{register(guarded[2])}) " if guarded else ""
                opcode, _, operands = (guarded[3] if guarded else text).partition(" ")
                if opcode in ("bra", "bra.uni"):
                    again = "t.turn(); " if place[operands] <= i else ""
                    lines.append(f"{condition}{{ {again}goto {register(operands)}; }}")
                else:
                    lines.append(f"{condition}{{ {self.instruction(opcode, operands_of(operands))} }}")
        return "\n".join([*declared, *lines])


def translate(text: str, folder: Path, units: int = 4, only: str = "") -> list[str]:
    """Writes the C++ of the kernels whose names match, shared out over so many files; returns their names."""
    found = [kernel for kernel in kernels_of(text) if re.search(only, kernel.name)]
    bodies = [f"void kernel{i}(Thread& t) {{\n{Translator(kernel).translate()}\n}}\n" for i, kernel in enumerate(found)]
    shares: list[list[str]] = [[] for _ in range(min(units, len(bodies)))]
    for body in sorted(bodies, key=len, reverse=True):
        min(shares, key=lambda share: sum(map(len, share))).append(body)
    for i, share in enumerate(shares):
        inside = "\n".join(share)
        (folder / f"kernels{i}.cpp").write_text(f'#include "machine.h"\nnamespace machine {{\n{inside}}}\n')
    declared = "".join(f"void kernel{i}(Thread&);\n" for i in range(len(found)))
    rows = "".join(
        f'{{"{k.name}", kernel{i}, {k.parameter_bytes}, {k.shared_bytes}, {str(k.waits).lower()}}},\n'
        for i, k in enumerate(found)
    )
    (folder / "table.cpp").write_text(
        f'#include "machine.h"\nnamespace machine {{\n{declared}extern const Kernel kKernels[] = {{\n{rows}}};\n'
        f"extern const int kKernelCount = {len(found)};\n}}\n"
    )
    return [kernel.name for kernel in found]


if __name__ == "__main__":
    print(len(translate(Path(sys.argv[1]).read_text(), Path(sys.argv[2]), *map(int, sys.argv[3:]))), "kernels")
