"""What gpu_check.py runs on a GPU, each step in a process of its own: python benchmarks/gpu_steps.py STEP cuda RESULTS OUT.json

On "cpu", which is the rehearsal, everything is smaller, and what only a GPU has is left out.
"""

import gc
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import fill
import fill_plots
import timing
import torch
from llama import LLAMA_8B, Llama, Shape
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import xinit

DISTRIBUTIONS = {  # a function's name, but for the underscore, and its arguments
    "uniform": ("uniform", {"a": -0.3, "b": 0.3}),
    "uniform_clamped": ("uniform", {"a": 0.1, "b": 0.7}),
    "normal": ("normal", {"mean": 0.5, "std": 0.02}),
    "truncated": ("trunc_normal", {"mean": 0.0, "std": 0.02, "a": -2.0, "b": 2.0}),
    "truncated_2std": ("trunc_normal", {"mean": 0.0, "std": 0.02, "a": -0.04, "b": 0.04}),
    "truncated_tail": ("trunc_normal", {"mean": 0.0, "std": 1.0, "a": 7.0, "b": 9.0}),
}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 255, 1023, 4097, 65537, 1000003]
MANY = 1 / 1.5  # of the speed of one tensor of that size
WHOLE_MODEL = 1 / 1.3  # of fill_'s speed over the model's bytes times that of the kernel beside fill_
MOST_MEMORY = 1.05  # of the parameters' bytes
REPEATS = 11


class Scale(NamedTuple):
    log2: int  # of the elements that floors hold for
    elements: int  # of one large tensor
    gpt2: tuple[int, int]  # hidden size and vocabulary
    llama: Shape
    tables: tuple  # labels, dtypes and sizes for fill.table
    rounds: int
    again: int  # how often what misses a floor is measured again


FULL = Scale(
    log2=fill.LARGE,
    elements=2**32 + 8,
    gpt2=(768, 50257),
    llama=LLAMA_8B,
    tables=(
        (list(fill.FUNCTIONS), fill.DTYPES[:2], (fill.SIZE, fill.LARGE)),
        (fill_plots.BY_SIZE, ["float32"], range(4, 21, 4)),
    ),
    rounds=timing.ROUNDS,
    again=4,
)
REHEARSAL = Scale(
    12, 2**20 + 8, (48, 500), Shape(256, 704, 2, 8, 2, 1000), ((fill_plots.BY_SIZE, ["float32"], (4, 8)),), 3, 0
)


def scale(device):
    return REHEARSAL if device == "cpu" else FULL


def same_bits(a, b):
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().cpu().view(integers), b.contiguous().cpu().view(integers))


def same_memory(a, b):
    """Of two views of poisoned buffers: what was filled, and that nothing around it was."""
    return same_bits(*(view if view._base is None else view._base for view in (a, b)))


def poisoned(shape, dtype, device):
    """What a fill leaves out must not pass for the values that an earlier one left there."""
    return torch.full(shape if isinstance(shape, tuple) else (shape,), math.nan, dtype=dtype, device=device)


def launches(call, device):
    """{name: seconds each} of the kernels that a call launches; on a CPU, of xinit's operators."""
    with profile(activities=[ProfilerActivity.CPU if device == "cpu" else ProfilerActivity.CUDA]) as profiler:
        call()
        if device != "cpu":
            torch.cuda.synchronize()
    found = {}
    for event in profiler.events():
        kernel = event.device_type == DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
        if event.name.startswith("xinit::") if device == "cpu" else kernel:
            found.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e6)
    return found


def one_launch(call, device, kernel="fill_many"):
    """The seconds of its only kernel, whose name has this in it."""
    found = launches(call, device)
    assert [len(times) for times in found.values()] == [1], f"launched {found}"
    ((name, (took,)),) = found.items()
    assert kernel in name, f"launched {name}"
    return took


def no_waiting(call, device):
    """That torch does not wait for the GPU. It knows of no waits but its own: not of those in CUDA or in other libraries."""
    if device == "cpu":
        call()
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def taking_turns(calls, device):
    """{name: medians of the seconds of single calls, until they return and until the device is done}."""
    for call in calls.values():
        call()
    runs = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            runs[name].append(timing.start_to_end(call, device))
    return {
        name: {
            "host": statistics.median(host for host, _ in times),
            "done": statistics.median(done for _, done in times),
        }
        for name, times in runs.items()
    }


def attempt(found, what, call, *arguments):
    """found[what], or why there is none, which fails the step; but the rest is measured all the same."""
    try:
        found[what] = call(*arguments)
    except Exception as error:
        found.setdefault("problems", []).append(f"{what}: {type(error).__name__}: {error}")
        print(found["problems"][-1], flush=True)


def print_times(name, kernel, host, done):
    times = {"kernel": kernel, "until the call returns": host, "until all is done": done}
    print(f"{name}:", ", ".join(f"{what} {seconds * 1e3:.3f} ms" for what, seconds in times.items() if seconds))


# ---- the steps: each returns what is recorded; "floors" in it are judged; it fails if it raises, or has "problems" ----


def machine(device):
    """What this is."""
    found = timing.machine([device])
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        found["device"] = {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cache_bytes": properties.L2_cache_size,
        }
    return found


def bits(device):
    """CPU and GPU agree: sizes, memory offsets, strides, windows."""
    key, checked = xinit.Key(0x123456789ABCDEF, 77), 0
    for dtype in DTYPES:
        for name, (function, arguments) in DISTRIBUTIONS.items():

            def pair(make, name=name, function=function, arguments=arguments, dtype=dtype, **place):
                draw = partial(getattr(xinit, function + "_"), **arguments, key=key, **place)
                tensors = [draw(make(partial(poisoned, dtype=dtype, device=d))) for d in ("cpu", device)]
                assert same_memory(*tensors), f"{name} {dtype} differs for {tuple(tensors[0].shape)} {place}"

            for n in SIZES:
                for offset in (0, 1, 3):
                    pair(lambda make, n=n, o=offset: make(n + o + 9)[o : o + n])
                    checked += 1
            pair(lambda make: make((97, 131)).t())
            pair(lambda make: make((64, 130))[::2, 1::3])
            pair(lambda make: make((4, 6, 10, 14)).contiguous(memory_format=torch.channels_last))
            for offsets in ((0, 0), (3, 5), (1, 128)):
                offsets = 2**19 + offsets[0], 2**16 + offsets[1]
                pair(lambda make: make((33, 64)), window=xinit.Window((2**20, 2**17 + 3), offsets))
            checked += 6
    return {"fills": checked}


def generator(device):
    """A generator's draws are those of its key; its offset advances by four, whatever the size."""
    if device == "cpu":
        return {"skipped": "needs a GPU"}
    own = torch.Generator(device).manual_seed(1234)
    for stream, n in enumerate((1, 1000, 2**20)):
        assert own.get_offset() == 4 * stream
        drawn = xinit.normal_(torch.empty(n, device=device), generator=own)
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


def graphs(device):
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


def large(device):
    """2^32 + 8 elements of bfloat16: around every power of two the CPU's bits, everywhere something written."""
    n, key = scale(device).elements, xinit.Key(11)
    w = poisoned(n, torch.bfloat16, device)
    xinit.normal_(w, key=key)
    for at in (0, 2**20 - 64, 2**31 - 64, 2**32 - 64, n - 128):
        if 0 <= at <= n - 128:
            part = torch.empty(128, dtype=torch.bfloat16)
            xinit.normal_(part, key=key, window=xinit.Window((n,), (at,)))
            assert same_bits(w[at : at + 128], part), f"differs at {at}"
    chunk = 2**28
    assert not any(torch.isnan(w[i : i + chunk]).any().item() for i in range(0, n, chunk))
    return {"elements": n}


def gpt2_small(hidden, vocabulary):
    """[(name, shape, distribution)]: Radford et al., "Language models are unsupervised multitask learners", 2019."""
    weight, residual, zeros, ones = (
        xinit.normal(std=0.02),
        xinit.normal(std=0.02 / math.sqrt(24)),
        xinit.zeros(),
        xinit.ones(),
    )
    linear = [
        ("attn.c_attn", hidden, 3 * hidden, weight),
        ("attn.c_proj", hidden, hidden, residual),
        ("mlp.c_fc", hidden, 4 * hidden, weight),
        ("mlp.c_proj", 4 * hidden, hidden, residual),
    ]
    parameters = [("wte.weight", (vocabulary, hidden), weight), ("wpe.weight", (1024, hidden), weight)]
    for block in (f"h.{i}" for i in range(12)):
        for name, rows, columns, law in linear:
            parameters += [
                (f"{block}.{name}.weight", (rows, columns), law),
                (f"{block}.{name}.bias", (columns,), zeros),
            ]
    for norm in (*(f"h.{i}.ln_{j}" for i in range(12) for j in (1, 2)), "ln_f"):
        parameters += [(f"{norm}.weight", (hidden,), ones), (f"{norm}.bias", (hidden,), zeros)]
    return parameters


def mixture(device):
    """Every distribution and dtype at odd sizes and places in one call: the CPU's bits."""
    filled = []
    for place in ("cpu", device):
        tensors, laws, keys = [], [], []
        for dtype in DTYPES:
            for name, (function, arguments) in (DISTRIBUTIONS | {"constant": ("constant", {"value": 0.3})}).items():
                for n, offset in ((1, 1), (7, 3), (4097, 0), (70001, 1)):
                    tensors.append(poisoned(n + offset + 9, dtype, place)[offset : offset + n])
                    laws.append(getattr(xinit, function)(**arguments))
                    keys.append(xinit.Key(5).fold_in(f"{name} {n}"))
                tensors.append(poisoned((65, 67), dtype, place).t())  # these are launched one by one
                laws.append(laws[-1])
                keys.append(keys[-1])
        xinit.fill_many_(tensors, laws, keys)
        filled.append(tensors)
    for i, (here, there) in enumerate(zip(*filled, strict=True)):
        assert same_memory(here, there), f"tensor {i} of the mixture differs: {here.dtype} {tuple(here.shape)}"
    return len(filled[0])


def many(device):
    """GPT-2 small's parameters in one launch, without a wait, in hardly more than one tensor's time."""
    shapes, key = gpt2_small(*scale(device).gpt2), xinit.Key(3)
    names, laws = [name for name, *_ in shapes], [law for *_, law in shapes]
    keys = [key.fold_in(name) for name in names]
    found, required = {"tensors": len(shapes), "seconds": {}}, []
    attempt(found, "mixture", mixture, device)
    for dtype in (torch.float32, torch.bfloat16):
        what = str(dtype).removeprefix("torch.")
        tensors = [poisoned(shape, dtype, device) for _, shape, _ in shapes]
        flat = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=dtype, device=device)
        calls = {
            "many": partial(xinit.fill_many_, tensors, laws, keys),
            "one": partial(xinit.normal_, flat, std=0.02, key=key),
        }

        def as_alone(fill_all=calls["many"], tensors=tensors, dtype=dtype):
            fill_all()
            assert not any(tensor.isnan().any().item() for tensor in tensors), "something was left out"
            for i in (0, 2, 3, len(shapes) - 1):
                alone = torch.empty(shapes[i][1], dtype=dtype)
                xinit.fill_many_([alone], [laws[i]], [keys[i]])
                assert same_bits(tensors[i], alone), f"{names[i]} differs"

        attempt(found, f"bits {what}", as_alone)
        attempt(found, f"no wait {what}", no_waiting, calls["many"], device)
        for name, call in calls.items():
            attempt(found, f"kernel {name} {what}", one_launch, call, device, "fill_many" if name == "many" else "")

        def speed(calls=calls, what=what):
            took = found["seconds"][what] = taking_turns(calls, device)
            for name, times in took.items():
                print_times(name, found.get(f"kernel {name} {what}"), **times)
            yield f"GPT-2 small, {what}, of one tensor's speed", MANY, took["one"]["done"] / took["many"]["done"]

        required.append(speed)
    found["floors"] = fill.check(required, scale(device).again)
    return found


def fingerprints(device):
    """That they are the same whether a small model is materialised or initialised by a recipe, on the CPU or the GPU."""
    small, key, prints = REHEARSAL.llama, xinit.Key(3), set()
    for place in ("cpu", device):
        with xinit.deferred():
            deferred = Llama(small)
        xinit.materialize_(deferred, place, key)
        with torch.device("meta"):
            model = Llama(small)
        xinit.init_(model.to_empty(device=place), "torch", key)
        prints |= {xinit.fingerprint(deferred), xinit.fingerprint(model.bfloat16())}
    assert len(prints) == 2, f"fingerprints differ: {prints}"


def models(device):
    """Llama 3's 8 B parameters in bfloat16: one launch, no wait, no memory besides, in hardly more time than the kernel's own."""
    shape, log2, key, rounds = scale(device).llama, scale(device).log2, xinit.Key(3), scale(device).rounds
    with torch.device("meta"):
        model = Llama(shape)
    numbers, normals = sum(p.numel() for p in model.parameters()), model.embed.weight.numel()
    found = {"parameters": numbers, "normal": normals / numbers}  # the rest is uniform, but for the norms' few ones
    attempt(found, "fingerprints", fingerprints, device)

    def materialized(how, *arguments):
        """What `how` makes of the call, with a new model each time; from the second on, its memory is in torch's cache."""
        with xinit.deferred():
            model = Llama(shape).bfloat16()
        gc.collect()
        return how(partial(xinit.materialize_, model, device, key), *arguments)

    def memory(call):
        """At the peak, beside the parameters' own."""
        if device == "cpu":
            call()
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        times = (torch.cuda.max_memory_allocated() - before) / (2 * numbers)
        assert times <= MOST_MEMORY, f"{times:.3f} times the parameters' bytes"
        return times

    attempt(found, "memory", materialized, memory)
    attempt(found, "no wait", materialized, no_waiting, device)
    attempt(found, "kernel", materialized, one_launch, device)

    def speed():
        # The kernel's speed beside fill_, in this same run, for each of the two distributions.
        kernel = {
            label: 1 / fill.measure(label, "bfloat16", log2, device, rounds=rounds)["xinit_times"]["fill_"]
            for label in ("normal_", "kaiming_uniform_")
        }
        ratio = found["normal"] * kernel["normal_"] + (1 - found["normal"]) * kernel["kaiming_uniform_"]
        flat = torch.empty(numbers, dtype=torch.bfloat16, device=device)
        floor = timing.interleaved({"fill_": partial(flat.fill_, 0.5)}, device, rounds)["fill_"]["median"]
        del flat
        runs = [materialized(timing.start_to_end, device) for _ in range(rounds)]
        host, took = (statistics.median(times) for times in zip(*runs, strict=True))
        found["seconds"] = {"fill_": floor, "host": host, "done": took}
        found["kernel_over_fill_"] = kernel | {"together": ratio}
        print_times("materialize_", found.get("kernel"), host, took)
        yield f"Llama of {numbers / 1e9:.1f} B, bfloat16, of fill_ x {ratio:.2f}", WHOLE_MODEL, floor * ratio / took

    found["floors"] = fill.check([speed], scale(device).again)
    return found


def sanitizer(device):
    """compute-sanitizer over fills of all kinds, one by one and many at once, and a fingerprint."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or device == "cpu":
        return {"skipped": "no compute-sanitizer"}
    script = (
        "import torch, xinit\n"
        "key, tensors = xinit.Key(1), []\n"
        "for n in (1, 7, 1001, 65537):\n"
        "  for dtype in (torch.float32, torch.float64, torch.bfloat16):\n"
        "    for o in (0, 1):\n"
        "      for f in (xinit.uniform_, xinit.normal_, xinit.trunc_normal_):\n"
        "        f(torch.empty(n + o, dtype=dtype, device='cuda')[o:], key=key)\n"
        "      tensors.append(torch.empty(n + o, dtype=dtype, device='cuda')[o:])\n"
        "xinit.normal_(torch.empty(65, 67, device='cuda').t(), key=key)\n"
        "xinit.normal_(torch.empty(33, 64, device='cuda'), key=key, window=xinit.Window((99, 99), (3, 5)))\n"
        "xinit.fill_many_(tensors, [xinit.normal()] * len(tensors), [key] * len(tensors))\n"
        "xinit.fingerprint(xinit.init_(torch.nn.Linear(33, 65, device='cuda'), 'torch', key))\n"
        "torch.cuda.synchronize()\n"
    )
    # Without torch's cache every tensor is an allocation of its own, past whose end memcheck sees.
    environment = os.environ | {
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "PYTHONPATH": str(Path(xinit.__file__).parents[1]),
    }
    found = {"tools": []}
    for check in ("memcheck", "racecheck", "synccheck", "initcheck"):
        # What torch tries of CUDA's interface, and does without, is none of memcheck's business.
        options = ["--report-api-errors", "no"] * (check == "memcheck")
        command = [tool, "--tool", check, *options, "--error-exitcode", "9", sys.executable, "-c", script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        print(check, done.stdout[-300:], flush=True)
        assert done.returncode == 0, f"{check}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        found["tools"].append(check)
    return found


def floors(device):
    """fill.py's floors for a GPU."""
    return {"floors": fill.check(fill.gpu_floors(device, scale(device).log2), scale(device).again)}


def speeds(device, results):
    """fill.py's table, which it can plot from RESULTS/fill_cuda.json; what is there so far is written with every row."""
    record = {"machine": timing.machine([device]), "rows": []}
    for labels, dtypes, sizes in scale(device).tables:
        for row in fill.table(device, labels, dtypes, sizes, rounds=scale(device).rounds):
            record["rows"].append(row)
            timing.write(record, results / f"fill_{device}.json", say=False)
    left_out = Counter(f"{name}: {why}" for row in record["rows"] for name, why in row.get("left_out", {}).items())
    return {"rows": len(record["rows"]), "left_out": dict(left_out)}


def main():
    step, device, results, out = sys.argv[1:]
    steps = {
        check.__name__: check for check in (machine, bits, generator, graphs, large, many, models, sanitizer, floors)
    }
    steps["speeds"] = partial(speeds, results=Path(results))
    found = steps[step](device)
    Path(out).write_text(json.dumps(found))
    judged = [floor["verdict"] for floor in found.get("floors", []) if device != "cpu"]
    return 0 if set(judged) <= {"ok"} and "problems" not in found else 1


if __name__ == "__main__":
    sys.exit(main())
