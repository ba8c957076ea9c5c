"""Everything that only a GPU can tell, in one command.

    python benchmarks/gpu_check.py [--results DIR] [--skip-build] [--skip-tests]

Builds the extension in place, runs the test suite, and then, on the GPU: CPU and GPU bits of every distribution, dtype and odd
size, through views and windows; generators and CUDA graphs, whose replays must draw afresh; a tensor of 2^32 + 8 elements; models
and their fingerprints, and the time that one of 8 B parameters takes; compute-sanitizer over a few fills, where it is installed;
and a table of speeds against torch.nn.init and fill_. Writes DIR/gpu_check_<GPU>.json and exits 1 if anything failed. Without a
GPU it says so and exits 2; `--rehearse` walks through the checks on the CPU instead, to test this script.
"""

import argparse
import json
import math
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FILLS = {
    "uniform": lambda x, t, **k: x.uniform_(t, -0.3, 0.3, **k),
    "uniform_clamped": lambda x, t, **k: x.uniform_(t, 0.1, 0.7, **k),
    "normal": lambda x, t, **k: x.normal_(t, 0.5, 0.02, **k),
    "truncated": lambda x, t, **k: x.trunc_normal_(t, std=0.02, a=-2, b=2, **k),
    "truncated_2std": lambda x, t, **k: x.trunc_normal_(t, std=0.02, a=-0.04, b=0.04, **k),
    "truncated_tail": lambda x, t, **k: x.trunc_normal_(t, 0, 1, 7, 9, **k),
}
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 255, 1023, 4097, 65537, 1000003]


def same_bits(a, b):
    import torch

    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().cpu().view(integers), b.contiguous().cpu().view(integers))


def check_bits(xinit, torch, device):
    """CPU and GPU agree: sizes, memory offsets, strides, windows."""
    key, checked = xinit.Key(0x123456789ABCDEF, 77), 0
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for name, fill in FILLS.items():

            def pair(make, name=name, fill=fill, dtype=dtype, **place):
                tensors = [fill(xinit, make(d), key=key, **place) for d in ("cpu", device)]
                assert same_bits(*tensors), f"{name} {dtype} differs for {tuple(tensors[0].shape)} {place}"

            for n in SIZES:
                for offset in (0, 1, 3):
                    pair(lambda d, n=n, o=offset, t=dtype: torch.zeros(n + o, dtype=t, device=d)[o:])
                    checked += 1
            pair(lambda d, t=dtype: torch.zeros(97, 131, dtype=t, device=d).t())
            pair(lambda d, t=dtype: torch.zeros(64, 130, dtype=t, device=d)[::2, 1::3])
            pair(
                lambda d, t=dtype: torch.zeros(4, 6, 10, 14, dtype=t, device=d).contiguous(
                    memory_format=torch.channels_last
                )
            )
            for offsets in ((0, 0), (3, 5), (1, 128)):
                pair(
                    lambda d, t=dtype: torch.zeros(33, 64, dtype=t, device=d),
                    window=xinit.Window((2**20, 2**17 + 3), (2**19 + offsets[0], 2**16 + offsets[1])),
                )
            checked += 6
    return {"fills": checked}


def check_generator(xinit, torch, device):
    """A generator's draws are those of its key; its offset advances by four, whatever the size."""
    if device == "cpu":
        return {"skipped": "needs a GPU"}
    generator = torch.Generator(device).manual_seed(1234)
    for stream, n in enumerate((1, 1000, 2**20)):
        assert generator.get_offset() == 4 * stream
        drawn = xinit.normal_(torch.empty(n, device=device), generator=generator)
        assert same_bits(drawn, xinit.normal_(torch.empty(n), key=xinit.Key(1234, stream)))
    torch.cuda.manual_seed(99)
    a = xinit.uniform_(torch.empty(1000, device=device))
    b = xinit.uniform_(torch.empty(1000, device=device))
    torch.cuda.manual_seed(99)
    assert torch.equal(a, xinit.uniform_(torch.empty(1000, device=device)))
    assert not torch.equal(a, b)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        c = xinit.normal_(torch.empty(1000, device=device), key=xinit.Key(5))
    stream.synchronize()
    assert same_bits(c, xinit.normal_(torch.empty(1000), key=xinit.Key(5)))
    return {}


def check_graphs(xinit, torch, device):
    """Each replay of a captured fill draws afresh, and what eager calls in its place would have drawn."""
    if device == "cpu":
        return {"skipped": "needs a GPU"}
    w = torch.zeros(100003, device=device)
    fixed = torch.zeros(1001, device=device)
    torch.cuda.manual_seed(7)
    xinit.normal_(w)  # warm up
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.manual_seed(7)
    with torch.cuda.graph(graph):
        xinit.normal_(w)
        xinit.normal_(fixed, key=xinit.Key(3))
    replays = []
    for _ in range(3):
        graph.replay()
        replays.append(w.clone())
    torch.cuda.synchronize()
    assert not torch.equal(replays[0], replays[1])
    assert not torch.equal(replays[1], replays[2])
    assert all(abs(r.std().item() - 1) < 0.02 for r in replays)
    assert same_bits(fixed, xinit.normal_(torch.empty(1001), key=xinit.Key(3)))
    torch.cuda.manual_seed(7)
    eager = [xinit.normal_(torch.zeros_like(w)) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(replays, eager, strict=True))
    return {"replays": len(replays)}


def check_large(xinit, torch, device):
    """2^32 + 8 elements of bfloat16: around every power of two the CPU's bits, everywhere something written."""
    n = 2**32 + 8 if device != "cpu" else 2**20 + 8
    key = xinit.Key(11)
    w = torch.full((n,), math.nan, dtype=torch.bfloat16, device=device)
    xinit.normal_(w, key=key)
    for at in (0, 2**20 - 64, 2**31 - 64, 2**32 - 64, n - 128):
        if 0 <= at <= n - 128:
            part = torch.empty(128, dtype=torch.bfloat16)
            xinit.normal_(part, key=key, window=xinit.Window((n,), (at,)))
            assert same_bits(w[at : at + 128], part), f"differs at {at}"
    chunk = 2**28
    assert not any(torch.isnan(w[i : i + chunk]).any().item() for i in range(0, n, chunk))
    return {"elements": n}


def check_models(xinit, torch, device):
    """The same fingerprint whether materialised or initialised on the CPU or the GPU; the time of Llama 3's 8 B shapes."""
    from llama import LLAMA_8B, Llama, Shape

    small, key, prints = Shape(256, 704, 2, 8, 2, 1000), xinit.Key(3), set()
    for place in ("cpu", device):
        with xinit.deferred():
            deferred = Llama(small)
        xinit.materialize_(deferred, place, key)
        with torch.device("meta"):
            model = Llama(small)
        xinit.init_(model.to_empty(device=place), "torch", key)
        prints |= {xinit.fingerprint(deferred), xinit.fingerprint(model.bfloat16())}
    assert len(prints) == 2, f"fingerprints differ: {prints}"
    if device == "cpu":
        return {}
    took = []
    for _ in range(3):
        with xinit.deferred():
            model = Llama(LLAMA_8B).bfloat16()
        torch.cuda.synchronize()
        start = time.perf_counter()
        xinit.materialize_(model, device, key)
        torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
        numbers = sum(p.numel() for p in model.parameters())
        del model
    flat = torch.empty(numbers, dtype=torch.bfloat16, device=device)
    fill = seconds(torch, device, lambda: flat.fill_(0.5))
    return {"parameters": numbers, "materialize_": statistics.median(took), "fill_": fill}


def check_sanitizer(device):
    """compute-sanitizer's memcheck and initcheck over some fills."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or device == "cpu":
        return {"skipped": "no compute-sanitizer"}
    script = (
        "import torch, xinit\n"
        "for n in (1, 7, 1001, 65537):\n"
        "  for dtype in (torch.float32, torch.float64, torch.bfloat16):\n"
        "    for o in (0, 1):\n"
        "      for f in (xinit.uniform_, xinit.normal_, xinit.trunc_normal_):\n"
        "        f(torch.empty(n + o, dtype=dtype, device='cuda')[o:], key=xinit.Key(1))\n"
        "xinit.normal_(torch.empty(65, 67, device='cuda').t(), key=xinit.Key(1))\n"
        "torch.cuda.synchronize()\n"
    )
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", script]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{check}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return {"tools": ["memcheck", "racecheck"]}


def seconds(torch, device, f, repeats=25):
    """The median time of one call, by events on a GPU."""
    for _ in range(3):
        f()
    times = []
    for _ in range(repeats):
        if device == "cpu":
            start = time.perf_counter()
            f()
            times.append(time.perf_counter() - start)
        else:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            f()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def speeds(xinit, torch, device):
    """Against fill_ of the same tensor and torch.nn.init, in the same run."""
    init, rows = torch.nn.init, []
    cases = {
        "xavier_uniform_": (xinit.xavier_uniform_, init.xavier_uniform_),
        "kaiming_normal_": (xinit.kaiming_normal_, init.kaiming_normal_),
        "trunc_normal_": (
            lambda w: xinit.trunc_normal_(w, std=0.02, a=-2, b=2),
            lambda w: init.trunc_normal_(w, std=0.02, a=-2, b=2),
        ),
    }
    for side in (64, 1024, 8192, 16384) if device != "cpu" else (64, 512):
        for dtype in (torch.float32, torch.bfloat16):
            w = torch.empty(side, side, dtype=dtype, device=device)
            floor = seconds(torch, device, partial(w.fill_, 1.0))
            for name, (ours, theirs) in cases.items():
                t, t_torch = (seconds(torch, device, partial(f, w)) for f in (ours, theirs))
                rows.append(
                    {
                        "function": name,
                        "dtype": str(dtype).removeprefix("torch."),
                        "elements": side * side,
                        "seconds": t,
                        "bytes_per_second": w.numel() * w.element_size() / t,
                        "fill_over_xinit": floor / t,
                        "torch_over_xinit": t_torch / t,
                    }
                )
    print(f"{'function':<18} {'dtype':<9} {'elements':>10} {'GB/s':>8} {'fill_/xinit':>12} {'torch/xinit':>12}")
    for r in rows:
        print(
            f"{r['function']:<18} {r['dtype']:<9} {r['elements']:>10} {r['bytes_per_second'] / 1e9:>8.0f} "
            f"{r['fill_over_xinit']:>12.2f} {r['torch_over_xinit']:>12.2f}"
        )
    return rows


def run(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print((done.stdout + done.stderr)[-1500:])
    return done.returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--skip-build", action="store_true")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, to test this script")
    args = parser.parse_args()

    import torch

    if not args.rehearse and not torch.cuda.is_available():
        print(__doc__)
        print(f"No GPU: torch {torch.__version__} finds none.")
        return 2
    passed = {}
    if not args.skip_build:
        passed["build"] = run([sys.executable, "setup.py", "build_ext", "--inplace"])
        if not passed["build"]:
            return 1
    import xinit

    device = "cpu" if args.rehearse else "cuda"
    record = {
        "gpu": platform.processor() or "CPU" if args.rehearse else torch.cuda.get_device_name(),
        "date": time.strftime("%Y-%m-%d"),
        "build": xinit.build_info(),
        "python": platform.python_version(),
        "checks": {},
    }
    if not args.rehearse:
        properties = torch.cuda.get_device_properties(0)
        record["device"] = {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
        }
    if not args.skip_tests:
        passed["tests"] = run([sys.executable, "-m", "pytest", "-x", "--no-header", "tests"])
    checks = {
        "bits": lambda: check_bits(xinit, torch, device),
        "generator": lambda: check_generator(xinit, torch, device),
        "graphs": lambda: check_graphs(xinit, torch, device),
        "large": lambda: check_large(xinit, torch, device),
        "models": lambda: check_models(xinit, torch, device),
        "sanitizer": lambda: check_sanitizer(device),
    }
    for name, check in checks.items():
        start = time.perf_counter()
        try:
            record["checks"][name] = check()
            passed[name] = True
        except Exception as error:  # each check is reported, whatever becomes of the others
            record["checks"][name] = {"error": f"{type(error).__name__}: {error}"}
            passed[name] = False
        print(
            f"{name}: {'ok' if passed[name] else 'FAILED'} {record['checks'][name]} {time.perf_counter() - start:.1f} s"
        )
    record["speeds"] = speeds(xinit, torch, device)
    record["passed"] = passed
    if not args.rehearse:
        args.results.mkdir(parents=True, exist_ok=True)
        path = args.results / f"gpu_check_{re.sub(r'[^A-Za-z0-9]+', '_', record['gpu'])}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written to {path}")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
