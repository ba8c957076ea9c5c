"""Everything that only a GPU can tell, in one command, or in several.

    python benchmarks/gpu_check.py [--only STEP,...] [--results DIR] [--rehearse]

Each step is a process of its own with a limit of less than ten minutes, so that a fault or a hang in one leaves the others:

    build       the extension, in place, for this GPU alone unless TORCH_CUDA_ARCH_LIST is set
    machine     what this is
    tests       the test suite, but for
    body        what a CUDA thread does, compiled for the host under sanitizers
    bits        CPU and GPU bits of every distribution, dtype and odd size, through views and windows
    generator   a generator's draws, and streams
    graphs      CUDA graphs, whose replays must draw afresh
    large       a tensor of 2^32 + 8 elements
    many        GPT-2 small's 148 parameters: bits, one launch, no wait, time beside one tensor
    models      fingerprints; Llama 3's 8 B parameters: one launch, no wait, memory, time beside fill_
    floors      fill.py's floors: beside fill_ and torch.nn.init, and small tensors
    speeds      fill.py's table, with Inductor, Triton, cuRAND and JAX where they are installed: DIR/fill_cuda.json
    sanitizer   compute-sanitizer over some fills, where it is installed

After every step DIR/gpu_check_<GPU>.json holds what is known so far; steps that are not run again keep what they found. Exits 1
if a step that was run failed. Without a GPU it says so and exits 2; `--rehearse` walks through all of it on the CPU instead,
at small sizes and without judging the speeds, to test this script.
"""

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {  # seconds
    "build": 540,
    "machine": 60,
    "tests": 570,
    "body": 570,
    "bits": 240,
    "generator": 60,
    "graphs": 60,
    "large": 120,
    "many": 180,
    "models": 300,
    "floors": 420,
    "speeds": 570,
    "sanitizer": 570,
}


def command(step, device, results, out):
    """The step's, and what it needs in its environment."""
    pytest, body = [sys.executable, "-m", "pytest", "-m", "", "--no-header", "--maxfail=20"], "tests/test_cuda_body.py"
    if importlib.util.find_spec("xdist"):
        # pytest-benchmark would warn that it does not go together with this, and a warning is an error.
        pytest += ["-n", "8", "-p", "no:benchmark"]
    threads = {"OMP_NUM_THREADS": "2"} if "-n" in pytest else {}
    if step == "build":
        import torch

        arches = (
            {} if device == "cpu" else {"TORCH_CUDA_ARCH_LIST": "{}.{}".format(*torch.cuda.get_device_capability())}
        )
        return [sys.executable, "setup.py", "build_ext", "--inplace"], arches
    if step in ("tests", "body"):
        return [*pytest, *([body] if step == "body" else ["--ignore", body])], threads
    return [sys.executable, "benchmarks/gpu_steps.py", step, device, str(results), str(out)], {}


def run(step, device, results):
    """What is recorded of it. Its output goes on, and the end of it is kept if the step fails."""
    start, tail = time.perf_counter(), deque(maxlen=60)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "found.json"
        words, defaults = command(step, device, results, out)
        late = threading.Event()
        with subprocess.Popen(
            words,
            cwd=ROOT,
            env=defaults | {"PYTHONUNBUFFERED": "1"} | os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=os.setpgrp,  # so that its compilers and workers are stopped with it
        ) as process:

            def stop():
                late.set()
                os.killpg(process.pid, signal.SIGKILL)

            timer = threading.Timer(LIMITS[step], stop)
            timer.start()
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    tail.append(line)
                code = process.wait()
            finally:
                timer.cancel()
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        found = json.loads(out.read_text()) if out.exists() else {}
    found = {
        "passed": code == 0,
        "took": round(time.perf_counter() - start, 1),
        "at": time.strftime("%F %T"),
    } | found
    if late.is_set():
        found["error"] = f"stopped after {LIMITS[step]} s"
    if code:
        found["output"] = "".join(tail)[-6000:]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="STEP,...", help="these steps; by default all")
    parser.add_argument("--results", type=Path, metavar="DIR", help="benchmarks/results, or somewhere else")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, to test this script")
    args = parser.parse_args()
    steps = args.only.split(",") if args.only else list(LIMITS)
    if unknown := set(steps) - set(LIMITS):
        parser.error(f"--only: there is no step {', '.join(sorted(unknown))}")

    import torch

    if not args.rehearse and not torch.cuda.is_available():
        print(__doc__)
        print(f"No GPU: torch {torch.__version__} finds none.")
        return 2
    device, gpu = ("cpu", "rehearsal") if args.rehearse else ("cuda", torch.cuda.get_device_name())
    results = args.results or (Path(tempfile.mkdtemp()) if args.rehearse else ROOT / "benchmarks" / "results")
    results = results.resolve()
    path = results / f"gpu_check_{re.sub(r'[^A-Za-z0-9]+', '_', gpu)}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"gpu": gpu, "steps": {}}

    def keep(step, found):
        record["steps"][step] = found
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(path)  # whole, whenever this is stopped

    for step in steps:
        print(f"== {step}", flush=True)
        keep(step, {"passed": False, "error": "did not come to its end"})
        keep(step, found := run(step, device, results))
        print(f"== {step}: {'ok' if found['passed'] else 'FAILED'}, {found['took']} s", flush=True)
        if step == "build" and not found["passed"]:
            break
    for step in LIMITS:
        found = record["steps"].get(step)
        print(f"{step:<10} {'not run' if found is None else 'ok' if found['passed'] else 'FAILED'}")
    print(f"written to {path}")
    return 0 if all(record["steps"][step]["passed"] for step in steps if step in record["steps"]) else 1


if __name__ == "__main__":
    sys.exit(main())
