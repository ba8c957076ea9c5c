"""transformers' and timm's architectures, built small, and what their own init makes of each parameter.

``python tests/architectures.py OUT.jsonl`` builds a model for every configuration, each family in a process with a time limit,
holds all recipes against it, and writes a line for each; ``--timm`` takes the smallest model of each of timm's families.
``--ways`` compares the model, as its constructor builds it, with the ones that come out of ``deferred`` and of ``to_empty``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import random
import signal
import warnings
from collections import Counter
from functools import lru_cache
from pathlib import Path

import torch

import xinit
from xinit import Key, recipes
from xinit.parameters.names import canonical_name
from xinit.recipes import guesses

SMALL = {
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "dim",
            "embed_dim",
            "hidden_dim",
            "encoder_hidden_dim",
            "word_embed_proj_dim",
        ),
        32,
    ),
    **dict.fromkeys(
        ("projection_dim", "embedding_size", "decoder_hidden_size", "mlp_hidden_size", "text_embed_dim"), 32
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers", "depth"), 2
    ),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "decoder_num_hidden_layers", "num_blocks"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "decoder_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("decoder_intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    **dict.fromkeys(("vocab_size", "text_vocab_size"), 160),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    "num_queries": 10,
}


def shrunk(config, skip=()):
    """A configuration with small numbers wherever it has larger ones; also those that it contains."""
    seen = vars(config)
    for name, value in list(seen.items()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            shrunk(value, skip)
        elif isinstance(value, list) and name in ("layer_types", "layers_block_type", "block_types") and len(value) > 2:
            seen[name] = value[: SMALL["num_hidden_layers"]]
    for name, small in SMALL.items():
        if name in skip:
            continue
        with contextlib.suppress(Exception):
            value = getattr(config, name)
            if type(value) is int and value > small:
                setattr(config, name, small)
    for name, value in list(vars(config).items()):
        if name.endswith("token_id") and type(value) is int and value >= SMALL["vocab_size"]:
            seen[name] = 1
    return config


LAYERS = {name for name, small in SMALL.items() if small == 2 and not name.startswith("num_k")}
WIDTHS = set(SMALL) - LAYERS - {"vocab_size", "text_vocab_size", "num_queries"}
MOST = 40_000_000  # parameters


def attempts(kind):
    """Configurations to try, from the smallest on."""
    for skip in ((), ("head_dim", "d_kv"), WIDTHS, WIDTHS | LAYERS, SMALL):
        with contextlib.suppress(Exception):
            yield shrunk(kind.config_class(), skip)


def build(kind):
    """A function that builds the model, or the last error."""
    error = None
    for config in attempts(kind):
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())
        except Exception as e:
            error, size = e, 0
        if size > MOST:
            error = f"{size} parameters"
            continue
        try:
            torch.manual_seed(0)
            kind(copy.deepcopy(config))
        except Exception as e:
            error = e
            continue
        return lambda config=config: kind(copy.deepcopy(config))
    raise RuntimeError(f"{type(error).__name__}: {str(error)[:200]}")


def named(model):
    """The parameters under the names that a plan gives them."""
    return [(canonical_name(name), p) for name, p in model.named_parameters()]


def constants(make):
    """The model; by name, the value of each parameter that has one; and the names of those that are the same for each seed."""
    torch.manual_seed(1)
    random.seed(1)
    first = make()
    torch.manual_seed(2)
    random.seed(2)
    second = dict(named(make()))
    values, fixed = {}, set()
    for name, parameter in named(first):
        other = second[name]
        if parameter.numel() and torch.equal(parameter, other):
            fixed.add(name)
            value = parameter.detach().flatten()[0]
            if bool((parameter == value).all()):
                values[name] = value.item()
    return first, values, fixed


RECIPES = {
    "llama": lambda: "llama",
    "gpt2": lambda: recipes.gpt2(residual=(), layers=2),
    "gpt2, residual": lambda: "gpt2",
    "vit": lambda: "vit",
    "mup": lambda: recipes.mup(outputs=(), tied=True),
    "mup, outputs": lambda: recipes.mup(tied=True),
    "torch": lambda: "torch",
}


def held_against(make, names=tuple(RECIPES), empty=False, really=True):
    """For each recipe: how many of the parameters with a constant were kept, were refused, were changed; and so on.

    Args:
        make: builds the model.
        names: of the recipes.
        empty: build it on the meta device, and give it memory by ``to_empty``.
        really: fill it, and look at the values; otherwise only at the plan.
    """
    report = {}
    model, values, fixed = constants(make)
    before = {name: p.detach().clone() for name, p in named(model) if name in fixed}
    if empty:
        with torch.device("meta"):
            model = make()
        model.to_empty(device="cpu")
    for recipe in names:
        with torch.no_grad():
            for name, p in named(model):
                if not empty and name in before:
                    p.copy_(before[name])
                elif p.dtype.is_floating_point:
                    p.data.fill_(float("nan"))
        try:
            plan = xinit.plan(model, RECIPES[recipe]())
        except ValueError as error:
            report[recipe] = {"error": str(error)[:60]}
            continue
        refused = {row.name: row.problem for row in plan.problems}
        done = {row.name: row.method for row in plan.rows if not row.problem}
        if really and done:
            xinit.init_(model, RECIPES[recipe](), Key(3), only=lambda n, p, m, done=done: n in done)
        wrong = {}
        for name, p in named(model):
            if name not in done or name not in before:
                continue
            value = values.get(name)
            if really:
                same = bool((p == value).all()) if value is not None else not empty and torch.equal(p, before[name])
            else:
                same = value is not None and done[name] == {0: "zeros", 1: "ones"}.get(value, f"constant {value:.3g}")
            if not same:
                wrong[name] = f"{values.get(name, 'computed')} became {p.detach().flatten()[:2].tolist()}"
        report[recipe] = {
            "parameters": len(plan.rows),
            "constant": len(values),
            "computed": len(fixed) - len(values),
            "refused constant": sum(name in values for name in refused),
            "refused computed": sum(name in fixed and name not in values for name in refused),
            "refused random": {n: p for n, p in refused.items() if n not in fixed and "no pattern" not in p},
            "unmatched": sum("no pattern" in problem for problem in refused.values()),
            "kinds": dict(Counter(f"{v:.4g}" for n, v in values.items() if n in refused)),
            "wrong": wrong,
        }
    return report


RANDOM = "random, of another mean or spread"


def built_otherwise(make):
    """What is not as the constructor makes it: within ``deferred``, and of buffers after ``to_empty`` and ``init_``.

    Random parameters are compared by mean and spread, with 6 standard errors of a normal's.
    """
    first, _, fixed = constants(make)
    torch.manual_seed(2)
    other, expected = dict(make().named_buffers()), dict(first.named_buffers())
    expected = {name: b for name, b in expected.items() if torch.equal(b, other[name])}  # of each seed

    def wrong_buffers(model):
        found = dict(model.named_buffers())
        return {name for name, b in expected.items() if name not in found or not torch.equal(b, found[name])}

    with xinit.deferred():
        later = make()
    xinit.materialize_(later, key=Key(3))
    twins = dict(named(later))
    wrong = dict.fromkeys(wrong_buffers(later), "buffer") | {name: what for name, what in xinit.audit(later)}
    for name, p in named(first):
        twin = twins[name]
        if twin.shape != p.shape or twin.dtype != p.dtype or (name in fixed and not torch.equal(p, twin)):
            wrong[name] = "fixed"
        elif name not in fixed and not alike(p, twin):
            wrong[name] = RANDOM
    with torch.device("meta"):
        empty = make()
    empty.to_empty(device="cpu")
    for tensor in (*empty.parameters(), *empty.buffers()):
        tensor.data.view(-1).view(torch.uint8).fill_(77)  # of .data, it does not count as written
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        xinit.init_(empty, {"*": xinit.normal(std=0.02)}, Key(3))
    left = {name for name, what in xinit.audit(empty)}
    raw = wrong_buffers(empty)
    return {
        "parameters": len(twins),
        "buffers": len(expected),
        "wrong": wrong,
        "raw": sorted(raw - left),
        "named": sorted(left),
        "named though right": sorted((left - raw) & expected.keys()),
        "warnings": [str(w.message)[:200] for w in seen if "xinit" in w.filename or "init_:" in str(w.message)],
    }


def alike(x, y):
    """Whether random numbers are of one law, as far as mean and spread tell; without the ends, as torch's trunc_normal_ has
    outliers of a hundred standard deviations."""
    n, cut = x.numel(), x.numel() // 1000 + 1
    if n < 100:
        return True
    x, y = (t.detach().double().flatten().sort().values[cut:-cut] for t in (x, y))
    spread = max(x.std(), y.std())
    same_mean = abs(x.mean() - y.mean()) <= 6 * spread * (2 / n) ** 0.5
    return bool(same_mean and abs(x.std() - y.std()) <= 6 * spread * n**-0.5)


def smallest_of_timm():
    """A name for each module of timm: the smallest model that it has."""
    import timm

    sizes = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module, pretrained=False):
            with contextlib.suppress(Exception), torch.device("meta"):
                size = sum(p.numel() for p in timm.create_model(name, pretrained=False).parameters())
                sizes[module] = min(sizes.get(module, (size, name)), (size, name))
    return sorted(name for _, name in sizes.values())


def families():
    import transformers

    return sorted(p.parent.name for p in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"))


def classes(family):
    """The model classes of a family."""
    import importlib

    import transformers

    folder = Path(transformers.__file__).parent / "models" / family
    found = {}
    for path in sorted(folder.glob("modeling_*.py")):
        module = importlib.import_module(f"transformers.models.{family}.{path.stem}")
        for name in getattr(module, "__all__", ()):
            kind = getattr(module, name)
            known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
            if known and kind.config_class is not None and not name.endswith(("PreTrainedModel", "PretrainedModel")):
                found[name] = kind
    return found


HEADS = (
    "ConditionalGeneration",
    "CausalLM",
    "PreTraining",
    "MaskedLM",
    "ObjectDetection",
    "Segmentation",
    "Classification",
)


def chosen(found):
    """One class for each configuration, with a head if there is one."""
    best = {}
    for name, kind in found.items():
        rank = next((i for i, head in enumerate(HEADS) if head in name), len(HEADS) + ("Model" not in name))
        best.setdefault(kind.config_class, []).append((rank, name, kind))
    return {name: kind for kinds in best.values() for _, name, kind in [min(kinds, key=lambda entry: entry[:2])]}


def one(target, options):
    """A line for each class of a family, or for a model of timm."""
    warnings.simplefilter("ignore")
    if options.timm:
        import timm

        makes = {target: lambda: lambda: timm.create_model(target, pretrained=False)}
    else:
        found = classes(target)
        found = found if options.all else chosen(found)
        makes = {name: (lambda kind=kind: build(kind)) for name, kind in found.items()}
    for name, made in makes.items():
        line = {"family": target, "class": name}
        try:
            make = made()
            try:
                ways = options.ways
                line["report"] = (
                    built_otherwise(make) if ways else held_against(make, empty=options.empty, really=options.really)
                )
            except Exception as error:
                line["crashed"] = f"{type(error).__name__}: {error}"[:600]
        except Exception as error:
            line["failed"] = str(error)[:300]
        yield line


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--all", action="store_true", help="every model class, and not one for each configuration")
    parser.add_argument("--empty", action="store_true", help="on the meta device, and then to_empty")
    parser.add_argument("--really", action="store_true", help="fill the models, and look at the values")
    parser.add_argument("--timm", action="store_true", help="models of timm")
    parser.add_argument("--ways", action="store_true", help="deferred, and to_empty, against the constructor")
    parser.add_argument("--limit", type=int, default=240, help="seconds for each family")
    parser.add_argument("only", nargs="*", help="families, or timm's models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.timm:
        build(next(iter(classes("bert").values())))()  # what it imports, once before the forks
    known = Path(options.out).read_text() if Path(options.out).exists() else ""
    if not options.really:
        guesses.OwnInit = lru_cache(1)(guesses.OwnInit)  # what a model says does not depend on the recipe
    for target in options.only or (smallest_of_timm() if options.timm else families()):
        if f'"family": "{target}"' in known:  # from a run before
            continue
        child = os.fork()
        if not child:
            signal.alarm(options.limit)
            with contextlib.suppress(Exception), Path(options.out).open("a") as out:
                for line in one(target, options):
                    out.write(json.dumps(line) + "\n")
                    out.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            with Path(options.out).open("a") as out:
                out.write(json.dumps({"family": target, "failed": f"status {status}"}) + "\n")


if __name__ == "__main__":
    main()
