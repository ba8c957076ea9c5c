"""Digests that stay as they are for as long as the contract's version does.

``python tests/test_golden.py`` writes data/golden.json where there is none, or one of an older contract; to one of this
contract it adds the cases that are new.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import xinit
from xinit import Key, Window

GOLDEN = Path(__file__).parent / "data" / "golden.json"
CONTRACT = xinit.build_info()["contract"]
KEYS = (Key(0), Key(-1).fold_in("layers.0.weight"), Key(2**40 + 7, 2**63))

FILLS = [  # function, parameters, shapes
    ("uniform_", {}, [(1000,), (7, 13, 5)]),
    ("uniform_", {"a": -0.1, "b": 0.3}, [(64, 65)]),
    ("normal_", {}, [(1001,), (7, 13, 5)]),
    ("normal_", {"mean": 0.5, "std": 0.02}, [(64, 65)]),
    ("trunc_normal_", {}, [(999,), (7, 13, 5)]),
    ("trunc_normal_", {"mean": 0.1, "std": 0.5, "a": -0.1, "b": 3.0}, [(64, 65)]),
    ("trunc_normal_", {"a": 7.0, "b": 9.0}, [(33, 31)]),
    ("trunc_normal_", {"a": -30.0, "b": -29.0}, [(33, 31)]),
    ("xavier_uniform_", {"gain": 5 / 3}, [(30, 50), (16, 3, 5, 5)]),
    ("xavier_normal_", {}, [(30, 50)]),
    ("kaiming_uniform_", {"nonlinearity": "relu"}, [(30, 50), (16, 3, 5, 5)]),
    ("kaiming_normal_", {"a": 0.2, "mode": "fan_out"}, [(16, 3, 5, 5)]),
    ("variance_scaling_", {"scale": 2.0, "mode": "fan_avg"}, [(30, 50)]),
    ("lecun_uniform_", {}, [(30, 50)]),
]
DTYPES = ("float32", "float64", "float16", "bfloat16")


CASES = [
    (function, parameters, shape, dtype, KEYS[len(shape) % len(KEYS)], None)
    for function, parameters, shapes in FILLS
    for shape in shapes
    for dtype in DTYPES
] + [
    (function, {}, (3, 21), "float32", KEYS[1], Window((2**20, 2**16), (2**18 - 1, 2**16 - 21)))
    for function in ("uniform_", "normal_", "trunc_normal_")
]
CASES += [
    (function, parameters, shape, dtype, KEYS[len(shape) % len(KEYS)], None)
    for function, parameters, shape in [
        ("normal_", {}, (1001,)),
        ("normal_", {"mean": 0.5, "std": 0.02}, (64, 65)),
        ("xavier_normal_", {}, (30, 50)),
        ("kaiming_normal_", {"a": 0.2, "mode": "fan_out"}, (16, 3, 5, 5)),
    ]
    for dtype in ("complex64", "complex128", "complex32")
] + [
    (function, parameters, shape, dtype, KEYS[len(shape) % len(KEYS)], None)
    for function, parameters, shape in [
        ("uniform_", {"a": -0.1, "b": 0.3}, (64, 65)),
        ("normal_", {}, (7, 13, 5)),
        ("trunc_normal_", {"mean": 0.1, "std": 0.5, "a": -0.1, "b": 3.0}, (64, 65)),
        ("kaiming_normal_", {"a": 0.2, "mode": "fan_out"}, (16, 3, 5, 5)),
    ]
    for dtype in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
]


def name(function, parameters, shape, dtype, key, window):
    given = ", ".join([f"{shape}", dtype, *(f"{k}={v!r}" for k, v in parameters.items()), f"{key}"])
    return f"{function}({given}{f', {window}' if window else ''})"


def digest(function, parameters, shape, dtype, key, window):
    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    getattr(xinit, function)(tensor, **parameters, key=key, window=window)
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return hashlib.blake2b(tensor.view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("case", CASES, ids=lambda case: name(*case))
def test_digest(case):
    assert digest(*case) == json.loads(GOLDEN.read_text())["digests"][name(*case)]


def test_the_digests_are_of_this_contract_and_all_different():
    golden = json.loads(GOLDEN.read_text())
    assert golden["contract"] == CONTRACT
    assert set(golden["digests"]) == {name(*case) for case in CASES}
    assert len(set(golden["digests"].values())) == len(golden["digests"])


if __name__ == "__main__":
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"contract": 0, "digests": {}}
    digests = {name(*case): digest(*case) for case in CASES}
    if known["contract"] >= CONTRACT and not known["digests"].items() <= digests.items():
        raise SystemExit(
            f"{GOLDEN.name} is of contract {CONTRACT}: a change of values needs a new version of the contract"
        )
    GOLDEN.write_text(json.dumps({"contract": CONTRACT, "digests": digests}, indent=1) + "\n")
    print(f"{len(digests)} digests")
