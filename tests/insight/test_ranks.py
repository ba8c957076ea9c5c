"""Models in shards, in two processes: see ranks_worker.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import xinit


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_sharded_models_are_seen_as_a_whole(tmp_path):
    worker = str(Path(__file__).with_name("ranks_worker.py"))
    environment = os.environ | {"PYTHONPATH": str(Path(xinit.__file__).parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, worker, str(tmp_path / "store")]
    processes = [subprocess.Popen([*command, str(rank)], env=environment, **pipes) for rank in range(2)]
    try:
        for process in processes:
            log, _ = process.communicate(timeout=120)
            assert process.returncode == 0, log
    finally:
        for process in processes:
            process.kill()
