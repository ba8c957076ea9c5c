"""What each PTX instruction gives, as emulated, against exact arithmetic; and what an access may not do."""

import re
import struct
from pathlib import Path

import pytest
import torch

from device import instructions, ptx

ROWS = instructions.rows()
NOTHING = torch.empty(0, dtype=torch.uint8)
# What is no arithmetic: tried below, or by every kernel.
ELSEWHERE = r"ld\.|st\.|bra|ret|bar\.sync|shfl\.sync\.down\.b32|atom\.global\.add\.u64|cvta\.to\.global\.u64"


def packed(*pointers):
    return torch.frombuffer(bytearray(struct.pack(f"<{len(pointers)}Q", *pointers)), dtype=torch.uint8)


def launch(device, index, given, results, shift=0):
    """A thread for each result does the instruction of that row, of three operands each."""
    views = [
        device.view(tensor, NOTHING) for tensor in (given, results)
    ]  # while they live, their memory is the device's
    device.run(f"try{index}", 1, len(results), packed(views[0].data_ptr() + shift, views[1].data_ptr()))


def row_of(text):
    return next(i for i, row in enumerate(ROWS) if row.text == text)


@pytest.mark.parametrize("index", range(len(ROWS)), ids=[row.text.replace(" ", "_") for row in ROWS])
def test_instruction(device, index):
    row = ROWS[index]
    cases = instructions.cases(row)
    given = torch.zeros(len(cases), 3, dtype=torch.int64)
    for i, case in enumerate(cases):
        for j, x in enumerate(case):
            given[i, j] = x - (1 << 64) if x >> 63 else x
    results = torch.zeros(len(cases), dtype=torch.int64)
    launch(device, index, given, results)
    bits = row.widths[0]
    for case, result in zip(cases, results.tolist(), strict=True):
        expected = row.gives(*case) % (1 << bits)
        assert result % (1 << 64) == expected, (
            row.text,
            [hex(x) for x in case],
            hex(result % (1 << 64)),
            hex(expected),
        )


def test_every_instruction_of_the_kernels_is_tried(ptx_text):
    used = set()
    for kernel in ptx.kernels_of(ptx_text):
        for statement in ptx.statements(kernel.body):
            if not statement.endswith(":") and statement not in "{}" and statement[0] != ".":
                used.add(re.sub(r"^@!?%\w+ ", "", statement).split()[0].replace("bra.uni", "bra"))
    tried = {row.opcode for row in ROWS} | {row.opcode.replace(".s", ".u") for row in ROWS}
    # Of what does not look at the sign, one form stands for the others; so do the kinds of bits.
    same = {re.sub(r"\.[sub](\d+)$", r".b\1", opcode) for opcode in tried}
    left = {
        o
        for o in used
        if not re.match(ELSEWHERE, o) and o not in tried and re.sub(r"\.[sub](\d+)$", r".b\1", o) not in same
    }
    assert left == set()
    assert len(used) > 60


def test_an_unknown_instruction_is_named(tmp_path):
    text = ".visible .entry k()\n{\n.reg .b32 %r<4>;\nbrev.b32 %r1, %r2;\nret;\n}\n"
    with pytest.raises(ptx.Unknown, match=r"brev\.b32"):
        ptx.translate(text, Path(tmp_path))


@pytest.mark.parametrize(
    ("shift", "why"),
    [
        (4, "misaligned load of 8 bytes"),
        (8 * 300, "load of 8 bytes outside of all memory"),
        (-8, "outside of all memory"),
    ],
)
def test_accesses_outside_of_memory_and_misaligned_ones_are_faults(device, shift, why):
    given, results = torch.zeros(100, 3, dtype=torch.int64), torch.zeros(100, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=why):
        launch(device, row_of("add.u64 d, a, b"), given, results, shift)


def test_too_few_parameters_are_a_fault(device):
    with pytest.raises(RuntimeError, match="takes 16 bytes of parameters, but got 8"):
        device.run("try0", 1, 1, packed(0))


def test_division_by_zero_is_a_fault(device):
    given, results = torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="division by zero"):
        launch(device, row_of("div.u32 d, a, b"), given, results)
