"""Sharded models in real processes, 1 to 4 of them: the cases are in distributed_worker.py, all of which one run goes through."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_worker import CASES, WORLDS

import xinit

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, str(here / "distributed_worker.py"), str(folder)],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(map(str, (Path(xinit.__file__).parents[1], here))),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        log, _ = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        log, _ = process.communicate()
    found = {}
    for world in WORLDS:
        if (folder / f"{world}.json").exists():
            found |= json.loads((folder / f"{world}.json").read_text())
    return found, log


@pytest.mark.parametrize("name", CASES)
def test_processes(results, name):
    found, log = results
    assert name in found, f"not reached:\n{log}"
    assert not found[name], found[name]
