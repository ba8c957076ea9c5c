"""How long does it take to build a whole model with its weights, and how much memory, beside its plain constructor?

    python benchmarks/models.py [--save] [--models llama-0.5b,gpt2] [--dtypes float32,bfloat16] [--check]

The plain constructor, the same within xinit.accelerate(), within xinit.deferred() and then materialised, and initialised by a
recipe into empty memory. Memory is cold: it goes back to the kernel between runs, so that each first touches its pages, and so
does the yardstick, which fills tensors of the parameters' sizes with a constant. The peak is that of the process above where it
stood before, over the parameters' bytes. The weights are checked before anything is timed. The models are transformers', from
their configurations. Last, what each parameter costs whatever its size: those of a Llama of 8 B parameters, made tiny, so that
nothing but Python takes time, of the processor, the least of many runs; on a GPU this comes before the one launch.
"""

import argparse
import math
import sys
import time
import warnings
from statistics import median

import timing
import torch
from memory import capped

import xinit

ROUNDS = 5
KEY = xinit.Key(0)
# How many times faster than the plain constructor, at least.
FLOORS = {
    ("llama-0.5b", "float32"): {"deferred": 5, "accelerate": 3},
    ("llama-0.5b", "bfloat16"): {"deferred": 6, "accelerate": 3},
    ("gpt2", "float32"): {"deferred": 5},
}
MOST_MEMORY = 1.05  # of the parameters' bytes


def llama(hidden, intermediate, layers, heads, kv_heads, vocabulary):
    import transformers

    return transformers.LlamaForCausalLM, transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
    )


def gpt2():
    import transformers

    return transformers.GPT2LMHeadModel, transformers.GPT2Config()


MODELS = {  # class and configuration, and the recipe of the same weights
    "llama-0.5b": (lambda: llama(2048, 5632, 8, 16, 4, 32000), "llama"),
    "gpt2": (gpt2, "gpt2"),
}


def ways(name, dtype):
    """{way: a function that builds the model}."""
    make, recipe = MODELS[name]
    cls, config = make()
    config.dtype = dtype

    def plain():
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return cls(config)
        finally:
            torch.set_default_dtype(previous)

    def accelerated():
        with xinit.accelerate():
            return plain()

    def deferred():
        with xinit.deferred():
            model = plain()
        return xinit.materialize_(model, "cpu", KEY)

    def by_recipe():
        with torch.device("meta"):
            model = plain()
        model.to_empty(device="cpu")
        model.tie_weights()  # to_empty unties
        return xinit.init_(model, recipe, KEY)

    def floor():
        with torch.device("meta"):
            model = plain()
        return [torch.empty_like(p, device="cpu").fill_(0.5) for p in model.parameters()]

    return {"plain": plain, "accelerate": accelerated, "deferred": deferred, "init_": by_recipe, "fill_": floor}


def check(build):
    """That every way but the floor gives the plain constructor's means and standard deviations, parameter by parameter."""
    eager = {n: (p.float().mean().item(), p.float().std().item()) for n, p in build["plain"]().named_parameters()}
    for way in ("accelerate", "deferred", "init_"):
        for name, parameter in build[way]().named_parameters():
            mean, std = eager[name]
            found, n = parameter.detach().float(), parameter.numel()
            if std == 0:
                assert torch.equal(found, torch.full_like(found, mean)), f"{way}: {name} is not {mean}"
                continue
            # Both samples err: sqrt 2 standard errors of one, and the kurtosis of no distribution here is above the normal's.
            assert abs(found.mean().item() - mean) < 5 * std * math.sqrt(2 / n), f"{way}: mean of {name}"
            assert abs(found.std().item() / std - 1) < 5 / math.sqrt(n) + 1e-3, f"{way}: std of {name}"


def measure(name, dtype, rounds):
    """One record."""
    build = ways(name, getattr(torch, dtype))
    check(build)
    bystanders = timing.Bystanders()
    runs = {way: [] for way in build}
    for r in range(rounds):
        order = list(build)
        for way in order[r % len(order) :] + order[: r % len(order)]:
            runs[way].append(capped(build[way])[:2])  # seconds and bytes at the peak, and the model is given up
    with torch.device("meta"):
        parameters = list(build["plain"]().parameters())
    return {
        "model": name,
        "dtype": dtype,
        "parameters": sum(p.numel() for p in parameters),
        "tensors": len(parameters),
        "bytes": sum(p.nbytes for p in parameters),
        "seconds": {way: median(s for s, _ in results) for way, results in runs.items()},
        "peak": {way: median(p for _, p in results) for way, results in runs.items()},
        "runs": rounds,
        "others": round(bystanders.share(), 3),
    }


def overhead(rounds):
    """{step: microseconds a parameter}."""
    from llama import LLAMA_8B, Llama

    tiny = LLAMA_8B._replace(hidden=8, intermediate=8, heads=4, kv_heads=2, vocabulary=8)
    times = {"deferred": [], "materialize_": [], "init_": []}
    for _ in range(rounds):
        start = time.thread_time()  # what others on the machine take does not count
        with xinit.deferred():
            model = Llama(tiny)
        built = time.thread_time()
        xinit.materialize_(model, "cpu", KEY)
        drawn = time.thread_time()
        xinit.init_(model, "torch", KEY)
        took = built - start, drawn - built, time.thread_time() - drawn
        for taken, seconds in zip(times.values(), took, strict=True):
            taken.append(seconds / len(list(model.parameters())) * 1e6)
    return {step: min(taken) for step, taken in times.items()}


def print_table(record):
    print(
        f"\n{record['model']} {record['dtype']}: {record['parameters'] / 1e6:.0f} M parameters in {record['tensors']} tensors,"
        f" {record['bytes'] / 2**20:.0f} MiB; {record['others']:.0%} of the machine taken by others"
    )
    row = "{:<12} {:>9} {:>16} {:>10} {:>22}".format
    print(row("", "seconds", "M parameters/s", "times plain", "peak / parameters"))
    seconds = record["seconds"]
    for way, took in seconds.items():
        cells = [f"{took:.3f}", f"{record['parameters'] / took / 1e6:.0f}", f"{seconds['plain'] / took:.2f}"]
        print(row(way, *cells, f"{record['peak'][way] / record['bytes']:.3f}"))


def failures(record):
    seconds, peak = record["seconds"], record["peak"]
    for way, floor in FLOORS.get((record["model"], record["dtype"]), {}).items():
        times = seconds["plain"] / seconds[way]
        if times < floor:
            yield f"{record['model']} {record['dtype']}: {way} is {times:.2f} times as fast as plain, floor {floor}"
    if peak["deferred"] > MOST_MEMORY * record["bytes"]:
        yield f"{record['model']} {record['dtype']}: peak of deferred is {peak['deferred'] / record['bytes']:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="llama-0.5b,gpt2")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--check", action="store_true", help="exit 1 where a floor is missed")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/models.json")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    machine = timing.machine()
    print(timing.describe(machine))
    records, broken = [], []
    for name in args.models.split(","):
        for dtype in args.dtypes.split(","):
            records.append(measure(name, dtype, args.rounds))
            print_table(records[-1])
            broken += failures(records[-1])
    costs = overhead(10 * args.rounds)
    print(
        "\nmicroseconds of the processor a parameter, whatever its size:",
        ", ".join(f"{step} {us:.1f}" for step, us in costs.items()),
    )
    if args.save:
        timing.write({"machine": machine, "models": records, "overhead": costs}, timing.RESULTS / "models.json")
    print(*broken, sep="\n")
    return bool(args.check and broken)


if __name__ == "__main__":
    sys.exit(main())
